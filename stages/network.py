"""Cut a network at named calls: a prefix that runs once for each image, a suffix that runs once for each gate.

The suffix holds only what depends on the cut tensor. Everything else that it reads (a residual branch, dense features,
a squeeze-and-excitation scale, a batch size) was computed once in the prefix, and is broadcast where it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from stages.layers import PASSED_ON, Names
from stages.program import Program, rescale, rows_of
from stages.pushdown import GatedHead, apply_gates, find_head
from stages.tracing import Graph, ancestors, descendants


@dataclass(frozen=True)
class ResolvedLayer:
    """A layer as asked for, and the call it turned out to be."""

    name: str  # canonical: features.29, layer4.1.relu:1, features.12
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Activations:
    """What one prefix pass leaves: ``taps[layer]`` (B, K, h, w), and privately whatever else crosses the cuts."""

    taps: dict[str, torch.Tensor]
    batch: int
    _values: dict[fx.Node, Any]
    _graph: Graph

    def rows(self, low: int, high: int) -> Activations:
        """The activations of images ``low`` to ``high`` of the batch, as views."""
        values = {n: rows_of(self._graph.calls[n], v, self.batch, low, high) for n, v in self._values.items()}
        taps = {name: tap[low:high] for name, tap in self.taps.items()}
        return replace(self, taps=taps, batch=high - low, _values=values)


@dataclass(frozen=True)
class Operations:
    """Floating point operations of a layer's parts (a multiply-add is two)."""

    plain: float  # one plain forward of one image
    prefix: float  # up to the cut, per image
    suffix: float  # from the cut on, per gated copy
    once: float  # push-down: per image, whatever the number of gates
    each: float  # push-down: per gate; inf where nothing can be pushed down


