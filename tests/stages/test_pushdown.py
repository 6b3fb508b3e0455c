"""Gates pushed down: exactly the gated network, on every form of head and where none applies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stages.network import Cut, cut
from stages.products import SubsetProduct, linear
from stages.pushdown import apply_gates

SIZE, CHANNELS = 12, 6
POOLED = SIZE // 2 * (SIZE // 2)


def images(count: int = 2, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).double()


def some_gates(images: int, count: int, channels: int = CHANNELS, seed: int = 5) -> torch.Tensor:
    """m uniform in 1..K as CHIP draws them, one gate all open and one with a single channel."""
    generator = torch.Generator().manual_seed(seed)
    m = torch.randint(1, channels + 1, (images, count, 1), generator=generator)
    gates = torch.rand(images, count, channels, generator=generator).argsort(-1).argsort(-1) < m
    gates[:, 0] = True
    gates[:, 1] = torch.arange(channels) == 2
    return gates


class Tail(nn.Module):
    """A convolution whose activation is gated, and some tail."""

    def __init__(self, *tail: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.tail = nn.Sequential(*tail)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.act(self.conv(x)))


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean([2, 3])


class Both(nn.Module):
    """A flattened tensor that two calls read."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(CHANNELS * POOLED, 5), nn.Linear(CHANNELS * POOLED, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = torch.flatten(F.max_pool2d(x, 2), 1)
        return self.one(flat) * torch.sigmoid(self.two(flat))


class SizeFirst(nn.Module):
    """Reads the batch size where the gates are, and needs it behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 4, 3, padding=1)
        self.fc = nn.Linear(4 * POOLED, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = x.size(0)
        return self.fc(self.conv(F.max_pool2d(x, 2)).view(b, -1))


class SizeBehind(nn.Module):
    """The same behind a linear layer that could take the gates in."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(CHANNELS * POOLED, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b = x.size(0)
        return self.out(self.fc(torch.flatten(F.max_pool2d(x, 2), 1)).relu().view(b, 8))


