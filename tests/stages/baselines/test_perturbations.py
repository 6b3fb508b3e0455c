"""Methods that change the input and look again: by hand, against slow loops, captum and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from stages.baselines.draws import generators
from stages.baselines.frozen import Frozen
from stages.baselines.lime import Lime, weighted_ridge
from stages.baselines.occlusion import Occlusion
from stages.baselines.optimised_mask import OptimisedMask, gaussian_blur
from stages.baselines.paths import IntegratedGradients, SmoothGrad
from stages.baselines.query import Query
from stages.network import cut

KEYS = ("a.png", "b.png", "c.png")
X = torch.randn(3, 3, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
TARGETS = torch.tensor([[0, 3], [2, 1], [1, 1]])


def network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )  # fmt: skip
    return net.double().eval().requires_grad_(False)


def linear_network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 2, 1, bias=False), nn.Flatten(), nn.Linear(240, 4)).double().eval()


def query(net: nn.Module, rows: slice = slice(None), output: str = "logits") -> Query:
    return Query(
        cut(net, ["0"], X[:1]), X[rows], TARGETS[rows], keys=KEYS[rows], seed=5, output=output  # type: ignore[arg-type]
    )  # fmt: skip


def score(net: nn.Module, x: torch.Tensor, target: int, output: str = "logits") -> torch.Tensor:
    logits = net(x[None])[0]
    return (logits if output == "logits" else logits.softmax(0))[target]


# Paths


def test_on_a_linear_network_averages_change_nothing() -> None:
    asked = query(linear_network())
    gradient = asked.input_gradient()
    assert torch.allclose(SmoothGrad(samples=3).maps(asked), gradient.abs().amax(dim=2), atol=1e-12)
    assert torch.allclose(IntegratedGradients(steps=2).attribution(asked), gradient * X[:, None], atol=1e-12)


def test_smooth_grad_is_the_loop_of_its_definition() -> None:
    net = network()
    got = SmoothGrad(samples=4, noise=0.2).maps(query(net))
    for i in range(3):
        sigma = 0.2 * float(X[i].max() - X[i].min())
        draw = generators(5, [KEYS[i]], "smooth_grad", 1)[0]
        noise = [torch.from_numpy(draw.standard_normal((3, 12, 10), dtype=np.float32)).double() for _ in range(4)]
        for r in range(2):
            total = torch.zeros(3, 12, 10, dtype=torch.float64)
            for n in noise:
                leaf = (X[i] + sigma * n).requires_grad_(True)
                total += torch.autograd.grad(score(net, leaf, int(TARGETS[i, r])), leaf)[0]
            assert torch.allclose(got[i, r], (total / 4).abs().amax(dim=0), atol=1e-12)


def test_integrated_gradients_are_complete_and_captums() -> None:
    from captum.attr import IntegratedGradients as Captum

    net = network()
    asked = query(net)
    fall = (net(X) - net(torch.zeros_like(X))).gather(1, TARGETS)
    assert torch.allclose(IntegratedGradients(steps=100).maps(asked).sum(dim=(2, 3)), fall, atol=2e-3)
    few = IntegratedGradients(steps=9).attribution(asked)
    for r in range(2):
        expected = Captum(net).attribute(X, target=TARGETS[:, r], n_steps=9, method="gausslegendre")
        assert torch.allclose(few[:, r], expected, atol=1e-12)


# Occlusion


def test_squares_cover_every_pixel_and_end_with_the_image() -> None:
    squares = list(Occlusion(window=0.5, stride=0.3).squares(12, 10))  # side 5, step 3
    assert sorted({rows.start for rows, _ in squares}) == [0, 3, 6, 7]
    assert sorted({columns.start for _, columns in squares}) == [0, 3, 5]
    covered = np.zeros((12, 10), bool)
    for rows, columns in squares:
        covered[rows, columns] = True
    assert covered.all()


@pytest.mark.parametrize("output", ["logits", "softmax"])
def test_occlusion_is_the_mean_fall_over_the_squares_on_a_pixel(output: str) -> None:
    net, method = network(), Occlusion(window=0.4, stride=0.3)
    got = method.maps(query(net, output=output))
    for i in range(2):
        target = int(TARGETS[i, 1])
        falls: dict[tuple[int, int], list[float]] = {}
        for rows, columns in method.squares(12, 10):
            hidden = X[i].clone()
            hidden[:, rows, columns] = 0
            fall = float(score(net, X[i], target, output) - score(net, hidden, target, output))
            for y in range(rows.start, rows.stop):
                for x in range(columns.start, columns.stop):
                    falls.setdefault((y, x), []).append(fall)
        expected = torch.tensor([[np.mean(falls[y, x]) for x in range(10)] for y in range(12)])
        assert torch.allclose(got[i, 1], expected, atol=1e-12)


def test_occlusion_is_captums_where_squares_tile_the_image() -> None:
    from captum.attr import Occlusion as Captum

    net = network().float()
    x = X[:, :, :10].float()
    got = Occlusion(window=0.5, stride=0.5).maps(Query(cut(net, ["0"], x[:1]), x, TARGETS))
    for r in range(2):
        expected = Captum(net).attribute(x, (3, 5, 5), strides=(3, 5, 5), target=TARGETS[:, r], baselines=0)
        assert torch.allclose(got[:, r], expected[:, 0], atol=1e-6)


# LIME


def test_the_ridge_is_scikit_learns() -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    x, y, w = rng.integers(0, 2, (2, 40, 6)).astype(float), rng.normal(size=(2, 40, 3)), rng.uniform(0.1, 1, (2, 40))
    got = weighted_ridge(*(torch.from_numpy(v) for v in (x, y, w)), 0.7)
    for i in range(2):
        for r in range(3):
            expected = Ridge(alpha=0.7).fit(x[i], y[i, :, r], sample_weight=w[i]).coef_
            assert got[i, :, r].numpy() == pytest.approx(expected, abs=1e-10)


def test_lime_is_the_loop_of_its_definition() -> None:
    from sklearn.linear_model import Ridge

    net = network()
    got = Lime(grid=2, samples=20).maps(query(net))
    for i in range(3):
        shown = generators(5, [KEYS[i]], "lime", 1)[0].integers(0, 2, size=(20, 4), dtype=np.int8)
        shown[0] = 1
        answers = []
        for row in shown:
            mask = torch.from_numpy(row).double().view(2, 2).repeat_interleave(6, 0).repeat_interleave(5, 1)
            answers.append([float(score(net, X[i] * mask, int(c), "softmax")) for c in TARGETS[i]])
        distance = 1 - shown.sum(1) / np.sqrt(shown.sum(1) * 4 + 1e-300)
        weight = np.sqrt(np.exp(-(distance**2) / 0.25**2))
        for r in range(2):
            expected = Ridge(alpha=1.0).fit(shown, np.array(answers)[:, r], sample_weight=weight).coef_
            assert got[i, r].flatten().numpy() == pytest.approx(expected, abs=1e-9)


def test_lime_finds_the_cell_that_decides() -> None:
    """Only the top right quarter of this network's input reaches its scores."""

    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)[:, :, :6, 5:].sum((2, 3))

    net = Corner().double().eval()
    net.conv.weight.data.copy_(torch.eye(3).view(3, 3, 1, 1))
    x = torch.stack([X[0].abs() * torch.tensor([0.02, 0.0, 0.0]).view(3, 1, 1)] * 2)
    asked = Query(cut(net, ["conv"], x[:1]), x, torch.tensor([[0], [0]]), keys=("p", "q"))
    maps = Lime(grid=2, samples=64, ridge=1e-9).maps(asked)[:, 0]
    assert maps.flatten(1).argmax(dim=1).tolist() == [1, 1]
    whole, none = net(x[:1]).softmax(1)[0, 0], net(0 * x[:1]).softmax(1)[0, 0]
    assert torch.allclose(maps[:, 0, 1], (whole - none).expand(2), atol=1e-6)
    assert maps.flatten(1)[:, [0, 2, 3]].abs().max() < 1e-6


