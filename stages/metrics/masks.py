"""Overlap of a thresholded map with a drawn segmentation."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from stages.metrics.boxes import THRESHOLDS, threshold_levels


def coco_mask(segmentation: str | dict[str, Any] | Sequence[Any], width: int, height: int) -> NDArray[np.bool_]:
    """A COCO segmentation as ``[height, width]``: polygons (any part counts), RLE, or RLE in text; JSON of any of them.

    Raises ValueError when the segmentation is not one of these, or was drawn for an image of another size.
    """
    from pycocotools import mask as coco  # loaded late: stages/ runs where pycocotools is not installed

    shape = json.loads(segmentation) if isinstance(segmentation, str) else segmentation
    if isinstance(shape, dict) and "counts" in shape and "size" in shape:
        if list(shape["size"]) != [height, width]:
            raise ValueError(
                f"a mask of size {shape['size']} (height, width) does not fit an image of [{height}, {width}]: "
                "masks are drawn in the original image's pixels"
            )
        encoded = shape if isinstance(shape["counts"], str | bytes) else coco.frPyObjects(shape, height, width)
        return np.asarray(coco.decode(encoded), dtype=bool)
    if isinstance(shape, list | tuple):
        polygons = [shape] if shape and not isinstance(shape[0], list | tuple) else list(shape)
        polygons = [list(map(float, p)) for p in polygons if len(p) >= 6]  # fewer than three corners enclose nothing
        if not polygons:
            return np.zeros((height, width), dtype=bool)
        return np.asarray(coco.decode(coco.merge(coco.frPyObjects(polygons, height, width))), dtype=bool)
    raise ValueError(f"expected COCO polygons or RLE (an object with 'counts' and 'size'), got {str(shape)[:80]!r}")


def union_mask(segmentations: Iterable[Any], width: int, height: int) -> NDArray[np.bool_] | None:
    """All pixels of any of the segmentations; None when there is none (nulls are skipped)."""
    drawn = [coco_mask(s, width, height) for s in segmentations if s is not None]
    return np.logical_or.reduce(drawn) if drawn else None


def png_mask(image: bytes | str | Path, value: int | None = None) -> NDArray[np.bool_]:
    """A mask kept as a picture: pixels of one palette index or grey ``value``; by default grey above half (ECSSD).

    Palette images (VOC's SegmentationClass) are compared by index, so there ``value`` is a class id and must be given.
    """
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
        if value is None:
            if picture.mode == "P":
                raise ValueError("a palette image holds class ids: say which value is the mask")
            return np.asarray(picture.convert("L")) > 127
        return np.asarray(picture if picture.mode in ("P", "L") else picture.convert("L")) == value


def png_values(image: bytes | str | Path) -> NDArray[np.integer[Any]]:
    """The numbers of an index mask: palette indexes or grey values, ``[height, width]``.

    Raises ValueError for a picture of colours, which holds no class ids.
    """
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as picture:
        if picture.mode not in ("P", "L", "I", "I;16"):
            raise ValueError(f"a picture of mode {picture.mode} holds no class ids: give palette or grey PNGs")
        return np.asarray(picture)


def mask_iou(a: ArrayLike, b: ArrayLike) -> float:
    """Intersection over union of two masks of one shape; 0 when both are empty."""
    p, q = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if p.shape != q.shape:
        raise ValueError(f"masks of shapes {p.shape} and {q.shape} cannot be compared: bring both to the image's size")
    union = int((p | q).sum())
    return int((p & q).sum()) / union if union else 0.0


def level_mask_ious(levels: NDArray[np.uint8], mask: ArrayLike, count: int) -> NDArray[np.float64]:
    """IoU ``[count]`` of the masks ``levels > i`` (all kept pixels, not the largest component) with ``mask [H, W]``.

    Two histograms instead of ``count`` comparisons: pixels per level inside the mask, and in all.
    """
    drawn = np.asarray(mask, dtype=bool)
    if drawn.shape != levels.shape:
        raise ValueError(f"a map of shape {levels.shape} against a mask of shape {drawn.shape}: bring both to one size")
    inside = np.bincount(levels[drawn], minlength=count + 1)[1:]
    kept = np.bincount(levels.ravel(), minlength=count + 1)[1:]
    both = inside[::-1].cumsum()[::-1]
    union = kept[::-1].cumsum()[::-1] + drawn.sum() - both
    return np.divide(both, union, out=np.zeros(count), where=union > 0)


def threshold_mask_ious(
    heat: ArrayLike, mask: ArrayLike, thresholds: Sequence[float] = THRESHOLDS
) -> NDArray[np.float64]:
    """IoU of ``heat >= t * max`` with ``mask`` for every threshold; no positive value keeps everything."""
    return level_mask_ious(threshold_levels(np.asarray(heat)[None], thresholds)[0], mask, len(thresholds))
