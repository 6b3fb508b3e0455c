"""Mean and standard deviation of vectors over images, in parts that add up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Spread:
    """Count, mean and sum of squared deviations of vectors; parts add up (Chan, Golub and LeVeque 1983)."""

    n: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Spread:
        """Of ``values`` [n, k]."""
        if not len(values):
            return cls(0, np.zeros(values.shape[1]), np.zeros(values.shape[1]))
        mean = values.mean(axis=0)
        return cls(len(values), mean, ((values - mean) ** 2).sum(axis=0))

    def __add__(self, other: Spread) -> Spread:
        if not self.n or not other.n:
            return self if self.n else other
        n, apart = self.n + other.n, other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * (self.n * other.n / n)
        return Spread(n, self.mean + apart * (other.n / n), squares)

    @property
    def std(self) -> NDArray[np.float64]:
        """The sample's; NaN for fewer than two."""
        return np.sqrt(self.squares / (self.n - 1)) if self.n > 1 else np.full_like(self.mean, math.nan)

    def told(self, i: int) -> dict[str, Any]:
        """What a table says of the vectors' place ``i``."""
        if not self.n:
            return {"n": 0, "mean": None, "std": None, "se": None}
        std = float(self.std[i]) if self.n > 1 else None
        error = None if std is None else std / math.sqrt(self.n)
        return {"n": self.n, "mean": float(self.mean[i]), "std": std, "se": error}