class Split(nn.Module):
    """Half of the channels come back by another way."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(CHANNELS, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half, _ = x.chunk(2, 1)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)) + half.mean([1, 2, 3]).unsqueeze(1)


def bn(channels: int, kind: type[nn.BatchNorm1d | nn.BatchNorm2d] = nn.BatchNorm2d) -> nn.Module:
    norm = kind(channels)
    nn.init.normal_(norm.bias)
    nn.init.uniform_(norm.running_mean)
    return norm


TAILS = {
    # form -> tails that must take it
    "table": [
        lambda: (nn.Flatten(), nn.Linear(CHANNELS * SIZE * SIZE, 5)),
        lambda: (
            nn.MaxPool2d(2),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(CHANNELS * POOLED, 9),
            nn.ReLU(),
            nn.Linear(9, 5),
        ),
        lambda: (nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(CHANNELS * 9, 5, bias=False)),
    ],
    "product": [
        lambda: (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5)),
        lambda: (Mean(), nn.Dropout(), nn.Linear(CHANNELS, 7), nn.Hardswish(inplace=True), nn.Linear(7, 5)),
        lambda: (nn.GELU(), nn.AvgPool2d(SIZE), nn.Flatten(), nn.Linear(CHANNELS, 5)),
        lambda: (nn.Dropout(), nn.Conv2d(CHANNELS, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    ],
    "pointwise": [
        lambda: (nn.Dropout(), nn.Conv2d(CHANNELS, 5, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        lambda: (nn.Conv2d(CHANNELS, 5, 1, bias=False), nn.Sigmoid(), Mean()),
    ],
    "moved": [
        lambda: (nn.MaxPool2d(2), bn(CHANNELS), nn.Flatten(), nn.Linear(CHANNELS * POOLED, 5)),
        lambda: (nn.AvgPool2d(2), nn.Conv2d(CHANNELS, 4, 3), nn.ReLU(), Mean(), nn.Linear(4, 5)),
        lambda: (nn.MaxPool2d(2), nn.Flatten(), bn(CHANNELS * POOLED, nn.BatchNorm1d), nn.Linear(CHANNELS * POOLED, 5)),
        lambda: (nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(CHANNELS * POOLED), nn.Linear(CHANNELS * POOLED, 5)),
        lambda: (Both(),),
    ],
    "none": [
        lambda: (bn(CHANNELS), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5)),
        lambda: (nn.Dropout(), nn.Conv2d(CHANNELS, 4, 3), nn.ReLU(), Mean(), nn.Linear(4, 5)),
        lambda: (nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS, 5)),
        lambda: (nn.Conv2d(CHANNELS, 4, 1, groups=2), nn.ReLU(), Mean(), nn.Linear(4, 5)),
        lambda: (
            nn.Flatten(),
            nn.ReLU(),
            bn(CHANNELS * SIZE * SIZE, nn.BatchNorm1d),
            nn.Linear(CHANNELS * SIZE * SIZE, 5),
        ),
        lambda: (SizeFirst(),),
        lambda: (SizeBehind(),),
        lambda: (Split(),),
    ],
}


def forward_with_hook(network: Tail, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """The slow reference: one forward for each image and gate, the activation multiplied in a hook."""
    out = []
    for i in range(gates.shape[0]):
        for gate in gates[i]:
            handle = network.act.register_forward_hook(lambda m, a, y, g=gate: y * g[None, :, None, None])
            out.append(network(x[i : i + 1]))
            handle.remove()
    return torch.cat(out).unflatten(0, gates.shape[:2])


def form_of(c: Cut) -> str:
    head = c.push_down("act")
    return "none" if head is None else head.form


@pytest.mark.parametrize(("form", "number"), [(f, i) for f, tails in TAILS.items() for i in range(len(tails))])
def test_pushed_down_gates_are_the_gated_forward(form: str, number: int) -> None:
    torch.manual_seed(number)
    network = Tail(*TAILS[form][number]()).double().eval()
    x, gates = images(), some_gates(2, 7)
    with torch.no_grad():
        c = cut(network, ["act"], x)
        assert form_of(c) == form, c.path("act")
        assert c.path("act").startswith("act = act (6 x 12 x 12): " + ("prefix" if form == "none" else "push-down"))
        expected = forward_with_hook(network, x, gates)
        activations = c.prefix(x)
        scale = expected.abs().max()
        assert ((c.gated("act", activations, gates) - expected).abs().max() / scale) < 1e-12
        assert ((expected[:, 0] - network(x)).abs().max() / scale) < 1e-12
        # The same under autograd, where some forms fall back.
        with torch.enable_grad():
            assert ((c.gated("act", activations, gates) - expected).abs().max() / scale) < 1e-12
        # And image by image.
        one = c.gated("act", activations.rows(1, 2), gates[1:])
        assert ((one - expected[1:]).abs().max() / scale) < 1e-12
        single = Tail(*network.tail).float()
        single.load_state_dict(network.float().state_dict())
        single.eval()
        c = cut(single, ["act"], x.float())
        got = c.gated("act", c.prefix(x.float()), gates)
        assert ((got - expected.float()).abs().max() / scale) < 1e-5


def test_the_reason_is_told() -> None:
    torch.manual_seed(0)
    said = {}
    for form, make in (("none", TAILS["none"][0]), ("moved", TAILS["moved"][1]), ("table", TAILS["table"][1])):
        with torch.no_grad():
            said[form] = cut(Tail(*make()).double().eval(), ["act"], images()).path("act")
    assert "gates do not pass tail.0 (batchnorm2d)" in said["none"]
    assert "moved to tail.0" in said["moved"]
    assert "reach tail.3, 36 values a channel" in said["table"]


def test_operations_are_counted() -> None:
    torch.manual_seed(0)
    network = Tail(nn.Flatten(), nn.Linear(CHANNELS * SIZE * SIZE, 5)).double().eval()
    with torch.no_grad():
        count = cut(network, ["act"], images()).operations("act")
    convolution = 2 * 3 * 9 * CHANNELS * SIZE * SIZE
    layer = 2 * CHANNELS * SIZE * SIZE * 5
    assert convolution + layer <= count.plain <= 1.1 * (convolution + layer)
    assert count.once >= layer, "the table costs one linear layer"
    assert count.each == 2 * CHANNELS * 5, "and then each gate a K x out product"
    assert count.suffix >= layer


class Twice(nn.Module):
    """The gated tensor is read by two calls: it cannot be pushed into one."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Conv2d(3, CHANNELS, 1)
        self.fc = nn.Linear(2 * CHANNELS, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(x)
        return self.fc(torch.cat([y.mean((2, 3)), F.adaptive_max_pool2d(y, 1).flatten(1)], 1))


class Channels(nn.Module):
    """A mean over channels has as many values as there are channels here, but is another thing."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.Conv2d(3, SIZE, 1)
        self.fc = nn.Linear(SIZE, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.act(x).mean((1, 2)))


@pytest.mark.parametrize("make", [Twice, Channels])
def test_what_only_looks_as_if_gates_commuted(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network, x = make().double().eval(), images()
    with torch.no_grad():
        c = cut(network, ["act"], x)
        assert c.push_down("act") is None
        gates = some_gates(2, 4, c.layers["act"].channels)
        expected = forward_with_hook(network, x, gates)  # type: ignore[arg-type]
        assert torch.allclose(c.gated("act", c.prefix(x), gates), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("channels", [5, 16, 40])
def test_subset_products_are_the_masked_product(channels: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(7, channels).double(), torch.randn(9, channels).double(), torch.randn(9).double()
    gates = some_gates(1, 30, channels)[0]
    gates[2] = False
    for b in (bias, None):
        for rows, gate in zip(SubsetProduct(weight, b)(x, gates), gates, strict=True):
            assert torch.allclose(rows, F.linear(x * gate, weight, b), rtol=1e-12, atol=1e-12)


def test_products_in_float32_take_views_and_keep_precision() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(33, 70), torch.randn(70, 21), torch.randn(21)
    with torch.no_grad():
        exact = F.linear(x.double(), weight.double().t(), bias.double())
        assert (linear(x, weight.t(), bias).double() - exact).abs().max() < 1e-5 * exact.abs().max()
        assert (linear(x.t().contiguous().t(), weight.t(), None) + bias - exact).abs().max() < 1e-5 * exact.abs().max()
        assert linear(x[:0], weight.t(), bias).shape == (0, 21)


def test_apply_gates_keeps_the_memory_layout() -> None:
    x = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last)
    gates = some_gates(2, 3, 4)
    out = apply_gates(x, gates)
    assert out.is_contiguous(memory_format=torch.channels_last)
    for i in range(2):
        for n in range(3):
            assert torch.equal(out[3 * i + n], x[i] * gates[i, n, :, None, None])
