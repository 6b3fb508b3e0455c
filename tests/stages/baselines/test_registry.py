"""Every method behind its name: one signature, one image at a time or many, nothing left behind, options checked."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.baselines.query import Query
from stages.baselines.registry import METHODS, Setting, build, check, layers_of
from stages.network import cut

LAYERS = ("relu1", "relu2")


class Net(nn.Module):
    """Functional ReLUs, a residual sum, a batch norm, pooling, a linear layer over spatial means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = F.max_pool2d(self.relu1(self.norm1(self.conv1(x))), 2)
        second = self.relu2(self.conv2(first) + first)
        return self.head(F.adaptive_avg_pool2d(second, 1).flatten(1))


def network() -> Net:
    torch.manual_seed(0)
    net = Net().double().eval()
    net.norm1.running_mean.uniform_(-0.3, 0.3)
    net.norm1.running_var.uniform_(0.5, 2)
    return net.requires_grad_(False)


X = torch.randn(3, 3, 16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([[0, 3], [4, 1], [1, 1]])
FEW: dict[str, dict] = {
    "smooth_grad": {"samples": 3},
    "integrated_gradients": {"steps": 4},
    "lime": {"grid": 3, "samples": 12},
    "optimised_mask": {"steps": 5, "side": 4, "blur": 2.0},
    "gfi": {},
}


def setting() -> Setting:
    rng = np.random.default_rng(0)
    solve = [{"layer": layer, "class_id": c, "w": rng.normal(size=6)} for layer in LAYERS for c in range(5)]
    return Setting(LAYERS, tables={"solve": pa.Table.from_pylist(solve)}, options=FEW)


def query(rows: slice = slice(None)) -> Query:
    keys = ("a.png", "b.png", "c.png")[rows]
    return Query(cut(network(), LAYERS, X[:1]), X[rows], TARGETS[rows], keys=keys, seed=7)


NAMES = sorted(set(METHODS) - {"gfi"})


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_images_one_by_one(name: str) -> None:
    method = build(name, setting())
    whole = method.maps(query())
    assert whole.shape[:2] == (3, 2)
    assert torch.isfinite(whole).all()
    assert whole.flatten(2).std(dim=2).min() > 0, "a map that is flat everywhere tells nothing apart"
    for i in range(3):
        alone = method.maps(query(slice(i, i + 1)))
        assert torch.allclose(whole[i], alone[0], atol=1e-9 * float(whole.abs().max()))
    assert torch.allclose(whole[2, 0], whole[2, 1], atol=1e-12)  # the same class asked twice


@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_left_as_it_was_and_no_gradient_is_kept(name: str) -> None:
    asked = query()
    net = asked.cut.graph.module
    before = {key: value.clone() for key, value in net.state_dict().items()}
    first = build(name, setting()).maps(asked)
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch._C._len_torch_function_stack() == 0
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not first.requires_grad
    with torch.no_grad():
        assert torch.equal(build(name, setting()).maps(query()), first)  # whatever the grad mode; draws repeat


@pytest.mark.parametrize("name", ["smooth_grad", "lime"])
def test_draws_come_from_seed_and_key_alone(name: str) -> None:
    method, whole = build(name, setting()), cut(network(), LAYERS, X[:1])
    twice = X[[0, 0]]

    def maps(keys: tuple[str, ...], seed: int = 7) -> torch.Tensor:
        return method.maps(Query(whole, twice, TARGETS[[0, 0]], keys=keys, seed=seed))

    assert torch.allclose(*maps(("a.png", "a.png")), atol=1e-12)
    assert not torch.allclose(*maps(("a.png", "b.png")), atol=1e-6)
    assert not torch.allclose(maps(("a.png", "b.png"), seed=8)[0], maps(("a.png", "b.png"))[0], atol=1e-6)
    with pytest.raises(ValueError, match="give the query its keys"):
        maps(())


def test_options_reach_their_method_and_a_misspelt_one_is_told() -> None:
    assert build("lime", Setting(LAYERS, options={"lime": {"samples": 500}})).samples == 500  # type: ignore[attr-defined]
    with pytest.raises(LookupError, match="did you mean samples"):
        build("lime", Setting(LAYERS, options={"lime": {"sample": 500}}))
    with pytest.raises(LookupError, match="it has none"):
        build("grad_cam", Setting(LAYERS, options={"grad_cam": {"layer": "x"}}))
    for name, wrong in [
        ("smooth_grad", {"samples": 0}),
        ("integrated_gradients", {"steps": 0}),
        ("occlusion", {"window": 0.1, "stride": 0.2}),
        ("lime", {"grid": 1}),
        ("lrp", {"rule": "gamma"}),
        ("optimised_mask", {"steps": 0}),
    ]:
        with pytest.raises(ValueError, match=name):
            build(name, Setting(LAYERS, options={name: wrong}))


def test_methods_at_the_image_take_no_layer_and_those_at_a_layer_take_any() -> None:
    for name in ("lrp", "occlusion", "lime", "smooth_grad"):
        with pytest.raises(ValueError, match="takes no layer"):
            layers_of([f"{name}:relu1"], LAYERS)
    assert layers_of(["c_mwp:relu1", "cam", "guided_grad_cam"], LAYERS) == ("relu1", "relu2")


def test_what_a_network_cannot_answer_is_told_before_any_image() -> None:
    fits = {"cam": build("cam", Setting(("relu2",)))}
    check(fits, cut(network(), ["relu2"], X[:1]))
    with pytest.raises(ValueError, match="cam: CAM needs global average pooling"):
        check({"cam": build("cam", Setting(("relu1",)))}, cut(network(), ["relu1"], X[:1]))
