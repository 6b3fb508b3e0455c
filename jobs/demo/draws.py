"""Random numbers that are the same on every machine and in every library version."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Draws:
    """Uniform draws from the words of a counter-based generator, seeded by what they are for.

    NumPy promises the words of a bit generator for good, but not what ``Generator`` makes of them; so the few
    distributions needed here are spelled out.
    """

    def __init__(self, seed: int, *purpose: object) -> None:
        text = "\0".join(str(part) for part in (seed, *purpose))
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        self._words = np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))

    def array(self, *shape: int) -> np.ndarray:
        """Uniform in [0, 1), float64."""
        words = self._words.random_raw(math.prod(shape))
        return (words >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * ((int(self._words.random_raw()) >> 11) * 2.0**-53)

    def index(self, count: int) -> int:
        return min(int(self.uniform(0, count)), count - 1)

    def pick(self, options: Sequence[T], weights: Sequence[float] | None = None) -> T:
        if weights is None:
            return options[self.index(len(options))]
        at = self.uniform(0, sum(weights))
        for option, weight in zip(options, weights, strict=True):
            at -= weight
            if at < 0:
                return option
        return options[-1]
