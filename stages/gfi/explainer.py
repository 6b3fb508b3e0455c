"""A network made ready for guided feature inversion: frozen, folded, cut at its two layers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from stages.gfi.folding import folded
from stages.gfi.layers import AUTO, find_layers
from stages.gfi.mask import combine, low_mask
from stages.gfi.optimise import Problem, Weights, explain, invert, probabilities
from stages.gfi.recipe import Recipe
from stages.gfi.stem import Blend, StemBlend, take_stem
from stages.network import Cut, ResolvedLayer
from stages.tracing import Graph

Precision = Literal["float32", "bfloat16", "float64"]
Speed = Literal["eager", "compile", "cuda_graphs"]


def check_precision(name: str) -> None:
    if name not in get_args(Precision):
        raise ValueError(f"precision is {name!r}: it is one of {', '.join(get_args(Precision))}")


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
        check_precision(precision)
        if speed not in get_args(Speed):
            raise ValueError(f"speed is {speed!r}: it is one of {', '.join(get_args(Speed))}")
        self.recipe, self.precision = recipe, precision
        self.dtype = torch.float64 if precision == "float64" else torch.float32
        self._inner = torch.bfloat16 if precision == "bfloat16" else self.dtype  # of what follows the stem
        with torch.no_grad():
            graph = Graph(module, example)
            names = find_layers(graph, inversion_layer, mask_layer, one=recipe.preset == "authors")
            ready = folded(graph, keep=names).to(self.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            graph = Graph(ready, example)
            whole = Cut(graph, tuple(dict.fromkeys(names)))
            self.inversion_layer, self.mask_layer = names
            self.layers: tuple[ResolvedLayer, ResolvedLayer] = (whole.layers[names[0]], whole.layers[names[1]])
            self.operations = whole.operations(names[0])
            self.values = float(sum(torch.Size(c.shape).numel() for c in graph.calls.values() if c.shape))
            self._stem = take_stem(ready, graph)
            if self._stem is not None:
                graph = Graph(ready, self._stem(example.to(self.dtype)))
            self._both = Cut(graph, tuple(dict.fromkeys(names)))
            self._to_inversion = self._both if names[0] == names[1] else Cut(graph, names[:1])
        self._forward = ready
        if speed != "eager":
            mode = "reduce-overhead" if speed == "cuda_graphs" else None
            self._forward = torch.compile(ready, mode=mode, dynamic=False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """The inversion layer's output for images; nothing after it is computed."""
        return self.features_behind(self._behind_stem(x))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C] for images [B, 3, H, W]."""
        return self.logits_behind(self._behind_stem(x))

    def features_behind(self, seen: torch.Tensor) -> torch.Tensor:
        """The same for what a problem's ``blend`` gives: images, behind the network's stem where it has one."""
        with self._autocast(seen):
            return self._to_inversion.prefix(seen).taps[self.inversion_layer]

    def logits_behind(self, seen: torch.Tensor) -> torch.Tensor:
        with self._autocast(seen):
            out: torch.Tensor = self._forward(seen)
            return out

    def _behind_stem(self, x: torch.Tensor) -> torch.Tensor:
        return x if self._stem is None else self._stem(x).to(self._inner)

    def begin(self, x: torch.Tensor, background: torch.Tensor) -> Begun:
        """Stage 1 on normalised images [B, 3, H, W] and what hides them."""
        x, background = (t.to(self.dtype).contiguous(memory_format=torch.channels_last) for t in (x, background))
        with torch.no_grad():
            blend = Blend(x, background)
            if self._stem is not None:
                blend = StemBlend(x, background, self._stem, self._inner)
            # The stem of the image as the parts have it, so that a mask of ones gives the whole image bit for bit.
            seen = blend.of_x if isinstance(blend, StemBlend) else x
            with self._autocast(seen):
                activations = self._both.prefix(seen)
                logits = self._both.logits(activations)
            taps = {name: tap.to(self.dtype) for name, tap in activations.taps.items()}
            guide, goal = taps[self.mask_layer].contiguous(), taps[self.inversion_layer]
            problem = Problem(x, background, guide, goal, self.recipe, blend)
            whole = probabilities(logits, self.recipe.score, self.dtype)
            parts = self.parts(problem, problem.start())
            return Begun(problem, whole, *parts, invert(problem, self.features_behind))

    def answer(self, begun: Begun, targets: torch.Tensor) -> Answer:
        """Stage 2 for one class id of each image, ``targets`` [B]."""
        problem = begun.problem
        found, of_kept, of_removed = explain(problem, self.logits_behind, begun.weights, targets)
        left, gone = (part.gather(1, targets.unsqueeze(1)).squeeze(1) for part in self.parts(problem, found.w))
        return Answer(found.w, torch.stack(found.losses, dim=1), of_kept, of_removed, left, gone)

    def parts(self, problem: Problem, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities [B, C] of what a mask keeps and of what it removes."""
        with torch.no_grad():
            seen = problem.blend.both(problem.mask(weights))
            both = probabilities(self.logits_behind(seen), self.recipe.score, self.dtype)
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
