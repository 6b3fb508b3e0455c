"""F and r of small networks of every kind, in float64, against slow independent readings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from linear_cases import STREAMED, close, espcn, family, fsrcnn, image, load_sr, network, networks
from torch import nn
from torch.nn import functional as F

from stages.linear.scope import Engine, LinearScope, Masks, freeze, impulses

NAMES = sorted(networks())


def materialised(scope: LinearScope) -> torch.Tensor:
    """F as a matrix (outputs, inputs), column by column."""
    return scope.forward(impulses(range(scope.x0.numel()), scope.x0)).flatten(1).t()


@pytest.mark.parametrize("masks", ["keep", "stream"])
@pytest.mark.parametrize("engine", ["autograd", "stream"])
@pytest.mark.parametrize("name", NAMES)
def test_the_frozen_system(name: str, engine: str, masks: str) -> None:
    net, x0 = network(name), image()
    if engine == "autograd" and name in STREAMED:
        with pytest.raises(ValueError, match="use engine stream"):
            LinearScope(net, x0, engine=engine)
        return
    with LinearScope(net, x0, engine=engine, masks=masks) as scope:
        assert (scope.engine, scope.masks) == (engine, masks)
        assert torch.equal(scope.output, net(x0.clone()))
        assert close(scope.forward(x0) + scope.residual(), scope.output)
        v, u = image(1), torch.randn(scope.output.shape, generator=torch.Generator().manual_seed(2)).double()
        probes = v.clone(), u.clone()
        assert close((scope.forward(v) * u).sum(), (v * scope.adjoint(u)).sum())
        assert torch.equal(v, probes[0]), "what the network does in place it does not do to the probes"
        assert torch.equal(u, probes[1])
        assert torch.equal(scope.x0, x0)
        matrix = materialised(scope)
        rows = scope.adjoint(impulses(range(scope.output.numel()), scope.output)).flatten(1)
        assert close(rows, matrix)
        j, k = scope.output.numel() // 2, 37
        assert close(scope.column(k).flatten(), matrix[:, k])
        assert close(scope.row(j).flatten(), matrix[j])
        assert close(scope.column(k).flatten()[j], scope.row(j).flatten()[k])


@pytest.mark.parametrize("masks", ["keep", "stream"])
@pytest.mark.parametrize("name", NAMES)
def test_x0_itself_gives_its_own_output(name: str, masks: str) -> None:
    """Bit for bit where all decisions are masks of 0 and 1: the same operations on the same numbers."""
    scope = LinearScope(network(name), image(), engine="stream", masks=masks)
    again = scope.frozen_output(scope.x0)
    if name in (*STREAMED, "joined"):
        assert close(again, scope.output)
    else:
        assert torch.equal(again, scope.output)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in STREAMED])
def test_both_engines_agree_and_equal_the_jacobian(name: str) -> None:
    net, x0 = network(name), image()
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x.clone()), x0).reshape(-1, x0.numel())
    auto = LinearScope(net, x0)
    assert auto.engine == "autograd"
    assert close(materialised(auto), jacobian)
    assert close(materialised(LinearScope(net, x0, engine="stream")), jacobian)


def test_the_frozen_instance_norm_is_not_the_jacobian() -> None:
    net, x0 = network("instance"), image()
    scope = LinearScope(net, x0)
    assert scope.engine == "stream"
    jacobian = torch.autograd.functional.jacobian(net, x0).reshape(-1, x0.numel())
    assert not close(materialised(scope), jacobian, 0.05)


def test_instance_norm_by_hand() -> None:
    net, x0 = nn.InstanceNorm2d(2, eps=0.0).double().eval(), image()
    scope = LinearScope(nn.Sequential(net).eval(), x0)
    std = x0.std(dim=(2, 3), correction=0, keepdim=True)
    v = image(3)
    assert close(scope.forward(v), v / std)
    assert close(scope.residual(), (-x0.mean(dim=(2, 3), keepdim=True) / std).expand_as(x0))


def test_relu6_saturates_as_a_constant() -> None:
    x0 = torch.tensor([-1.0, 2.0, 5.0, 7.0, 9.0, 6.0], dtype=torch.float64).view(1, 6, 1, 1)
    scope = LinearScope(nn.Sequential(nn.ReLU6()).eval(), x0)
    assert scope.forward(torch.ones_like(x0)).flatten().tolist() == [0, 1, 1, 0, 0, 0]
    assert scope.residual().flatten().tolist() == [0, 0, 0, 6, 6, 6]


@pytest.mark.parametrize("kind", [nn.Sigmoid, nn.Tanh])
def test_the_mask_of_a_curve_and_its_singularity(kind: type[nn.Module]) -> None:
    x0 = torch.tensor([-2.0, 0.5, 0.0, 1e-9], dtype=torch.float64).view(1, 4, 1, 1)
    h = kind()(x0)
    scope = LinearScope(nn.Sequential(kind()).eval(), x0)
    scale, rest = scope.forward(torch.ones_like(x0)).flatten(), scope.residual().flatten()
    assert close(scale[:2], (h / x0).flatten()[:2])
    assert rest[:2].tolist() == [0, 0]
    assert close(scale[2:], torch.full((2,), 0.25 if kind is nn.Sigmoid else 1.0).double(), 1e-8)
    assert close(rest[2:], h.flatten()[2:], 1e-8)
    assert close(scope.forward(x0) + scope.residual(), h)


def test_taylor_is_the_derivative_and_the_default_is_not() -> None:
    net, x0 = network("tanh"), image()
    jacobian = torch.autograd.functional.jacobian(net, x0).reshape(-1, x0.numel())
    tangent = LinearScope(net, x0, taylor=True)
    assert tangent.engine == "autograd"
    assert close(materialised(LinearScope(net, x0, taylor=True, engine="stream")), jacobian)
    assert close(materialised(tangent), jacobian)
    assert not close(materialised(LinearScope(net, x0)), jacobian, 0.05)


def test_f_v_does_not_suffer_from_a_large_residual() -> None:
    """As y1 - r it would lose what the residual swallows."""
    net = network("pools")
    with torch.no_grad():
        net[-1].bias.fill_(1e12)
    x0 = image()
    reference = torch.autograd.functional.jacobian(net, x0).reshape(-1, x0.numel())
    for engine in ("autograd", "stream"):
        assert close(materialised(LinearScope(net, x0, engine=engine)), reference)


def test_an_unknown_operation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'1' \(softmax\) has no frozen form: replace it"):
        LinearScope(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Softmax(dim=1)).eval(), image().float())


class Gated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(x)


class OverBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(dim=0, keepdim=True)


class Dynamic(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, x.mean(dim=(0, 2, 3)).view(1, 2, 1, 1))


@pytest.mark.parametrize(
    ("net", "why"),
    [(Gated(), "both depend on the image"), (OverBatch(), "mixes the images"), (Dynamic(), "mixes the images")],
)
def test_what_freezing_does_not_make_linear_is_refused(net: nn.Module, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        LinearScope(net.eval(), image())


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call \.eval"):
        LinearScope(network("pools").train(), image())


class Norm(nn.Module):
    """A norm as a function, by any of its spellings."""

    def __init__(self, function: Callable[..., torch.Tensor], *args: Any, **options: Any) -> None:
        super().__init__()
        self.function, self.args, self.options = function, args, options
        for name, value in (("mean", 0.5), ("var", 2.0), ("weight", 1.5), ("bias", -0.5)):
            self.register_buffer(name, torch.full((2,), value, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        named = {key: getattr(self, value) for key, value in self.options.items() if isinstance(value, str)}
        plain = {key: value for key, value in self.options.items() if not isinstance(value, str)}
        return self.function(x, *(getattr(self, a) if isinstance(a, str) else a for a in self.args), **named, **plain)


OWN = {"running_mean": "mean", "running_var": "var"}


@pytest.mark.parametrize(
    ("norm", "why"),
    [
        (Norm(F.batch_norm, "mean", "var", training=True), "as in training"),
        (Norm(F.batch_norm, None, None, None, None, True), "as in training"),
        (Norm(torch.batch_norm, "weight", "bias", "mean", "var", True, 0.1, 1e-5, False), "as in training"),
        (Norm(F.instance_norm, **OWN), "as in training"),
        (Norm(F.instance_norm, use_input_stats=False, **OWN), "uses running statistics"),
        (Norm(torch.batch_norm, "weight", "bias", "mean", "var", False, 0.1, 1e-5, False), "is torch.batch_norm"),
        (Norm(torch.instance_norm, "weight", "bias", None, None, True, 0.1, 1e-5, False), "is torch.instance_norm"),
    ],
)
def test_norms_as_functions_that_are_not_what_is_frozen_are_refused(norm: Norm, why: str) -> None:
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with pytest.raises(ValueError, match=why):
        LinearScope(norm.eval(), image())
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())


@pytest.mark.parametrize(
    "norm",
    [
        Norm(F.batch_norm, "mean", "var", "weight", "bias", False),
        Norm(F.batch_norm, bias="bias", eps=0.5, **OWN),
        Norm(F.instance_norm, weight="weight", bias="bias", eps=0.5),
        Norm(F.instance_norm, None, None, "weight", "bias", True, 0.1, 0.5),
    ],
)
def test_norms_as_functions_are_frozen_as_the_modules(norm: Norm) -> None:
    x0 = image()
    scope = LinearScope(norm.eval(), x0, engine="stream")
    assert close(scope.forward(x0) + scope.residual(), norm(x0))
    assert close(scope.forward(torch.zeros_like(x0)), torch.zeros_like(x0))


def test_weights_may_be_normalised_as_in_training() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = F.batch_norm(self.weight.view(1, 3, -1), None, None, training=True).view(3, 2, 3, 3)
            return F.conv2d(x, weight, self.bias)

    net, x0 = Standardised(2, 3, 3).double().eval(), image()
    scope = LinearScope(net, x0)
    assert close(scope.forward(x0) + scope.residual(), net(x0).detach())


class Called(nn.Module):
    def __init__(self, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.how(x)


@pytest.mark.parametrize(
    ("net", "why"),
    [
        (Called(lambda x: torch.div(x, 0.3, rounding_mode="floor")), "rounds its quotients"),
        (Called(lambda x: torch.div(1.0, other=x)), "divides by what depends"),
        (Called(lambda x: torch.mul(input=x, other=x)), "both depend on the image"),
        (nn.MaxPool2d(2, return_indices=True), "without return_indices"),
        (nn.AdaptiveMaxPool2d(2, return_indices=True), "without return_indices"),
        (Called(lambda x: F.max_pool2d(x, 2, 2, 0, 1, False, True)[0]), "without return_indices|has no frozen form"),
    ],
)
def test_options_that_are_not_linear_are_refused_by_name(net: nn.Module, why: str) -> None:
    picked = net if isinstance(net, Called) else Called(lambda x, pool=net: pool(x)[0])
    if picked is not net:
        picked.pool = net
    with pytest.raises(ValueError, match=why):
        LinearScope(picked.eval(), image())


def _ask(scope: LinearScope) -> None:
    scope.row(0)
    scope.forward(torch.zeros(1, 3, 8, 8))


def test_the_network_is_left_as_it_was() -> None:
    net = network("pools")
    before = {name: (p, p.clone(), p.requires_grad) for name, p in net.state_dict(keep_vars=True).items()}

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in net.modules())

    scope = LinearScope(net, image(), engine="stream")
    with pytest.raises(ValueError, match="probes are"), scope:
        _ask(scope)
    assert hooks() == 0
    for name, p in net.state_dict(keep_vars=True).items():
        assert p is before[name][0]
        assert torch.equal(p, before[name][1])
        assert p.requires_grad == before[name][2]
        assert getattr(p, "grad", None) is None
    with pytest.raises(ValueError, match="closed"):
        scope.row(0)


def test_masks_are_kept_while_they_fit() -> None:
    net, x0 = network("instance"), image()
    assert LinearScope(net, x0).masks == "keep"
    small = LinearScope(net, x0, memory=10)
    assert small.masks == "stream"
    assert small.kept_bytes > 10


def test_the_bytes_of_masks_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Tanh()).double().eval()
    scope = LinearScope(net, image(), masks="keep")
    expected = 4 * 64 * 1 + 4 * 16 * 8 + 4 * 16 * 2 * 8
    assert scope.kept_bytes == expected
    assert scope._kept is not None
    assert scope._kept.nbytes == expected


@pytest.mark.parametrize("masks", ["keep", "stream"])
@pytest.mark.parametrize("engine", ["autograd", "stream"])
def test_no_more_probes_are_differentiated_at_once_than_fit(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, masks: Masks
) -> None:
    net, x0 = network("functional"), image()
    roomy = LinearScope(net, x0, engine=engine, masks=masks)
    small = LinearScope(roomy.frozen, x0, engine=engine, masks=masks, memory=2 * roomy.probe_bytes + 1)
    u = impulses(range(4), small.output)
    expected = roomy.adjoint(u)
    most: list[int] = []
    back = LinearScope._back
    monkeypatch.setattr(LinearScope, "_back", lambda self, u: most.append(u.shape[0]) or back(self, u))
    assert close(small.adjoint(u), expected)
    if (engine, masks) == ("autograd", "keep"):
        assert most == [], "one graph of x0 serves all probes"
    else:
        assert most == [2, 2]
    assert small._transposed is None, "the probes' graph does not stay where it does not fit"
    assert (roomy._transposed is not None) == ((engine, masks) == ("stream", "keep"))


def test_one_tracing_serves_many_images() -> None:
    net = network("functional")
    frozen = freeze(net, image())
    for seed in (1, 2):
        assert close(materialised(LinearScope(frozen, image(seed))), materialised(LinearScope(net, image(seed))))


def test_places_are_checked() -> None:
    scope = LinearScope(network("shuffle"), image())
    assert torch.equal(scope.column((1, 2, 3)), scope.column(64 + 2 * 8 + 3))
    for wrong in (128, -1, (2, 0, 0), (0, 0)):
        with pytest.raises(LookupError, match="is no place of"):
            scope.column(wrong)


@pytest.mark.parametrize(("file", "engine"), [("ESPCN_s2_D22_S32", "stream"), ("FSRCNN_s2_D56_S12_M4", "autograd")])
def test_real_super_resolution_networks(real_data: Path, file: str, engine: str) -> None:
    net = load_sr(espcn(22, 32, 2) if file.startswith("ESPCN") else fsrcnn(2), real_data / "sr" / f"{file}.safetensors")
    scope = LinearScope(net, torch.rand(1, 1, 12, 12, dtype=torch.float64))
    assert scope.engine == engine
    linear = scope.forward(scope.x0)  # a thousand times the output, where factors h(x0) / x0 of small x0 are large
    assert (linear + scope.residual() - scope.output).abs().max() <= 1e-12 * linear.abs().max()
    assert close(scope.column(70).flatten()[300], scope.row(300).flatten()[70])
    v, u = torch.randn_like(scope.x0), torch.randn_like(scope.output)
    assert close((scope.forward(v) * u).sum(), (v * scope.adjoint(u)).sum())


# One of each family of the paper's Table 4 and beyond, at the smallest size that it takes.
FAMILIES = {
    "alexnet": 64,
    "densenet121": 40,
    "inception_v3": 75,
    "mobilenet_v2": 40,
    "resnet18": 32,
    "resnet50": 32,
    "squeezenet1_1": 40,
    "vgg11": 32,
    "vgg11_bn": 32,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_both_engines_on_whole_families(name: str) -> None:
    """Functional ReLUs, concatenations, ReLU6, in-place calls and ceil-mode pooling as torchvision writes them."""
    net, x0 = family(name), image(0, 3, FAMILIES[name], FAMILIES[name])
    scopes = [LinearScope(net, x0, engine=engine, masks="keep") for engine in ("autograd", "stream")]
    v, u = image(1, *x0.shape[1:]), torch.randn(scopes[0].output.shape, generator=torch.Generator().manual_seed(2))
    ahead, back = ([ask(s) for s in scopes] for ask in (lambda s: s.forward(v), lambda s: s.adjoint(u.double())))
    assert close(ahead[0], ahead[1])
    assert close(back[0], back[1])
    assert close((ahead[1] * u).sum(), (v * back[1]).sum(), 1e-10)
    assert close(scopes[1].forward(x0) + scopes[1].residual(), scopes[1].output, 1e-10)
    assert torch.equal(scopes[1].frozen_output(x0), scopes[1].output)
    k, j = (1, FAMILIES[name] // 2, FAMILIES[name] // 2), 3
    assert close(scopes[1].column(k)[j], scopes[1].row(j)[k])
