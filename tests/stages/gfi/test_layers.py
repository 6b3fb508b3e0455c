"""Layers found in a network's graph, and batch norms folded into its convolutions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline.vision import torchvision
from stages.gfi.explainer import Explainer
from stages.gfi.folding import folded
from stages.gfi.layers import find_layers
from stages.gfi.recipe import recipe
from stages.tracing import Graph

EXPECTED = {  # name: (extra arguments, input side, last pooling, last convolution's activation)
    "alexnet": ({}, 96, "features.12", "features.11"),
    "resnet18": ({}, 64, "layer4.1.relu:1", "layer4.1.relu:1"),
    "squeezenet1_0": ({}, 64, "features.12.cat", "features.12.cat"),
    "googlenet": ({"init_weights": False, "aux_logits": False}, 64, "inception5b.cat", "inception5b.cat"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_layers_are_found_whether_the_network_has_modules_or_calls_functions(name: str) -> None:
    extra, side, pool, conv = EXPECTED[name]
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)(weights=None, num_classes=7, **extra).eval()
    with torch.no_grad():
        graph = Graph(network, torch.zeros(1, 3, side, side))
    found = find_layers(graph, "auto", "auto", one=False)
    assert [n.removesuffix(".cat") for n in found] == [pool.removesuffix(".cat"), conv.removesuffix(".cat")]
    assert find_layers(graph, "auto", "auto", one=True) == (found[0], found[0])
    assert find_layers(graph, "last_pool", "last_conv", one=True) == found


def test_vggs_pooling_counts_and_the_adaptive_pooling_after_it_does_not() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.AdaptiveAvgPool2d(7), nn.Flatten(),
        nn.Linear(4 * 49, 3), nn.ReLU(), nn.Dropout(), nn.Linear(3, 3),
    ).eval()  # fmt: skip
    with torch.no_grad():
        assert find_layers(Graph(network, torch.zeros(1, 3, 28, 28)), "auto", "auto", one=False) == ("2", "1")


def test_an_unknown_layer_is_told_with_near_matches(small: Callable[..., nn.Module]) -> None:
    with torch.no_grad():
        graph = Graph(torchvision.models.resnet18(weights=None).eval(), torch.zeros(1, 3, 64, 64))
    with pytest.raises(LookupError, match=r"layer4\.1\.relu"):
        find_layers(graph, "layer4.1.rellu", "auto", one=False)
    example = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="before the flattening"):
        Explainer(small(), example, recipe("paper"), mask_layer="8")


def test_folding_keeps_the_function_the_names_and_the_original() -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None, num_classes=7).eval().double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        graph = Graph(network, x[:1])
        copy = folded(graph, keep=("layer4.1.conv2",))
        assert torch.allclose(copy(x), network(x), rtol=1e-11, atol=1e-11)
    norms = [name for name, module in copy.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == ["layer4.1.bn2"]  # the convolution before it is read by others
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in copy.parameters())


def test_bfloat16_stays_close_and_only_the_network_runs_in_it(
    small: Callable[..., nn.Module], images: Callable[..., torch.Tensor]
) -> None:
    x = images(2).float()
    target = torch.tensor([0, 1])
    one, other = (
        Explainer(small(), x[:1], recipe("authors", steps=(2, 2)), precision=p) for p in ("float32", "bfloat16")
    )
    a, b = (made.answer(made.begin(x, torch.zeros_like(x)), target) for made in (one, other))
    assert b.w.dtype == b.kept_after.dtype == torch.float32
    assert (a.kept_after - b.kept_after).abs().max() < 0.05
    assert not torch.equal(a.losses, b.losses)
    with pytest.raises(ValueError, match="float32"):
        Explainer(small(), x[:1], recipe("paper"), precision="half")
