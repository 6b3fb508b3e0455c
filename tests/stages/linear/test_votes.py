"""Pixel discussions against their definition, one class and one layer at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from linear_cases import awake, close, image, network
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from stages.linear.contributions import Contributing
from stages.linear.scope import LinearScope, freeze
from stages.linear.votes import Discussion, Votes


def discussion(name: str = "pools", **options: Any) -> Discussion:
    x = image()
    return Discussion(Contributing(freeze(network(name), x)), x, **options)


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return awake(nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 4)))


def slow(net: nn.Sequential, x: torch.Tensor, c: int, literal: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(F_c^T * x0, the biases taken back) by the Jacobians of the parts, for `two_layers`."""
    first = torch.autograd.functional.jacobian(net[0], x)[0]  # (3, 6, 6, 1, 2, 8, 8)
    inside = net[0](x).detach()
    rest = torch.autograd.functional.jacobian(lambda h: net[1:](h)[0, c], inside)[0]
    whole = torch.autograd.functional.jacobian(net, x)[0]  # (4, 1, 2, 8, 8)
    bias = net[0].bias.detach().view(3, 1, 1).expand(3, 6, 6)
    back = torch.einsum("khw,khwbcij->cij", bias if literal else bias * rest, first)
    out = net[3].bias.detach()
    top = torch.einsum("k,kbcij->cij", out, whole) if literal else out[c] * whole[c, 0]
    return (whole[c, 0] * x[0]).sum(0), (back + top).sum(0)


@pytest.mark.parametrize("literal", [False, True])
def test_the_discussion_by_its_definition(literal: bool) -> None:
    net, x = two_layers(), image()
    bias = "literal" if literal else "class"
    contributing = Contributing(freeze(net, x))
    maps = {s: Discussion(contributing, x, bias=bias, scaling=s).maps(range(4)) for s in ("none", "total", "bias")}
    for c in range(4):
        own, back = slow(net, x, c, literal)
        score = net(x)[0, c].detach()
        assert close(maps["none"][c], own + back)
        assert close(maps["total"][c], (own + back) * score / (own + back).sum(), 1e-10)
        assert close(maps["bias"][c], own + back * (score - own.sum()) / back.sum(), 1e-10)


@pytest.mark.parametrize("name", ["functional", "pools", "hardtanh"])
@pytest.mark.parametrize("scaling", ["total", "bias", "shift"])
def test_maps_sum_to_the_scores(name: str, scaling: str) -> None:
    talk = discussion(name, scaling=scaling)
    classes = range(talk.scores.shape[0])
    assert close(talk.maps(classes).sum(dim=(1, 2)), talk.scores, 1e-10)


@pytest.mark.parametrize("bias", ["class", "literal"])
def test_a_batch_norm_says_what_the_fused_layer_says(bias: str) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 5), nn.BatchNorm1d(5)]
    net, x = awake(nn.Sequential(*parts, nn.ReLU(), nn.Linear(5, 4))), image()
    conv, full = fuse_conv_bn_eval(net[0], net[1]), fuse_linear_bn_eval(net[4], net[5])
    fused = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), full, nn.ReLU(), net[7]).eval()
    said = [Discussion(Contributing(freeze(n, x)), x, bias=bias, scaling="none").maps(range(4)) for n in (net, fused)]
    assert close(said[0], said[1])
    both = [Contributing(freeze(n, x))(x) for n in (net, fused)]
    assert close(both[0].layers, both[1].layers)


def test_without_biases_a_map_is_row_times_image() -> None:
    net, x = two_layers(), image()
    with torch.no_grad():
        net[0].bias.zero_()
        net[3].bias.zero_()
    found = Discussion(Contributing(freeze(net, x)), x).maps([2])[0]
    assert close(found, (LinearScope(net, x).row(2) * x[0]).sum(0))


def test_chunks_change_nothing() -> None:
    one, all_at_once = discussion(chunk=1), discussion(chunk=100)
    assert close(one.maps([3, 0, 1]), all_at_once.maps([3, 0, 1]))
    assert torch.equal(one.votes().label, all_at_once.votes().label)
    assert close(one.votes([2, 1]).said, all_at_once.votes([2, 1]).said)


def test_each_pixel_votes_for_what_it_says_most_for() -> None:
    talk = discussion(chunk=3)
    maps, votes = talk.maps(range(4)), talk.votes()
    assert torch.equal(votes.label, maps.argmax(0))
    assert close(votes.said, maps.amax(0))
    some = talk.votes([3, 1])
    assert set(some.label.unique().tolist()) <= {1, 3}
    assert sum(votes.share(c) for c in range(4)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("scaling", "maps", "label", "unsteady"),
    [
        ("none", [(1, 1), (12, -16), (1, 0)], (1, 0), 0.0),
        ("total", [(1, 1), (-6, 8), (3.25, 0)], (2, 1), 1.0),  # factors 1, -0.5, 3.25
        ("bias", [(1, 1), (-6, 8), (3.25, 0)], (2, 1), 0.5),  # factors of the biases 1 (a sum of 0), -1, 0.25
        ("shift", [(1, 1), (15, -13), (2.125, 1.125)], (1, 2), 0.0),  # 0, 3 and 1.125 a pixel
    ],
)
def test_factors_that_let_unlikely_classes_win_are_told(
    scaling: str, maps: list[tuple[float, float]], label: tuple[int, int], unsteady: float
) -> None:
    """Two pixels of 1; rows and biases such that w (1 + b) sums to 2, -4 and 1, the scores are 2, 2 and 3.25."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 3)).double().eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[1.0, 1.0], [3.0, -4.0], [4.0, 0.0]]))
        net[1].bias.copy_(torch.tensor([0.0, 3.0, -0.75]))
    x = torch.ones(1, 1, 1, 2, dtype=torch.float64)
    talk = Discussion(Contributing(freeze(net, x)), x, scaling=scaling, chunk=2)  # type: ignore[arg-type]
    assert close(talk.maps(range(3))[:, 0], torch.tensor(maps, dtype=torch.float64))
    votes = talk.votes()
    assert votes.label.tolist() == [list(label)]
    assert votes.unsteady == unsteady
    assert talk.votes([0]).unsteady == 0


def test_the_image_is_masked_by_its_votes() -> None:
    votes = Votes(torch.tensor([[0, 1], [2, 1]]), torch.zeros(2, 2), torch.ones(2, 2))
    shown = votes.masked(torch.full((1, 2, 2), 5.0), [1, 2], ground=-1.0)
    assert shown.tolist() == [[[-1, 5], [5, 5]]]
    assert votes.share(1) == 0.5


def test_wrong_questions_are_refused() -> None:
    with pytest.raises(LookupError, match="class 4 is not one of the network's 4"):
        discussion().maps([0, 4])
    with pytest.raises(ValueError, match="at least one class"):
        discussion().votes([])
    with pytest.raises(ValueError, match="scaling total"):
        discussion(scaling="sum")
