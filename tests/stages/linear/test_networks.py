"""Shipped networks: names and shapes of public checkpoints, real weights on real images, what freezing gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from linear_cases import awake, close, image
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from pipeline.models import ModelSpec, load
from stages.linear.image_input import LUMINANCE
from stages.linear.networks.bicubic import bicubic
from stages.linear.networks.cyclegan import resnet_generator
from stages.linear.networks.edsr import edsr, edsr_baseline
from stages.linear.networks.espcn import espcn
from stages.linear.networks.fsrcnn import fsrcnn
from stages.linear.networks.pixelshuffle import pixel_shuffle
from stages.linear.scope import LinearScope


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def conv(name: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def test_the_pixel_shuffle_example() -> None:
    public = conv("conv1", 64, 1, 5, 5) | conv("conv2", 64, 64, 3, 3)
    public |= conv("conv3", 32, 64, 3, 3) | conv("conv4", 9, 32, 3, 3)
    assert shapes(pixel_shuffle(3)) == public


def test_the_second_layout_of_espcn_and_fsrcnn() -> None:
    public = conv("first_part.0", 64, 1, 5, 5) | conv("first_part.2", 32, 64, 3, 3) | conv("last_part.0", 16, 32, 3, 3)
    assert shapes(espcn(4, layout="parts")) == public
    mid = conv("mid_part.0", 12, 56, 1, 1) | {"mid_part.1.weight": (12,)}
    for i in (2, 4, 6, 8):
        mid |= conv(f"mid_part.{i}", 12, 12, 3, 3) | {f"mid_part.{i + 1}.weight": (12,)}
    mid |= conv("mid_part.10", 56, 12, 1, 1) | {"mid_part.11.weight": (56,)}
    public = conv("first_part.0", 56, 1, 5, 5) | {"first_part.1.weight": (56,)} | mid
    public |= {"last_part.weight": (56, 1, 9, 9), "last_part.bias": (1,)}
    assert shapes(fsrcnn(3, layout="parts")) == public
    x = torch.rand(1, 1, 9, 7)
    assert fsrcnn(3, layout="parts")(x).shape == espcn(3, layout="parts")(x).shape == (1, 1, 27, 21)


@pytest.mark.parametrize("make", [espcn, fsrcnn])
def test_another_layout_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"net \(keys net\.0"):
        make(2, layout="keras")


# The paper's Table 1 says 1.5 M and 43 M (x2: 1.37 M, 40.7 M); the mean shifts are not counted.
@pytest.mark.parametrize(
    ("make", "scale", "blocks", "features", "parameters"),
    [(edsr_baseline, 2, 16, 64, 1_369_859), (edsr_baseline, 4, 16, 64, 1_517_571), (edsr, 4, 32, 256, 43_089_923)],
)
def test_edsr_has_the_public_layout(make: Any, scale: int, blocks: int, features: int, parameters: int) -> None:
    with torch.device("meta"):
        found = shapes(make(scale))
    public = conv("sub_mean", 3, 3, 1, 1) | conv("add_mean", 3, 3, 1, 1) | conv("head.0", features, 3, 3, 3)
    for i in range(blocks):
        public |= conv(f"body.{i}.body.0", features, features, 3, 3)
        public |= conv(f"body.{i}.body.2", features, features, 3, 3)
    public |= conv(f"body.{blocks}", features, features, 3, 3)
    for name in ("tail.0.0", "tail.0.2")[: scale // 2]:
        public |= conv(name, 4 * features, features, 3, 3)
    public |= conv("tail.1", 3, features, 3, 3)
    assert found == public
    assert sum(int(np.prod(shape)) for name, shape in found.items() if "_mean" not in name) == parameters


def test_edsr_takes_the_mean_colour_away_and_gives_it_back() -> None:
    net = edsr_baseline(3, blocks=1, features=4)
    assert torch.allclose(net.sub_mean.bias, -net.add_mean.bias)
    assert torch.allclose(net.add_mean.bias / 255, torch.tensor([0.4488, 0.4371, 0.4040]))
    x = torch.rand(1, 3, 5, 6)
    with torch.no_grad():
        net.tail[1].weight.zero_()
        net.tail[1].bias.zero_()
        assert torch.allclose(net(x)[0, :, 3, 4], torch.tensor([0.4488, 0.4371, 0.4040]))
        assert net(x).shape == (1, 3, 15, 18)


@pytest.mark.parametrize(("blocks", "dropout"), [(9, False), (6, False), (6, True)])
def test_the_generator_has_the_public_layout(blocks: int, dropout: bool) -> None:
    with torch.device("meta"):
        found = shapes(resnet_generator(blocks, dropout=dropout))
    public = conv("model.1", 64, 3, 7, 7) | conv("model.4", 128, 64, 3, 3) | conv("model.7", 256, 128, 3, 3)
    for i in range(10, 10 + blocks):
        public |= conv(f"model.{i}.conv_block.1", 256, 256, 3, 3)
        public |= conv(f"model.{i}.conv_block.{6 if dropout else 5}", 256, 256, 3, 3)
    up, then, last = (f"model.{10 + blocks + n}" for n in (0, 3, 7))
    public |= {f"{up}.weight": (256, 128, 3, 3), f"{up}.bias": (128,)}
    public |= {f"{then}.weight": (128, 64, 3, 3), f"{then}.bias": (64,)}
    public |= conv(last, 3, 64, 7, 7)
    assert found == public


def test_statistics_that_instance_norms_once_kept_are_let_go(tmp_path: Path) -> None:
    """Public CycleGAN checkpoints are that old; what no layer of the network has is refused as ever."""
    state = resnet_generator(1, width=4).state_dict()
    state |= {"model.2.running_mean": torch.rand(4), "model.2.running_var": torch.rand(4)}
    save_file(state, tmp_path / "old.safetensors")
    arguments = {"blocks": 1, "width": 4}
    name = "stages.linear.networks.cyclegan:resnet_generator"
    loaded = load(ModelSpec(name=name, arguments=arguments, weights=str(tmp_path / "old.safetensors")), probe=False)
    assert torch.equal(loaded.module.model[1].weight, state["model.1.weight"])
    save_file(state | {"model.1.running_mean": torch.rand(4)}, tmp_path / "odd.safetensors")
    with pytest.raises(Exception, match=r"unexpected: model\.1\.running_mean"):
        load(ModelSpec(name=name, arguments=arguments, weights=str(tmp_path / "odd.safetensors")), probe=False)


def luminance(file: Path, side: int) -> torch.Tensor:
    """The middle of a real image, (1, 1, side, side) in 0..1."""
    with Image.open(file) as opened:
        pixels = np.asarray(opened.convert("RGB"), np.float64)
    top, left = ((size - side) // 2 for size in pixels.shape[:2])
    return torch.from_numpy(pixels[top : top + side, left : left + side] @ np.array(LUMINANCE) / 255)[None, None]


def psnr(found: torch.Tensor, truth: torch.Tensor, border: int = 4) -> float:
    error = (found.clamp(0, 1) - truth)[..., border:-border, border:-border]
    return float(-10 * error.square().mean().log10())


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("name", ["ESPCN_s{}_D64_S32", "FSRCNN_s{}_D56_S12_M4"])
def test_real_weights_are_better_than_bicubic_on_real_images(real_data: Path, name: str, scale: int) -> None:
    """Images made small as the weights' own training set was: by a bicubic filter that averages."""
    maker = name[: name.index("_")].lower()
    spec = ModelSpec(
        name=f"stages.linear.networks.{maker}:{maker}",
        arguments={"scale": scale},
        weights=str(real_data / "sr" / f"{name.format(scale)}.safetensors"),
    )
    network = load(spec, probe=False).module
    gains = []
    for file in sorted((real_data / "voc/seg/img").glob("*.jpg"))[:6]:
        truth = luminance(file, 180)
        small = nn.functional.interpolate(
            truth, scale_factor=1 / scale, mode="bicubic", antialias=True, align_corners=False
        )
        with torch.no_grad():
            found = network(small.float()).double()
        gains.append(psnr(found, truth) - psnr(bicubic(scale)(small), truth))
    assert len(gains) == 6
    assert min(gains) > 0  # a layout whose output is a pixel off loses 1 dB and more here
    assert sum(gains) / len(gains) > 0.5


