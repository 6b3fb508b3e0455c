"""The four-layer PixelShuffle network (the layout of PyTorch's super_resolution example: conv1 to conv4, ReLUs)."""

from __future__ import annotations

import torch
from torch import nn


class PixelShuffleNetwork(nn.Module):
    """Luminance (B, 1, h, w) -> (B, 1, scale h, scale w); receptive field 11."""

    def __init__(self, scale: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 5, padding=2)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, width // 2, 3, padding=1)
        self.conv4 = nn.Conv2d(width // 2, scale**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(scale)
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            nn.init.orthogonal_(conv.weight, 1.0 if conv is self.conv4 else nn.init.calculate_gain("relu"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = torch.relu(conv(x))
        return self.shuffle(self.conv4(x))


def pixel_shuffle(scale: int = 2, width: int = 64) -> PixelShuffleNetwork:
    """``width`` 64 is the published one."""
    return PixelShuffleNetwork(scale, width)
