"""A score sent back through the calls of a traced network, shared out among each call's inputs.

Calls, not modules, so that functional ReLUs, residual sums and concatenations take part like everything else. What a
convolution or a linear layer does is the rule's; a batch norm behind a convolution is folded into it. All other calls
have one sensible way: activations hand on, max pooling goes to the winner, averages and sums are shared in proportion,
reshapes move. A call with none of these is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import fx, nn
from torch.func import functional_call
from torch.nn.functional import conv2d
from torch.nn.functional import linear as dense

from stages.layers import ACTIVATIONS, NORMS, PASSED_ON
from stages.network import Cut
from stages.tracing import Graph, ancestors, descendants

_MOVES = frozenset(
    (
        "flatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "getitem",
        "chunk",
        "split",
        "unbind",
    )
) | {"maxpool2d", "adaptivemaxpool2d"}
_AVERAGES = frozenset(("avgpool2d", "adaptiveavgpool2d", "mean"))
_BATCH_NORMS = frozenset(("batchnorm2d", "batchnorm"))


@dataclass(frozen=True)
class Affine:
    """A convolution or linear layer: ``run(x, weight, bias)``, with its folded weight and bias."""

    run: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    weight: torch.Tensor
    bias: torch.Tensor | None
    dense: bool  # a linear layer, not a convolution
    top: bool  # the last learned call before the scores

    def back(self, weight: torch.Tensor, like: torch.Tensor, signal: torch.Tensor) -> torch.Tensor:
        """The transposed map: what ``signal`` at the output is at the input, of the shape of ``like``."""
        return vjp(lambda x: self.run(x, weight, None), like, signal)


Run = Callable[[torch.Tensor], torch.Tensor]


class Rule(Protocol):
    """How relevance [n, ...] of an affine call's output is shared among its inputs ``x``, and among a sum's terms."""

    def affine(self, call: Affine, x: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor: ...

    def average(self, run: Run, x: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
        """The same of a mean over places, ``run(x)``; x may be of either sign."""
        ...

    def shares(self, terms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of a sum's terms (broadcast to its shape): factors that add up to 1 where nothing is lost."""
        ...


