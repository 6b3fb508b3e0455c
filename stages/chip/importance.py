"""Which channels matter to which class: the figures behind CHIP's heatmap, Venn diagrams and sparsity curves.

``weights`` are rows of a solve: float [C, K], signed; "important" means large and positive, as in the paper's figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

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


def overlap(sets: Mapping[int, set[int]]) -> dict[tuple[int, ...], int]:
    """Venn counts of up to three classes: for each combination of classes, the channels in exactly these.

    ValueError for more than three: their diagram cannot be drawn with circles.
    """
    if not 1 <= len(sets) <= 3:
        raise ValueError(f"Venn counts of {len(sets)} classes: choose one to three")
    names = list(sets)
    regions = [c for size in range(1, len(names) + 1) for c in combinations(names, size)]
    counts = {}
    for region in regions:
        inside = set.intersection(*(sets[name] for name in region))
        counts[region] = len(inside.difference(*(sets[name] for name in names if name not in region)))
    return counts


def sparsity(paths: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, np.ndarray]:
    """Medians over classes along the lambda path (column ``path`` of a solve): arrays [T] by falling ``lambda_rel``.

    Keys lambda_rel, nonzeros, r2_heldout, r2_heldout_centred; NaN where no class has a value.
    """
    steps: dict[float, list[Mapping[str, Any]]] = {}
    for path in paths:
        for step in path:
            steps.setdefault(float(step["lambda_rel"]), []).append(step)
    found = {"lambda_rel": np.array(sorted(steps, reverse=True))}
    for name in ("nonzeros", "r2_heldout", "r2_heldout_centred"):
        values = [[s[name] for s in steps[at] if s[name] is not None] for at in found["lambda_rel"]]
        found[name] = np.array([float(np.median(v)) if v else np.nan for v in values])
    return found
