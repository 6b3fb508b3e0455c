"""Bytes of a frozen image, counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stages.linear.memory import bytes_of, frozen_bytes
from stages.linear.scope import LinearScope, freeze


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 2, 1),
        nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()


def test_bytes_by_hand() -> None:
    found = bytes_of(network(), (3, 8, 8))
    conv, pooled, small, scores = 4 * 8 * 8, 4 * 4 * 4, 2 * 4 * 4, 5
    assert found.activations == 4 * (2 * conv + pooled + 2 * small + scores)
    assert found.keep == conv + 8 * pooled  # a byte for each mask value, an index for each maximum
    # The most lives while the ReLU is decided: what it reads, what it gives, and its mask.
    assert found.stream == 4 * (conv + conv) + conv
    assert frozen_bytes(freeze(network().double(), torch.zeros(1, 3, 8, 8)), 8).activations == 2 * found.activations


DECIDING = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.2, 0.3),
    "leakyrelu": nn.LeakyReLU(0.1),
    "prelu": nn.PReLU(4),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "instance norm": nn.InstanceNorm2d(4),
    "affine instance norm": nn.InstanceNorm2d(4, affine=True),
    "max pooling": nn.MaxPool2d(3, 2, 1),
    "adaptive max pooling": nn.AdaptiveMaxPool2d(3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DECIDING)
def test_kept_bytes_are_those_a_scope_keeps(name: str, dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), DECIDING[name], nn.Conv2d(4, 2, 1)).to(dtype).eval()
    with LinearScope(net, torch.rand(1, 3, 8, 8, dtype=dtype), engine="stream", masks="keep") as scope:
        assert scope._kept is not None
        assert scope._kept.nbytes == scope.kept_bytes == bytes_of(net, (3, 8, 8)).keep > 0
