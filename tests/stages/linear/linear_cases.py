"""Small networks of every kind the frozen system knows, with biases and statistics that are not trivial."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from pipeline.vision import torchvision


def awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Eval mode, float64, biases away from 0, batch norm statistics away from 0 and 1."""
    generator = torch.Generator().manual_seed(seed)

    def draw(t: torch.Tensor, low: float, high: float) -> None:
        t.copy_(torch.rand(t.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in network.modules():
            bias = getattr(module, "bias", None)
            if isinstance(bias, torch.Tensor):
                draw(bias, -0.4, 0.4)
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                draw(module.running_mean, -0.5, 0.5)
                draw(module.running_var, 0.5, 2.0)
                draw(module.weight, 0.5, 1.5)
    return network.double().eval()


class Functional(nn.Module):
    """ReLU, pooling, skips and concatenation as functions, methods and in-place calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(8 * 16, 5)
        self.register_buffer("offset", torch.linspace(-1, 1, 4).view(1, 4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = F.relu(self.first(x), inplace=True)
        b = self.norm(self.second(a)) + a
        b.relu_()
        b = 0.5 * b - self.offset
        c = torch.cat([F.max_pool2d(b, 2), F.avg_pool2d(a, 2)], dim=1)
        c = F.leaky_relu(c, 0.1).clone()
        return self.head(c.view(c.size(0), -1))


class Joined(nn.Module):
    """Interpolation, padding by a value, splitting, transposed convolution as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1, padding_mode="reflect")
        self.weight = nn.Parameter(torch.randn(3, 2, 4, 4) * 0.3)
        self.bias = nn.Parameter(torch.tensor([0.3, -0.2]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x).chunk(2, dim=1)
        a = F.conv_transpose2d(torch.relu(a), self.weight, self.bias, stride=2, padding=1)
        b = F.interpolate(F.pad(b, (1, 1, 1, 1), value=0.7), size=a.shape[-2:], mode="bilinear", align_corners=False)
        return a + b[:, :2] - 1.5


class Named(nn.Module):
    """Operands by name, wherever a call takes them so."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.last = nn.Linear(256, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.add(self.first(input=x), other=1.0)
        b = torch.sub(input=a, other=self.act(input=a), alpha=0.5).mul(other=1.5)
        b = torch.div(torch.rsub(b, other=0.25, alpha=2.0), other=0.5)
        b = self.up(F.max_pool2d(b, kernel_size=2), output_size=[8, 8])
        return self.last(input=torch.flatten(F.relu(input=b, inplace=True), start_dim=1))


def networks() -> dict[str, Callable[[], nn.Module]]:
    """name -> maker; every network takes (N, 2, 8, 8)."""
    conv = nn.Conv2d
    return {
        "functional": Functional,
        "joined": Joined,
        "named": Named,
        "in place": lambda: nn.Sequential(nn.ReLU(inplace=True), conv(2, 3, 3), nn.LeakyReLU(0.1, inplace=True)),
        "relu6": lambda: nn.Sequential(conv(2, 4, 3), _Gain(4.0), nn.ReLU6(inplace=True), conv(4, 3, 3, stride=2)),
        "hardtanh": lambda: nn.Sequential(conv(2, 4, 3), nn.Hardtanh(-0.2, 0.3), nn.Flatten(), nn.Linear(144, 3)),
        "prelu": lambda: nn.Sequential(conv(2, 4, 3), nn.PReLU(4), nn.ConvTranspose2d(4, 2, 3, 2, 1, 1), nn.PReLU()),
        "leaky": lambda: nn.Sequential(conv(2, 4, 3), nn.LeakyReLU(0.2), nn.AdaptiveMaxPool2d(3), conv(4, 2, 1)),
        "pools": lambda: nn.Sequential(
            conv(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(16, 4),
        ),
        "shuffle": lambda: nn.Sequential(conv(2, 8, 3, padding=1), nn.ReLU(), nn.PixelShuffle(2), conv(2, 1, 3)),
        "instance": lambda: nn.Sequential(
            nn.ReflectionPad2d(1),
            conv(2, 4, 3),
            nn.InstanceNorm2d(4, affine=True),
            nn.ReLU(),
            conv(4, 2, 3),
            nn.InstanceNorm2d(2),
        ),
        "tanh": lambda: nn.Sequential(conv(2, 4, 3), nn.Tanh(), conv(4, 2, 3), nn.Sigmoid()),
    }


class _Gain(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain + 1


STREAMED = ("instance", "tanh")  # whose frozen system is not the derivative


def network(name: str) -> nn.Module:
    torch.manual_seed(7)
    return awake(networks()[name]())


def image(seed: int = 0, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, *(shape or (2, 8, 8)), generator=generator, dtype=torch.float64)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> bool:
    return bool((a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max())))


def espcn(d: int, s: int, scale: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, d, 5, padding=2),
        nn.Tanh(),
        nn.Conv2d(d, s, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(s, scale**2, 3, padding=1),
        nn.PixelShuffle(scale),
        nn.Sigmoid(),
    )


def fsrcnn(scale: int) -> nn.Sequential:
    middle = [part for _ in range(4) for part in (nn.Conv2d(12, 12, 3, padding=1), nn.PReLU())]
    return nn.Sequential(
        nn.Conv2d(1, 56, 5, padding=2),
        nn.PReLU(),
        nn.Conv2d(56, 12, 1),
        nn.PReLU(),
        *middle,
        nn.Conv2d(12, 56, 1),
        nn.PReLU(),
        nn.ConvTranspose2d(56, 1, 9, scale, 4, output_padding=scale - 1),
    )


def load_sr(net: nn.Module, file: Path) -> nn.Module:
    """The public weights of a super-resolution network, in float64."""
    from safetensors.torch import load_file

    net.load_state_dict({key.removeprefix("net."): value for key, value in load_file(file).items()})
    return net.double().eval()


def family(name: str) -> nn.Module:
    """Random weights that keep the size of what passes, and narrow hidden layers behind the features."""
    with torch.device("meta"):
        net = getattr(torchvision.models, name)(weights=None, num_classes=7, **_OPTIONS.get(name, {}))
        if isinstance(net, (torchvision.models.AlexNet, torchvision.models.VGG)):
            layers = [i for i, part in enumerate(net.classifier) if isinstance(part, nn.Linear)]
            widths = [net.classifier[layers[0]].in_features, 16, 16, 7]
            for i, a, b in zip(layers, widths[:-1], widths[1:], strict=True):
                net.classifier[i] = nn.Linear(a, b)
    net.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                weight = module.weight
                weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(2 / weight[0].numel()))
    return awake(net)


_OPTIONS = {"inception_v3": {"init_weights": False, "aux_logits": False}}
