"""The frozen network as a stream: probes go through the calls of the graph, each frozen as it was at x0.

Keeping what was frozen makes every further pass cost one pass; otherwise x0 runs beside the probes, one call ahead of
them, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import fx

from stages.layers import Names
from stages.linear.affine import Rule
from stages.linear.rules import rules
from stages.linear.sites import Decision, Site, Values, tells_shape
from stages.tracing import Graph, ancestors


class Decisions(Protocol):
    def at(self, node: fx.Node) -> Decision:
        """What was frozen at a call; asked for in the order of the graph."""


class Frozen:
    """A graph whose calls all have a rule. ValueError names the first one that has none."""

    def __init__(self, graph: Graph, *, taylor: bool = False) -> None:
        self.graph = graph
        known, names = rules(taylor), Names(graph)
        reaching = ancestors([graph.output])
        self.nodes = [n for n in graph.nodes if n in reaching and n.op != "placeholder"]
        self.image: set[fx.Node] = {graph.input}  # values that depend on the image's values
        self.sites: dict[fx.Node, Site] = {}
        self.rules: dict[fx.Node, Rule] = {}
        for node in self.nodes:
            kind = graph.calls[node].kind
            if tells_shape(graph, node) or self.image.isdisjoint(node.all_input_nodes):
                continue
            self.image.add(node)
            site = Site(graph, node, self.image, names.canonical.get(node, node.name))
            rule = known.get(kind)
            if rule is None:
                raise site.refusal(
                    "has no frozen form",
                    "replace it by an operation that is linear, ReLU-like, max or average pooling, batch or instance "
                    "norm, sigmoid or tanh, or move it out of the network",
                )
            if not graph.calls[node].regular or not graph.calls[node].rows:
                raise site.refusal("mixes the images of a batch", "a probe must not see the other probes")
            rule.check(site)
            self.sites[node], self.rules[node] = site, rule
        last = {used: i for i, node in enumerate(self.nodes) for used in (node, *node.all_input_nodes)}
        self._free: list[list[fx.Node]] = [[] for _ in self.nodes]
        for node, i in last.items():
            if node is not graph.output:
                self._free[i].append(node)

    @property
    def jacobian(self) -> bool:
        """Freezing is the derivative at x0: automatic differentiation gives F."""
        return all(rule.jacobian for rule in self.rules.values())

    def run(self, probes: torch.Tensor, decisions: Decisions, *, constants: bool) -> torch.Tensor:
        """Probes (N, ...) -> F v (N, ...), with ``constants`` F v + r."""
        env: Values = {self.graph.input: probes, **self.graph.defaults}
        for i, node in enumerate(self.nodes):
            rule = self.rules.get(node)
            if rule is None:
                env[node] = self.graph.evaluate(node, env)
            else:
                step = rule.affine if constants else rule.linear
                env[node] = step(self.sites[node], env, decisions.at(node))
            self.release(i, env)
        found: torch.Tensor = env[self.graph.output]
        return found

    def watch(self, x0: torch.Tensor) -> Iterator[tuple[fx.Node, Decision, Any]]:
        """The network at x0 (B, ...), call by call: (call, what is frozen there, its value)."""
        env: Values = {self.graph.input: x0, **self.graph.defaults}
        for i, node in enumerate(self.nodes):
            rule = self.rules.get(node)
            frozen = () if rule is None else rule.decide(self.sites[node], env)
            env[node] = self.graph.evaluate(node, env, copy_operand=self.graph.calls[node].mutates)
            yield node, frozen, env[node]
            self.release(i, env)

    def release(self, i: int, env: Values) -> None:
        """Drop what no call after the ``i``-th reads."""
        for done in self._free[i]:
            env.pop(done, None)

    def activation_bytes(self, itemsize: int) -> int:
        """Memory of every value that one image, or one probe, has on its way."""
        return sum(self.numbers(node) for node in self.rules) * itemsize

    def numbers(self, node: fx.Node) -> int:
        """How many one image's value of a call consists of; 0 for what does not grow with the batch."""
        call = self.graph.calls[node]
        return torch.Size(call.shape).numel() if call.shape and call.rows else 0

    def kept_bytes(self, itemsize: int) -> int:
        """Memory of what is frozen for one image."""
        return sum(self.kept_by(node, itemsize) for node in self.rules)

    def kept_by(self, node: fx.Node, itemsize: int) -> int:
        """The share of one call."""
        shape, rule = self.graph.calls[node].shape, self.rules.get(node)
        return rule.keeps(self.sites[node], torch.Size(shape), itemsize) if rule and shape else 0


class Kept:
    """Decisions of one image, all kept."""

    def __init__(self, frozen: Frozen, x0: torch.Tensor) -> None:
        self._found: dict[fx.Node, Decision] = {}
        with torch.no_grad():
            for node, decision, value in frozen.watch(x0):
                if decision:
                    self._found[node] = decision
                if node is frozen.graph.output:
                    self.output: torch.Tensor = value

    def at(self, node: fx.Node) -> Decision:
        return self._found.get(node, ())

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for d in self._found.values() for t in d)


class Beside:
    """Decisions made while the probes pass: x0 is one call ahead of them."""

    def __init__(self, frozen: Frozen, x0: torch.Tensor) -> None:
        self._calls = frozen.watch(x0)

    def at(self, node: fx.Node) -> Decision:
        with torch.no_grad():
            for passed, decision, _ in self._calls:
                if passed is node:
                    return decision
        raise LookupError(f"{node.name!r} was asked for out of order")
