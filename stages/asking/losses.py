"""What an agent is trained on, one value per image, so that an image's loss does not depend on its batch."""

from __future__ import annotations

from torch import Tensor


def squared_error(y: Tensor, truth: Tensor) -> Tensor:
    """Mean over channels and pixels of (y - truth)^2: [B, C, H, W] twice -> [B]."""
    return (y - truth).square().mean((1, 2, 3))


def total_variation(question: Tensor) -> Tensor:
    """sum(|q[y+1, x] - q[y, x]| + |q[y, x+1] - q[y, x]|) / (H W): [B, 1, H, W] -> [B]."""
    down = (question[:, :, 1:] - question[:, :, :-1]).abs().sum((1, 2, 3))
    right = (question[..., 1:] - question[..., :-1]).abs().sum((1, 2, 3))
    return (down + right) / (question.shape[2] * question.shape[3])
