"""Means and standard errors of bounded values, summed as integers: exactly the same in whatever order rows arrive."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNIT = 1 << 31  # values in -1..1 in steps of 2^-31; 4e9 of them fit
Z95 = 1.959963984540054


def moments(values: ArrayLike) -> NDArray[np.int64]:
    """(count, sum, sum of squares) of ``values [rows, ...]`` along the rows: int64 ``[..., 3]``. NaN is not counted.

    ValueError for a value outside -1..1. Moments of two sets add up to those of their union.
    """
    rows = np.asarray(values, dtype=np.float64)
    there = ~np.isnan(rows)
    rows = np.where(there, rows, 0.0)
    if (np.abs(rows) > 1 + 1e-6).any():
        raise ValueError(f"moments are kept of values in -1..1, got {np.abs(rows).max()}")
    parts = (there, np.rint(rows * UNIT), np.rint(rows**2 * UNIT))
    return np.stack([part.astype(np.int64).sum(axis=0) for part in parts], axis=-1)


def mean_and_error(of: NDArray[np.int64]) -> tuple[int, float, float]:
    """(n, mean, standard error of the mean) of one set's moments ``[3]``; NaN where there is too little.

    The spread is that of a sample (n - 1), of which one value alone says nothing.
    """
    n = int(of[0])
    if not n:
        return 0, math.nan, math.nan
    mean = int(of[1]) / UNIT / n
    if n == 1:
        return 1, mean, math.nan
    spread = max(0.0, int(of[2]) / UNIT / n - mean**2)
    return n, mean, math.sqrt(spread / (n - 1))


def normal_interval(value: float, error: float) -> tuple[float, float]:
    """95 %: value -+ 1.96 standard errors."""
    return value - Z95 * error, value + Z95 * error


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % for a share of n: Wilson's, which stays within 0..1 and is no point at 0 and 1."""
    if not n or math.isnan(share):
        return math.nan, math.nan
    below = 1 + Z95**2 / n
    centre = (share + Z95**2 / (2 * n)) / below
    half = Z95 / below * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    return centre - half, centre + half
