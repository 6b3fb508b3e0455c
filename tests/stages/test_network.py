"""Cutting networks: names of calls, and suffix(gate(prefix(x))) = the plainly gated network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from pipeline.vision import torchvision
from stages.network import Cut, cut
from stages.pushdown import apply_gates

# name -> (input size, call of first_conv, call of last_conv), the table of PROTOCOLS section 1 and its like
FAMILIES = {
    "vgg16": (64, "features.1", "features.29"),
    "vgg16_bn": (64, "features.2", "features.42"),
    "alexnet": (96, "features.1", "features.11"),
    "resnet18": (64, "relu", "layer4.1.relu:1"),
    "resnet50": (64, "relu", "layer4.2.relu:2"),
    "squeezenet1_0": (64, "features.1", "features.12"),
    "densenet121": (64, "features.relu0", "relu"),
    "inception_v3": (96, "Conv2d_1a_3x3", "Mixed_7c"),
    "googlenet": (64, "conv1", "inception5b"),
    "mobilenet_v2": (64, "features.0.2", "features.18.2"),
    "efficientnet_b0": (64, "features.0.2", "features.8.2"),
    "convnext_tiny": (64, "features.0.1", "features.7.2"),
    "shufflenet_v2_x1_0": (64, "conv1.2", "conv5.2"),
}
# Layers in the middle, where more than the gated tensor crosses the cut.
MIDDLE = {
    "resnet18": "layer2.0.relu:0",
    "densenet121": "features.denseblock3.denselayer4",
    "inception_v3": "Mixed_6b.branch7x7_2",
    "googlenet": "inception4b.branch3",
    "squeezenet1_0": "features.5.expand1x1_activation",
    "mobilenet_v2": "features.5.conv.1.2",
    "efficientnet_b0": "features.4.1.block.2.scale_activation",
    "convnext_tiny": "features.3.1.block.0",
    "shufflenet_v2_x1_0": "stage3.1.branch2.2",
}


def unsettle(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that keep the signal alive, biases and batch-norm statistics as training would leave them."""
    tile = torch.randn(999_983, generator=torch.Generator().manual_seed(seed))
    taken = 0

    def noise(like: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += 101
        return tile.roll(taken).repeat(like.numel() // len(tile) + 1)[: like.numel()].view(like.shape)

    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                value.copy_(0.1 * noise(value))
            elif name.endswith("running_var"):
                value.copy_(1 + 0.3 * noise(value).abs())
            elif name.endswith("num_batches_tracked"):
                value.zero_()
            elif name.endswith("layer_scale"):
                value.copy_(0.5 + 0.1 * noise(value))
            elif value.dim() == 1:
                value.copy_(1 + 0.2 * noise(value))
            else:
                value.copy_(noise(value) * (2 / value[0].numel()) ** 0.5)
    return network.eval()


_networks: dict[str, nn.Module] = {}


def network_of(name: str) -> nn.Module:
    if name not in _networks:
        extra: dict[str, Any] = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
        with torch.device("meta"):  # nothing is initialised twice
            network = getattr(torchvision.models, name)(weights=None, **extra)
        _networks[name] = unsettle(network.to_empty(device="cpu"))
    return _networks[name]


class ResNet20(nn.Module):
    """The CIFAR-10 network of the test data, written as its authors write it (option-A shortcuts)."""

    class Shortcut(nn.Module):
        def __init__(self, planes: int) -> None:
            super().__init__()
            self.planes = planes

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4), "constant", 0)

    class Block(nn.Module):
        def __init__(self, inside: int, planes: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inside, planes, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(planes)
            self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(planes)
            self.shortcut = nn.Sequential() if stride == 1 else ResNet20.Shortcut(planes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = F.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            out += self.shortcut(x)
            return F.relu(out)

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        make, inside = [], 16
        for planes, stride in ((16, 1), (32, 2), (64, 2)):
            strides = (stride, 1, 1)
            make.append(
                nn.Sequential(*(self.Block(inside if i == 0 else planes, planes, s) for i, s in enumerate(strides)))
            )
            inside = planes
        self.layer1, self.layer2, self.layer3 = make
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        out = F.avg_pool2d(out, out.size()[3])
        out = out.view(out.size(0), -1)
        return self.linear(out)


class Hooked(fx.Interpreter):
    """The slow reference: the whole network once for each gated copy, one call's output multiplied."""

    def __init__(self, network: nn.Module, target: str, gate: torch.Tensor) -> None:
        super().__init__(fx.symbolic_trace(network))
        self.target_name, self.gate = target, gate

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        return out * self.gate[..., None, None] if n.name == self.target_name else out


def plainly_gated(network: nn.Module, c: Cut, layer: str, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    rows = []
    for image, own in zip(x, gates, strict=True):
        for gate in own:
            rows.append(Hooked(network, c._tap[layer].name, gate.to(x)).run(image[None].clone()))
    return torch.cat(rows).unflatten(0, gates.shape[:2])


def images(size: int, count: int = 2, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def some_gates(images: int, count: int, channels: int, seed: int = 5) -> torch.Tensor:
    return torch.rand(images, count, channels, generator=torch.Generator().manual_seed(seed)) < 0.5


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    error = (got - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.2g}"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_network_is_the_gated_network(family: str) -> None:
    size, first, last = FAMILIES[family]
    network, x = network_of(family), images(size)
    layers = ["first_conv", "last_conv", *([MIDDLE[family]] if family in MIDDLE else [])]
    with torch.no_grad():
        plain = network(x)
        c = cut(network, layers, x)
        assert [c.layers[n].name for n in ("first_conv", "last_conv")] == [first, last]
        activations = c.prefix(x)
        close(c.logits(activations), plain, 1e-5)
        for layer in layers:
            found = c.layers[layer]
            tap = activations.taps[layer]
            assert tap.shape == (2, found.channels, found.height, found.width)
            gates = some_gates(2, 2, found.channels)
            gates[:, 0] = True  # all open: g = f
            gated = apply_gates(tap, gates)
            before = gated.clone()
            out = c.suffix(layer, gated, activations, repeat=2).unflatten(0, (2, 2))
            assert torch.equal(gated, before), "the caller's tensor is not changed"
            close(out[:, 0], plain, 1e-5)
            close(out, plainly_gated(network, c, layer, x, gates), 1e-5)
            close(c.gated(layer, activations, gates), out, 1e-5)
            assert (out[:, 1] - plain).abs().max() > 1e-4 * plain.abs().max(), "the gates must matter"


@pytest.mark.parametrize("family", ["resnet18", "densenet121", "googlenet", "mobilenet_v2", "squeezenet1_0"])
def test_in_float64_to_rounding(family: str) -> None:
    size = FAMILIES[family][0]
    network, x = copy.deepcopy(network_of(family)).double(), images(size).double()
    layers = ["last_conv", MIDDLE[family]]
    with torch.no_grad():
        c, plain = cut(network, layers, x), network(x)
        activations = c.prefix(x)
        for layer in layers:
            gates = some_gates(2, 3, c.layers[layer].channels)
            gates[:, 0] = True
            out = c.gated(layer, activations, gates)
            close(out[:, 0], plain, 1e-12)
            close(out, plainly_gated(network, c, layer, x, gates), 1e-12)


def test_cifar_resnet20_as_its_authors_write_it() -> None:
    torch.manual_seed(0)
    network = unsettle(ResNet20()).double()
    x = images(32).double()
    layers = ["first_conv", "layer2.0", "last_conv"]
    with torch.no_grad():
        c = cut(network, layers, x)
        assert c.layers["last_conv"].name == "layer3.2"
        assert c.layers["first_conv"].name == "relu"
        activations = c.prefix(x)
        for layer in layers:
            gates = some_gates(2, 3, c.layers[layer].channels)
            close(c.gated(layer, activations, gates), plainly_gated(network, c, layer, x, gates), 1e-12)
        assert "push-down" in c.path("last_conv")


def test_several_layers_give_what_each_gives_alone() -> None:
    network, x = network_of("densenet121"), images(64)
    layers = ["first_conv", "features.denseblock2", "last_conv"]
    with torch.no_grad():
        together = cut(network, layers, x)
        shared = together.prefix(x)
        for layer in layers:
            alone = cut(network, [layer], x)
            own = alone.prefix(x)
            assert torch.equal(own.taps[layer], shared.taps[layer])
            gates = some_gates(2, 2, together.layers[layer].channels)
            assert torch.equal(alone.gated(layer, own, gates), together.gated(layer, shared, gates))


def test_rows_of_a_batch_are_the_images_alone() -> None:
    network, x = copy.deepcopy(network_of("efficientnet_b0")).double(), images(64, 3).double()
    layer = MIDDLE["efficientnet_b0"]
    with torch.no_grad():
        c = cut(network, [layer], x)
        activations = c.prefix(x)
        gates = some_gates(3, 2, c.layers[layer].channels)
        whole = c.gated(layer, activations, gates)
        for i in range(3):
            close(c.gated(layer, activations.rows(i, i + 1), gates[i : i + 1]), whole[i : i + 1], 1e-12)
            close(c.gated(layer, c.prefix(x[i : i + 1]), gates[i : i + 1]), whole[i : i + 1], 1e-12)
        close(c.gated(layer, activations.rows(1, 3), gates[1:]), whole[1:], 1e-12)


class InPlace(nn.Module):
    """Everything that writes into what it read: an in-place ReLU, a sum into the residual, a method, a batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = nn.Conv2d(8, 8, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch = x.size(0)
        y = self.conv(x)
        z = self.relu(y)
        z = self.inner(y).mul_(0.5) + z  # y is read again after the ReLU has written into it
        z += y
        side = self.inner(x[:, :1].expand(-1, 8, -1, -1))
        side += z
        z = self.relu(side)
        return self.fc(F.adaptive_avg_pool2d(z, 4).view(batch, -1))


@pytest.mark.parametrize("layer", ["conv", "relu", "inner", "add", "relu:1", "inner:1", "mul"])
def test_calls_in_place_neither_spoil_a_tap_nor_change_meaning(layer: str) -> None:
    torch.manual_seed(0)
    network, x = InPlace().eval().double(), images(8, 3).double()
    with torch.no_grad():
        c = cut(network, [layer], x)
        plain = network(x)
        activations = c.prefix(x)
        tap = activations.taps[layer].clone()
        gates = torch.ones(3, 2, 8, dtype=torch.bool)
        for _ in range(2):  # a second pass over the same activations sees the same values
            close(c.gated(layer, activations, gates)[:, 1], plain, 1e-12)
            close(c.suffix(layer, apply_gates(tap, gates), activations, 2).unflatten(0, (3, 2))[:, 0], plain, 1e-12)
            close(c.logits(activations), plain, 1e-12)
        assert torch.equal(activations.taps[layer], tap)
        if layer == "conv":
            assert torch.equal(tap, network.conv(x)), "the convolution's output, not the ReLU's"
            # Gating what is overwritten in place is gating what everyone reads afterwards.
            gates = some_gates(3, 2, 8)
            seen = []
            for i in range(3):
                for n in range(2):
                    gate = gates[i, n].double()[None, :, None, None]
                    handle = network.conv.register_forward_hook(lambda m, a, out, g=gate: out * g)
                    seen.append(network(x[i : i + 1]))
                    handle.remove()
            close(c.gated(layer, activations, gates), torch.cat(seen).unflatten(0, (3, 2)), 1e-12)


def test_gradients_reach_a_layer_and_stop_there() -> None:
    network, x = copy.deepcopy(network_of("resnet18")).double(), images(64).double()
    c = cut(network, ["last_conv", "layer3.0.relu:0"], x)
    for layer in c.layers:
        tap, logits = c.differentiable(layer, x)
        close(logits.detach(), network(x).detach(), 1e-12)
        (gradient,) = torch.autograd.grad(logits[:, 7].sum(), tap)
        # Central differences along one direction, through the network with a hook.
        direction = torch.randn(tap.shape, generator=torch.Generator().manual_seed(1)).double()
        with torch.no_grad():
            activations = c.prefix(x)
            ahead = c.suffix(layer, tap + 1e-6 * direction, activations)[:, 7].sum()
            behind = c.suffix(layer, tap - 1e-6 * direction, activations)[:, 7].sum()
        assert torch.allclose((gradient * direction).sum(), (ahead - behind) / 2e-6, rtol=1e-5)
    assert all(p.grad is None for p in network.parameters())


def test_the_module_is_left_as_it_was() -> None:
    network = copy.deepcopy(network_of("squeezenet1_0"))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    names = [n for n, _ in network.named_modules()]
    x = images(64)
    with torch.no_grad():
        plain = network(x)
        c = cut(network, ["features.5"], x)
        c.gated("features.5", c.prefix(x), some_gates(2, 2, 256))
        assert torch.equal(network(x), plain)
    assert names == [n for n, _ in network.named_modules()]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in network.modules())
    assert not network.training


def test_layers_are_calls_and_have_several_names() -> None:
    x = images(64)
    with torch.no_grad():
        c = cut(network_of("resnet18"), ["layer4.1.relu:0", "layer4.1.relu:1", "layer4.1", "layer4", "layer4.1.add"], x)
    assert c._tap["layer4.1"] is c._tap["layer4.1.relu:1"] is c._tap["layer4"]
    assert c._tap["layer4.1.relu:0"] is not c._tap["layer4.1.relu:1"]
    assert {n: c.layers[n].channels for n in c.layers}["layer4"] == 512
    with torch.no_grad():
        fire = cut(network_of("squeezenet1_0"), ["features.12", "features.12.cat"], x)
    assert fire._tap["features.12"] is fire._tap["features.12.cat"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("layer4.1.rleu", "layer4.1.relu"),
        ("Layer4.1", "layer4.1"),
        ("features.29", "first_conv"),
        ("layer4.1.relu:2", "called 2 time"),
    ],
)
def test_an_unknown_layer_is_answered_with_near_ones(asked: str, said: str) -> None:
    with pytest.raises(LookupError, match=said.replace(".", r"\.")):
        cut(network_of("resnet18"), [asked], images(64))


def test_layers_that_cannot_be_gated_are_refused() -> None:
    with pytest.raises(ValueError, match="flatten"):
        cut(network_of("resnet18"), ["fc"], images(64))
    with pytest.raises(LookupError, match="never calls it"):
        cut(network_of("inception_v3"), ["AuxLogits.fc"], images(96))
    with torch.no_grad(), pytest.raises(LookupError, match="was cut at"):
        cut(network_of("resnet18"), ["last_conv"], images(64)).push_down("relu")


class Deciding(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 0:
            return x.mean((2, 3))
        return x.amax((2, 3))


class Fixed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)).view(1, 3)


class Noisy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) * float(torch.rand(()))


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.mean((2, 3)), x


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Deciding, r"if x\.mean\(\) > 0.*torch\.where"),
        (Fixed, r"view.*x\.size\(0\)"),
        (Noisy, "does not reproduce"),
        (Pair, "returns a tuple"),
        (nn.Identity, r"not \(batch, classes\)"),
    ],
)
def test_networks_that_cannot_be_cut_are_told_why(make: Callable[[], nn.Module], said: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){said}"):
        cut(make().eval(), ["last_conv"], images(8))


def test_training_mode_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 64, 2)).eval()
    network[1].train()
    with pytest.raises(ValueError, match="'1' is in training mode"):
        cut(network, ["0"], images(8))
