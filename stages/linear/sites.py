"""A call of the traced network with its operands by name, whether it is a module, a function or a method."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from stages.tracing import Graph

Values = dict[fx.Node, Any]
Decision = tuple[torch.Tensor, ...]

WEIGHTED = ("input", "weight", "bias")
_STATISTICS = ("input", "running_mean", "running_var", "weight", "bias")
_PAIR = ("input", "other")
POOL = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
# Names of the positional operands where a call is a function; a module has them as attributes.
OPERANDS: dict[str, tuple[str, ...]] = {
    "linear": WEIGHTED,
    **{f"conv{transpose}{n}d": WEIGHTED for transpose in ("", "transpose") for n in (1, 2, 3)},
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "truediv", "matmul"), _PAIR),
    "batchnorm": (*_STATISTICS, "training", "momentum", "eps"),
    "instancenorm": (*_STATISTICS, "use_input_stats", "momentum", "eps"),
    "hardtanh": ("input", "min_val", "max_val"),
    "leakyrelu": ("input", "negative_slope"),
    "prelu": ("input", "weight"),
    "maxpool2d": ("input", *POOL, "return_indices"),
    "adaptivemaxpool2d": ("input", "output_size", "return_indices"),
    "pad": ("input", "pad", "mode", "value"),
}
_DEFAULTS: dict[str, Any] = {
    "min_val": -1.0,
    "max_val": 1.0,
    "negative_slope": 0.01,
    "eps": 1e-5,
    "mode": "constant",
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
}


class Site:
    """One call of the graph, with its operands by name whether it is a module, a function or a method."""

    def __init__(self, graph: Graph, node: fx.Node, image: set[fx.Node], name: str) -> None:
        self.graph, self.node, self.name = graph, node, name
        self.kind = graph.calls[node].kind
        self.module: Any = graph.submodule(node)
        self.images = [n for n in node.all_input_nodes if n in image]  # operands that depend on the image
        # The operands by name, as they stand in the graph.
        self.given: dict[str, Any] = dict(zip(OPERANDS.get(self.kind, ("input",)), node.args, strict=False))
        self.given |= node.kwargs

    def operand(self, name: str, values: Values) -> Any:
        if self.module is not None and name != "input":
            return getattr(self.module, name, _DEFAULTS.get(name))
        value = self.given.get(name, _DEFAULTS.get(name))
        return values[value] if isinstance(value, fx.Node) else value

    def source(self, values: Values) -> torch.Tensor:
        found: torch.Tensor = self.operand("input", values)
        return found

    def evaluate(self, values: Values) -> Any:
        """The call itself, on other values."""
        return self.graph.evaluate(self.node, values, copy_operand=self.graph.calls[self.node].mutates)

    def refusal(self, why: str, cure: str) -> ValueError:
        return ValueError(f"{self.name!r} ({self.kind}) {why}: {cure}")


_SHAPES = frozenset(("size", "dim", "ndimension", "numel", "zeroslike", "oneslike", "newzeros", "newones"))
_ATTRIBUTES = frozenset(("shape", "dtype", "device", "ndim"))


def tells_shape(graph: Graph, node: fx.Node) -> bool:
    """The call gives nothing of its operand's values, only of its shape or type."""
    kind = graph.calls[node].kind
    return kind in _SHAPES or (node.target is getattr and node.args[1] in _ATTRIBUTES)