# The optimised mask


def test_blur_keeps_flat_colours_and_is_scipys() -> None:
    from scipy import ndimage

    flat = torch.full((1, 3, 9, 7), 2.5, dtype=torch.float64)
    assert torch.allclose(gaussian_blur(flat, 3.0), flat, atol=1e-12)
    x = torch.randn(1, 3, 40, 31, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, 2.0, 2.0), truncate=3.0, mode="mirror")
    assert gaussian_blur(x, 2.0).numpy() == pytest.approx(expected, abs=1e-12)


def test_optimised_mask_is_the_slow_loop_image_by_image() -> None:
    net = network()
    got = OptimisedMask(steps=6, side=4, rate=0.1, area=0.2, smooth=3.0, blur=2.0).maps(query(net))
    for i in range(2):
        for r in range(2):
            away = gaussian_blur(X[i : i + 1], 2.0)
            mask = torch.full((4, 4), 0.5, dtype=torch.float64, requires_grad=True)
            first, second = torch.zeros(4, 4).double(), torch.zeros(4, 4).double()
            for step in range(1, 7):
                large = interpolate(mask[None, None], size=(12, 10), mode="bilinear", align_corners=False)
                kept = net(X[i : i + 1] * large + away * (1 - large)).softmax(1)[0, TARGETS[i, r]]
                rough = sum((mask[y + 1, x] - mask[y, x]).abs() ** 3 for y in range(3) for x in range(4))
                rough = rough + sum((mask[y, x + 1] - mask[y, x]).abs() ** 3 for y in range(4) for x in range(3))
                loss = 0.2 * (1 - mask).abs().sum() / 16 + 3.0 * rough / 16 + kept
                gradient = torch.autograd.grad(loss, mask)[0]
                first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
                move = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                mask = (mask - 0.1 * move).clamp(0, 1).detach().requires_grad_(True)
            assert torch.allclose(got[i, r], 1 - mask.detach(), atol=1e-9)


def test_the_mask_lowers_the_score_and_its_own_loss() -> None:
    net = network()
    asked, method = query(net), OptimisedMask(steps=15, side=4, blur=3.0, area=0.05)
    frozen = Frozen(asked)
    blend = frozen.blend(X, gaussian_blur(X, 3.0))
    found = 1 - method.maps(asked)[:, :1]
    before = method.losses(frozen, blend, TARGETS[:, :1], torch.full_like(found, 0.5))
    assert (method.losses(frozen, blend, TARGETS[:, :1], found) < before).all()
    assert found.min() >= 0
    assert found.max() <= 1
