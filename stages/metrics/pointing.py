"""The pointing game (Zhang et al. 2016): does a map's highest pixel lie on an object of its class?"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from stages.metrics.moments import normal_interval, wilson_interval

#: Pixels by which a point may miss: none (Zhang et al.'s VOC numbers) and 15 (their COCO numbers, and most later work).
TOLERANCES = (0, 15)

Point = tuple[int, int]


def peak(heat: ArrayLike) -> Point | None:
    """(x, y) of the highest pixel of ``heat [H, W]``, of equals the first in reading order; NaN counts as lowest.

    None for a map without contrast: it points nowhere.
    """
    values = np.asarray(heat, dtype=np.float64)
    values = np.where(np.isnan(values), -np.inf, values)
    if values.max() == values.min():
        return None
    y, x = np.unravel_index(int(values.argmax()), values.shape)
    return int(x), int(y)


def middle(width: int, height: int) -> Point:
    """The pixel in the middle of an image: what a point that looks at nothing hits."""
    return width // 2, height // 2


def distance(point: ArrayLike | None, boxes: ArrayLike, *, inclusive: bool = True) -> float:
    """Pixels from a pixel to the nearest of ``boxes [n, 4]``: 0 inside one, infinite without a point or a box.

    Euclidean, so a tolerance of 15 is a disc around the point. ``inclusive``: boxes name their last pixel, else its far
    edge. A box with x1 < x0 or y1 < y0 is empty.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    last = corners[:, 2:] - (0.0 if inclusive else 1.0)
    corners, last = corners[(last >= corners[:, :2]).all(axis=1)], last[(last >= corners[:, :2]).all(axis=1)]
    if point is None or not len(corners):
        return math.inf
    at = np.asarray(point, dtype=np.float64)
    gap = np.maximum(np.maximum(corners[:, :2] - at, at - last), 0)
    return float(np.sqrt((gap**2).sum(axis=1)).min())


def over_classes(hits: ArrayLike, points: ArrayLike) -> tuple[float, float, float, float]:
    """The share of ``points [classes]`` that hit, mean over classes; its standard error; its 95 % interval.

    Classes weigh alike, and many have one image or two, so the error is that of their spread. One class alone has the
    binomial error. Where no class differs from another, the interval is Wilson's for all points: 1.96 errors of 0 would
    be certainty. NaN without a point.
    """
    n = np.asarray(points, dtype=np.float64)
    seen = n > 0
    shares = np.asarray(hits, dtype=np.float64)[seen] / n[seen]
    if not len(shares):
        return math.nan, math.nan, math.nan, math.nan
    value = float(shares.mean())
    if len(shares) == 1:
        error = math.sqrt(value * (1 - value) / float(n[seen][0]))
    else:
        error = float(np.std(shares, ddof=1)) / math.sqrt(len(shares))
    if len(shares) == 1 or error == 0:
        return value, error, *wilson_interval(value, int(n.sum()))
    low, high = normal_interval(value, error)
    return value, error, max(0.0, low), min(1.0, high)
