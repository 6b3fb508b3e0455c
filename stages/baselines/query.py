"""What a batch of images is asked, and the passes that several methods share in answering."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from stages.network import Activations, Cut

Output = Literal["logits", "softmax"]


class Query:
    """A batch of images and, for each, some classes. Methods take what they need; each pass runs once and is kept.

    ``x`` is the normalised input [B, 3, h, w]; ``targets`` [B, R] are class ids. ``output`` is what gradients are taken
    of: the logit (default, as in Simonyan et al. 2014 and Grad-CAM, "before the softmax") or the softmax probability.
    ``keys`` and ``seed`` are for methods that draw random numbers: from (seed, key, method), never from a batch. Row i
    of every answer depends on row i alone. No hooks are set; the network is left as it is.
    """

    def __init__(
        self,
        cut: Cut,
        x: torch.Tensor,
        targets: torch.Tensor | None = None,
        *,
        top: int = 5,
        output: Output = "logits",
        keys: tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        if output not in ("logits", "softmax"):
            raise ValueError(f"output is {output!r}: gradients are taken of 'logits' or 'softmax'")
        self.cut, self.x, self.output, self.keys, self.seed = cut, x, output, keys, seed
        with torch.no_grad():
            self.activations: Activations = cut.prefix(x)
            self.logits = cut.logits(self.activations)
        classes = self.logits.shape[1]
        self.probabilities = self.logits.float().softmax(dim=1)
        self.ranked = self.probabilities.topk(min(top, classes), dim=1).indices
        self.targets = self.ranked if targets is None else self._checked(targets, classes)
        self._kept: dict[str, torch.Tensor] = {}

    def _checked(self, targets: torch.Tensor, classes: int) -> torch.Tensor:
        targets = targets.to(self.x.device, torch.int64)
        if targets.dim() != 2 or targets.shape[0] != self.x.shape[0]:
            raise ValueError(f"targets are class ids [images, classes asked], got {tuple(targets.shape)}")
        if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
            raise ValueError(f"targets must be class ids in 0..{classes - 1}, got {targets.min()}..{targets.max()}")
        return targets

    def asking(self, targets: torch.Tensor) -> Query:
        """The same images and their prefix, asked about other classes [B, R]."""
        other = object.__new__(Query)
        other.__dict__.update(self.__dict__)
        other.targets = self._checked(targets, self.logits.shape[1])
        other._kept = {}
        return other

    def once(self, name: str, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What ``compute`` gives, computed the first time ``name`` is asked for: a pass that several methods read."""
        if name not in self._kept:
            self._kept[name] = compute()
        return self._kept[name]

    def activation(self, layer: str) -> torch.Tensor:
        """The layer's output [B, K, h, w]."""
        try:
            return self.activations.taps[layer]
        except KeyError:
            raise LookupError(
                f"the network was cut at {', '.join(self.activations.taps) or 'no layer'}, not at {layer!r}"
            ) from None

    def layer_gradient(self, layer: str) -> torch.Tensor:
        """Gradient of each target's output with respect to the layer's output: [B, R, K, h, w]."""
        return self.once(f"layer_gradient/{layer}", lambda: self._layer_gradient(layer))

    def _layer_gradient(self, layer: str) -> torch.Tensor:
        tap = self.activation(layer).detach().clone().requires_grad_(True)
        with torch.enable_grad():
            return self._gradients(self.cut.suffix(layer, tap, self.activations), tap)

    def input_gradient(self) -> torch.Tensor:
        """Gradient of each target's output with respect to the normalised input: [B, R, 3, h, w]."""
        return self.once("input_gradient", lambda: self.input_gradient_within(nullcontext()))

    def input_gradient_within(self, rule: AbstractContextManager[object]) -> torch.Tensor:
        """The same while ``rule`` is in force: for methods that change how calls are differentiated. Not kept."""
        return self._input_gradient(self.x, rule)

    def input_gradient_at(self, x: torch.Tensor) -> torch.Tensor:
        """The same gradient of the same targets at other inputs, of the shape of the images'. Not kept."""
        return self._input_gradient(x, nullcontext())

    def _input_gradient(self, x: torch.Tensor, rule: AbstractContextManager[object]) -> torch.Tensor:
        leaf = x.detach().clone().requires_grad_(True)
        with torch.enable_grad(), rule:
            return self._gradients(self.forward(leaf), leaf)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The network's logits [n, C] for any normalised inputs [n, 3, h, w], in the caller's grad mode."""
        return self.cut.logits(self.cut.prefix(x))

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """What attributions are of: the logits themselves or their softmax, as ``output`` says."""
        return logits if self.output == "logits" else logits.softmax(dim=1)

    def _gradients(self, logits: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
        # One forward and R backwards: R copies of the activations would be R times the memory for the same arithmetic.
        with torch.enable_grad():
            asked = (
                self.scores(logits).gather(1, self.targets).sum(dim=0)
            )  # rows are independent: one backward serves the batch
            count = self.targets.shape[1]
            parts = [torch.autograd.grad(asked[r], leaf, retain_graph=r + 1 < count)[0] for r in range(count)]
        return torch.stack(parts, dim=1)
