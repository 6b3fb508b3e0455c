"""The two optimisations, many images at once and each as if it were alone.

The loss of a batch is the *sum* of its images' losses: an average would change what Adam's epsilon means to each of
them. Nothing but the weights w [B, K] has a gradient; the networks' parameters are constants.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from stages.gfi.mask import mask_of
from stages.gfi.recipe import Recipe
from stages.gfi.stem import Blend

Forward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Problem:
    """What is fixed for a batch: the images, what hides them, and the features that the mask is made of."""

    x: torch.Tensor  # [B, 3, H, W], normalised
    background: torch.Tensor  # the same shape
    guide: torch.Tensor  # [B, K, h, w] features of x that the mask combines
    goal: torch.Tensor  # [B, C, h', w'] features of x that the inversion is to keep
    recipe: Recipe
    blend: Blend  # what the network reads of x and the background under a mask

    def mask(self, weights: torch.Tensor) -> torch.Tensor:
        """[B, 1, H, W]."""
        size = (self.x.shape[2], self.x.shape[3])
        return mask_of(weights, self.guide, size, self.recipe.upsampling)

    def start(self) -> torch.Tensor:
        """The unoptimised weights [B, K]: all alike."""
        return self.guide.new_full(self.guide.shape[:2], self.recipe.start)

    def penalty(self, weights: torch.Tensor) -> torch.Tensor:
        """[B]; the gradient of |w| at 0 is 0."""
        return (weights.abs() if self.recipe.penalty == "l1" else weights.square()).sum(dim=1)


class Adam:
    """Adam as torch does it, elementwise, on weights that are clipped at 0 after each step."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.first, self.second = torch.zeros_like(weights), torch.zeros_like(weights)
        self.steps = 0

    def copy(self) -> Adam:
        other = Adam(self.first)
        other.first, other.second, other.steps = self.first.clone(), self.second.clone(), self.steps
        return other

    def step(self, weights: torch.Tensor, gradient: torch.Tensor, rate: float) -> torch.Tensor:
        """The weights after a step, as a new tensor."""
        self.steps += 1
        self.first.lerp_(gradient, 1 - 0.9)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        scale = (self.second.sqrt() / (1 - 0.999**self.steps) ** 0.5).add_(1e-8)
        return torch.addcdiv(weights, self.first, scale, value=-rate / (1 - 0.9**self.steps)).clamp_(min=0)


@dataclass
class Weights:
    """Where an optimisation stands."""

    w: torch.Tensor  # [B, K], never below 0
    adam: Adam
    losses: list[torch.Tensor]  # [B] before each step

    def copy(self) -> Weights:
        return Weights(self.w, self.adam.copy(), list(self.losses))

    def step(self, loss: Callable[[torch.Tensor], torch.Tensor], rate: float) -> None:
        """One step down ``loss`` (w [B, K] -> [B])."""
        leaf = self.w.detach().requires_grad_(True)
        with torch.enable_grad():
            each = loss(leaf)
            (gradient,) = torch.autograd.grad(each.sum(), leaf)
        self.losses.append(each.detach())
        self.w = self.adam.step(leaf.detach(), gradient, rate)


def invert(problem: Problem, features: Forward) -> Weights:
    """Stage 1: the weights whose kept part gives the features of the whole; it knows no class.

    ``features`` runs the network up to the inversion layer only: what ``problem.blend`` gives -> like ``goal``.
    """
    recipe = problem.recipe
    weights = problem.start()
    state = Weights(weights, Adam(weights), [])
    norm = problem.goal.square().flatten(1).sum(dim=1)
    norm = torch.where(norm > 0, norm, 1) if recipe.relative else torch.ones_like(norm)

    def loss(w: torch.Tensor) -> torch.Tensor:
        mask = problem.mask(w)
        seen = features(problem.blend.kept(mask))
        distance = (seen.to(problem.goal.dtype) - problem.goal).square().flatten(1).sum(dim=1)
        return distance / norm + recipe.gamma * problem.penalty(w)

    for rate in recipe.rates()[0]:
        state.step(loss, rate)
    return state


def explain(
    problem: Problem, logits: Forward, state: Weights, targets: torch.Tensor
) -> tuple[Weights, torch.Tensor, torch.Tensor]:
    """Stage 2 for one class id each (``targets`` [B]), going on from ``state``, which is left as it is.

    Kept and removed part go through the network as one batch of 2B. Returns the weights, and the score of the kept and
    of the removed part before every step, [B, steps].
    """
    recipe = problem.recipe
    found = state.copy()
    if not recipe.one_optimiser:
        found.adam = Adam(found.w)
    both = targets.repeat(2).unsqueeze(1)
    count = len(targets)
    of_kept: list[torch.Tensor] = []
    of_removed: list[torch.Tensor] = []

    def loss(w: torch.Tensor) -> torch.Tensor:
        mask = problem.mask(w)
        score = scores(logits(problem.blend.both(mask)), recipe.score, problem.x.dtype).gather(1, both).squeeze(1)
        of_kept.append(score[:count].detach())
        of_removed.append(score[count:].detach())
        return recipe.suppress * score[count:] - score[:count] + recipe.delta * problem.penalty(w)

    for rate in recipe.rates()[1]:
        found.step(loss, rate)
    empty = problem.x.new_zeros(count, 0)
    return (
        found,
        torch.stack(of_kept, dim=1) if of_kept else empty,
        torch.stack(of_removed, dim=1) if of_removed else empty,
    )


def scores(logits: torch.Tensor, score: str, dtype: torch.dtype) -> torch.Tensor:
    """[N, C] in the images' own precision: what is optimised, probabilities or the logits themselves."""
    return logits.to(dtype) if score == "logits" else probabilities(logits, score, dtype)


def probabilities(logits: torch.Tensor, score: str, dtype: torch.dtype) -> torch.Tensor:
    """[N, C]: classes that exclude each other (softmax), or each by itself (sigmoid)."""
    return logits.to(dtype).sigmoid() if score == "sigmoid" else logits.to(dtype).softmax(dim=1)
