"""A copy of a network for methods that ask it hundreds of times: constant parameters, nothing computed twice."""

from __future__ import annotations

import torch

from stages.baselines.query import Query
from stages.gfi.folding import folded
from stages.gfi.stem import Blend, StemBlend, take_stem
from stages.tracing import Graph


class Frozen:
    """The same function to rounding: batch norms folded in, channels last, the first convolution apart.

    What is asked are always blends of two images, whose first convolution is linear (`stages.gfi.stem`).
    """

    def __init__(self, query: Query) -> None:
        graph, example = query.cut.graph, query.x[:1]
        with torch.no_grad():
            self.module = folded(graph).to(example.dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.stem = take_stem(self.module, Graph(self.module, example))

    def blend(self, x: torch.Tensor, background: torch.Tensor) -> Blend:
        """Where a mask is 1 the image stays, where it is 0 the background takes its place."""
        x, background = (t.contiguous(memory_format=torch.channels_last) for t in (x, background))
        with torch.no_grad():
            return Blend(x, background) if self.stem is None else StemBlend(x, background, self.stem, x.dtype)

    def probabilities(self, seen: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Of the given classes [n, R], for what a blend gives."""
        found: torch.Tensor = self.module(seen)
        return found.softmax(dim=1).gather(1, classes)


class Freezer:
    """The copy of the network that queries are of, made at the first of them."""

    def __init__(self) -> None:
        self._made: tuple[object, torch.dtype, Frozen] | None = None

    def of(self, query: Query) -> Frozen:
        module, dtype = query.cut.graph.module, query.x.dtype
        if self._made is None or self._made[0] is not module or self._made[1] is not dtype:
            self._made = (module, dtype, Frozen(query))
        return self._made[2]
