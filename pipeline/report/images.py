"""Pictures carried inside the page: bytes -> data URI with a size in CSS pixels."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass

import numpy as np
from PIL import Image

_DATA_URI = re.compile(r"data:image/(png|jpeg|svg\+xml);base64,[A-Za-z0-9+/=]+\Z")


@dataclass(frozen=True)
class DataImage:
    """An image as a data URI; ``width`` and ``height`` are CSS pixels (a raster holds more, to be crisp at 2x).

    Only base64 data URIs are let in, so that no page can be made to fetch anything.
    """

    uri: str
    width: int
    height: int

    def __post_init__(self) -> None:
        if not _DATA_URI.match(self.uri):
            raise ValueError(f"a report carries its images: expected a base64 data URI, got {self.uri[:40]!r}")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"an image of {self.width}x{self.height} pixels cannot be shown")

    @property
    def bytes_in_page(self) -> int:
        return len(self.uri)


def data_uri(data: bytes, media: str) -> str:
    return f"data:image/{media};base64,{base64.b64encode(data).decode('ascii')}"


def jpeg(pixels: np.ndarray, *, quality: int = 82, density: float = 2.0) -> DataImage:
    """uint8 [H, W, 3] -> JPEG; shown at 1/density of its pixels. For photographs."""
    return _raster(pixels, "JPEG", "jpeg", density, quality=quality, optimize=True)


def png(pixels: np.ndarray, *, density: float = 2.0) -> DataImage:
    """uint8 [H, W] / [H, W, 3|4] -> PNG; shown at 1/density of its pixels. For drawings and exact pixels."""
    return _raster(pixels, "PNG", "png", density, optimize=True)


def svg(text: str, width: float, height: float) -> DataImage:
    """An SVG document, shown at ``width`` x ``height`` CSS pixels."""
    return DataImage(data_uri(text.encode("utf-8"), "svg+xml"), round(width), round(height))


def _raster(pixels: np.ndarray, form: str, media: str, density: float, **options: int) -> DataImage:
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels are uint8, not {pixels.dtype}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, form, **options)
    height, width = pixels.shape[:2]
    return DataImage(
        data_uri(buffer.getvalue(), media), max(1, round(width / density)), max(1, round(height / density))
    )
