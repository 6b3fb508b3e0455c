"""A network made ready for guided feature inversion: frozen, folded, cut at its two layers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from stages.gfi.folding import folded
from stages.gfi.layers import AUTO, find_layers
from stages.gfi.mask import combine, kept, low_mask, removed
from stages.gfi.optimise import Problem, Weights, explain, invert
from stages.gfi.recipe import Recipe
from stages.network import Cut, ResolvedLayer
from stages.tracing import Graph

Precision = Literal["float32", "bfloat16", "float64"]
Speed = Literal["eager", "compile", "cuda_graphs"]


@dataclass(frozen=True)
class Begun:
    """A batch after the first stage, which every class goes on from."""

    problem: Problem
    probabilities: torch.Tensor  # [B, C] of the images
    kept_before: torch.Tensor  # [B, C] of the parts that the unoptimised mask keeps
    removed_before: torch.Tensor  # [B, C]
    weights: Weights


@dataclass(frozen=True)
class Answer:
    """What was found for one class of each image."""

    w: torch.Tensor  # [B, K]
    losses: torch.Tensor  # [B, steps of both stages], before each step
    kept_scores: torch.Tensor  # [B, steps of the class stage], in the recipe's score
    removed_scores: torch.Tensor
    kept_after: torch.Tensor  # [B] probability of the class in the kept part
    removed_after: torch.Tensor


class Explainer:
    """Runs both stages on batches. Holds its own copy of the network; no hooks, no gradients of parameters.

    ``example`` [B, 3, H, W] fixes the input's size and device. ``precision``: "bfloat16" runs the network under
    autocast and everything else in float32; "float64" is for tests. ``speed`` other than "eager" gives the whole
    network to torch.compile ("cuda_graphs": captured as well).
    """

    def __init__(
        self,
        module: nn.Module,
        example: torch.Tensor,
        recipe: Recipe,
        *,
        inversion_layer: str = AUTO,
        mask_layer: str = AUTO,
        precision: Precision = "float32",
        speed: Speed = "eager",
    ) -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"precision is {precision!r}: it is one of {', '.join(get_args(Precision))}")
        if speed not in get_args(Speed):
            raise ValueError(f"speed is {speed!r}: it is one of {', '.join(get_args(Speed))}")
        self.recipe, self.precision = recipe, precision
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        with torch.no_grad():
            graph = Graph(module, example)
            names = find_layers(graph, inversion_layer, mask_layer, one=recipe.preset == "authors")
            ready = folded(graph, keep=names).to(self.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            graph = Graph(ready, example)
            both = Cut(graph, tuple(dict.fromkeys(names)))
            self._to_inversion = both if names[0] == names[1] else Cut(graph, names[:1])
        self._both = both
        self.inversion_layer, self.mask_layer = names
        self.layers: tuple[ResolvedLayer, ResolvedLayer] = (both.layers[names[0]], both.layers[names[1]])
        self.operations = both.operations(names[0])
        self.values = float(sum(torch.Size(c.shape).numel() for c in graph.calls.values() if c.shape))
        self._forward = ready
        if speed != "eager":
            mode = "reduce-overhead" if speed == "cuda_graphs" else None
            self._forward = torch.compile(ready, mode=mode, dynamic=False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The inversion layer's output; nothing after it is computed."""
        with self._autocast(x):
            return self._to_inversion.prefix(x).taps[self.inversion_layer]

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        with self._autocast(x):
            out: torch.Tensor = self._forward(x)
            return out

    def begin(self, x: torch.Tensor, background: torch.Tensor) -> Begun:
        """Stage 1 on normalised images [B, 3, H, W] and what hides them."""
        x, background = (t.to(self.dtype).contiguous(memory_format=torch.channels_last) for t in (x, background))
        with torch.no_grad():
            with self._autocast(x):
                activations = self._both.prefix(x)
                logits = self._both.logits(activations)
            taps = {name: tap.to(self.dtype) for name, tap in activations.taps.items()}
            guide, goal = taps[self.mask_layer].contiguous(), taps[self.inversion_layer]
            problem = Problem(x, background, guide, goal, self.recipe)
            whole = logits.to(self.dtype).softmax(dim=1)
            parts = self.parts(problem, problem.start())
            return Begun(problem, whole, *parts, invert(problem, self.features))

    def answer(self, begun: Begun, targets: torch.Tensor) -> Answer:
        """Stage 2 for one class id of each image, ``targets`` [B]."""
        problem = begun.problem
        found, of_kept, of_removed = explain(problem, self.logits, begun.weights, targets)
        left, gone = (part.gather(1, targets.unsqueeze(1)).squeeze(1) for part in self.parts(problem, found.w))
        return Answer(found.w, torch.stack(found.losses, dim=1), of_kept, of_removed, left, gone)

    def parts(self, problem: Problem, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities [B, C] of what a mask keeps and of what it removes."""
        with torch.no_grad():
            mask = problem.mask(weights)
            images = [kept(problem.x, problem.background, mask), removed(problem.x, problem.background, mask)]
            both = self.logits(torch.cat(images)).to(self.dtype).softmax(dim=1)
        left, gone = both.chunk(2)
        return left, gone

    def images_within(self, space: float) -> int:
        """How many images a GPU with ``space`` free bytes takes at once, a power of two from 1 to 64.

        Both parts of an image are in a step, and its backward keeps about two tensors for each that a forward makes.
        """
        bytes_per_value = {"float32": 4, "bfloat16": 3, "float64": 8}[self.precision]
        images = space / (4 * self.values * bytes_per_value)
        return 1 << max(0, min(6, int(images).bit_length() - 1))

    def low_mask(self, begun: Begun, weights: torch.Tensor) -> torch.Tensor:
        """The mask at the features' resolution [B, h, w], as rows store it."""
        return low_mask(combine(weights, begun.problem.guide), self.recipe.upsampling)

    def _autocast(self, x: torch.Tensor) -> AbstractContextManager[object]:
        if self.precision != "bfloat16":
            return nullcontext()
        return torch.autocast(x.device.type, dtype=torch.bfloat16)
