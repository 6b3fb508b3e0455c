"""Everything random in a training, as a function of (seed, epoch, key)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def number(seed: int, *purpose: object) -> int:
    """64 bits from a seed and what they are for."""
    text = "\0".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """The order of the rows in an epoch (from 0): int64 [rows], a permutation from (seed, epoch) alone."""
    words = np.random.Philox(key=number(seed, "order", epoch)).random_raw(rows)
    return np.argsort(words, kind="stable")


def row_seeds(seed: int, epoch: int, keys: Sequence[str]) -> np.ndarray:
    """What augmentation may draw from: uint64 [rows], each from (seed, epoch, key)."""
    return np.array([number(seed, "augment", epoch, key) for key in keys], dtype=np.uint64)


def uniform(seeds: np.ndarray, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1) for each seed: float64 [rows, count]; row i depends on seed i only (SplitMix64)."""
    with np.errstate(over="ignore"):
        z = seeds[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
