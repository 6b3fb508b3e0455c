"""Deletion and insertion curves (Petsiuk, Das, Saenko 2018): the score while the map's pixels go, or come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


def deletion_curves(
    score: Callable[[torch.Tensor], torch.Tensor],
    start: torch.Tensor,
    end: torch.Tensor,
    heat: torch.Tensor,
    steps: int,
) -> torch.Tensor:
    """Scores [B, steps + 1] while pixels of ``start`` [B, 3, h, w] become those of ``end``, the map's highest first.

    ``score`` gives [B] for inputs [B, 3, h, w]; ``heat`` is [B, h, w]. Deletion goes from the image to nothing,
    insertion from a blurred image to the image. At step k round(k / steps) of all pixels have; equals in reading order.
    """
    if steps < 1 or heat.shape != (start.shape[0], *start.shape[2:]):
        raise ValueError(f"maps of shape {tuple(heat.shape)} for images {tuple(start.shape)} in {steps} steps")
    pixels = heat[0].numel()
    order = heat.flatten(1).argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(pixels, device=order.device).expand_as(order))
    rank = rank.view(heat.shape)[:, None]
    found = []
    with torch.no_grad():
        for step in range(steps + 1):
            gone = rank < round(step / steps * pixels)
            found.append(score(torch.where(gone, end, start)))
    return torch.stack(found, dim=1)


def area_under(curve: ArrayLike) -> NDArray[np.float64]:
    """Area under ``[..., steps + 1]`` values at equal distances over 0..1, by trapezoids."""
    values = np.asarray(curve, dtype=np.float64)
    return (values[..., 1:] + values[..., :-1]).mean(axis=-1) / 2
