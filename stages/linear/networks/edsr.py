"""EDSR (Lim et al., 2017) in the public state-dict layout: sub_mean, head, body, tail, add_mean. RGB.

The public weights work on 0..255; here images are 0..1 on both sides, and the factor 255 is in the network.
"""

from __future__ import annotations

import math

import torch
from torch import nn

_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, RGB in 0..1
_RANGE = 255.0


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class MeanShift(nn.Conv2d):
    """Adds or takes away the mean colour: a 1 x 1 convolution, so that checkpoints carry it."""

    def __init__(self, sign: int) -> None:
        super().__init__(3, 3, 1)
        assert self.bias is not None
        with torch.no_grad():
            self.weight.copy_(torch.eye(3).view(3, 3, 1, 1))
            self.bias.copy_(sign * _RANGE * torch.tensor(_MEAN))


class Block(nn.Module):
    """A residual block without norms."""

    def __init__(self, features: int, residual_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(features, features), nn.ReLU(), _conv(features, features))
        self.residual_scale = residual_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(x) * self.residual_scale + x
        return found


class Edsr(nn.Module):
    def __init__(self, scale: int, blocks: int, features: int, residual_scale: float) -> None:
        super().__init__()
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.head = nn.Sequential(_conv(3, features))
        self.body = nn.Sequential(*(Block(features, residual_scale) for _ in range(blocks)), _conv(features, features))
        steps = [scale] if scale == 3 else [2] * round(math.log2(scale))
        upsampler = [part for s in steps for part in (_conv(features, s**2 * features), nn.PixelShuffle(s))]
        self.tail = nn.Sequential(nn.Sequential(*upsampler), _conv(features, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(self.sub_mean(x * _RANGE))
        found: torch.Tensor = self.add_mean(self.tail(self.body(x) + x)) / _RANGE
        return found


def edsr_baseline(scale: int = 2, blocks: int = 16, features: int = 64) -> Edsr:
    """1.5 M parameters: edsr_baseline_x2, x3, x4."""
    return _edsr(scale, blocks, features, 1.0)


def edsr(scale: int = 2, blocks: int = 32, features: int = 256) -> Edsr:
    """The full network, 43 M parameters: edsr_x2, x3, x4."""
    return _edsr(scale, blocks, features, 0.1)


def _edsr(scale: int, blocks: int, features: int, residual_scale: float) -> Edsr:
    if scale not in (2, 3, 4, 8):
        raise ValueError(f"scale is {scale}: EDSR's upsampler is made for 2, 3, 4 or 8")
    return Edsr(scale, blocks, features, residual_scale)
