"""Comb probing against one impulse after another; fields by hand and against what impulses reach."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from linear_cases import awake, close, espcn, fsrcnn, image, load_sr, network
from torch import nn
from torch.nn import functional as F

from stages.linear.comb import Comb, within
from stages.linear.field import Axis, receptive_field
from stages.linear.scope import LinearScope, freeze, impulses


class Bicubic(nn.Module):
    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False)


class Skips(nn.Module):
    """Two branches of different fields, split, joined and added, then enlarged and reduced."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, (3, 5), padding=(1, 2), padding_mode="reflect")
        self.second = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
        self.third = nn.Conv2d(6, 4, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x).chunk(2, dim=1)
        c = torch.cat([a, b, torch.relu(self.second(b)) + b], dim=1)
        return F.interpolate(F.pixel_shuffle(self.third(c), 2)[:, :1], scale_factor=2)


class Written(nn.Module):
    """One network twice: its convolutions, pools and pads as modules, or as functions."""

    def __init__(self, functions: bool) -> None:
        super().__init__()
        self.functions = functions
        self.pad, self.edge = nn.ReflectionPad2d((1, 2, 0, 1)), nn.ReplicationPad2d((0, 1, 2, 0))
        self.first = nn.Conv2d(2, 4, (3, 5), (1, 2), (1, 2), dilation=(2, 1), groups=2)
        self.pool, self.mean = nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2)
        self.last = nn.ConvTranspose2d(4, 3, 3, 2, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.functions:
            x = self.pool(torch.relu(self.first(self.edge(self.pad(x)))))
            return self.last(self.mean(x))
        first, last = self.first, self.last
        x = F.pad(F.pad(x, (1, 2, 0, 1), mode="reflect"), (0, 1, 2, 0), "replicate")
        x = F.relu(F.conv2d(x, first.weight, first.bias, (1, 2), padding=(1, 2), dilation=(2, 1), groups=2))
        x = F.avg_pool2d(F.max_pool2d(x, 3, stride=1, padding=1), 2)
        return F.conv_transpose2d(x, last.weight, last.bias, 2, 1, output_padding=1)


class Same(nn.Module):
    """Padding by name, in modules and functions, and the pixels of a window as channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 2, (3, 5), padding="same", dilation=(2, 1))
        self.weight = nn.Parameter(torch.randn(3, 8, 3, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.pixel_unshuffle(F.pad(self.first(x), (0, 0, 1, 0), value=0.5), 2)
        return F.conv2d(F.pad(x, (-1, 1, 0, 0)), self.weight * 0.5, padding="same")


def cases() -> dict[str, nn.Module]:
    torch.manual_seed(3)
    return {
        "bicubic2": Bicubic(2).eval(),
        "bicubic3": Bicubic(3).eval(),
        "skips": awake(Skips()),
        "strided": awake(nn.Sequential(nn.Conv2d(2, 3, 4, 3, 2), nn.ReLU(), nn.ConvTranspose2d(3, 1, 5, 2, 1, 1))),
        "modules": awake(Written(functions=False)),
        "functions": awake(Written(functions=True)),
        "same": awake(Same()),
        "pooled": awake(nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.ReflectionPad2d(1), nn.Conv2d(2, 2, 3))),
    } | {name: network(name) for name in ("shuffle", "prelu", "instance", "tanh")}


def everything(answer: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return answer.unflatten(0, like.shape[1:])


def put_together(teeth: list, ask: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """The whole matrix from patches: (K, h, w of the asked) x (K, h, w of the read)."""
    out = torch.zeros(*ask.shape[1:], *read.shape[1:], dtype=read.dtype)
    seen = torch.zeros(ask.shape[1:])
    for t in teeth:
        for a, y in enumerate(t.ys):
            for b, x in enumerate(t.xs):
                seen[t.channel, y, x] += 1
                k, h, w = t.values.shape[2:]
                for r in range(h):
                    for s in range(w):
                        i, j = t.top[a] + r, t.left[b] + s
                        if 0 <= i < read.shape[2] and 0 <= j < read.shape[3]:
                            out[t.channel, y, x, :k, i, j] = t.values[a, b, :, r, s]
                        else:
                            assert not t.values[a, b, :, r, s].any()
    assert bool((seen == 1).all())
    return out


@pytest.mark.parametrize("name", cases())
def test_comb_probing_equals_impulse_by_impulse(name: str) -> None:
    scope = LinearScope(cases()[name], image(0, 2, 7, 8))
    comb = Comb(scope, batch=5)
    columns = everything(scope.forward(impulses(range(scope.x0.numel()), scope.x0)), scope.x0)
    assert close(put_together(list(comb.columns()), scope.x0, scope.output), columns)
    rows = everything(scope.adjoint(impulses(range(scope.output.numel()), scope.output)), scope.output)
    assert close(put_together(list(comb.rows()), scope.output, scope.x0), rows)


def test_fields_by_hand() -> None:
    field = receptive_field(freeze(espcn(4, 4, 3).eval(), torch.rand(1, 1, 12, 12)))
    assert field is not None
    assert field[0] == field[1]
    assert field[0].width == 1 + 4 + 2 + 2
    assert field[0].step == Axis().then(1, 0, 0).step / 3
    strided = receptive_field(
        freeze(nn.Sequential(nn.Conv2d(1, 1, 7, 2, 3), nn.MaxPool2d(3, 2, 1)).eval(), torch.rand(1, 1, 32, 32))
    )
    assert strided is not None
    assert (strided[0].step, strided[0].low, strided[0].high) == (4, -5, 5)


def test_a_field_does_not_depend_on_how_a_network_is_written() -> None:
    fields = [receptive_field(freeze(awake(Written(functions)), image(0, 2, 9, 10))) for functions in (False, True)]
    assert fields[0] is not None
    assert fields[0] == fields[1]


def test_pads_by_hand() -> None:
    """(left, right, top, bottom): at a border output i stands for another input than i - before."""

    def field(mode: str) -> tuple[Axis, Axis]:
        net = nn.Sequential(nn.Conv2d(2, 2, 1), Padding((1, 3, 0, 2), mode)).eval()
        found = receptive_field(freeze(net, image().float()))
        assert found is not None
        return found

    bounds = {mode: [(axis.low, axis.high) for axis in field(mode)] for mode in ("constant", "replicate", "reflect")}
    assert bounds["constant"] == [(0, 0), (-1, -1)]
    assert bounds["replicate"] == [(-2, 0), (-4, 0)]  # the last of 8 + 4 outputs, 11, is input 7
    assert bounds["reflect"] == [(-4, 0), (-7, 1)]  # output 11 is input 4, output 0 is input 1


class Padding(nn.Module):
    def __init__(self, pads: tuple[int, ...], mode: str) -> None:
        super().__init__()
        self.pads, self.mode = pads, mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, self.pads, self.mode)


def test_passes_do_not_grow_with_the_image() -> None:
    net = espcn(4, 4, 2).eval()
    small, large = (Comb(LinearScope(net, torch.rand(1, 1, n, n))).passes for n in (24, 40))
    assert small == large == (18 * 18, 9 * 9)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1)),
        nn.Sequential(nn.Flatten(), nn.Linear(128, 4)),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        Padding((1, 1, 1, 1), "circular"),
    ],
)
def test_unbounded_fields_are_refused(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="one by one"):
        Comb(LinearScope(nn.Sequential(net).double().eval(), image()))


def test_a_field_that_is_too_small_is_found_by_the_probe() -> None:
    net = nn.Sequential(nn.Conv2d(2, 2, 5, padding=2)).double().eval()
    scope = LinearScope(net, image())
    column = scope.forward(impulses([(0, 4, 4)], scope.x0))
    right, small = (Axis().then(1, -n, n) for n in (2, 1))
    assert within((right, right), column, [(4, 4)])
    assert not within((right, small), column, [(4, 4)])
    assert not within((small, right), column, [(4, 4)])


@pytest.mark.parametrize(("dtype", "residue", "weight"), [(torch.float32, 1e-7, 1e-3), (torch.float64, 1e-14, 1e-9)])
def test_rounding_outside_the_field_is_none_of_the_column(dtype: torch.dtype, residue: float, weight: float) -> None:
    """As Winograd and FFT convolutions leave it, whatever the column's own size."""
    field = (Axis().then(1, -1, 1), Axis().then(1, -1, 1))
    for size in (1e-6, 1.0, 1e6):
        column = torch.zeros(1, 2, 8, 8, dtype=dtype)
        column[0, :, 3:6, 3:6] = size
        for outside, inside in ((residue, True), (weight, False), (torch.nan, False)):
            column[0, 1, 0, 7] = -size * outside
            assert within(field, column, [(4, 4)]) is inside


@pytest.mark.parametrize("file", ["ESPCN_s2_D22_S32", "FSRCNN_s2_D56_S12_M4"])
def test_real_super_resolution(real_data: Path, file: str) -> None:
    net = load_sr(espcn(22, 32, 2) if file.startswith("ESPCN") else fsrcnn(2), real_data / "sr" / f"{file}.safetensors")
    generator = torch.Generator().manual_seed(0)
    scope = LinearScope(net, torch.rand(1, 1, 20, 18, generator=generator, dtype=torch.float64))
    comb = Comb(scope)
    chosen = next(iter(comb.rows()))
    y, x = chosen.ys[1], chosen.xs[0]
    row = scope.row((0, y, x))
    kept = chosen.values[1, 0]
    top, left = max(chosen.top[1], 0), max(chosen.left[0], 0)
    piece = row[:, top : chosen.top[1] + kept.shape[1], left : chosen.left[0] + kept.shape[2]]
    assert close(kept[:, top - chosen.top[1] :, left - chosen.left[0] :][:, : piece.shape[1], : piece.shape[2]], piece)
    assert close(kept.abs().sum(), row.abs().sum())
