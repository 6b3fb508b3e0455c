"""The pointing game (Zhang et al. 2016): does a map's highest pixel lie on an object of its class?"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Pixels by which a point may miss: none (Zhang et al.'s VOC numbers) and 15 (their COCO numbers, and most later work).
TOLERANCES = (0, 15)


def peak(heat: ArrayLike) -> NDArray[np.int64]:
    """(x, y) of the highest pixel of ``heat [H, W]``, of equals the first in reading order; NaN counts as lowest."""
    values = np.asarray(heat, dtype=np.float64)
    values = np.where(np.isnan(values), -np.inf, values)
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    return np.array([x, y])


def distance(point: ArrayLike, boxes: ArrayLike, *, inclusive: bool = True) -> float:
    """Pixels from a pixel to the nearest of ``boxes [n, 4]``: 0 inside one, infinite where there is none.

    Euclidean, so a tolerance of 15 is a disc around the point. ``inclusive``: boxes name their last pixel, else its far
    edge. A box with x1 < x0 or y1 < y0 is empty.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    last = corners[:, 2:] - (0.0 if inclusive else 1.0)
    corners, last = corners[(last >= corners[:, :2]).all(axis=1)], last[(last >= corners[:, :2]).all(axis=1)]
    if not len(corners):
        return float("inf")
    at = np.asarray(point, dtype=np.float64)
    gap = np.maximum(np.maximum(corners[:, :2] - at, at - last), 0)
    return float(np.sqrt((gap**2).sum(axis=1)).min())
