"""Run some calls of a graph: values are freed after their last use, and broadcast only where gates meet them."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from stages.tracing import Call, Graph

_ELEMENTWISE = {
    operator.add,
    operator.iadd,
    operator.mul,
    operator.imul,
    operator.sub,
    operator.isub,
    torch.add,
    torch.mul,
}
_OUT_OF_PLACE = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}


class Program:
    """The calls ``nodes``, in graph order. ``inputs`` is what they read and do not compute themselves."""

    def __init__(
        self, graph: Graph, nodes: set[fx.Node], keep: set[fx.Node], given: set[fx.Node] | None = None
    ) -> None:
        self._graph = graph
        self.nodes = [n for n in graph.nodes if n in nodes]
        self.keep = frozenset(keep)
        self.inputs: set[fx.Node] = {u for n in self.nodes for u in n.all_input_nodes} - nodes
        self._given = frozenset(given or ())
        # Parameters and default arguments are no state of a batch: they are read where they are used.
        self._constants = [n for n in self.inputs if n.op == "get_attr" or n in graph.defaults]
        self.inputs -= set(self._constants)
        last: dict[fx.Node, int] = {}
        for i, node in enumerate(self.nodes):
            for used in (node, *node.all_input_nodes):
                last[used] = i
        self._free: list[list[fx.Node]] = [[] for _ in self.nodes]
        for node, i in last.items():
            if node not in self.keep:
                self._free[i].append(node)
        self.peak_values = self._peak()
        irregular = [n for n in self.inputs - self._given if not graph.calls[n].regular]
        if irregular:
            raise ValueError(
                f"call {irregular[0].name!r} crosses the cut with a value that does not grow with the batch along its "
                "first axis: cut the network elsewhere"
            )

    def run(self, env: dict[fx.Node, Any], batch: int = 0, repeat: int = 1, overwrite: bool = False) -> None:
        """Compute the calls in ``env``. With ``repeat`` > 1 the given values have ``batch * repeat`` rows, the other
        inputs ``batch`` rows, and each image's value meets its ``repeat`` gated copies. ``overwrite`` lets in-place
        calls work on the given values themselves."""
        for node in self._constants:
            env[node] = self._graph.defaults[node] if node in self._graph.defaults else self._graph.target(node)()
        outside = {
            _storage(v) for n, v in env.items() if isinstance(v, torch.Tensor) and not (overwrite and n in self._given)
        }
        narrow: set[fx.Node] = set()
        if repeat > 1:
            narrow = {n for n in env if n not in self._given and self._graph.calls[n].rows and _is_tensorial(env[n])}
        for i, node in enumerate(self.nodes):
            mutates = self._graph.calls[node].mutates
            pair = _elementwise_pair(node, env) if narrow and not narrow.isdisjoint(node.all_input_nodes) else None
            if pair is not None:
                function = _OUT_OF_PLACE.get(node.target, node.target)  # type: ignore[arg-type]
                left, right = (
                    env[n].unsqueeze(1) if n in narrow else env[n].unflatten(0, (batch, repeat)) for n in pair
                )
                env[node] = function(left, right).flatten(0, 1)
            else:
                for used in node.all_input_nodes:
                    if used in narrow:
                        env[used] = _widen(env[used], batch, repeat)
                        narrow.discard(used)
                copy = mutates and self._shared(node.args[0], env, outside, i)
                env[node] = self._graph.evaluate(node, env, copy_operand=copy)
            for done in self._free[i]:
                env.pop(done, None)

    def _shared(self, operand: Any, env: dict[fx.Node, Any], outside: set[int], i: int) -> bool:
        """Is the memory an in-place call would overwrite read by anyone else?"""
        if not isinstance(operand, fx.Node) or not isinstance(env[operand], torch.Tensor):
            return False
        if operand not in self._free[i]:
            return True
        storage = _storage(env[operand])
        return storage in outside or any(
            isinstance(v, torch.Tensor) and n is not operand and _storage(v) == storage for n, v in env.items()
        )

    def _peak(self) -> float:
        size = {
            n: float(torch.Size(shape).numel()) if (shape := self._graph.calls[n].shape) else 0.0
            for n in (*self.nodes, *self._given)
        }
        alive = sum(size[n] for n in self._given)
        peak = alive
        for i, node in enumerate(self.nodes):
            alive += 0.0 if self._graph.calls[node].mutates else size[node]
            peak = max(peak, alive)
            for done in self._free[i]:
                if done in size and not any(self._graph.calls[u].mutates for u in done.users if u in size):
                    alive -= size[done]
        return peak


def rescale(call: Call, value: Any, repeat: int) -> Any:
    """A batch size (or anything computed from one) that crosses the cut counts every gated copy."""
    if repeat == 1 or not call.rows or _is_tensorial(value):
        return value
    if isinstance(value, (tuple, list)):  # a tensor's size: only its first number grows (else it is not regular)
        return type(value)((value[0] * repeat, *value[1:]))
    return value * repeat


def rows_of(call: Call, value: Any, batch: int, low: int, high: int) -> Any:
    """Images ``low`` to ``high`` of a value that crosses the cut."""
    if not call.rows:
        return value
    if isinstance(value, torch.Tensor):
        each = value.shape[0] // batch
        return value[low * each : high * each]
    if _is_tensorial(value):
        return type(value)(rows_of(call, v, batch, low, high) for v in value)
    if isinstance(value, (tuple, list)):
        return type(value)((value[0] * (high - low) // batch, *value[1:]))
    return value * (high - low) // batch if isinstance(value, int) else value * (high - low) / batch


def _is_tensorial(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_is_tensorial(v) for v in value)
    return isinstance(value, torch.Tensor)


def _storage(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _elementwise_pair(node: fx.Node, env: dict[fx.Node, Any]) -> tuple[fx.Node, fx.Node] | None:
    """The operands of a sum or product of two values of the same rank: those broadcast without a copy."""
    if node.op != "call_function" or node.target not in _ELEMENTWISE or node.kwargs or len(node.args) != 2:
        return None
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    a, b = env[left], env[right]
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor) or a.dim() != b.dim():
        return None
    return left, right


def _widen(value: Any, batch: int, repeat: int) -> Any:
    """(B * r, ...) -> (B * repeat * r, ...): each image's rows ``repeat`` times, in the memory layout they have."""
    if isinstance(value, (tuple, list)):
        return type(value)(_widen(v, batch, repeat) for v in value)
    if not isinstance(value, torch.Tensor):
        return value
    each = value.shape[0] // batch
    layout = torch.contiguous_format
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        layout = torch.channels_last
    wide = torch.empty(
        (value.shape[0] * repeat, *value.shape[1:]), dtype=value.dtype, device=value.device, memory_format=layout
    )
    if value.requires_grad:
        return value.unflatten(0, (batch, each)).unsqueeze(1).expand(-1, repeat, *([-1] * value.dim())).flatten(0, 2)
    wide.unflatten(0, (batch, repeat, each)).copy_(value.unflatten(0, (batch, each)).unsqueeze(1))
    return wide
