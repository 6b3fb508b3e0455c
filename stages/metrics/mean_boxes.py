"""Boxes by GFI's rule: keep pixels >= alpha * mean of the map, one box around all of them (PROTOCOLS, section 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stages.metrics.boxes import check_thresholds, whole_image

#: alpha of "keep pixels >= alpha * mean": 0, 0.5, ..., 10.
ALPHAS: tuple[float, ...] = tuple(0.5 * i for i in range(21))


def mean_boxes(maps: ArrayLike, alphas: Sequence[float] = ALPHAS) -> NDArray[np.int64]:
    """Boxes ``[M, A, 4]`` of maps ``[M, H, W]``, inclusive; where nothing is kept, the whole image.

    Negative and non-finite pixels count as 0, in the mean too; so alpha = 0 keeps everything.
    """
    check_thresholds(alphas)
    values = np.asarray(maps)
    if values.ndim != 3 or not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"maps are floats [maps, height, width], got {values.dtype} {values.shape}")
    values = np.where(np.isfinite(values) & (values > 0), values, 0)
    cuts = values.mean(axis=(1, 2), dtype=np.float64)[:, None] * np.asarray(alphas, dtype=np.float64)
    boxes = np.empty((*cuts.shape, 4), dtype=np.int64)
    # A row or column is in the box when its largest pixel is kept: no mask is ever drawn.
    for axis, length, (low, high) in ((1, values.shape[2], (0, 2)), (2, values.shape[1], (1, 3))):
        kept = values.max(axis=axis)[:, None, :] >= cuts[:, :, None]
        boxes[:, :, low] = kept.argmax(axis=2)
        boxes[:, :, high] = length - 1 - kept[:, :, ::-1].argmax(axis=2)
    nothing = values.max(axis=(1, 2))[:, None] < cuts
    boxes[nothing] = whole_image(values.shape[2], values.shape[1])
    return boxes
