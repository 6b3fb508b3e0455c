"""LRP and excitation backpropagation: by hand, by explicit matrices, conserving where captum's is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.baselines.excitation import ContrastiveMwp, ExcitationBackprop, Winners
from stages.baselines.lrp import Lrp, Shares
from stages.baselines.query import Query
from stages.baselines.registry import Setting, build
from stages.baselines.relevance import Rule
from stages.network import cut


def vgg() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 10, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Linear(90, 12), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(12, 5),
    )  # fmt: skip


class Residual(nn.Module):
    """A stem and two blocks as ResNet has them: batch norms, one ReLU called twice, a projected and a plain skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.a1, self.n1 = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.a2, self.n2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.nd = nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.b1, self.m1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.stem(x)))
        inner = self.n2(self.a2(self.relu(self.n1(self.a1(x)))))
        x = self.relu(inner + self.nd(self.down(x)))
        out = self.m1(self.b1(x))
        out += x
        return self.head(torch.flatten(F.adaptive_avg_pool2d(self.relu(out), 1), 1))


class Branches(nn.Module):
    """Inception's manner: no ReLU module anywhere, parallel branches concatenated, average pooling in one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.three = nn.Conv2d(6, 4, 1, bias=False), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.pooled = nn.Conv2d(6, 4, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        parts = [
            F.relu(self.norm(self.one(x)), inplace=True),
            F.relu(self.three(x)),
            F.relu(self.pooled(F.avg_pool2d(x, 3, stride=1, padding=1))),
        ]
        x = F.max_pool2d(torch.cat(parts, 1), 2)
        return self.head(x.mean(dim=(2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"vgg": vgg, "residual": Residual, "branches": Branches}


def network(name: str, *, biases: bool) -> nn.Module:
    torch.manual_seed(3)
    net = NETWORKS[name]().double().eval().requires_grad_(False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.3, 2)
            module.weight.uniform_(0.5, 1.5)
            if biases:
                module.running_mean.uniform_(-0.3, 0.3)
                module.bias.uniform_(-0.3, 0.3)
        elif not biases and getattr(module, "bias", None) is not None:
            module.bias.zero_()
    return net


X = torch.randn(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([[0, 3], [2, 1], [4, 4]])


def query(net: nn.Module, x: torch.Tensor = X, targets: torch.Tensor = TARGETS, layer: str = "last_conv") -> Query:
    return Query(cut(net, [layer], x[:1]), x, targets)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("rule", ["epsilon", "composite", "alpha_beta"])
def test_relevance_is_conserved_from_the_score_to_the_pixels(name: str, rule: str) -> None:
    net = network(name, biases=False)
    asked = query(net)
    kept = Lrp(rule=rule, epsilon=1e-12).maps(asked).sum(dim=(2, 3))  # type: ignore[arg-type]
    score = net(X).gather(1, TARGETS)
    assert score.abs().min() > 1e-3
    assert torch.allclose(kept, score, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_epsilon_without_biases_is_gradient_times_input(name: str) -> None:
    """A known identity for ReLU networks (Ancona et al. 2018): whatever the skips and branches."""
    asked = query(network(name, biases=False))
    expected = asked.input_gradient() * X[:, None]
    assert torch.allclose(Lrp(rule="epsilon", epsilon=1e-13).relevance(asked), expected, atol=1e-9)


@pytest.mark.parametrize("rule", ["epsilon", "composite", "alpha_beta"])
def test_with_biases_it_is_the_matrices_of_the_definition(rule: str) -> None:
    """Every layer as one matrix, every share computed term by term: convolution + norm, ReLU, residual sum, linear."""
    torch.manual_seed(5)
    conv, norm, side = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(3, 4, 1)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.side, self.head = conv, norm, side, nn.Linear(4 * 9, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(F.relu(self.norm(self.conv(x)) + self.side(x)).flatten(1))

    net = Net().double().eval().requires_grad_(False)
    norm.running_mean.uniform_(-0.5, 0.5)
    norm.running_var.uniform_(0.5, 2)
    norm.weight.uniform_(-1, 1)
    norm.bias.uniform_(-1, 1)
    x = X[:1, :, :3, :3]
    epsilon = 1e-6

    def matrix(layer: Callable[[torch.Tensor], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """(W, b) of an affine map of a flattened image."""
        zero = layer(torch.zeros_like(x)).flatten()
        unit = torch.eye(27, dtype=torch.float64).view(27, 3, 3, 3)
        return torch.stack([layer(u[None]).flatten() - zero for u in unit], dim=1), zero

    def shared(weight: torch.Tensor, bias: torch.Tensor, into: torch.Tensor, out: torch.Tensor, dense: bool):
        terms = weight * into
        sign = lambda v: torch.where(v >= 0, 1.0, -1.0)  # noqa: E731
        if rule == "epsilon" or (rule == "composite" and dense):
            total = terms.sum(1) + bias
            return (terms / (total + epsilon * sign(total))[:, None] * out[:, None]).sum(0)
        alpha = 2.0 if rule == "alpha_beta" else 1.0
        rows = []
        for row, b, r in zip(terms, bias, out, strict=True):
            up, down = row.clamp(min=0).sum() + b.clamp(min=0), row.clamp(max=0).sum() + b.clamp(max=0)
            first = alpha if up > 0 and down < 0 else 1.0
            rest = 1 - alpha if up > 0 and down < 0 else 1.0  # terms of one sign take all
            rows.append(r * (first * row.clamp(min=0) / (up + epsilon) + rest * row.clamp(max=0) / (down - epsilon)))
        return torch.stack(rows).sum(0)

    main, skip = matrix(lambda v: norm(conv(v))), matrix(side)
    flat = x.flatten()
    a, b = main[0] @ flat + main[1], skip[0] @ flat + skip[1]
    hidden = (a + b).clamp(min=0)
    score = net(x)[0]
    for target in range(5):
        start = torch.zeros(5, dtype=torch.float64)
        start[target] = score[target]
        above = shared(net.head.weight, net.head.bias, hidden, start, dense=True)
        total = a + b
        total = total + epsilon * torch.where(total >= 0, 1.0, -1.0)
        expected = shared(*main, flat, above * a / total, False) + shared(*skip, flat, above * b / total, False)
        got = Lrp(rule=rule, epsilon=epsilon).relevance(query(net, x, torch.tensor([[target]]), "relu"))  # type: ignore[arg-type]
        assert torch.allclose(got.flatten(), expected, atol=1e-10)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_is_what_captum_computes_where_it_can() -> None:
    from captum.attr import LRP
    from captum.attr._utils.lrp_rules import EpsilonRule

    net = network("vgg", biases=True)
    plain = [nn.ReLU() if isinstance(m, nn.ReLU) else m for m in net]  # captum's hooks cannot bear in-place calls
    asked = Lrp(rule="epsilon", epsilon=1e-9).relevance(query(net))
    for r in range(2):
        net[6].rule = EpsilonRule()  # captum has none for nn.Flatten, and takes this one off again
        expected = LRP(nn.Sequential(*plain)).attribute(X.clone(), target=TARGETS[:, r])
        assert torch.allclose(asked[:, r], expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_captum_loses_relevance_at_residual_sums_and_refuses_functional_relus() -> None:
    from captum.attr import LRP

    net = network("residual", biases=False)
    score = net(X).gather(1, TARGETS[:, :1])[:, 0]
    fresh = network("residual", biases=False)
    for module in fresh.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    try:
        theirs = LRP(fresh).attribute(X.clone(), target=TARGETS[:, 0]).sum(dim=(1, 2, 3))
        captum_conserves = torch.allclose(theirs, score, rtol=1e-2)
    except (RuntimeError, TypeError, AssertionError):  # a ReLU called twice, a batch norm
        captum_conserves = False
    ours = Lrp(rule="epsilon", epsilon=1e-12).maps(query(net))[:, 0].sum(dim=(1, 2))
    assert torch.allclose(ours, score, rtol=1e-6)
    assert not captum_conserves


def test_a_call_without_a_rule_is_named() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))

    with pytest.raises(ValueError, match="no rule to share relevance among the inputs of groupnorm"):
        Lrp().maps(query(Strange().double().eval(), layer="relu"))


# Excitation backpropagation


def two_layers(weight: list[list[float]], head: list[list[float]]) -> nn.Module:
    net = nn.Sequential(
        nn.Conv2d(3, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2, bias=False)
    ).double().eval().requires_grad_(False)  # fmt: skip
    net[0].weight.copy_(torch.tensor(weight).view(2, 3, 1, 1))
    net[3].weight.copy_(torch.tensor(head))
    return net


def test_winning_probabilities_by_hand() -> None:
    # Two places of three colours; two channels; activations (1, 4) and (3, 0) by channel and place.
    net = two_layers([[1, 0, 0], [0, 1, 0]], [[2, -1, 1, 5], [1, 1, -3, 0]])
    x = torch.tensor([[[[1.0, 4.0]], [[3.0, -2.0]], [[9.0, 9.0]]]]).double()
    asked = Query(cut(net, ["1"], x), x, torch.tensor([[0, 1]]))
    # Class 0: positive terms 1*2 (channel 0, place 0), 3*1 (channel 1, place 0); 4*-1 and 0*5 give nothing.
    # Class 1: 1*1 (place 0), 4*1 (place 1); 3*-3 gives nothing.
    assert torch.allclose(ExcitationBackprop("1").maps(asked)[0, :, 0], torch.tensor([[1.0, 0.0], [0.2, 0.8]]).double())
    # Contrast: class 0's negated weights win with 4*1 at place 1 only; class 1's with 3*3 at place 0 only.
    contrast = ContrastiveMwp("1").maps(asked)[0, :, 0]
    assert torch.allclose(contrast, torch.tensor([[1.0, -1.0], [0.2 - 1.0, 0.8]]).double())


@pytest.mark.parametrize("name", NETWORKS)
def test_probability_is_conserved_and_contrast_cancels(name: str) -> None:
    net = network(name, biases=False)  # with them, a unit can be active without a positive input, and hand on nothing
    layer = {"vgg": "1", "residual": "relu", "branches": "relu"}[name]
    asked = query(net, layer=layer)
    won = ExcitationBackprop(layer).maps(asked)
    assert won.min() >= 0
    assert torch.allclose(won.sum(dim=(2, 3)), torch.ones(3, 2).double(), atol=1e-9)
    contrast = ContrastiveMwp(layer).maps(asked)
    assert torch.allclose(contrast.sum(dim=(2, 3)), torch.zeros(3, 2).double(), atol=1e-9)
    assert contrast.min() < 0 < contrast.max()


def test_contrast_is_the_same_whether_pooling_comes_before_the_classifier_or_behind_it() -> None:
    """Averaging and a 1x1 convolution commute, so these are one network; within a place the contrast would cancel."""
    torch.manual_seed(1)
    conv, head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5, bias=False)
    classifier = nn.Conv2d(6, 5, 1, bias=False)
    classifier.weight.data.copy_(head.weight.data.view(5, 6, 1, 1))
    behind = nn.Sequential(conv, nn.ReLU(), classifier, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    before = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).double().eval()
    maps = [ContrastiveMwp("1").maps(query(net.requires_grad_(False), layer="1")) for net in (behind, before)]
    assert torch.allclose(*maps, atol=1e-12)
    assert maps[0].abs().max() > 1e-3


def test_c_mwp_takes_any_layer_by_name() -> None:
    net = network("vgg", biases=True)
    asked = Query(cut(net, ["1", "4"], X[:1]), X, TARGETS)
    assert build("c_mwp:1", Setting(("1", "4"))).maps(asked).shape == (3, 2, 12, 12)
    assert build("c_mwp", Setting(("1", "4"))).maps(asked).shape == (3, 2, 6, 6)


def test_means_of_signed_values_are_shared_by_the_rule() -> None:
    """As in DenseNet's transitions: a convolution, then average pooling. By hand, of a relevance of 1 each."""
    values = torch.tensor([[3.0, -1.0, 1.0, 0.0], [-3.0, 1.0, 0.0, 0.0], [-1.0, -3.0, 0.0, 0.0], [0.0] * 4]).double()
    x, ones = values.view(4, 1, 2, 2), torch.ones(4, 1, 1, 1).double()

    def shared(rule: Rule) -> list[list[float]]:
        found: list[list[float]] = rule.average(lambda v: F.avg_pool2d(v, 2), x, ones).view(4, 4).tolist()
        return found

    assert shared(Winners(contrast=False)) == [[0.75, 0, 0.25, 0], [0, 1, 0, 0], [0] * 4, [0] * 4]
    # z+: where there is nothing positive the negative values take all.
    assert shared(Shares("composite")) == [[0.75, 0, 0.25, 0], [0, 1, 0, 0], [0.25, 0.75, 0, 0], [0] * 4]
    twice = shared(Shares("alpha_beta", alpha=2.0))
    assert twice == [[1.5, -1, 0.5, 0], [-1, 2, 0, 0], [0.25, 0.75, 0, 0], [0] * 4]
    assert shared(Shares("epsilon"))[0] == pytest.approx([1, -1 / 3, 1 / 3, 0], rel=1e-5)
