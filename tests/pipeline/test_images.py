"""Bytes to RGB pixels, and every way in which they may be bad."""

from __future__ import annotations

import errno
import io
import os
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images import Decoded, DecodeError, Limits, decode, load, read_bytes


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An image JPEG keeps within a few grey levels: uint8 [height, width, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: Image.Image | np.ndarray, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, form, **options)
    return out.getvalue()


def png(header: tuple[int, int, int, int], rows: bytes) -> bytes:
    """A PNG written by hand: (width, height, bit depth, colour type) and the raw scan lines without filter bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width, height, depth, colour = header
    stride = len(rows) // height if rows else 0
    lines = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height)) if rows else b""
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def pixels(data: bytes, **options: object) -> np.ndarray:
    found = decode(data, Limits(**options))  # type: ignore[arg-type]
    assert isinstance(found, Decoded), found
    assert found.pixels.dtype == np.uint8
    assert found.pixels.shape == (found.height, found.width, 3)
    return found.pixels


def reason(data: bytes, limits: Limits | None = None) -> str:
    found = decode(data, limits or Limits())
    assert isinstance(found, DecodeError), "was decoded"
    return found.reason


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_as_they_were(form: str) -> None:
    image = smooth(31, 17)
    np.testing.assert_array_equal(pixels(encoded(image, form)), image)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_lossy_formats_come_back_nearly(form: str) -> None:
    image = smooth(40, 56)
    assert np.abs(pixels(encoded(image, form, quality=95)).astype(int) - image).mean() < 3


def test_grey_and_one_bit_images_are_spread_over_three_channels() -> None:
    grey = smooth(9, 8)[:, :, 0]
    np.testing.assert_array_equal(pixels(encoded(grey, "PNG")), np.repeat(grey[:, :, None], 3, 2))
    bits = Image.fromarray(grey > 128)
    np.testing.assert_array_equal(pixels(encoded(bits, "PNG"))[:, :, 0], np.where(grey > 128, 255, 0))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(0, 256, 16))])
def test_palette_images_become_their_colours_transparent_or_not(transparency: int | bytes | None) -> None:
    image = Image.fromarray(smooth(12, 10)).quantize(16)
    want = np.asarray(image.convert("RGB"))
    options = {} if transparency is None else {"transparency": transparency}
    np.testing.assert_array_equal(pixels(encoded(image, "PNG", **options)), want)


def test_alpha_is_dropped_and_the_colours_beneath_it_kept() -> None:
    image = np.dstack([smooth(6, 7), np.tile(np.arange(7, dtype=np.uint8) * 40, (6, 1))])
    np.testing.assert_array_equal(pixels(encoded(image, "PNG")), image[:, :, :3])


def test_cmyk_jpeg_becomes_rgb() -> None:
    image = smooth(24, 24)
    data = encoded(Image.fromarray(image).convert("CMYK"), "JPEG", quality=95)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(pixels(data).astype(int) - image).mean() < 4


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (6, 4)])
def test_sixteen_bits_are_divided_by_257_and_rounded(colour: int, channels: int) -> None:
    values = np.random.default_rng(1).integers(0, 65536, (5, 7, channels))
    values[0, 0], values[0, 1], values[0, 2] = 65535, 0, 255
    found = pixels(png((7, 5, 16, colour), values.astype(">u2").tobytes()))
    want = np.rint(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(found, want[:, :, :3] if channels > 1 else np.repeat(want, 3, 2))


def test_sixteen_bit_tiff_too_but_floats_have_no_range() -> None:
    values = np.random.default_rng(1).integers(0, 65536, (5, 7), np.uint16)
    np.testing.assert_array_equal(pixels(encoded(values, "TIFF"))[:, :, 1], np.rint(values / 257))
    assert "range" in reason(encoded(values.astype(np.float32), "TIFF"))


def test_the_first_frame_of_an_animation_is_the_image() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_ignored_unless_asked_for(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(smooth(24, 40), "PNG", exif=exif)
    stored = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(pixels(data), np.asarray(stored))
    np.testing.assert_array_equal(pixels(data, exif="apply"), np.asarray(ImageOps.exif_transpose(stored)))


def test_a_draft_is_a_smaller_jpeg_at_least_as_large_as_asked() -> None:
    image = smooth(400, 640)
    data = encoded(image, "JPEG", quality=95)
    found = decode(data, draft=(90, 150))
    assert isinstance(found, Decoded)
    assert found.pixels.shape == (100, 160, 3)
    assert (found.height, found.width) == (400, 640)
    want = np.asarray(Image.fromarray(image).resize((160, 100), Image.Resampling.BOX))
    assert np.abs(found.pixels.astype(int) - want).mean() < 3
    for draft, shape in (((300, 300), (400, 640, 3)), ((5000, 5000), (400, 640, 3)), ((1, 1), (50, 80, 3))):
        found = decode(data, draft=draft)
        assert isinstance(found, Decoded)
        assert found.pixels.shape == shape
    assert decode(encoded(image, "PNG"), draft=(90, 150)).pixels.shape == (400, 640, 3)  # type: ignore[union-attr]


def test_a_draft_of_a_turned_image_is_asked_for_as_it_will_stand() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode(encoded(smooth(400, 640), "JPEG", exif=exif), Limits(exif="apply"), draft=(150, 90))
    assert isinstance(found, Decoded)
    assert found.pixels.shape == (160, 100, 3)
    assert (found.height, found.width) == (640, 400)


def test_the_size_is_refused_from_the_header_before_anything_is_decoded() -> None:
    # 200 megapixels and 3 gigapixels, with no pixel data behind the header: decoding would say something else.
    for side in (14_143, 55_000):
        found = decode(png((side, side, 8, 2), b""))
        assert isinstance(found, DecodeError)
        assert found.kind == "too_large"
        assert "max_megapixels = 100" in found.reason
    data = encoded(smooth(100, 101), "JPEG")
    assert "101 x 100" in reason(data, Limits(max_megapixels=0.01))
    assert "0.01" in reason(data, Limits(max_megapixels=0.01))
    assert isinstance(decode(data, Limits(max_megapixels=0.0101)), Decoded)


def test_a_limit_above_pils_own_is_a_limit() -> None:
    # PIL itself refuses 2 x 89 megapixels; the pixel data that is missing here must be what is told.
    assert "max_megapixels" not in reason(png((14_143, 14_143, 8, 0), b""), Limits(max_megapixels=250))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"\0" * 1000, "known format"),
        (b"<html>not found</html>", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "known format"),
        (b"\xff\xd8\xff", "known format"),
    ],
)
def test_what_is_no_image_has_a_reason(data: bytes, word: str) -> None:
    assert word in reason(data)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_image_is_an_error_not_half_an_image(form: str) -> None:
    data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), form)
    for share in (0.1, 0.5, 0.9):
        assert reason(data[: int(len(data) * share)])


SAMPLES = {
    "JPEG": encoded(smooth(40, 33), "JPEG"),
    "progressive": encoded(smooth(40, 33), "JPEG", progressive=True),
    "PNG": encoded(smooth(20, 33), "PNG"),
    "palette": encoded(Image.fromarray(smooth(20, 33)).quantize(7), "PNG", transparency=2),
    "16 bit": png((7, 5, 16, 2), bytes(range(210))),
    "WEBP": encoded(smooth(20, 33), "WEBP"),
    "GIF": encoded(smooth(20, 33), "GIF"),
    "TIFF": encoded(smooth(20, 33), "TIFF", compression="tiff_lzw"),
}


@settings(max_examples=400, deadline=None)
@given(
    form=st.sampled_from(sorted(SAMPLES)),
    cut=st.none() | st.integers(0, 2**16),
    flips=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    insert=st.binary(max_size=8),
    apply=st.booleans(),
)
def test_damaged_images_are_decoded_or_refused_but_never_raise(
    form: str, cut: int | None, flips: list[tuple[int, int]], insert: bytes, apply: bool
) -> None:
    data = bytearray(SAMPLES[form])
    for at, byte in flips:
        data[at % len(data)] = byte
    if cut is not None:
        at = cut % len(data)
        data[at:] = insert
    limits = Limits(max_megapixels=4, exif="apply" if apply else "ignore")
    found = decode(bytes(data), limits, draft=(16, 16))
    if isinstance(found, Decoded):
        assert found.pixels.ndim == 3
        assert found.pixels.dtype == np.uint8
        assert found.width * found.height <= 4e6
    else:
        assert found.reason


def test_decoding_in_threads_gives_what_one_thread_gives() -> None:
    many = [SAMPLES[form] for form in sorted(SAMPLES)] * 6
    alone = [decode(data) for data in many]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, many))
    for one, other in zip(alone, together, strict=True):
        assert isinstance(one, Decoded)
        assert isinstance(other, Decoded)
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_pixels_own_their_memory() -> None:
    found = decode(SAMPLES["PNG"])
    assert isinstance(found, Decoded)
    assert found.pixels.flags.c_contiguous


def kind(found: bytes | DecodeError) -> str:
    assert isinstance(found, DecodeError)
    assert found.reason
    return found.kind


def test_files_are_read_or_there_is_a_reason(tmp_path: Path) -> None:
    good = tmp_path / "good #1?.bin"
    good.write_bytes(b"abc")
    assert read_bytes(str(good)) == b"abc"
    assert read_bytes(f"file://{good}") == b"abc"
    assert kind(read_bytes(str(tmp_path / "none"))) == "missing"
    assert kind(read_bytes(str(tmp_path))) == "unreadable"
    assert kind(read_bytes(str(tmp_path / ("x" * 300)))) == "unreadable"
    assert kind(read_bytes("a\0b")) == "unreadable"
    (tmp_path / "empty").write_bytes(b"")
    assert kind(read_bytes(str(tmp_path / "empty"))) == "empty"
    (tmp_path / "large").write_bytes(b"x" * 1001)
    assert kind(read_bytes(str(tmp_path / "large"), Limits(max_mbytes=0.001))) == "too_large"
    assert len(read_bytes(str(tmp_path / "large"), Limits(max_mbytes=0.001001))) == 1001  # type: ignore[arg-type]


def test_a_pipe_named_as_an_image_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    answers: list[bytes | DecodeError] = []
    reader = threading.Thread(target=lambda: answers.append(read_bytes(str(tmp_path / "pipe.jpg"))), daemon=True)
    reader.start()
    reader.join(120)
    assert answers, "it blocks"
    assert kind(answers[0]) == "unreadable"


def test_object_stores_are_read_with_the_same_limits() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe("/raylens-images/a.png", SAMPLES["PNG"])
    fs.pipe("/raylens-images/empty", b"")
    found = load("memory://raylens-images/a.png")
    assert isinstance(found, Decoded)
    np.testing.assert_array_equal(found.pixels, smooth(20, 33))
    assert kind(read_bytes("memory://raylens-images/empty")) == "empty"
    assert kind(read_bytes("memory://raylens-images/none")) == "missing"
    assert kind(read_bytes("memory://raylens-images/a.png", Limits(max_mbytes=1e-4))) == "too_large"
    assert kind(read_bytes("nosuchprotocol://x/a.png")) == "unreachable"
    assert isinstance(load("memory://raylens-images/none"), DecodeError)


def test_real_images_decode(real_data: Path) -> None:
    for path in sorted((real_data / "imagenet_sample").iterdir())[:20]:
        found = load(str(path))
        assert isinstance(found, Decoded)
        np.testing.assert_array_equal(found.pixels, np.asarray(Image.open(path).convert("RGB")))


class AnswerError(Exception):
    """As aiohttp tells a status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, message='no'")
        self.status = status


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (AnswerError(403), "denied"),
        (AnswerError(410), "missing"),
        (AnswerError(451), "unreadable"),
        (AnswerError(429), "unreachable"),
        (AnswerError(503), "unreachable"),
        (OSError(errno.EIO, "An error occurred (SlowDownRead)"), "unreachable"),
        (OSError(errno.EINVAL, "not a regular file"), "unreadable"),
        (OSError(errno.ESTALE, "the server was restarted"), "unreachable"),
        (ConnectionResetError("by peer"), "unreachable"),
    ],
)
def test_only_what_may_pass_is_called_unreachable(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: str) -> None:
    def read(path: str, limit: int) -> bytes:
        raise error

    monkeypatch.setattr("pipeline.images._read_local", read)
    found = read_bytes("somewhere.jpg")
    assert isinstance(found, DecodeError)
    assert found.kind == kind
