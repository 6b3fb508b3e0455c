"""Pixel discussions and votes: what each pixel has to say for each class (PROTOCOLS section 4).

For class c: F_c^T * x0, plus the class row at every layer weighted by that layer's bias (a batch norm folded into the
layer before it) and taken back to the image, the whole scaled so that it sums to the score. Each pixel votes for the
class it says most for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from stages.linear.contributions import Contributing

Bias = Literal["class", "literal"]
Scaling = Literal["total", "bias", "shift", "none"]
STEADY = 2.0  # a factor above this, or below 0, says more of the map's small sum than of the pixels


class Discussion:
    """One image's maps for any classes, ``chunk`` classes in one pass.

    ``bias``: ``class`` takes the class row times the bias back to the image; ``literal`` is eq. 18 as printed, the
    biases alone, the same map for every class. ``scaling``: ``total`` scales the whole map to sum to the score (a map
    that sums to 0 stays as it is; where its sum has the other sign, so has the factor); ``bias`` scales the part of the
    biases alone to sum to the residual; ``shift`` adds the same to every pixel, so that the map sums to the score
    whatever its sum was; ``none`` leaves it. A map's sum can be near 0 or of the other sign: the factor is then large
    or negative, and an unlikely class can win pixels by it. See `Votes.unsteady`.

    ValueError: an unknown choice, several images, a network without class scores.
    """

    def __init__(
        self,
        contributing: Contributing,
        x0: torch.Tensor,
        *,
        bias: Bias = "class",
        scaling: Scaling = "total",
        chunk: int = 16,
    ) -> None:
        if bias not in ("class", "literal") or scaling not in get_args(Scaling):
            raise ValueError(f"bias is class or literal, scaling total, bias, shift or none; got {bias!r}, {scaling!r}")
        if x0.shape[0] != 1 or chunk < 1:
            raise ValueError(f"a discussion is of one image in chunks of 1 or more classes, got {x0.shape[0]}, {chunk}")
        self.contributing, self.x0 = contributing, x0.detach()
        self.bias, self.scaling, self.chunk = bias, scaling, chunk
        # One differentiated pass of the image serves every class.
        with torch.enable_grad():
            self._x = self.x0.clone().requires_grad_(True)
            self._y, self._taps = contributing.forward(self._x)
        self.scores: torch.Tensor = self._y.detach()[0]

    def maps(self, classes: Sequence[int]) -> torch.Tensor:
        """(len(classes), h, w), summed over colours. LookupError for a class the network does not have."""
        unknown = [c for c in classes if not 0 <= c < self.scores.shape[0]]
        if unknown:
            raise LookupError(f"class {unknown[0]} is not one of the network's {self.scores.shape[0]}")
        parts = [self._chunk(classes[i : i + self.chunk])[0] for i in range(0, len(classes), self.chunk)]
        return torch.cat(parts) if parts else self.x0.new_zeros(0, *self.x0.shape[2:])

    def votes(self, classes: Sequence[int] | None = None) -> Votes:
        """Every pixel's choice among ``classes`` (default all); ties go to the class named first."""
        classes = range(self.scores.shape[0]) if classes is None else classes
        if not len(classes):
            raise ValueError("a vote needs at least one class")
        best = self.x0.new_full(self.x0.shape[2:], -torch.inf)
        label = torch.zeros(self.x0.shape[2:], dtype=torch.long, device=self.x0.device)
        factor = torch.ones_like(best)
        for i in range(0, len(classes), self.chunk):  # never more than a chunk of maps at once
            some = torch.tensor(classes[i : i + self.chunk], device=label.device)
            maps, factors = self._chunk(classes[i : i + self.chunk])
            said, which = maps.max(dim=0)
            label = torch.where(said > best, some[which], label)
            factor = torch.where(said > best, factors[which], factor)
            best = torch.maximum(said, best)
        return Votes(label, best, factor)

    def _chunk(self, classes: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps (n, h, w), and what each was scaled by (n)."""
        count, x, y = len(classes), self._x, self._y
        chosen = torch.tensor(classes, device=y.device)
        ask = torch.zeros(count, *y.shape, dtype=y.dtype, device=y.device)
        ask[torch.arange(count, device=y.device), 0, chosen] = 1
        rows = _back(y, [x, *(t.value for t in self._taps)], ask)
        inner = [(t, g) for t, g in zip(self._taps, rows[1:], strict=True) if g is not None]
        weighted = [self._weighted(t.constant, g) for t, g in inner]
        back = _back([t.value for t, _ in inner], [x], weighted)[0] if inner else None
        nothing = self.x0.new_zeros(count, *x.shape)
        said = (nothing if rows[0] is None else rows[0] * self.x0).sum(dim=(1, 2))
        bias = (nothing if back is None else back).sum(dim=(1, 2))
        score = self.scores[chosen]
        if self.scaling == "bias":
            factor = _factor(bias, score - said.sum(dim=(1, 2)))
            return said + bias * factor.view(-1, 1, 1), factor
        maps = said + bias
        if self.scaling == "shift":
            maps = maps + ((score - maps.sum(dim=(1, 2))) / maps[0].numel()).view(-1, 1, 1)
        factor = _factor(maps, score) if self.scaling == "total" else torch.ones_like(score)
        return maps * factor.view(-1, 1, 1), factor

    def _weighted(self, constant: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return constant * row if self.bias == "class" else constant.expand_as(row)


@dataclass(frozen=True)
class Votes:
    label: torch.Tensor  # (h, w) class index
    said: torch.Tensor  # (h, w) the contribution that won
    factor: torch.Tensor  # (h, w) what the winner's map was scaled by

    @property
    def unsteady(self) -> float:
        """The share of pixels won by classes whose factor is negative or above `STEADY`."""
        return float(((self.factor < 0) | (self.factor > STEADY)).double().mean())

    def share(self, label: int) -> float:
        """The share of pixels that vote for a class."""
        return float((self.label == label).double().mean())

    def masked(self, image: torch.Tensor, labels: Sequence[int], ground: float = 0.0) -> torch.Tensor:
        """``image`` (..., h, w) where the vote is for one of ``labels``, elsewhere ``ground``."""
        kept = torch.isin(self.label, torch.tensor(labels, device=self.label.device))
        return torch.where(kept, image, image.new_tensor(ground))


def _back(outputs: Any, inputs: list[torch.Tensor], signals: Any) -> tuple[torch.Tensor | None, ...]:
    """Signals (N, *output) of each output -> their gradients (N, *input); None where an input has no say."""
    found: tuple[torch.Tensor | None, ...] = torch.autograd.grad(
        outputs, inputs, signals, retain_graph=True, is_grads_batched=True, allow_unused=True
    )
    return found


def _factor(maps: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """What makes each map sum to its total; 1 where it sums to 0."""
    sums = maps.sum(dim=(1, 2))
    return torch.where(sums == 0, torch.ones_like(sums), total / torch.where(sums == 0, torch.ones_like(sums), sums))
