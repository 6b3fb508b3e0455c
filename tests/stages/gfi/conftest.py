"""A small network and images that the tests of guided feature inversion share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn


def _small(classes: int = 5, channels: int = 6, seed: int = 0) -> nn.Module:
    """Two convolutions, a batch norm with statistics of its own, a last pooling, a linear classifier; 32 x 32."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(channels * 64, classes),
    )
    norm = network[1]
    with torch.no_grad():
        norm.running_mean.uniform_(-0.5, 0.5)
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.uniform_(-0.3, 0.3)
        network[8].weight.mul_(4)  # probabilities that differ
    return network.eval().requires_grad_(False)


def _images(count: int, seed: int = 0, side: int = 32) -> torch.Tensor:
    """Smooth random images [count, 3, side, side] around 0, with some structure to keep."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator, dtype=torch.float64)
    return nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)


@pytest.fixture(scope="session")
def small() -> Callable[..., nn.Module]:
    return _small


@pytest.fixture(scope="session")
def images() -> Callable[..., torch.Tensor]:
    return _images
