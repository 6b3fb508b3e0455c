"""What an attack on the input does to a map: fast gradient sign (Goodfellow et al. 2015) and rank correlation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike


def fgsm(
    forward: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    labels: torch.Tensor,
    epsilon: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> torch.Tensor:
    """Normalised inputs [B, 3, h, w] moved by ``epsilon`` (of pixel values 0..1) along the sign of the loss's gradient.

    The loss is the cross-entropy of ``labels`` [B], summed over the batch; pixels stay within 0..1.
    """
    centre = torch.tensor(mean, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    scale = torch.tensor(std, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(forward(leaf).to(x.dtype), labels, reduction="sum")
        gradient = torch.autograd.grad(loss, leaf)[0]
    moved = x.detach() + epsilon * gradient.sign() / scale
    return torch.minimum(torch.maximum(moved, -centre / scale), (1 - centre) / scale)


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Spearman's rank correlation of two maps of one shape, equal values sharing a rank; NaN where one is constant."""
    from scipy.stats import rankdata  # half a second for those who do not ask for it

    p, q = (rankdata(np.asarray(v, dtype=np.float64).ravel()) for v in (a, b))
    p, q = p - p.mean(), q - q.mean()
    below = np.sqrt((p @ p) * (q @ q))
    return float(p @ q / below) if below > 0 else float("nan")
