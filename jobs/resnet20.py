"""The CIFAR-10 ResNet-20 of He et al. (arXiv:1512.03385, section 4.2): an example of a network of one's own.

A config names it as ``name: jobs.resnet20:cifar_resnet20``; any function of yours that returns an nn.Module does.
Parameter names are those of akamaster/pytorch_resnet_cifar10, so its weights load as they are.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Shortcut(nn.Module):
    """Option A of the paper: every second pixel, and zeros for the channels that are new. No parameters."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.new_channels = new_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Half of the new channels before, half behind the old ones.
        half = self.new_channels // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = nn.Identity() if stride == 1 else Shortcut(outputs - inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(inside + self.shortcut(x))


class ResNet20(nn.Module):
    """Images [B, 3, 32, 32] -> logits [B, classes]; three groups of three blocks with 16, 32 and 64 channels."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(3)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.avgpool(x), 1))


def cifar_resnet20(classes: int = 10) -> ResNet20:
    """The network, untrained. Load weights with ``weights: cifar10_resnet20.safetensors``."""
    return ResNet20(classes)
