"""Salient objects: precision, recall, F and mean absolute error of a map against a mask (PROTOCOLS, section 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

BETA2 = 0.3  # precision counts more than recall (Achanta et al. 2009)


@dataclass(frozen=True)
class Salient:
    precision: float
    recall: float
    f: float
    mae: float


def salient(heat: ArrayLike, mask: ArrayLike) -> Salient:
    """Of one map ``[H, W]`` and one mask ``[H, W]``.

    The map is clipped at 0 and scaled to a largest value of 1 (a map with no positive value stays 0). Pixels >= 2 x
    mean are kept, or >= 1 where that is more than the map has; MAE is of the scaled map itself. An empty mask has
    recall 0.
    """
    values = np.asarray(heat, dtype=np.float64)
    drawn = np.asarray(mask, dtype=bool)
    if values.shape != drawn.shape:
        raise ValueError(f"a map of shape {values.shape} against a mask of shape {drawn.shape}: bring both to one size")
    values = np.where(np.isfinite(values) & (values > 0), values, 0)
    highest = values.max()
    values = values / highest if highest > 0 else values
    kept = values >= min(2 * values.mean(), 1.0)
    both, all_kept, all_drawn = int((kept & drawn).sum()), int(kept.sum()), int(drawn.sum())
    precision = both / all_kept if all_kept else 0.0
    recall = both / all_drawn if all_drawn else 0.0
    return Salient(precision, recall, f_measure(precision, recall), float(np.abs(values - drawn).mean()))


def f_measure(precision: float, recall: float, beta2: float = BETA2) -> float:
    """(1 + beta^2) P R / (beta^2 P + R), and 0 where both are 0."""
    below = beta2 * precision + recall
    return (1 + beta2) * precision * recall / below if below > 0 else 0.0
