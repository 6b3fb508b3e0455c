"""A classifier ready to be interpreted: prepared pixels in, the clean and the attacked image out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from stages.linear.contributions import Contributing
from stages.linear.memory import FrozenBytes, frozen_bytes
from stages.linear.scope import freeze
from stages.metrics.robustness import fgsm
from stages.preprocess import Preprocess

Precision = Literal["float32", "float64"]
VIEWS = ("clean", "attacked")


def views(attack: bool) -> tuple[str, ...]:
    """What rows hold of an image: the clean one, and beside it the attacked one where there is an attack."""
    return VIEWS if attack else VIEWS[:1]


def prefix(view: str) -> str:
    """What the names of a view's columns start with."""
    return "attacked_" if view == VIEWS[1] else ""


@dataclass(frozen=True)
class View:
    """How images become the classifier's input. ``attack``: FGSM in grey levels of 255, 0 for none."""

    attack: float = 0.0
    precision: Precision = "float32"
    preprocess: Preprocess = field(default_factory=Preprocess)

    def __post_init__(self) -> None:
        if not 0 <= self.attack <= 255:
            raise ValueError(f"attack is {self.attack} grey levels: 0 (none) to 255")
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision {self.precision!r} is not one of {', '.join(get_args(Precision))}")

    @property
    def names(self) -> tuple[str, ...]:
        return views(self.attack > 0)


class Classifier:
    """``network`` frozen for images of the view's size; it is copied where the precision is another, never changed.

    ValueError names a call that cannot be frozen.
    """

    def __init__(self, network: nn.Module, view: View, device: torch.device) -> None:
        self.view, self.device = view, device
        self.dtype = getattr(torch, view.precision)
        if any(p.dtype != self.dtype for p in network.parameters()):
            network = copy.deepcopy(network).to(self.dtype)
        example = torch.zeros(1, 3, *view.preprocess.size, device=device, dtype=self.dtype)
        self.contributing = Contributing(freeze(network, example))
        graph = self.contributing.frozen.graph
        self.classes = int((graph.calls[graph.output].shape or (1, 0))[1])
        self.bytes: FrozenBytes = frozen_bytes(self.contributing.frozen, self.dtype.itemsize)

    def images(self, pixels: Any) -> torch.Tensor:
        """uint8 (B, 3, h, w) -> the network's input."""
        tensor = torch.as_tensor(np.asarray(pixels)).to(self.device)
        return self.view.preprocess.normalise(tensor).to(self.dtype)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.contributing.frozen.graph.module(x.clone())
        return found

    def attacked(
        self, x: torch.Tensor, rows: Sequence[Mapping[str, Any] | None], predicted: torch.Tensor
    ) -> torch.Tensor:
        """Moved up the loss of each image's label; off its prediction where it has none."""
        against = predicted.clone()
        for i, row in enumerate(rows):
            label = (row or {}).get("label")
            if label is not None and 0 <= label < self.classes:
                against[i] = label
        preprocess = self.view.preprocess
        return fgsm(self.logits, x, against, self.view.attack / 255, preprocess.mean, preprocess.std)

    @property
    def operations(self) -> float:
        """FLOP of one plain forward of one image."""
        return sum(call.flops for call in self.contributing.frozen.graph.calls.values())
