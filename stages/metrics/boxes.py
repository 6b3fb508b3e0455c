"""Boxes: overlap, the box of a mask, and the boxes of one map at every threshold in one pass.

A box is ``(x0, y0, x1, y1)`` in pixels. Boxes drawn around kept pixels name their first and last pixel ("inclusive"),
as the ILSVRC annotations do, so a box of one pixel is ``(x, y, x, y)`` and has area 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: t of "keep pixels >= t * max" (PROTOCOLS, section 1): 0.01, 0.02, 0.05, 0.10, ..., 0.95.
THRESHOLDS: tuple[float, ...] = (0.01, 0.02, *(round(0.05 * i, 2) for i in range(1, 20)))

#: Sides of the centred box, as shares of the image's sides; 0.7 is the one reported without any choice.
CENTER_SIZES: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(1, 11))

_EIGHT = np.ones((3, 3), dtype=bool)  # ndimage.label is 4-connected without it


def iou(a: ArrayLike, b: ArrayLike, *, inclusive: bool = True) -> NDArray[np.float64]:
    """Intersection over union of boxes ``[..., 4]``, broadcast against each other; symmetric; 0 where both are empty.

    ``inclusive`` counts x1 and y1 as pixels of the box (side = x1 - x0 + 1); otherwise they are edges (side = x1 - x0).
    A box with x1 < x0 or y1 < y0 is empty.
    """
    p, q = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if p.shape[-1:] != (4,) or q.shape[-1:] != (4,):
        raise ValueError(f"iou wants boxes of four numbers, got shapes {p.shape} and {q.shape}")
    one = 1.0 if inclusive else 0.0
    overlap = _area(np.maximum(p[..., :2], q[..., :2]), np.minimum(p[..., 2:], q[..., 2:]), one)
    union = _area(p[..., :2], p[..., 2:], one) + _area(q[..., :2], q[..., 2:], one) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def _area(low: NDArray[np.float64], high: NDArray[np.float64], one: float) -> NDArray[np.float64]:
    side = np.where(high < low, 0.0, high - low + one)  # x1 = x0 - 1 is empty in both conventions
    return side[..., 0] * side[..., 1]


def best_iou(boxes: ArrayLike, truths: ArrayLike, *, inclusive: bool = True) -> NDArray[np.float64]:
    """For every box of ``boxes [..., 4]``, the largest IoU with one of ``truths [n, 4]``; 0 when there is none."""
    found, true = np.asarray(boxes, dtype=np.float64), np.asarray(truths, dtype=np.float64).reshape(-1, 4)
    if not len(true):
        return np.zeros(found.shape[:-1])
    return iou(found[..., None, :], true, inclusive=inclusive).max(axis=-1)


def whole_image(width: int, height: int) -> NDArray[np.int64]:
    """The box of every pixel."""
    return np.array([0, 0, width - 1, height - 1])


def center_box(width: int, height: int, side: float = 0.7) -> NDArray[np.int64]:
    """A box in the middle, ``side`` of each side of the image, rounded to whole pixels (at least one)."""
    if not 0 < side <= 1:
        raise ValueError(f"a centred box takes a share in (0, 1] of the image's sides, got {side}")
    spans = []
    for length in (width, height):
        size = max(1, round(side * length))
        first = (length - size) // 2
        spans.append((first, first + size - 1))
    (x0, x1), (y0, y1) = spans
    return np.array([x0, y0, x1, y1])


def box_of_mask(mask: ArrayLike) -> NDArray[np.int64] | None:
    """The tight box around the True pixels of ``mask [height, width]``; None when there is none."""
    kept = np.asarray(mask, dtype=bool)
    rows, columns = np.flatnonzero(kept.any(axis=1)), np.flatnonzero(kept.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])


def largest_component(mask: ArrayLike) -> NDArray[np.bool_]:
    """The largest 8-connected component by pixel count; of equal ones, the first in reading order."""
    from scipy import ndimage  # here and below: half a second for those who draw no box

    labels, count = ndimage.label(np.asarray(mask, dtype=bool), structure=_EIGHT)
    if count == 0:
        return np.zeros(labels.shape, dtype=bool)
    sizes = np.bincount(labels.ravel())[1:]
    ties = np.flatnonzero(sizes == sizes.max()) + 1
    if len(ties) == 1:
        return np.asarray(labels == ties[0])
    flat = labels.ravel()
    return np.asarray(labels == flat[np.isin(flat, ties).argmax()])


def cutoffs(highest: ArrayLike, thresholds: Sequence[float], dtype: Any = np.float32) -> NDArray[Any]:
    """The values ``t * max`` that pixels are compared with, ``[..., T]``: multiplied in float64, rounded once."""
    return (np.asarray(highest, dtype=np.float64)[..., None] * np.asarray(thresholds, dtype=np.float64)).astype(dtype)


def box_at(heat: ArrayLike, threshold: float) -> NDArray[np.int64]:
    """The box of one map at one threshold, step by step: the definition that :func:`threshold_boxes` is held against.

    Pixels >= threshold * max stay, the largest 8-connected component is boxed. Negative and non-finite pixels count as
    0; a map with no positive value, and a threshold that keeps nothing, give the whole image.
    """
    values = np.asarray(heat)
    values = np.where(np.isfinite(values) & (values > 0), values, 0).astype(values.dtype)
    height, width = values.shape
    if values.max() <= 0:
        return whole_image(width, height)
    box = box_of_mask(largest_component(values >= cutoffs(values.max(), [threshold], values.dtype)[0]))
    return whole_image(width, height) if box is None else box


def threshold_levels(maps: ArrayLike, thresholds: Sequence[float] = THRESHOLDS) -> NDArray[np.uint8]:
    """How many of the ascending ``thresholds`` each pixel of ``maps [M, H, W]`` reaches.

    So the mask of the i-th is ``levels > i``. The rules are those of :func:`box_at`; in a map with no positive value
    every pixel reaches all of them.
    """
    check_thresholds(thresholds)
    values = np.asarray(maps)
    if values.ndim != 3 or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"maps are floats [maps, height, width], got {values.dtype} {values.shape}")
    highest = values.max(axis=(1, 2))
    if not np.isfinite(highest).all() or not np.isfinite(values.min(axis=(1, 2))).all():
        values = np.where(np.isfinite(values), values, 0)
        highest = values.max(axis=(1, 2))
    cuts = cutoffs(highest, thresholds, values.dtype)
    cuts[cuts <= 0] = -np.inf  # threshold 0, and maps without a positive value: everything stays
    cuts[highest <= 0] = -np.inf
    levels = np.zeros(values.shape, dtype=np.uint8)
    reached = np.empty(values.shape[1:], dtype=bool)
    for heat, level, cut in zip(values, levels, cuts, strict=True):  # map by map: each fits in the cache
        for value in cut:
            np.greater_equal(heat, value, out=reached)
            level += reached.view(np.uint8)
    return levels


def check_thresholds(thresholds: Sequence[float]) -> None:
    """ValueError unless there are 1 to 255 ascending thresholds >= 0."""
    grid = np.asarray(thresholds, dtype=np.float64)
    if not 1 <= len(grid) <= 255 or (np.diff(grid) < 0).any() or not (grid >= 0).all():
        raise ValueError(f"thresholds are 1 to 255 ascending numbers >= 0, got {list(thresholds)}")


def threshold_boxes(maps: ArrayLike, thresholds: Sequence[float] = THRESHOLDS) -> NDArray[np.int64]:
    """Boxes ``[M, T, 4]`` of maps ``[M, H, W]`` at all thresholds: what :func:`box_at` gives, in one pass."""
    return level_boxes(threshold_levels(maps, thresholds), len(thresholds))


def level_boxes(levels: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """The boxes ``[M, count, 4]`` of the largest components of ``levels > i``, i < count, for ``levels [M, H, W]``."""
    return np.stack([_boxes_of_one(level, count) for level in levels])


def _boxes_of_one(level: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """All masks of one map, cut into runs, as one graph: a few thousand runs instead of T whole images.

    On a 500 x 375 class map 10 times faster than labelling the pixels T times; on a map of pure noise no slower.
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    height, width = level.shape
    group, row, start, end = _runs(level, count)
    boxes = np.broadcast_to(whole_image(width, height), (count, 4)).copy()
    if not len(group):
        return boxes
    first, touched = _touching(group * (height + 1) + row, start, end, width)
    graph = csr_array((np.ones(len(touched)), touched, first), shape=(len(group), len(group)))
    components, label = connected_components(graph, directed=False)
    # The winner of each mask: most pixels, then the component that reading order meets first.
    size = np.bincount(label, weights=end - start + 1, minlength=components)
    head = np.full(components, len(group))
    np.minimum.at(head, label, np.arange(len(group)))
    by = np.lexsort((head, -size, group[head]))
    best = by[np.flatnonzero(np.diff(group[head][by], prepend=-1))]
    wins = np.zeros(components, dtype=bool)
    wins[best] = True
    kept = np.flatnonzero(wins[label])
    at = np.flatnonzero(np.diff(group[kept], prepend=-1))
    row, start, end = row[kept], start[kept], end[kept]
    low, high = np.minimum.reduceat, np.maximum.reduceat
    boxes[group[kept][at]] = np.stack([low(start, at), low(row, at), high(end, at), high(row, at)], axis=1)
    return boxes


