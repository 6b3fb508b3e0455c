"""The fast gradient sign method (Goodfellow, Shlens and Szegedy 2015)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from stages.preprocess import Preprocess


def fgsm(
    logits: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    labels: torch.Tensor,
    levels: float,
    preprocess: Preprocess,
) -> torch.Tensor:
    """``x`` [B, 3, H, W], normalised, moved by ``levels`` grey levels (of 255) up the loss of ``labels`` [B].

    Stays within the colours an image can have. Losses are summed, so the sign of one image's gradient is its own.
    """
    mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    leaf = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        loss = cross_entropy(logits(leaf).to(x.dtype), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    moved = x + levels / 255 * gradient.sign() / std
    return torch.minimum(torch.maximum(moved, -mean / std), (1 - mean) / std)
