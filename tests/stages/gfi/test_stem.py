"""The first convolution, taken off a network: the same numbers as convolving both parts of every image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from stages.gfi.mask import kept, removed
from stages.gfi.stem import Stem, StemBlend, take_stem
from stages.tracing import Graph

CONVOLUTIONS = {
    "ResNet's": {"kernel_size": 7, "stride": 2, "padding": 3, "bias": False},
    "SqueezeNet's, without padding": {"kernel_size": 7, "stride": 2},
    "AlexNet's": {"kernel_size": 11, "stride": 4, "padding": 2},
    "VGG's": {"kernel_size": 3, "padding": 1},
    "one that leaves the last column out": {"kernel_size": 2, "stride": 3},
    "one that is not square": {"kernel_size": (3, 5), "stride": 2, "padding": (1, 2)},
}


@pytest.mark.parametrize("asked", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_both_parts_and_their_gradient_are_those_of_the_convolution_of_each_part(
    asked: dict[str, object], images: Callable[..., torch.Tensor]
) -> None:
    torch.manual_seed(1)
    convolution = nn.Conv2d(3, 5, **asked).double().requires_grad_(False)  # type: ignore[arg-type]
    x, background = images(2, side=31), images(2, seed=4, side=31)
    mask = torch.rand(2, 1, 31, 31, dtype=torch.float64, requires_grad=True)
    expected = convolution(torch.cat([kept(x, background, mask), removed(x, background, mask)]))
    weight = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad((weight * expected).sum(), mask)
    blend = StemBlend(x, background, Stem(convolution), torch.float64)
    both = blend.both(mask)
    assert torch.allclose(both, expected, rtol=0, atol=1e-12)
    (mine,) = torch.autograd.grad((weight * both).sum(), mask)
    assert torch.allclose(mine, gradient, rtol=0, atol=1e-11)
    assert torch.equal(blend.kept(mask), both[:2])


def test_a_mask_of_ones_keeps_exactly_the_image_and_removes_exactly_the_background(
    images: Callable[..., torch.Tensor],
) -> None:
    convolution = nn.Conv2d(3, 5, 3, padding=1).requires_grad_(False)
    x, background = images(2).float(), images(2, seed=4).float()
    both = StemBlend(x, background, Stem(convolution), torch.float32).both(torch.ones(2, 1, 32, 32))
    assert torch.equal(both, torch.cat([convolution(x), convolution(background)]))


class Reader(nn.Module):
    """A network whose first convolution is not alone with the image, or not plain."""

    def __init__(self, convolution: nn.Module, *, again: bool = False) -> None:
        super().__init__()
        self.first, self.head, self.again = convolution, nn.Linear(4, 2), again

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.first(x).mean(dim=(2, 3))
        return self.head(seen + x.mean() if self.again else seen)


@pytest.mark.parametrize(
    "network",
    [
        Reader(nn.Conv2d(3, 4, 3), again=True),
        Reader(nn.Conv2d(3, 4, 3, padding="same")),
        Reader(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")),
        Reader(nn.Conv2d(3, 4, 3, stride=(1, 2))),
        Reader(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3))),
    ],
    ids=["read again", "padding by name", "reflecting", "two strides", "behind a ReLU"],
)
def test_a_first_convolution_that_another_reads_beside_or_that_is_not_plain_stays(network: nn.Module) -> None:
    network.eval().requires_grad_(False)
    x = torch.rand(1, 3, 8, 8)
    before = network(x)
    assert take_stem(network, Graph(network, x)) is None
    assert torch.equal(network(x), before)
