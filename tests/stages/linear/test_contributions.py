"""Contributions add up to the score, layer by layer what the gradient of each bias says."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from linear_cases import awake, close, family, image, network
from torch import nn

from stages.linear.contributions import Contributing, Contributions
from stages.linear.scope import LinearScope, freeze

FAMILIES = {
    "alexnet": 64,
    "squeezenet1_0": 48,
    "squeezenet1_1": 48,
    "inception_v3": 75,
    **{f"resnet{n}": 32 for n in (18, 34, 50, 101, 152)},
    **{f"densenet{n}": 32 for n in (121, 161, 169, 201)},
    **{f"vgg{n}{norm}": 32 for n in (11, 13, 16, 19) for norm in ("", "_bn")},
}


def adds_up(found: Contributions, tolerance: float = 1e-10) -> bool:
    parts = found.input + found.layers.sum(dim=1)
    return bool(((parts - found.score).abs() <= tolerance * found.score.abs().clamp_min(1)).all())


@pytest.mark.parametrize("name", FAMILIES)
def test_contributions_sum_to_the_score_on_every_family(name: str) -> None:
    net = family(name)
    x = image(0, 3, FAMILIES[name], FAMILIES[name])
    found = Contributing(freeze(net, x))(x)
    with torch.no_grad():
        y = net(x)
    assert torch.equal(found.target, y.argmax(dim=1))
    assert close(found.score, y.max(dim=1).values)
    assert adds_up(found)
    # One term for each layer: the norms behind convolutions count with these, DenseNet's others for themselves.
    parts = list(net.modules())
    norms, linears = (sum(isinstance(m, kind) for m in parts) for kind in (nn.BatchNorm2d, nn.Linear))
    biased = sum(isinstance(m, nn.Conv2d) and m.bias is not None for m in parts)
    assert len(found.names) == max(norms, biased) + linears
    assert float(found.layers.abs().max()) > 1e-3


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.alone = nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = torch.relu(self.norm(self.conv(x)))
        b = torch.relu(self.alone(torch.max_pool2d(a, 2)))
        return self.head(b.flatten(1))


def test_each_term_is_the_bias_times_its_gradient() -> None:
    net = awake(SmallNet())
    x = image()
    found = Contributing(freeze(net, x))(x, torch.tensor([1]))
    gradients = dict(zip(names := [n for n, _ in net.named_parameters()], _gradients(net, x), strict=True))
    assert len(names) == 8

    def shift(norm: nn.BatchNorm2d) -> torch.Tensor:
        return norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)

    expected = [
        (net.conv.bias * gradients["conv.bias"]).sum() + (shift(net.norm) * gradients["norm.bias"]).sum(),
        (shift(net.alone) * gradients["alone.bias"]).sum(),
        (net.head.bias * gradients["head.bias"]).sum(),
    ]
    assert found.names == ("conv", "alone", "head")
    assert close(found.layers[0], torch.stack(expected).detach())
    assert close(found.input, found.score - torch.stack(expected).sum().detach())


def _gradients(net: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(net(x)[0, 1], list(net.parameters()))


@pytest.mark.parametrize("name", ["functional", "hardtanh", "pools"])
def test_input_and_residual_are_those_of_the_scope(name: str) -> None:
    net, x = network(name), image()
    found = Contributing(freeze(net, x))(x)
    scope, k = LinearScope(net, x), int(found.target)
    assert close(found.input, scope.forward(x)[:, k])
    assert close(found.residual, scope.residual()[:, k])
    assert close(found.residual_share, found.residual / found.score)
    assert adds_up(found)


@pytest.mark.parametrize("part", [nn.Sigmoid(), nn.Tanh(), nn.InstanceNorm2d(4, affine=True), nn.ReLU6()])
def test_what_freezing_adds_is_a_term_of_its_own(part: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), part, nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(32, 3))
    net = awake(net)
    with torch.no_grad():
        net[0].weight.mul_(12)
    x = image()
    found = Contributing(freeze(net, x))(x)
    assert found.names == ("0", "1", "2", "4")
    assert adds_up(found)
    scope = LinearScope(net, x, engine="stream")
    assert close(found.input, scope.forward(x)[:, int(found.target)])
    if isinstance(part, (nn.ReLU6, nn.InstanceNorm2d)):
        assert abs(float(found.layers[0, 1])) > 1e-3


def test_an_image_does_not_know_its_batch() -> None:
    net = network("pools")
    x = torch.cat([image(s) for s in range(3)])
    contributing = Contributing(freeze(net, x[:1]))
    together = contributing(x)
    for i in range(3):
        alone = contributing(x[i : i + 1])
        assert close(together.layers[i], alone.layers[0])
        assert close(together.input[i], alone.input[0])


def test_nothing_of_a_pass_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[weakref.ref[torch.Tensor]] = []
    forward = Contributing.forward

    def watched(self: Contributing, x: torch.Tensor) -> Any:
        y, taps = forward(self, x)
        seen.extend(weakref.ref(tap.value) for tap in taps)
        return y, taps

    monkeypatch.setattr(Contributing, "forward", watched)
    contributing = Contributing(freeze(network("pools"), image()))
    gc.disable()
    try:
        found = contributing(image())
        assert len(seen) == 2, "the convolution with its norm, and the linear layer"
        assert all(value() is None for value in seen), "a ring that only the collector would open"
    finally:
        gc.enable()
    assert adds_up(found)


def test_the_share_by_magnitude_lies_in_0_and_1() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    found = Contributions(("a",), zero + 1, zero.long(), zero + 4, zero.view(1, 1) - 3, zero.view(1, 1) + 1)
    assert float(found.residual_share) == -3
    assert float(found.residual_magnitude) == 3 / 7
    nothing = Contributions(("a",), zero, zero.long(), zero, zero.view(1, 1), zero.view(1, 1))
    assert float(nothing.residual_magnitude) == 0


def test_networks_without_class_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="batch, classes"):
        Contributing(freeze(network("shuffle"), image()))