class Relevance:
    """The forward pass of some images, from which any score can be sent back to the image or to a layer."""

    def __init__(self, cut: Cut, x: torch.Tensor, to: str | None = None) -> None:
        self.graph: Graph = cut.graph
        self.end = self.graph.input if to is None else cut._tap[to]
        reaching = ancestors([self.graph.output])
        self.path = (descendants(self.end) & reaching) | {self.end}
        self.nodes = [n for n in self.graph.nodes if n in self.path and n is not self.end]
        self.folded = {norm: conv for norm in self.nodes if (conv := self._folds(norm)) is not None}
        learned = [n for n in self.nodes if self.graph.calls[n].kind in ("conv2d", "linear")]
        self.top = learned[-1] if learned else None
        self.values: dict[fx.Node, Any] = {self.graph.input: x, **self.graph.defaults}
        with torch.no_grad():
            for node in self.graph.nodes:
                if node in reaching and node not in self.values:
                    copy = self.graph.calls[node].mutates
                    self.values[node] = self.graph.evaluate(node, self.values, copy_operand=copy)

    @property
    def logits(self) -> torch.Tensor:
        found: torch.Tensor = self.values[self.graph.output]
        return found

    def send(self, start: torch.Tensor, rule: Rule) -> torch.Tensor:
        """Relevance of the output [B, C] -> of the input or layer [B, K, h, w]. ValueError: a call without a rule."""
        held: dict[fx.Node, Any] = {self.graph.output: start}
        with torch.no_grad():
            for node in reversed(self.nodes):
                if node in held:
                    self._step(node, held.pop(node), held, rule)
        found = held.get(self.end)
        return torch.zeros_like(self.values[self.end]) if found is None else found

    def _folds(self, norm: fx.Node) -> fx.Node | None:
        """The convolution a batch norm is folded into: its only reader is that norm."""
        calls = self.graph.calls
        if calls[norm].kind not in _BATCH_NORMS or norm.op != "call_module":
            return None
        source = norm.args[0]
        if not isinstance(source, fx.Node) or source not in self.path or source is self.end:
            return None
        return source if calls[source].kind == "conv2d" and len(source.users) == 1 else None

    def _step(self, node: fx.Node, relevance: Any, held: dict[fx.Node, Any], rule: Rule) -> None:
        kind = self.graph.calls[node].kind
        inputs = [n for n in node.all_input_nodes if n in self.path and _has_tensor(self.values[n])]
        if not inputs:
            return
        source = inputs[0]
        if node in self.folded:
            conv = self.folded[node]
            source = next(n for n in conv.all_input_nodes if n in self.path)
            affine = self._affine(conv, node)
            _hold(held, source, rule.affine(affine, self.values[source], relevance))
        elif kind in ("conv2d", "linear"):
            _hold(held, source, rule.affine(self._affine(node), self.values[source], relevance))
        elif kind in ACTIVATIONS or kind in PASSED_ON:
            _hold(held, source, relevance)
        elif kind in _MOVES:
            _hold(held, source, self._moved(node, source, relevance))
        elif kind in _AVERAGES:
            run = partial(self._evaluated, node, source)
            _hold(held, source, rule.average(run, self.values[source], relevance))
        elif kind == "cat":
            self._parted(node, relevance, held)
        elif kind in ("add", "sub"):
            self._shared(node, inputs, relevance, held, rule)
        elif kind in ("mul", "truediv", "div"):
            # A scale (squeeze and excitation, layer scale) is taken as given: the signal takes all.
            signal = max(inputs, key=lambda n: self.values[n].numel())
            _hold(held, signal, _fit(relevance, self.values[signal]))
        elif kind in _BATCH_NORMS:
            self._scaled(node, source, relevance, held, rule)
        else:
            place = self.graph.calls[node].scope or "the top module"
            norm = "; norms other than batch norm mix what they scale" if kind in NORMS else ""
            raise ValueError(f"there is no rule to share relevance among the inputs of {kind} (in {place}){norm}")

    def _affine(self, node: fx.Node, norm: fx.Node | None = None) -> Affine:
        graph = self.graph
        module = graph.submodule(node)
        is_dense = graph.calls[node].kind == "linear"
        if module is not None:
            weight: Any = module.weight
            bias: Any = module.bias
        else:
            operands = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
            weight, bias = (self.values.get(operands[n]) if n in operands else None for n in ("weight", "bias"))  # type: ignore[arg-type]
        if norm is not None:
            weight, bias = _fold(weight, bias, graph.submodule(norm))
        return Affine(_runner(module, node), weight.detach(), bias, is_dense, node is self.top)

    def _moved(self, node: fx.Node, source: fx.Node, relevance: Any) -> Any:
        value = self.values[source]
        if isinstance(value, (tuple, list)):  # one of several tensors, all of which were moved at once
            index = node.args[1]
            return [relevance if i == index else None for i in range(len(value))]
        return vjp(partial(self._evaluated, node, source), value, relevance)

    def _evaluated(self, node: fx.Node, source: fx.Node, x: torch.Tensor) -> Any:
        return self.graph.evaluate(node, {**self.values, source: x})

    def _parted(self, node: fx.Node, relevance: torch.Tensor, held: dict[fx.Node, Any]) -> None:
        axis = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        parts: Any = node.args[0] if node.args else node.kwargs["tensors"]
        sizes = [self.values[part].shape[axis] for part in parts]
        for part, piece in zip(parts, relevance.split(sizes, dim=axis), strict=True):
            if part in self.path:
                _hold(held, part, piece)

    def _shared(
        self, node: fx.Node, inputs: list[fx.Node], relevance: torch.Tensor, held: dict[fx.Node, Any], rule: Rule
    ) -> None:
        minus = -1.0 if self.graph.calls[node].kind == "sub" else 1.0
        operands: list[Any] = list(node.args[:2])
        terms = []
        for operand, sign in zip(operands, (1.0, minus), strict=True):
            value = self.values[operand] if isinstance(operand, fx.Node) else operand
            value = value if isinstance(value, torch.Tensor) else relevance.new_tensor(float(value))
            terms.append((sign * value).expand(relevance.shape))
        for operand, share in zip(operands, rule.shares(terms), strict=True):
            if operand in inputs:  # twice where a value is added to itself
                _hold(held, operand, _fit(relevance * share, self.values[operand]))

    def _scaled(
        self, node: fx.Node, source: fx.Node, relevance: torch.Tensor, held: dict[fx.Node, Any], rule: Rule
    ) -> None:
        """A batch norm that follows no convolution: y = s x + t, and t has its share."""
        module = self.graph.submodule(node)
        x = self.values[source]
        scale, shift = _fold(x.new_ones(x.shape[1]), None, module)
        shape = (1, -1, *([1] * (x.dim() - 2)))
        terms = [x * scale.view(shape), shift.view(shape).expand(x.shape)]
        _hold(held, source, relevance * rule.shares(terms)[0])


