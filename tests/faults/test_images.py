"""Odd images through the whole engine: each is a row, ok or failed with its reason; none stops the job."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import Means, MeansConfig, folder_source
from PIL import Image

from pipeline import plan as plans
from pipeline import steps
from pipeline.engine import execute
from pipeline.options import Options, Resources
from pipeline.run import Run
from pipeline.shards import Shards

pytestmark = pytest.mark.timeout(900)  # starts Ray, which a busy machine may do only at the third try


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds nothing: opening it must not allocate it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def odd_images(folder: Path) -> dict[str, list[float] | str]:
    """Writes the images; gives the mean colour each must have, or a word of the reason it must fail with."""
    folder.mkdir()
    orange = Image.new("RGB", (40, 30), (255, 128, 0))
    good = encoded(orange, "JPEG", quality=95)
    deep = np.full((30, 40), 257 * 100, dtype=np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    files: dict[str, tuple[bytes, list[float] | str]] = {
        "cmyk.jpg": (encoded(orange.convert("CMYK"), "JPEG", quality=95), [255, 128, 0]),
        "deep.png": (encoded(Image.fromarray(deep), "PNG"), [100, 100, 100]),
        "empty.jpg": (b"", "empty"),
        "good.jpg": (good, [255, 128, 0]),
        "grey.png": (encoded(Image.new("L", (40, 30), 7), "PNG"), [7, 7, 7]),
        "huge.png": (png_header(20_000, 10_000), "megapixels"),
        "palette.png": (encoded(orange.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"), [255, 128, 0]),
        "rotated.jpg": (encoded(orange, "JPEG", quality=95, exif=exif), [255, 128, 0]),
        "text.jpg": (b"this is no image at all", "image"),
        "truncated.jpg": (good[: len(good) // 2], "truncated"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: expected for name, (_, expected) in files.items()}


@pytest.mark.parametrize("mode", ["inline", "spread"])
def test_every_odd_image_is_a_row(cluster: str, tmp_path: Path, mode: str) -> None:
    expected = odd_images(tmp_path / "images")
    sources = {"all": folder_source(str(tmp_path / "images"))}
    job = steps.Job("odd", {}, sources, (steps.Measure("means", Means(MeansConfig()), ("all",)),))
    run = str(tmp_path / "run")
    outcome = execute(job, run, Options(resources=Resources(mode=mode), say=lambda _: None))
    assert outcome.exit_code == 3
    folder = Run(run).step_folder("means", split="all")
    plan = plans.load(folder)
    assert plan is not None
    rows = {row["key"]: row for table in Shards(folder, plan.shards).tables() for row in table.to_pylist()}
    assert sorted(rows) == sorted(expected)
    for name, what in expected.items():
        if isinstance(what, str):
            assert rows[name]["status"] == "failed", name
            assert what in rows[name]["error"].lower(), (name, rows[name]["error"])
            assert rows[name]["mean"] is None
        else:
            assert rows[name]["status"] == "ok", (name, rows[name]["error"])
            assert rows[name]["mean"] == pytest.approx(what, abs=3)
