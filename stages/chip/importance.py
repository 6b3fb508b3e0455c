"""Which channels matter to which class: the figures behind CHIP's heatmap and Venn diagrams.

``weights`` are rows of a solve: float [C, K], signed; "important" means large and positive, as in the paper's figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Heatmap:
    """``values`` [C, M] in [-1, 1]: each class scaled by its largest |weight|; ``channels`` [M]: their indices."""

    values: np.ndarray
    channels: np.ndarray


def heatmap(weights: np.ndarray, most: int | None = None) -> Heatmap:
    """Class x channel importance. Only channels some class uses, at most ``most`` (the strongest), each standing under
    the class it serves most: shared channels show as columns, private ones near the diagonal."""
    w = np.asarray(weights, dtype=np.float64)
    largest = np.abs(w).max(axis=1, keepdims=True, initial=0.0)
    scaled = np.divide(w, largest, out=np.zeros_like(w), where=largest > 0)
    strength = np.abs(scaled).max(axis=0, initial=0.0)
    kept = np.argsort(-strength, kind="stable")[: len(strength) if most is None else most]
    kept = kept[strength[kept] > 0]
    if not len(kept):
        return Heatmap(np.zeros((len(w), 0)), kept)
    owner = np.argmax(scaled[:, kept], axis=0)
    kept = kept[np.lexsort((-scaled[owner, kept], owner))]
    return Heatmap(scaled[:, kept], kept)


def top_channels(w: np.ndarray, count: int = 10) -> set[int]:
    """The ``count`` channels of largest positive weight, ties by index; fewer where fewer are positive."""
    values = np.asarray(w, dtype=np.float64)
    return {int(k) for k in np.argsort(-values, kind="stable")[:count] if values[k] > 0}


def channels_above(w: np.ndarray, share: float = 1e-3) -> set[int]:
    """The channels whose weight is above ``share`` of the largest; none where no weight is positive."""
    values = np.asarray(w, dtype=np.float64)
    largest = values.max(initial=0.0)
    return {int(k) for k in np.flatnonzero(values > share * largest)} if largest > 0 else set()