def of_positive(part: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """part / total, and 0 where nothing positive comes in."""
    return torch.where(total > 0, part / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)


def away_from_zero(value: torch.Tensor, epsilon: float) -> torch.Tensor:
    """value + epsilon * sign(value), with sign(0) = 1."""
    return value + torch.where(value >= 0, epsilon, -epsilon)


def vjp(function: Callable[[torch.Tensor], Any], x: torch.Tensor, signal: Any) -> torch.Tensor:
    """``signal`` at the output, times the Jacobian of ``function`` at ``x``."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        out = function(leaf)
        if isinstance(out, torch.Tensor):
            return torch.autograd.grad(out, leaf, signal)[0]
        pairs = [(o, s) for o, s in zip(out, signal, strict=True) if s is not None]
        return torch.autograd.grad([o for o, _ in pairs], leaf, [s for _, s in pairs])[0]


def _runner(module: nn.Module | None, node: fx.Node) -> Any:
    def run(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if isinstance(module, nn.Linear):
            return dense(x, weight, bias)
        if isinstance(module, nn.Conv2d) and module.padding_mode == "zeros":
            return conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)
        if module is not None:
            zero = torch.zeros(weight.shape[0]).to(weight) if module.bias is not None else None
            out = functional_call(module, {"weight": weight, **({} if zero is None else {"bias": zero})}, (x,))
            return out if bias is None else out + bias.view(1, -1, 1, 1)
        options = {k: v for k, v in node.kwargs.items() if k not in ("input", "weight", "bias")}
        found: torch.Tensor = node.target(x, weight, bias, *node.args[3:], **options)  # type: ignore[operator]
        return found

    return run


def _fold(weight: torch.Tensor, bias: torch.Tensor | None, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a convolution with the batch norm behind it (in eval mode) folded in."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    shift = -norm.running_mean * scale
    shift = shift if norm.bias is None else shift + norm.bias
    shift = shift if bias is None else shift + bias * scale
    return (weight * scale.view(-1, *([1] * (weight.dim() - 1)))).detach(), shift.detach()


def _hold(held: dict[fx.Node, Any], node: fx.Node, relevance: Any) -> None:
    """Add to what a value was already given by its other readers."""
    before = held.get(node)
    if before is None:
        held[node] = relevance
    elif isinstance(relevance, list):
        held[node] = [b if r is None else r if b is None else b + r for b, r in zip(before, relevance, strict=True)]
    else:
        held[node] = before + relevance


def _fit(relevance: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Summed over the axes along which ``value`` was broadcast."""
    return relevance.sum_to_size(value.shape) if relevance.shape != value.shape else relevance


def _has_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(isinstance(v, torch.Tensor) for v in value)
    return isinstance(value, torch.Tensor)
