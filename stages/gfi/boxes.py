"""GFI's box: ONE box around every pixel that reaches alpha times the map's mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.boxes import box_of_mask, cutoffs, whole_image

#: alpha of "keep pixels >= alpha * mean" (PROTOCOLS, section 2): 0, 0.5, ..., 10.
ALPHAS: tuple[float, ...] = tuple(round(0.5 * i, 1) for i in range(21))


def mean_box(heat: ArrayLike, alpha: float) -> NDArray[np.int64]:
    """The box of one map at one alpha, step by step: the definition that :func:`mean_boxes` is held against.

    Pixels >= alpha * mean stay, and all of them are boxed, however many pieces they make. Pixels that are not finite
    count as 0. A cut that is not above 0 keeps everything; one that keeps nothing gives the whole image.
    """
    values = _finite(np.asarray(heat))
    height, width = values.shape
    cut = cutoffs(values.mean(dtype=np.float64), [alpha], values.dtype)[0]
    box = box_of_mask(values >= cut) if cut > 0 else None
    return whole_image(width, height) if box is None else box


def mean_boxes(maps: ArrayLike, alphas: Sequence[float] = ALPHAS) -> NDArray[np.int64]:
    """Boxes ``[M, A, 4]`` of maps ``[M, H, W]``: what :func:`mean_box` gives, from one pass over each map.

    A box around all kept pixels needs no more than the largest value of every row and column.
    """
    values = _finite(np.asarray(maps))
    if values.ndim != 3 or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"maps are floats [maps, height, width], got {values.dtype} {values.shape}")
    count, height, width = values.shape
    cuts = cutoffs(values.mean(axis=(1, 2), dtype=np.float64), alphas, values.dtype)
    boxes = np.broadcast_to(whole_image(width, height), (count, len(alphas), 4)).copy()
    for at, (rows, columns) in enumerate(zip(values.max(axis=2), values.max(axis=1), strict=True)):
        for i, cut in enumerate(cuts[at]):
            down, across = np.flatnonzero(rows >= cut), np.flatnonzero(columns >= cut)
            if cut > 0 and len(down):
                boxes[at, i] = across[0], down[0], across[-1], down[-1]
    return boxes


def peak(heat: ArrayLike) -> tuple[int, int] | None:
    """(x, y) of the largest pixel, the first in reading order; None for a map without contrast: it points nowhere."""
    values = _finite(np.asarray(heat))
    if not values.size or values.max() == values.min():
        return None
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    return int(x), int(y)


def distance(point: tuple[int, int] | None, boxes: ArrayLike, *, inclusive: bool = True) -> float:
    """Pixels from a point to the nearest of ``boxes [n, 4]``: 0 inside one, inf without a point, NaN without boxes."""
    of = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if not len(of):
        return float("nan")
    if point is None:
        return float("inf")
    last = of[:, 2:] if inclusive else of[:, 2:] - 1
    at = np.asarray(point, dtype=np.float64)
    gap = np.maximum(np.maximum(of[:, :2] - at, at - last), 0)
    return float(np.hypot(gap[:, 0], gap[:, 1]).min())


def _finite(values: NDArray[np.floating]) -> NDArray[np.floating]:
    return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, 0).astype(values.dtype)
