"""The two optimisations: as published, step by step, and each image as if it were alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stages.gfi.background import blurred
from stages.gfi.explainer import Explainer
from stages.gfi.mask import kept
from stages.gfi.optimise import Adam, explain, invert
from stages.gfi.recipe import RECIPES, Recipe, recipe


@pytest.fixture
def explainer(small: Callable[..., nn.Module]) -> Callable[..., Explainer]:
    def made(preset: Recipe, precision: str = "float64") -> Explainer:
        module = small().double() if precision == "float64" else small()
        example = torch.zeros(1, 3, 32, 32, dtype=next(module.parameters()).dtype)
        return Explainer(module, example, preset, precision=precision)

    return made


class Published(nn.Module):
    """The authors' loop as their code runs it: one image, hooks, a Python loop over channels, three whole forwards."""

    def __init__(self, network: nn.Module, layer: str) -> None:
        super().__init__()
        self.network = network
        for parameter in network.parameters():
            parameter.requires_grad_(True)
        self.seen: list[torch.Tensor] = []
        network.get_submodule(layer).register_forward_hook(lambda m, a, out: self.seen.append(out))

    def activations(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.clear()
        self.network(x)
        return self.seen[0]

    def run(self, x: torch.Tensor, blur: torch.Tensor, category: int) -> tuple[list[torch.Tensor], list[float]]:
        """The weights after each of 80 steps, and the loss before each."""
        reference = self.activations(x).detach()
        channels = reference.shape[1]
        w = torch.full((1, channels), 0.1, dtype=x.dtype, requires_grad=True)
        optimiser = torch.optim.Adam([w], lr=1e-2)
        after, losses = [], []
        for i in range(80):
            mask = w[0, 0] * reference[0, 0]
            for k in range(1, channels):
                mask = mask + w[0, k] * reference[0, k]
            mask = F.interpolate(mask[None, None], size=x.shape[2:], mode="bilinear", align_corners=True)
            mask = (mask - mask.min()) / mask.max()
            mask = mask.expand_as(x)
            kept = x * mask + blur * (1 - mask)
            deleted = x * (1 - mask) + blur * mask
            inversion = (self.activations(kept) - reference).pow(2).sum() / reference.pow(2).sum()
            highlight = -torch.softmax(self.network(kept), dim=1)[0, category]
            suppress = torch.softmax(self.network(deleted), dim=1)[0, category]
            norm = w.pow(2).sum()
            loss = inversion + 5 * norm if i < 11 else highlight + suppress + 2 * norm
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            w.data.clamp_(min=0)
            if (i + 1) % 10 == 0:
                optimiser.param_groups[0]["lr"] *= 0.5
            after.append(w.detach().clone()[0])
            losses.append(float(loss.detach()))
        return after, losses


def test_the_authors_preset_is_the_published_loop_step_by_step(explainer, small, images) -> None:
    x = images(3)
    blur = blurred(x, 4.0)
    ours = explainer(RECIPES["authors"])
    assert (ours.inversion_layer, ours.mask_layer) == ("6", "6")  # one layer in both roles, the last pooling
    begun = ours.begin(x, blur)
    category = begun.probabilities.argmax(dim=1)
    seen: list[torch.Tensor] = []
    step = Adam.step

    def watched(self: Adam, weights: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
        seen.append(step(self, weights, gradient, rate))
        return seen[-1]

    Adam.step = watched  # type: ignore[method-assign]
    try:
        begun = ours.begin(x, blur)
        answer = ours.answer(begun, category)
    finally:
        Adam.step = step  # type: ignore[method-assign]
    assert len(seen) == 80
    for i in range(3):
        after, losses = Published(small().double(), "6").run(x[i : i + 1], blur[i : i + 1], int(category[i]))
        for mine, theirs in zip(seen, after, strict=True):
            assert torch.allclose(mine[i], theirs, rtol=0, atol=1e-9)
        assert torch.allclose(answer.losses[i], torch.tensor(losses, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (answer.w - 0.1).abs().max() > 0.05  # it went somewhere


def test_the_papers_preset_is_its_text(explainer, small, images) -> None:
    """Batch 1, plain autograd, torch's own Adam, a fresh one for the second stage."""
    x = images(2)
    blur = blurred(x, 4.0)
    # On six channels the paper's delta of 1 outweighs any score, and the text divides 0 by 0: its other numbers stay.
    ours = explainer(recipe("paper", delta=0.01))
    assert (RECIPES["paper"].gamma, RECIPES["paper"].delta, RECIPES["paper"].suppress) == (10, 1, 1)
    assert (ours.inversion_layer, ours.mask_layer) == ("6", "5")  # the last pooling; the last convolution's activation
    begun = ours.begin(x, blur)
    target = torch.tensor([3, 1])
    answer = ours.answer(begun, target)
    network = small().double()
    for i in range(2):
        image, hidden = x[i : i + 1], blur[i : i + 1]
        guide, goal = network[:6](image), network[:7](image)
        w = torch.full((1, 6, 1, 1), 0.1, dtype=torch.float64, requires_grad=True)
        losses = []
        for stage, steps in enumerate((10, 70)):
            optimiser = torch.optim.Adam([w], lr=1e-2)
            for step in range(steps):
                heat = (w * guide).sum(dim=1, keepdim=True)
                heat = (heat - heat.min()) / (heat.max() - heat.min())
                mask = F.interpolate(heat, size=(32, 32), mode="bilinear", align_corners=False)
                kept, gone = image * mask + hidden * (1 - mask), image * (1 - mask) + hidden * mask
                if stage == 0:
                    loss = (network[:7](kept) - goal).pow(2).sum() + 10 * w.abs().sum()
                else:
                    score, other = (network(part).softmax(dim=1)[0, target[i]] for part in (kept, gone))
                    loss = -score + other + 0.01 * w.abs().sum()
                    optimiser.param_groups[0]["lr"] = 1e-2 * 0.5 ** (step // 10)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                w.data.clamp_(min=0)
                losses.append(float(loss.detach()))
        assert torch.allclose(answer.w[i], w.detach().flatten(), rtol=0, atol=1e-9)
        assert torch.allclose(answer.losses[i], torch.tensor(losses, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_rates_are_those_of_the_protocol() -> None:
    first, second = RECIPES["paper"].rates()
    assert first == [0.01] * 10
    assert second[:10] == [0.01] * 10
    assert second[10:20] == [0.005] * 10
    assert second[60:] == [0.01 / 64] * 10
    first, second = RECIPES["authors"].rates()
    assert first == [0.01] * 10 + [0.005]  # halved throughout: the eleventh inversion step already runs at half
    assert second[:9] == [0.005] * 9
    assert second[-10:] == [0.01 / 128] * 10
    assert len(first + second) == 80


@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_sixteen_images_together_are_sixteen_alone(preset: str, explainer, images) -> None:
    x = images(16, seed=3)
    blur = blurred(x, 4.0)
    made = explainer(RECIPES[preset])
    target = torch.arange(16) % 5
    together = made.answer(made.begin(x, blur), target)
    for i in range(16):
        alone = made.answer(made.begin(x[i : i + 1], blur[i : i + 1]), target[i : i + 1])
        assert torch.allclose(alone.w[0], together.w[i], rtol=0, atol=1e-9)
        assert torch.allclose(alone.losses[0], together.losses[i], rtol=1e-9, atol=1e-9)
        assert torch.allclose(alone.kept_after[0], together.kept_after[i], rtol=0, atol=1e-9)


@pytest.mark.parametrize("preset", ["paper", "authors"])
@pytest.mark.parametrize("steps", [(1, 0), (0, 1)])
def test_in_single_precision_they_agree_after_the_first_step(
    preset: str, steps: tuple[int, int], explainer, images
) -> None:
    x = images(16, seed=3).float()
    blur = blurred(x, 4.0)
    made = explainer(recipe(preset, steps=steps), "float32")
    target = torch.arange(16) % 5
    together = made.answer(made.begin(x, blur), target).w
    alone = torch.cat([made.answer(made.begin(x[i : i + 1], blur[i : i + 1]), target[i : i + 1]).w for i in range(16)])
    assert (together - alone).abs().max() <= 1e-5
    assert (together - 0.1).abs().max() > 1e-3


@pytest.mark.parametrize("preset", ["paper", "authors"])
def test_weights_never_fall_below_zero(preset: str, explainer, images) -> None:
    x = images(4, seed=1)
    made = explainer(recipe(preset, rate=0.2))
    lowest: list[float] = []
    step = Adam.step

    def watched(self: Adam, weights: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
        out = step(self, weights, gradient, rate)
        lowest.append(float(out.min()))
        return out

    Adam.step = watched  # type: ignore[method-assign]
    try:
        answer = made.answer(made.begin(x, blurred(x, 4.0)), torch.zeros(4, dtype=torch.int64))
    finally:
        Adam.step = step  # type: ignore[method-assign]
    assert len(lowest) == 80
    assert min(lowest) == 0.0
    assert torch.isfinite(answer.w).all()


def test_a_mask_of_ones_has_no_inversion_loss(explainer, images) -> None:
    made = explainer(recipe("paper", gamma=0.0, steps=(1, 0)))
    x = images(2)
    begun = made.begin(x, x)  # what hides the image is the image: Phi = x whatever the mask
    assert begun.weights.losses[0].max() <= 1e-25
    ones = kept(x, images(2, seed=9), torch.ones(2, 1, 32, 32, dtype=torch.float64))
    assert torch.equal(made.features(ones), begun.problem.goal)


def test_losses_do_not_change_with_the_scale_of_the_weights_but_for_the_penalty(explainer, images) -> None:
    x = images(2)
    blur = blurred(x, 4.0)
    for preset in ("paper", "authors"):
        one, other = (explainer(recipe(preset, gamma=0.0, delta=0.0, steps=(1, 1), start=s)) for s in (0.1, 70.0))
        target = torch.tensor([0, 1])
        a, b = (m.answer(m.begin(x, blur), target).losses for m in (one, other))
        assert torch.allclose(a[:, 0], b[:, 0], rtol=1e-9, atol=0)
        first = (m.answer(m.begin(x, blur), target).kept_scores[:, 0] for m in (
            explainer(recipe(preset, steps=(0, 1), start=s)) for s in (0.1, 70.0)
        ))  # fmt: skip
        assert torch.allclose(*first, rtol=1e-9, atol=0)


def test_adam_is_torchs() -> None:
    torch.manual_seed(0)
    ours = torch.rand(3, 4, dtype=torch.float64) + 5
    theirs = ours.clone().requires_grad_(True)
    reference, mine = torch.optim.Adam([theirs], lr=1e-2), Adam(ours)
    for i in range(12):
        gradient = torch.randn(3, 4, dtype=torch.float64) * 10.0 ** (i - 6)
        theirs.grad = gradient.clone()
        reference.step()
        ours = mine.step(ours, gradient, 1e-2)
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-13)


def test_the_second_stage_leaves_the_first_as_it_was(explainer, images) -> None:
    """One first stage serves every class asked of an image."""
    for preset in ("paper", "authors"):
        made = explainer(recipe(preset, steps=(3, 4)))
        x = images(2)
        begun = made.begin(x, blurred(x, 4.0))
        one = made.answer(begun, torch.tensor([0, 1]))
        made.answer(begun, torch.tensor([2, 3]))
        again = made.answer(begun, torch.tensor([0, 1]))
        assert torch.equal(one.w, again.w)
        assert one.losses.shape == (2, 7)


def test_the_inversion_stops_at_its_layer_and_nothing_is_hooked(small, images) -> None:
    network = small().double()
    made = Explainer(network, torch.zeros(1, 3, 32, 32, dtype=torch.float64), recipe("paper", steps=(4, 1)))
    x = images(2)
    blur = blurred(x, 4.0)
    begun = made.begin(x, blur)
    counted: list[torch.Size] = []
    invert(begun.problem, lambda seen: counted.append(seen.shape) or made.features_behind(seen))
    assert counted == [torch.Size((2, 4, 32, 32))] * 4  # the kept part alone, once a step, behind the first convolution
    assert begun.problem.goal.shape == (2, 6, 8, 8)
    explain(
        begun.problem,
        lambda seen: counted.append(seen.shape) or made.logits_behind(seen),
        begun.weights,
        torch.tensor([0, 1]),
    )
    assert counted[4:] == [torch.Size((4, 4, 32, 32))]  # both parts in one batch
    for module in (network, made._forward):
        assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in module.modules())
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())


def test_in_bfloat16_a_mask_of_ones_gives_the_whole_image_bit_for_bit(
    explainer: Callable[..., Explainer], images: Callable[..., torch.Tensor]
) -> None:
    found = explainer(RECIPES["paper"], precision="bfloat16")
    x, background = images(3).float(), images(3, seed=4).float()
    begun = found.begin(x, background)
    whole = found.features_behind(begun.problem.blend.kept(torch.ones(3, 1, 32, 32)))
    assert torch.equal(whole.to(begun.problem.goal.dtype), begun.problem.goal)


def test_a_sigmoid_scores_each_class_by_itself(
    explainer: Callable[..., Explainer], images: Callable[..., torch.Tensor]
) -> None:
    short = recipe("paper", steps=(2, 2), score="sigmoid")
    found = explainer(short)
    x, background = images(2), images(2, seed=4)
    begun = found.begin(x, background)
    assert torch.allclose(begun.probabilities, found.logits(x).sigmoid(), rtol=0, atol=1e-12)
    answer = found.answer(begun, torch.tensor([1, 3]))
    first = found.logits_behind(begun.problem.blend.both(begun.problem.mask(begun.weights.w))).sigmoid()
    assert torch.allclose(answer.kept_scores[:, 0], first[[0, 1], [1, 3]], rtol=0, atol=1e-12)
