"""The U-Net: any size, any width, each image by itself."""

from __future__ import annotations

import pytest
import torch

from stages.asking.unet import UNet, UNetConfig


@pytest.mark.parametrize(("height", "width"), [(16, 16), (13, 7), (1, 1), (4, 9)])
@pytest.mark.parametrize("depth", [1, 3])
def test_an_image_of_any_size_keeps_it(height: int, width: int, depth: int) -> None:
    net = UNet(3, 2, UNetConfig(width=4, depth=depth))
    assert net(torch.rand(2, 3, height, width)).shape == (2, 2, height, width)


def test_a_batch_is_its_images_one_by_one() -> None:
    net = UNet(3, 2, UNetConfig(width=8, depth=3)).double()
    images = torch.rand(5, 3, 10, 14, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        whole = net(images)
        for row in range(5):
            assert torch.allclose(whole[row], net(images[row : row + 1])[0], rtol=1e-9, atol=1e-9)


def test_widths_double_up_to_the_most() -> None:
    net = UNet(6, 3, UNetConfig(width=6, depth=4, most=20))
    assert [block[0].out_channels for block in net.down] == [6, 12, 20, 20]
    assert [block[0].in_channels for block in net.up] == [18, 32, 40]
    assert net.head.out_channels == 3


def test_what_is_far_away_counts_at_the_bottom() -> None:
    """A change in one corner is seen in the other: through the halvings, not through 3 x 3 convolutions alone."""
    deep = UNet(1, 1, UNetConfig(width=4, depth=4)).double().eval()
    for module in deep.modules():  # norms would carry it anywhere
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x  # type: ignore[method-assign]
    with torch.no_grad():  # so that no ReLU is dead, whatever was drawn
        for weights in deep.parameters():
            weights.abs_()
    image = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    (seen,) = torch.autograd.grad(deep(image)[0, 0, 0, 0], image)
    assert int((seen[0, 0] != 0).any(0).nonzero().max()) >= 16


@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 0}, {"width": 64, "most": 32}])
def test_sizes_that_make_no_network_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="from 1 on"):
        UNetConfig(**wrong)


@pytest.mark.parametrize("width", [1, 3, 9, 17, 18])
def test_any_width_has_groups_that_divide_it(width: int) -> None:
    network = UNet(2, 1, UNetConfig(width=width, depth=2, most=27))
    assert network(torch.rand(1, 2, 4, 4)).isfinite().all()
