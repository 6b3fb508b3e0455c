"""Bytes to pixels. What is wrong with an image comes back as a value: a row with a reason, not a crash.

Every function here may run in many threads at once.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from pydantic import BaseModel, ConfigDict, Field

from pipeline.errors import RaylensError
from pipeline.redaction import redact_urls
from pipeline.sources.files import filesystem, is_url

# Only these are opened, whatever the suffix says: others run programs (EPS) or have no fixed size. Naming the plugins
# registers them here and now, instead of in whichever thread meets the first TIFF.
FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        WebPImagePlugin.WebPImageFile,
        TiffImagePlugin.TiffImageFile,
        PpmImagePlugin.PpmImageFile,
    )
)
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What PIL would warn of is either checked here (the size) or tells itself in the result (damaged metadata).
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Limits(BaseModel):
    """What an image may cost, and how its EXIF orientation is read.

    ``exif: ignore`` is what torchvision does and what box annotations assume.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_megapixels: float = Field(default=100.0, gt=0)
    max_mbytes: float = Field(default=256.0, gt=0, description="of the file, in 10^6 bytes")
    exif: Literal["ignore", "apply"] = "ignore"


@dataclass(frozen=True)
class Decoded:
    """An image: ``pixels`` uint8 [height, width, 3], RGB.

    ``width`` and ``height`` are the original's (turned, with ``exif: apply``); ``pixels`` is smaller where a JPEG was
    decoded at a fraction of its size.
    """

    pixels: np.ndarray
    width: int
    height: int


@dataclass(frozen=True)
class DecodeError:
    """Why there is no image. ``kind`` "unreachable" may pass when asked again; the others will not."""

    reason: str
    kind: Literal["missing", "denied", "unreachable", "empty", "too_large", "unreadable"]


_DEFAULT = Limits()


def read_bytes(uri: str, limits: Limits = _DEFAULT) -> bytes | DecodeError:
    """The file's bytes from a local path or any fsspec URL, or why not: missing, empty, too large, not a file."""
    limit = round(limits.max_mbytes * 1e6)
    try:
        data = _read_remote(uri, limit) if is_url(uri) else _read_local(uri, limit)
    except FileNotFoundError:
        return DecodeError("the file does not exist", "missing")
    except PermissionError as error:
        return DecodeError(f"the file may not be read: {error.strerror or error}", "denied")
    except IsADirectoryError:
        return DecodeError("is a folder, not a file", "unreadable")
    except RaylensError as error:
        return DecodeError(error.what, "unreachable")
    except Exception as error:  # noqa: BLE001 - storage back ends raise their own types
        # What S3 and HTTP servers answer to a range of an empty file.
        if any(words in str(error) for words in ("InvalidRange", "range is not satisfiable", "416,")):
            return DecodeError("the file is empty (0 bytes)", "empty")
        return DecodeError(redact_urls(f"the file cannot be read: {type(error).__name__}: {error}"), _kind(error))
    if data is None or len(data) > limit:
        return DecodeError(f"the file is larger than max_mbytes = {limits.max_mbytes:g}", "too_large")
    return data or DecodeError("the file is empty (0 bytes)", "empty")


