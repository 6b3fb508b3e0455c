"""A U-Net of any width and depth for images of any size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_GROUPS, _LEAST = 8, 4  # groups of a norm, and channels in one: of a channel alone, its level would be lost


@dataclass(frozen=True)
class UNetConfig:
    """``width``: channels at full resolution, doubled by each of the ``depth`` - 1 halvings, at most ``most``."""

    width: int = 32
    depth: int = 5
    most: int = 512

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1 or self.most < self.width:
            raise ValueError(f"width {self.width}, depth {self.depth}, most {self.most}: from 1 on, most >= width")


class UNet(nn.Module):
    """[B, inputs, H, W] -> [B, outputs, H, W]. Norms are over one image (groups), so batch mates do not matter."""

    def __init__(self, inputs: int, outputs: int, config: UNetConfig) -> None:
        super().__init__()
        widths = [min(config.width << level, config.most) for level in range(config.depth)]
        self.down = nn.ModuleList(_block(a, b) for a, b in zip([inputs, *widths], widths, strict=False))
        self.up = nn.ModuleList(_block(below + here, here) for here, below in pairwise(widths))
        self.head = nn.Conv2d(widths[0], outputs, 1)
        self.multiple = 1 << (config.depth - 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple), mode="replicate")
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            kept.append(x)
        for level in reversed(range(len(self.up))):
            larger = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = self.up[level](torch.cat([larger, kept[level]], 1))
        return self.head(x)[:, :, :height, :width]


def _block(inputs: int, outputs: int) -> nn.Sequential:
    groups = math.gcd(_GROUPS, max(1, outputs // _LEAST), outputs)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(groups, outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(groups, outputs),
        nn.ReLU(inplace=True),
    )