class Cut:
    """A network cut at one or more layers; built by `cut`. All passes follow the caller's grad mode and autocast.

    ``graph`` is the traced network, for methods that walk its calls.
    """

    def __init__(self, graph: Graph, layers: Sequence[str]) -> None:
        names = Names(graph)
        self.graph = graph
        self.layers: dict[str, ResolvedLayer] = {}
        self._tap: dict[str, fx.Node] = {}
        self._suffix: dict[str, Program] = {}
        self._heads: dict[str, GatedHead | None] = {}
        self._path: dict[str, str] = {}
        self._operations: dict[str, Operations] = {}
        reaching = ancestors([graph.output])
        plain = sum(graph.calls[n].flops for n in reaching)
        crossing: set[fx.Node] = set()
        for asked in layers:
            call = names.find(asked)
            name, shape = names.canonical[call.node], call.shape
            if shape is None or len(shape) != 4 or call.rows != 1:
                raise ValueError(
                    f"layer {asked!r} gives {'no tensor' if shape is None else f'shape {shape}'}: gates open and close "
                    "the channels of a (batch, channels, height, width) tensor; choose a layer before the flattening"
                )
            after = descendants(call.node) & reaching
            if graph.output not in after:
                raise ValueError(f"the logits do not depend on layer {asked!r}: choose one on the way to them")
            self.layers[asked] = ResolvedLayer(name, shape[1], shape[2], shape[3])
            self._tap[asked] = call.node
            self._suffix[asked] = Program(graph, after, keep={graph.output}, given={call.node})
            crossing |= self._suffix[asked].inputs - {call.node}
            head, why = find_head(graph, call.node, after, names.canonical)
            suffix = sum(graph.calls[n].flops for n in after if graph.calls[n].kind not in PASSED_ON)
            before = sum(graph.calls[n].flops for n in ancestors([call.node]))
            once, each = (head.once, head.each) if head is not None else (0.0, float("inf"))
            self._operations[asked] = Operations(plain, before, suffix, once, each)
            if head is not None and each >= suffix:
                head, why = None, f"{why}, which saves nothing ({each:.2g} operations a gate against {suffix:.2g})"
            self._heads[asked] = head
            self._path[asked] = f"push-down: {why}" if head is not None else f"prefix + suffix: {why}"
        kept = set(self._tap.values()) | crossing
        given = {n for n in graph.nodes if n.op in ("placeholder", "get_attr")}
        first = ancestors(list(kept)) - given
        self._rest = Program(graph, reaching - first - given, keep={graph.output})
        kept |= self._rest.inputs
        self._kept = kept
        self._prefix = Program(graph, first, keep=kept)

    def prefix(self, x: torch.Tensor) -> Activations:
        """Images (B, 3, h, w) -> the activations of all layers, in one pass."""
        env: dict[fx.Node, Any] = {self.graph.input: x}
        self._prefix.run(env)
        values = {n: env[n] for n in self._kept}
        return Activations({name: values[n] for name, n in self._tap.items()}, x.shape[0], values, self.graph)

    def suffix(
        self, layer: str, gated: torch.Tensor, activations: Activations, repeat: int = 1, *, overwrite: bool = False
    ) -> torch.Tensor:
        """Gated copies (B * repeat, K, h, w), image by image, -> logits (B * repeat, C).

        ``gated`` is not changed unless ``overwrite`` gives its memory to in-place calls.

        Raises ValueError when the rows of ``gated`` are not ``repeat`` times those of ``activations``.
        """
        self._known(layer)
        if gated.shape[0] != activations.batch * repeat:
            raise ValueError(f"{gated.shape[0]} gated rows for {activations.batch} images x {repeat} gates")
        tap = self._tap[layer]
        program = self._suffix[layer]
        env = {n: rescale(self.graph.calls[n], activations._values[n], repeat) for n in program.inputs - {tap}}
        env[tap] = gated
        program.run(env, batch=activations.batch, repeat=repeat, overwrite=overwrite)
        return env[self.graph.output]

    def push_down(self, layer: str) -> GatedHead | None:
        """The exact shortcut for binary gates where the graph allows one and it is cheaper, else None."""
        self._known(layer)
        return self._heads[layer]

    def gated(self, layer: str, activations: Activations, gates: torch.Tensor) -> torch.Tensor:
        """``gates`` bool (B, N, K) -> logits (B, N, C), by the cheaper of push-down and suffix."""
        head = self.push_down(layer)
        if head is not None:
            return head(activations, gates)
        copies = apply_gates(activations.taps[layer], gates)
        out = self.suffix(layer, copies, activations, gates.shape[1], overwrite=True)
        return out.unflatten(0, gates.shape[:2])

    def logits(self, activations: Activations) -> torch.Tensor:
        """(B, C): the plain forward's output, from where the prefix ended."""
        env = {n: activations._values[n] for n in self._rest.inputs}
        self._rest.run(env)
        return env[self.graph.output]

    def differentiable(self, layer: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(activation (B, K, h, w), logits (B, C)) with a graph between them: gradients flow from logits to the layer.

        The prefix runs without autograd, so nothing before the layer is kept.
        """
        with torch.no_grad():
            activations = self.prefix(x)
        tap = activations.taps[layer].detach().clone().requires_grad_(True)
        with torch.enable_grad():
            return tap, self.suffix(layer, tap, activations)

    def path(self, layer: str) -> str:
        """Which path the layer takes and why, for the log."""
        self._known(layer)
        found = self.layers[layer]
        shape = f"{found.channels} x {found.height} x {found.width}"
        return f"{layer} = {found.name} ({shape}): {self._path[layer]}"

    def operations(self, layer: str) -> Operations:
        self._known(layer)
        return self._operations[layer]

    def peak_values(self, layer: str) -> float:
        """Most tensor elements alive at once for each gate, on the path the layer takes."""
        head = self.push_down(layer)
        return head.peak_values if head is not None else self._suffix[layer].peak_values

    def _known(self, layer: str) -> None:
        if layer not in self.layers:
            raise LookupError(f"the network was cut at {', '.join(self.layers)}, not at {layer!r}")


def cut(module: nn.Module, layers: Sequence[str], example: torch.Tensor) -> Cut:
    """Cut ``module`` (eval mode) at ``layers``; ``example`` (B, 3, h, w) fixes the shapes and is run five times.

    Layers are calls: see `stages.layers` for names. LookupError for an unknown one, with near matches; ValueError for a
    network that cannot be traced, or whose traced graph does not reproduce it. The module itself is left as it is.
    """
    return Cut(Graph(module, example), layers)
