"""Images with maps laid over them, as JPEG cells of a grid that stays within a byte budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from PIL import Image

from pipeline.report.blocks import Box, Picture, PictureGrid, PictureRow, Tone
from pipeline.report.images import DataImage, jpeg

# (longest side in pixels, JPEG quality), best first: the first that fits the budget is taken for the whole grid.
_LADDER = ((400, 85), (360, 80), (320, 75), (280, 70), (240, 65), (200, 55), (160, 45))
# A smooth map has no pixel far above the rest; of a noisy gradient the few brightest would leave all else dark.
_FULL_SCALE = 99.5


@dataclass(frozen=True)
class Cell:
    """What one cell shows: an image uint8 [H, W, 3], a map [h, w] over all of it, boxes; or why there is nothing."""

    image: np.ndarray | None
    alt: str
    heat: np.ndarray | None = None
    boxes: Sequence[Box] = ()
    note: str = ""
    tone: Tone = ""
    missing: str = ""


def blend(image: np.ndarray, heat: np.ndarray, *, signed: bool = False, strength: float = 0.82) -> np.ndarray:
    """uint8 [H, W, 3] with a map [h, w] stretched over it (bilinear) -> uint8 [H, W, 3].

    Positive values run from a clear image through purple and orange to pale yellow (perceptually even lightness);
    with ``signed``, negative ones are blue and positive ones red. A map with nothing to show leaves a dimmed image.
    """
    height, width = image.shape[:2]
    values = np.nan_to_num(np.asarray(heat, dtype=np.float32))
    values = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    shown = np.abs(values) if signed else np.maximum(values, 0)
    top = float(np.percentile(shown, _FULL_SCALE)) or float(shown.max())
    level = np.clip(values / top, -1, 1) if top > 0 else np.zeros_like(values)
    if signed:
        colour, weight = mpl.colormaps["RdBu_r"](0.5 + 0.5 * level)[..., :3], np.abs(level)
    else:
        level = np.maximum(level, 0)
        # The ends of inferno are black and near white: both would be mistaken for the image itself.
        colour, weight = mpl.colormaps["inferno"](0.22 + 0.72 * level)[..., :3], level
    weight = (strength * np.clip(weight * 1.35, 0, 1) ** 0.8)[..., None]
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    # Where the map is low the picture is still to be recognised: dimmed and half drained of colour.
    base = 0.8 * (0.55 * image + 0.45 * grey) + 12
    return np.clip(base * (1 - weight) + 255 * colour * weight, 0, 255).astype(np.uint8)


def picture(cell: Cell, *, side: int = 400, quality: int = 85, signed: bool = False) -> Picture:
    """One cell at ``side`` pixels on its longest side, shown at half of that (crisp at 2x)."""
    if cell.image is None:
        return Picture(None, cell.alt, note=cell.note, tone=cell.tone, missing=cell.missing or "image not available")
    pixels = _fit(cell.image, side)
    if cell.heat is not None:
        pixels = blend(pixels, cell.heat, signed=signed)
    return Picture(jpeg(pixels, quality=quality), cell.alt, cell.boxes, cell.note, cell.tone)


def grid(
    headings: Sequence[str],
    rows: Sequence[tuple[str, str, Sequence[Cell]]],
    *,
    caption: str,
    title: str = "",
    budget: int = 2_000_000,
    signed: bool = False,
) -> PictureGrid:
    """One image per row (title, note, cells), one method per column; sized to fit ``budget`` bytes."""
    side, quality = _rung(rows, budget, signed)
    drawn = [
        PictureRow(title, [picture(c, side=side, quality=quality, signed=signed) for c in cells], note)
        for title, note, cells in rows
    ]
    styles = {box.style for _, _, cells in rows for cell in cells for box in cell.boxes}
    return PictureGrid(headings, drawn, caption, title, legend=tuple(s for s in ("truth", "predicted") if s in styles))


def plain(image: np.ndarray, *, side: int = 400, quality: int = 85) -> DataImage:
    """The image alone, no larger than ``side``."""
    return jpeg(_fit(image, side), quality=quality)


def _rung(rows: Sequence[tuple[str, str, Sequence[Cell]]], budget: int, signed: bool) -> tuple[int, int]:
    """Measured on up to six cells spread over the grid: JPEG sizes of one grid differ little from their mean."""
    cells = [cell for _, _, row in rows for cell in row if cell.image is not None]
    if not cells:
        return _LADDER[0]
    sample = [cells[i] for i in np.unique(np.linspace(0, len(cells) - 1, 6).astype(int))]
    for side, quality in _LADDER:
        shown = [picture(cell, side=side, quality=quality, signed=signed).image for cell in sample]
        mean = sum(image.bytes_in_page for image in shown if image is not None) / len(sample)
        if mean * len(cells) <= budget:
            return side, quality
    return _LADDER[-1]


def _fit(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    # Small images (32x32) are enlarged with their pixels kept visible, never blurred.
    how = (
        Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST if scale >= 3 else Image.Resampling.BICUBIC
    )
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(image).resize(size, how))
