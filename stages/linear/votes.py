"""Pixel discussions and votes: what each pixel has to say for each class (PROTOCOLS section 4).

For class c: F_c^T * x0, plus the class row at every layer weighted by that layer's bias and taken back to the image,
the whole scaled so that it sums to the score. Each pixel votes for the class it says most for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from stages.linear.contributions import Contributing

Bias = Literal["class", "literal"]
Scaling = Literal["total", "bias", "none"]


class Discussion:
    """One image's maps for any classes, ``chunk`` classes in one pass.

    ``bias``: ``class`` takes the class row times the bias back to the image; ``literal`` is eq. 18 as printed, the
    biases alone, the same map for every class. ``scaling``: ``total`` scales the whole map to sum to the score (a map
    that sums to 0 stays as it is; where its sum has the other sign, so has the factor); ``bias`` scales the part of the
    biases alone to sum to the residual; ``none`` leaves it.

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
        if bias not in ("class", "literal") or scaling not in ("total", "bias", "none"):
            raise ValueError(f"bias is class or literal, scaling total, bias or none; got {bias!r}, {scaling!r}")
        if x0.shape[0] != 1 or chunk < 1:
            raise ValueError(f"a discussion is of one image in chunks of 1 or more classes, got {x0.shape[0]}, {chunk}")
        self.contributing, self.x0 = contributing, x0.detach()
        self.bias, self.scaling, self.chunk = bias, scaling, chunk
        with torch.no_grad():
            self.scores: torch.Tensor = contributing.frozen.graph.module(self.x0.clone())[0]

    def maps(self, classes: Sequence[int]) -> torch.Tensor:
        """(len(classes), h, w), summed over colours. LookupError for a class the network does not have."""
        unknown = [c for c in classes if not 0 <= c < self.scores.shape[0]]
        if unknown:
            raise LookupError(f"class {unknown[0]} is not one of the network's {self.scores.shape[0]}")
        parts = [self._chunk(classes[i : i + self.chunk]) for i in range(0, len(classes), self.chunk)]
        return torch.cat(parts) if parts else self.x0.new_zeros(0, *self.x0.shape[2:])

    def votes(self, classes: Sequence[int] | None = None) -> Votes:
        """Every pixel's choice among ``classes`` (default all); ties go to the class named first."""
        classes = range(self.scores.shape[0]) if classes is None else classes
        if not len(classes):
            raise ValueError("a vote needs at least one class")
        best = self.x0.new_full(self.x0.shape[2:], -torch.inf)
        label = torch.zeros(self.x0.shape[2:], dtype=torch.long, device=self.x0.device)
        for i in range(0, len(classes), self.chunk):  # never more than a chunk of maps at once
            some = torch.tensor(classes[i : i + self.chunk], device=label.device)
            said, which = self._chunk(classes[i : i + self.chunk]).max(dim=0)
            label = torch.where(said > best, some[which], label)
            best = torch.maximum(said, best)
        return Votes(label, best)

    def _chunk(self, classes: Sequence[int]) -> torch.Tensor:
        count = len(classes)
        index = torch.arange(count, device=self.x0.device)
        x = self.x0.expand(count, *self.x0.shape[1:]).clone().requires_grad_(True)
        with torch.enable_grad():
            y, taps = self.contributing.forward(x)
            ask = torch.zeros_like(y)
            ask[index, torch.tensor(classes, device=y.device)] = 1
            rows = torch.autograd.grad(y, [x, *(t.value for t in taps)], ask, retain_graph=True, allow_unused=True)
            said, inner = rows[0] * self.x0, list(zip(taps, rows[1:], strict=True))
            weighted = [(t.value, self._weighted(t.constant, g)) for t, g in inner if g is not None]
            back = torch.zeros_like(x)
            if weighted:
                values, signals = zip(*weighted, strict=True)
                back = torch.autograd.grad(values, x, signals)[0]
        image, bias = said.detach().sum(dim=1), back.detach().sum(dim=1)
        score = y.detach()[index, torch.tensor(classes, device=y.device)]
        if self.scaling == "bias":
            return image + _scaled(bias, score - image.sum(dim=(1, 2)))
        return _scaled(image + bias, score) if self.scaling == "total" else image + bias

    def _weighted(self, constant: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return (constant * row).detach() if self.bias == "class" else constant.expand_as(row)


@dataclass(frozen=True)
class Votes:
    label: torch.Tensor  # (h, w) class index
    said: torch.Tensor  # (h, w) the contribution that won

    def share(self, label: int) -> float:
        """The share of pixels that vote for a class."""
        return float((self.label == label).double().mean())

    def masked(self, image: torch.Tensor, labels: Sequence[int], ground: float = 0.0) -> torch.Tensor:
        """``image`` (..., h, w) where the vote is for one of ``labels``, elsewhere ``ground``."""
        kept = torch.isin(self.label, torch.tensor(labels, device=self.label.device))
        return torch.where(kept, image, image.new_tensor(ground))


def _scaled(maps: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    sums = maps.sum(dim=(1, 2))
    factor = torch.where(sums == 0, torch.ones_like(sums), total / torch.where(sums == 0, torch.ones_like(sums), sums))
    return maps * factor.view(-1, 1, 1)