def small(name: str) -> tuple[nn.Module, torch.Tensor]:
    """In float64, with biases away from 0, and an image in 0..1."""
    torch.manual_seed(1)
    makers = {
        "edsr_baseline": lambda: edsr_baseline(4, blocks=6, features=16),
        "edsr": lambda: edsr(3, blocks=4, features=16),
        "cyclegan": lambda: resnet_generator(6, width=8),
        "pixelshuffle": lambda: pixel_shuffle(2, width=16),
    }
    net = makers[name]()
    fixed = {k: v.clone() for k, v in net.state_dict().items() if "_mean" in k}
    net = awake(net)
    net.load_state_dict(fixed, strict=False)
    channels = 1 if name == "pixelshuffle" else 3
    return net, image(0, channels, 12, 16).sigmoid()


@pytest.mark.parametrize("name", ["edsr_baseline", "edsr", "cyclegan", "pixelshuffle"])
def test_the_transpose_and_the_residual(name: str) -> None:
    net, x0 = small(name)
    scope = LinearScope(net, x0)
    assert scope.engine == ("stream" if name == "cyclegan" else "autograd")
    v, u = image(1, *x0.shape[1:]), image(2, *scope.output.shape[1:])
    ahead = (scope.forward(v) * u).sum()
    assert close(ahead, (v * scope.adjoint(u)).sum(), 1e-10)
    assert abs(float(ahead)) > 1e-3
    assert close(scope.forward(x0) + scope.residual(), scope.output, 1e-10)


def test_the_generator_frozen_is_not_its_jacobian() -> None:
    """Its instance norms take mean and deviation from x0, which the derivative follows and freezing does not."""
    net, x0 = small("cyclegan")
    v = image(1, *x0.shape[1:])
    frozen = LinearScope(net, x0, taylor=True).forward(v)  # tanh by its tangent: only the norms differ
    jacobian = torch.func.jvp(net, (x0,), (v,))[1].detach()
    assert not close(frozen, jacobian, 0.05)
