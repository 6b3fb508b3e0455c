"""Where a classifier's features are: its own head, put back on them, gives its own logits."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from two_level_cases import SIZE, backbone

from pipeline.vision import torchvision
from stages.semantic.features import backbone_features
from stages.semantic.network import TwoLevelConfig, new_network

models = torchvision.models


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    arguments = {"init_weights": False} if name == "vgg11" else {}
    return models.get_model(name, weights=None, num_classes=10, **arguments).eval()


@pytest.mark.parametrize(
    ("name", "size", "width", "head"),
    [
        ("vgg11", 32, 4096, "classifier.6"),
        ("resnet18", 64, 512, "fc"),
        ("densenet121", 64, 1024, "classifier"),
        ("mobilenet_v2", 64, 1280, "classifier.1"),
    ],
)
def test_the_last_linear_layer_reads_the_features(name: str, size: int, width: int, head: str) -> None:
    network = built(name)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    found = backbone_features(network, x[:1])
    assert found.width == width
    assert found.why.endswith(head)
    with torch.no_grad():
        features = found.module(x)
        assert features.shape == (2, width)
        again = network.get_submodule(head)(features)
        torch.testing.assert_close(again, network(x), rtol=1e-4, atol=1e-5)


def test_where_the_classes_are_a_convolution_the_last_spatial_tensor_is_averaged() -> None:
    network = built("squeezenet1_0")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    found = backbone_features(network, x[:1])
    assert (found.layer, found.width) == ("features.12", 512)
    with torch.no_grad():
        torch.testing.assert_close(found.module(x), network.features(x).mean((2, 3)), rtol=1e-5, atol=1e-6)


def test_the_features_are_a_copy_that_trains_by_its_mode() -> None:
    given = backbone()
    features = backbone_features(given, torch.zeros(1, 3, SIZE, SIZE)).module
    x = torch.randn(4, 3, SIZE, SIZE)
    with torch.no_grad():
        still = features(x)
        torch.testing.assert_close(features(x), still, rtol=0, atol=0)
        features.train()
        features(x)  # batch norm moves its statistics, dropout drops
        features.eval()
        assert not torch.equal(features(x), still)
        assert torch.equal(given.features[1].running_mean, torch.zeros(8)), "the network given is as it was"


def test_a_frozen_backbone_stays_in_eval_mode_and_takes_no_gradient() -> None:
    network = new_network(backbone(), TwoLevelConfig(4, 2, freeze=True), (SIZE, SIZE)).train()
    assert network.heads.training
    assert not any(module.training for module in network.features.modules())
    assert not any(p.requires_grad for p in network.features.parameters())
    free = new_network(backbone(), TwoLevelConfig(4, 2), (SIZE, SIZE)).train()
    assert all(p.requires_grad for p in free.parameters())


def test_the_start_of_the_heads_depends_on_the_seed_alone() -> None:
    def weights(seed: int) -> torch.Tensor:
        return new_network(backbone(), TwoLevelConfig(4, 2), (SIZE, SIZE), seed).heads.coarse.weight

    before = torch.get_rng_state()
    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_without_features_is_refused() -> None:
    class Flat(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :5] * 2

    with pytest.raises(ValueError, match="no features"):
        backbone_features(Flat().eval(), torch.zeros(1, 3, 8, 8))
