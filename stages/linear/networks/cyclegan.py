"""CycleGAN's ResNet generator (Zhu et al., 2017) in the public state-dict layout: one sequence, model.1, model.4, ...

Instance norms without parameters, reflection pads, 6 or 9 residual blocks. The public weights work on -1..1; here
images are 0..1 on both sides, and the change of scale is in the network.
"""

from __future__ import annotations

import torch
from torch import nn


def _half(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.InstanceNorm2d(outputs), nn.ReLU()]


def _double(inputs: int, outputs: int) -> list[nn.Module]:
    up = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1)
    return [up, nn.InstanceNorm2d(outputs), nn.ReLU()]


class Block(nn.Module):
    def __init__(self, width: int, dropout: bool) -> None:
        super().__init__()

        def part() -> list[nn.Module]:
            return [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width)]

        between: list[nn.Module] = [nn.ReLU(), *([nn.Dropout(0.5)] if dropout else [])]
        self.conv_block = nn.Sequential(*part(), *between, *part())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = x + self.conv_block(x)
        return found


class ResnetGenerator(nn.Module):
    """RGB of a height and width that are multiples of 4 and at least 8."""

    def __init__(self, blocks: int, width: int, dropout: bool) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ReflectionPad2d(3),
            nn.Conv2d(3, width, 7),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            *_half(width, 2 * width),
            *_half(2 * width, 4 * width),
            *(Block(4 * width, dropout) for _ in range(blocks)),
            *_double(4 * width, 2 * width),
            *_double(2 * width, width),
            nn.ReflectionPad2d(3),
            nn.Conv2d(width, 3, 7),
            nn.Tanh(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(2 * x - 1) * 0.5 + 0.5
        return found


def resnet_generator(blocks: int = 9, width: int = 64, dropout: bool = False) -> ResnetGenerator:
    """``blocks`` 9 is what is published for 256 x 256 images, 6 for 128 x 128; ``dropout`` only moves the keys."""
    return ResnetGenerator(blocks, width, dropout)
