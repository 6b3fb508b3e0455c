"""Backpropagation and guided backpropagation: by hand, and against slow and foreign references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.baselines.gradient import Gradient
from stages.baselines.guided import GuidedBackprop, GuidedReLU, guided_gradient
from stages.baselines.query import Query
from stages.network import cut


class Net(nn.Module):
    """ReLU as a module, as a function or in place: the three ways networks call it."""

    def __init__(self, relu: str) -> None:
        super().__init__()
        self.relu = relu
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, act in ((self.conv1, self.act1), (self.conv2, self.act2)):
            x = conv(x)
            if self.relu == "module":
                x = act(x)
            elif self.relu == "function":
                x = F.relu(x)
            elif self.relu == "method":
                x = x.relu()
            else:
                x = F.relu(x, inplace=True)
        return self.head(x.mean(dim=(2, 3)))


def network(relu: str = "module") -> Net:
    torch.manual_seed(0)
    return Net(relu).double().eval()


X = torch.randn(3, 3, 7, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([[0, 3], [2, 1], [1, 1]])


def query(net: nn.Module, x: torch.Tensor = X, targets: torch.Tensor = TARGETS) -> Query:
    return Query(cut(net, ["last_conv"], x[:1]), x, targets)


def test_a_linear_network_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -4.0, 2.0], [0.5, 0.0, 0.0]]).view(2, 3, 1, 1))
    x = torch.ones(1, 3, 2, 5, dtype=torch.float64)
    maps = Gradient().maps(Query(cut(net, ["0"], x), x, torch.tensor([[0, 1]])))
    assert torch.allclose(maps[0, 0], torch.full((2, 5), 4 / 10).double())  # the largest |weight|, over ten pixels
    assert torch.allclose(maps[0, 1], torch.full((2, 5), 0.5 / 10).double())


@pytest.mark.parametrize("relu", ["module", "function", "method", "inplace"])
def test_gradient_is_that_of_the_network_itself(relu: str) -> None:
    maps = Gradient().maps(query(network(relu)))
    net = network()
    for i in range(3):
        for r in range(2):
            leaf = X[i : i + 1].clone().requires_grad_(True)
            expected = torch.autograd.grad(net(leaf)[0, TARGETS[i, r]], leaf)[0][0].abs().max(dim=0).values
            assert torch.allclose(maps[i, r], expected, atol=1e-13)


class SlowGuided(torch.autograd.Function):
    """The rule as the paper states it: 1[input > 0] 1[gradient > 0] gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return gradient * (x > 0) * (gradient > 0)


@pytest.mark.parametrize("relu", ["module", "function", "method", "inplace"])
def test_guided_is_the_papers_rule_however_relu_is_called(relu: str) -> None:
    answer = guided_gradient(query(network(relu)))
    net = network()
    for r in range(2):
        leaf = X.clone().requires_grad_(True)
        features = SlowGuided.apply(net.conv2(SlowGuided.apply(net.conv1(leaf))))
        score = net.head(features.mean(dim=(2, 3))).gather(1, TARGETS[:, r : r + 1]).sum()
        expected = torch.autograd.grad(score, leaf)[0]
        assert torch.allclose(answer[:, r], expected, atol=1e-13)
    assert not torch.allclose(answer, query(network(relu)).input_gradient(), atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_guided_is_what_captum_computes_where_it_can() -> None:
    from captum.attr import GuidedBackprop as Captum

    net = network("module")
    answer = guided_gradient(query(net))
    for r in range(2):
        expected = Captum(net).attribute(X, target=TARGETS[:, r])
        assert torch.allclose(answer[:, r], expected, atol=1e-13)


def test_relu6_is_guided_and_other_clips_are_not() -> None:
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def with_(act: nn.Module) -> nn.Module:
        return nn.Sequential(conv, act, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()

    x = X.float()
    relu = guided_gradient(query(with_(nn.ReLU()), x))
    assert torch.allclose(guided_gradient(query(with_(nn.ReLU6()), x)), relu, atol=1e-6)  # nothing reaches 6 here
    wide = query(with_(nn.Hardtanh(-99, 99)), x)
    assert torch.allclose(guided_gradient(wide), wide.input_gradient(), atol=1e-6)


def test_a_batch_is_its_images_one_by_one() -> None:
    net = network("function")
    for method in (Gradient(), GuidedBackprop()):
        whole = method.maps(query(net))
        for i in range(3):
            alone = method.maps(query(net, X[i : i + 1], TARGETS[i : i + 1]))
            assert torch.allclose(whole[i], alone[0], atol=1e-13)


def test_the_rule_and_hooks_are_gone_after_success_and_after_an_exception() -> None:
    net = network("inplace")
    plain = query(net).input_gradient()
    guided_gradient(query(net))
    assert torch._C._len_torch_function_stack() == 0
    asked = query(net)

    def fail(*_: object) -> None:
        raise RuntimeError("out of luck")

    handle = net.conv2.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        guided_gradient(asked)
    handle.remove()
    assert torch._C._len_torch_function_stack() == 0
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(query(net).input_gradient(), plain)
    with pytest.raises(ZeroDivisionError), GuidedReLU():
        _ = 1 / 0
    assert torch._C._len_torch_function_stack() == 0


def test_queries_work_where_gradients_are_switched_off() -> None:
    with torch.no_grad():
        maps = Gradient().maps(query(network()))
    assert torch.equal(maps, Gradient().maps(query(network())))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captum_gives_the_plain_gradient_for_functional_relus_and_this_does_not() -> None:
    from captum.attr import GuidedBackprop as Captum

    net = network("function")
    theirs = Captum(net).attribute(X, target=TARGETS[:, 0])
    asked = query(net)
    assert torch.allclose(theirs, asked.input_gradient()[:, 0], atol=1e-13)
    assert torch.allclose(guided_gradient(asked), guided_gradient(query(network("module"))), atol=1e-13)
    assert not torch.allclose(guided_gradient(asked)[:, 0], theirs, atol=1e-3)