def _kind(error: Exception) -> Literal["missing", "denied", "unreachable", "unreadable"]:
    """Whether it may pass. A server that answers "no" (4xx) means this file, but for "later" and "too often"."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        return "missing" if status in (404, 410) else "denied" if status in (401, 403) else "unreadable"
    never = (errno.ENAMETOOLONG, errno.EINVAL)  # not EIO: so s3fs and FUSE call whatever they have no word for
    return "unreadable" if isinstance(error, ValueError) or getattr(error, "errno", None) in never else "unreachable"


def _read_local(path: str, limit: int) -> bytes | None:
    path = path.removeprefix("file://")
    # Not blocking: opening a pipe would wait for a writer that never comes.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return None if status.st_size > limit else file.read(limit + 1)


def _read_remote(uri: str, limit: int) -> bytes:
    fs, path = filesystem(uri)
    # One request with a range instead of a question for the size and then one for the bytes.
    return bytes(fs.cat_file(path, start=0, end=limit + 1))


def decode(data: bytes, limits: Limits = _DEFAULT, *, draft: tuple[int, int] | None = None) -> Decoded | DecodeError:
    """RGB pixels of an encoded image, or why there are none; never raises for what is in ``data``.

    Grey, palette, CMYK and alpha images become RGB as PIL converts them (alpha is dropped); 16 bits are scaled by
    1/257 and rounded (PNG and grey images; elsewhere PIL keeps the high byte); of several frames the first is taken.
    ``draft`` (height, width): a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as it stays at least that
    large, which is several times faster.
    """
    if not data:
        return DecodeError("the file is empty (0 bytes)", "empty")
    limit = round(limits.max_megapixels * 1e6)
    try:
        if Image.MAX_IMAGE_PIXELS is not None:  # only ever raised, so threads cannot disagree for long
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > limit:
                return _too_large(f"{width} x {height} pixels", limits)
            if width < 1 or height < 1:
                return DecodeError(f"the image has {width} x {height} pixels", "unreadable")
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1)) if limits.exif == "apply" else None
            swapped = turn is not None and turn not in (_TURNS[2], _TURNS[3], _TURNS[4])
            if draft is not None and image.format == "JPEG":
                image.draft(None, draft if swapped else draft[::-1])  # PIL writes (width, height)
            pixels = _rgb(image)
        if turn is not None:
            pixels = np.asarray(Image.fromarray(pixels).transpose(turn))
            width, height = (height, width) if swapped else (width, height)
        return Decoded(pixels, width, height)
    except Image.DecompressionBombError:
        return _too_large("more than twice as many pixels", limits)
    except UnidentifiedImageError:
        return DecodeError(f"not an image of a known format ({', '.join(FORMATS)})", "unreadable")
    except Exception as error:  # noqa: BLE001 - damaged files make PIL's plugins raise almost anything
        return DecodeError(f"cannot be decoded: {type(error).__name__}: {error}", "unreadable")


def load(uri: str, limits: Limits = _DEFAULT, *, draft: tuple[int, int] | None = None) -> Decoded | DecodeError:
    """``read_bytes``, then ``decode``."""
    data = read_bytes(uri, limits)
    return data if isinstance(data, DecodeError) else decode(data, limits, draft=draft)


def _too_large(what: str, limits: Limits) -> DecodeError:
    return DecodeError(f"{what} are more than max_megapixels = {limits.max_megapixels:g}", "too_large")


def _rgb(image: ImageFile.ImageFile) -> np.ndarray:
    """uint8 [H, W, 3], in memory of its own."""
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    low = _low_bytes(image)
    if image.mode == "P" or "transparency" in image.info:
        # Asked for RGB straight away, PIL warns; the alpha this makes is dropped below.
        image.load()
        high = np.asarray(image.convert("RGBA"))[:, :, :3]
    else:
        high = np.asarray(image.convert("RGB"))
    if low is not None:
        return _narrow(high.astype(np.uint32) * 256 + low)
    return np.ascontiguousarray(high)


def _narrow(values: np.ndarray) -> np.ndarray:
    """0..65535 -> 0..255: v / 257, rounded."""
    return ((values + 128) // 257).astype(np.uint8)


def _deep_grey(image: ImageFile.ImageFile) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    values = np.asarray(image)
    if image.mode == "I" and values.size and (values.min() < 0 or values.max() > 65535):
        raise ValueError("32-bit pixels beyond 0..65535 have no agreed range")
    grey = _narrow(values.astype(np.uint32))
    return np.repeat(grey[:, :, None], 3, axis=2)


def _low_bytes(image: ImageFile.ImageFile) -> np.ndarray | None:
    """The low bytes of 16-bit RGB, [H, W, 3], else None.

    PIL keeps 8 bits of a multi-channel image, the high ones. Read as if it were of the other byte order, the same
    file yields the low ones.
    """
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA") or not image.tile:
        return None
    tile = image.tile[0]
    if tile[3] not in ("RGB;16B", "RGBA;16B") or image.fp is None:
        return None
    source = image.fp
    assert isinstance(source, io.BytesIO)
    with Image.open(io.BytesIO(source.getvalue()), formats=["PNG"]) as again:
        again.tile = [type(tile)(tile[0], tile[1], tile[2], str(tile[3]).replace("16B", "16L"))]
        return np.asarray(again)[:, :, :3].astype(np.uint32)