def _runs(level: NDArray[np.uint8], count: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The runs of kept pixels of all masks ``level > i``, in reading order mask by mask.

    Returns mask, row, first and last column of each.
    """
    width = level.shape[1]
    begins = np.ones(level.shape, dtype=bool)
    np.not_equal(level[:, 1:], level[:, :-1], out=begins[:, 1:])
    at = np.flatnonzero(begins.ravel())  # stretches of one level; every run is a row of them
    value = level.ravel()[at]
    # One step to the left, the level 0 outside the image where the row begins: there a run cannot go on.
    before = np.where(at % width == 0, 0, np.append(0, value[:-1]))
    after = np.where(np.append(at[1:], level.size) % width == 0, 0, np.append(value[1:], 0))
    steps = np.arange(count, dtype=np.uint8)[:, None]
    over = value > steps
    opens = np.flatnonzero((over & (before <= steps)).ravel())
    closes = np.flatnonzero((over & (after <= steps)).ravel()) % len(at)
    group, opens = np.divmod(opens, len(at))
    start, stop = at[opens], np.append(at[1:], level.size)[closes] - 1
    row = start // width
    return group, row, start - row * width, stop - row * width


def _touching(row: Any, start: Any, end: Any, width: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """For runs in order, those of the next row that share a side or a corner with each: ``indptr, indices``."""
    stride = width + 2  # so that "one to the left" and "one to the right" never reach another row
    opens, closes = row * stride + start + 1, row * stride + end + 1
    low = np.searchsorted(closes, opens + stride - 1, side="left")
    high = np.searchsorted(opens, closes + stride + 1, side="right")
    many = np.maximum(high - low, 0)
    first = np.append(0, np.cumsum(many)).astype(np.int32)
    return first, (np.arange(first[-1]) - np.repeat(first[:-1] - low, many)).astype(np.int32)
