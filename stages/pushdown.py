"""Binary gates pushed past the calls they commute with, to where they cost least.

A gate d in {0, 1} for each channel commutes with everything that treats channels apart and keeps zero at zero:
activations with f(0) = 0, pooling, dropout in eval mode, flattening. Not with a batch or layer norm, nor with a
convolution. Where the walk from the layer ends decides the form of the shortcut:

* a linear layer after flattening: ``W (d * p) = sum_k d_k (W_k p_k)``, one (K, out) matrix for each image (`table`);
* a linear layer after global pooling, or a 1x1 convolution and average pooling in either order (`product`);
* a 1x1 convolution with little behind it: the smaller of the open and closed channels is multiplied (`pointwise`, CPU);
* anything else, some pooling further on: gates are applied there, to the smaller tensor (`moved`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import fx, nn

from stages.layers import PASSED_ON, ZERO_AT_ZERO
from stages.products import SubsetProduct, linear
from stages.program import Program, rescale
from stages.tracing import Graph, ancestors, descendants

if TYPE_CHECKING:
    from stages.network import Activations

_POOLS = frozenset(("maxpool2d", "avgpool2d", "adaptiveavgpool2d", "adaptivemaxpool2d", "mean"))
_RESHAPES = frozenset(("flatten", "view", "reshape", "squeeze"))


@dataclass(frozen=True)
class Meeting:
    """Where the gates end up: the last call they commute with, and the learned call (if any) that takes them in."""

    form: Literal["table", "product", "pointwise", "moved"]
    source: fx.Node  # its value is gated
    result: fx.Node  # its value is computed for every gate; `source` itself for "moved"
    weight: torch.Tensor | None = None  # (out, K * s)
    bias: torch.Tensor | None = None
    spatial: int = 1  # s, values a channel
    trailing: int = 0  # axes of size 1 that the result carries after (rows, out)


class GatedHead:
    """The rest of a network behind a layer, for many gates at once: ``head(activations, gates) -> logits``."""

    def __init__(self, graph: Graph, tap: fx.Node, meeting: Meeting, after: set[fx.Node]) -> None:
        self._graph, self._meeting = graph, meeting
        self.form = meeting.form
        before = (ancestors([meeting.source]) & after) if meeting.source is not tap else set()
        self._before = Program(graph, before, keep={meeting.source}, given={tap})
        self._after = self._program(meeting.result, after)
        self._dense = self._program(meeting.source, after)
        self._blocks: torch.Tensor | None = None
        self._subsets: SubsetProduct | None = None
        source = graph.calls[meeting.source].shape or ()
        self._positions = torch.Size(source[2:]).numel() if meeting.form == "pointwise" else 1
        # What is read behind the gates beside the values that meet them.
        self.reads = self._after.inputs - {meeting.result}
        if meeting.form in ("moved", "pointwise"):
            self.reads |= self._dense.inputs - {meeting.source}
        self.once = sum(graph.calls[n].flops for n in before)
        self.each = sum(graph.calls[n].flops for n in self._after.nodes if graph.calls[n].kind not in PASSED_ON)
        if meeting.weight is not None:
            out, width = meeting.weight.shape
            self.once += 2.0 * width * out if meeting.form == "table" else 0.0
            share = 0.25 if meeting.form == "pointwise" else 1.0
            self.each += 2.0 * width / meeting.spatial * out * self._positions * share
        # Elements alive for each gate, and for each image.
        self.peak_values = max(
            self._dense.peak_values if meeting.form in ("moved", "pointwise") else 0.0,
            self._after.peak_values + source[1] / meeting.spatial,
        )
        self.table_values = 0.0 if meeting.form != "table" else 2.0 * width / meeting.spatial * out

    def _program(self, start: fx.Node, after: set[fx.Node]) -> Program:
        return Program(self._graph, descendants(start) & after, keep={self._graph.output}, given={start})

    def __call__(self, activations: Activations, gates: torch.Tensor) -> torch.Tensor:
        """``gates`` bool (B, N, K) -> logits (B, N, C). Other gates than 0 and 1 are not supported."""
        gates = gates if gates.dtype == torch.bool else gates != 0
        features = self._features(activations)
        meeting = self._meeting
        form = meeting.form
        if form == "pointwise" and (
            features.device.type != "cpu" or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu")
        ):
            form = "moved"  # small products of odd shapes leave a GPU idle, and autograd needs none of this
        if form == "pointwise":
            return self._pointwise(activations, features, gates)
        if form == "moved":
            out, program = apply_gates(features, gates), self._dense
        elif form == "product":
            assert meeting.weight is not None
            features = features.mean((2, 3)) if features.dim() == 4 else features
            rows = torch.where(gates, features.unsqueeze(1), 0).flatten(0, 1)
            out, program = linear(rows, meeting.weight, meeting.bias), self._after
        else:
            out, program = self._tabled(features, gates), self._after
        out = out.view(*out.shape, *([1] * meeting.trailing)) if form != "moved" else out
        start = meeting.source if form == "moved" else meeting.result
        return self._finish(program, start, out, activations, gates.shape[1]).unflatten(0, gates.shape[:2])

    def _finish(
        self, program: Program, start: fx.Node, rows: torch.Tensor, activations: Activations, repeat: int
    ) -> torch.Tensor:
        if start is self._graph.output:
            return rows
        values, calls = activations._values, self._graph.calls
        env = {n: rescale(calls[n], values[n], repeat) for n in program.inputs - {start}}
        env[start] = rows
        program.run(env, batch=activations.batch, repeat=repeat, overwrite=True)
        return env[self._graph.output]

    def _tabled(self, features: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        meeting = self._meeting
        assert meeting.weight is not None
        batch, _, channels = gates.shape
        blocks = self._blocks
        if blocks is None:
            blocks = meeting.weight.view(-1, channels, meeting.spatial).permute(1, 2, 0)  # (K, s, out)
            if features.device.type == "cpu" and not torch.is_grad_enabled():
                blocks = self._blocks = blocks.contiguous()  # a second copy of W, for 2.7 times the speed
        parts = features.reshape(batch, channels, meeting.spatial).transpose(0, 1)
        table = torch.bmm(parts, blocks)  # (K, B, out): W_k p_k
        rows = gates.to(table.dtype)
        if table.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            # A copy of one image's table costs less than a product over rows that lie far apart.
            return torch.cat([linear(rows[i], table[:, i].contiguous().t(), meeting.bias) for i in range(batch)])
        product = torch.bmm(rows, table.transpose(0, 1)).flatten(0, 1)
        return product if meeting.bias is None else product + meeting.bias

    def _pointwise(self, activations: Activations, features: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        meeting = self._meeting
        assert meeting.weight is not None
        if self._subsets is None:
            self._subsets = SubsetProduct(meeting.weight, meeting.bias)
        height, width = features.shape[2:]
        logits = []
        for i in range(features.shape[0]):
            one = activations.rows(i, i + 1)
            x = features[i].permute(1, 2, 0).reshape(height * width, -1)
            for rows in self._subsets(x, gates[i]):  # one gate at a time stays in the cache
                spread = rows.view(1, height, width, -1).permute(0, 3, 1, 2)
                logits.append(self._finish(self._after, meeting.result, spread, one, 1))
        return torch.cat(logits).unflatten(0, gates.shape[:2])

    def _features(self, activations: Activations) -> torch.Tensor:
        """The value the gates meet, all gates open."""
        values = activations._values
        if not self._before.nodes:
            return values[self._meeting.source]
        env = {n: values[n] for n in self._before.inputs}
        self._before.run(env)
        return env[self._meeting.source]


def apply_gates(tensor: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
    """tensor (B, K, ...), gates bool (B, N, K) -> (B * N, K, ...), image by image, in the tensor's memory layout."""
    shape = (*gates.shape, *([1] * (tensor.dim() - 2)))
    # A product, not a choice: it keeps channels_last, and is what a forward hook would do.
    return (tensor.unsqueeze(1) * gates.view(shape).to(tensor.dtype)).flatten(0, 1)


def find_head(
    graph: Graph, tap: fx.Node, after: set[fx.Node], names: Mapping[fx.Node, str]
) -> tuple[GatedHead | None, str]:
    """Follow the gates from ``tap`` as far as they commute. Returns the cheapest head, or None, and why, in words."""
    node, calls = tap, graph.calls
    channels = (calls[tap].shape or (0, 0))[1]
    gain = False
    apart, gained = tap, False  # the last value whose axis 1 is the channels: a flattening ends that
    while True:
        users = [u for u in node.users if u in after and calls[u].shape is not None]
        name = names.get(users[0], users[0].name) if users else ""
        if len(users) != 1:
            why = f"{len(users)} calls read {names.get(node, node.name)}"
            break
        call = calls[users[0]]
        before, shape = calls[node].shape or (), call.shape or ()
        if call.kind in ("linear", "conv2d"):
            meeting = _meeting(graph, node, call.node, channels, after)
            if meeting is not None:
                reached = {
                    "table": f"gates reach {name}, {meeting.spatial} values a channel contracted once for each image",
                    "product": f"gates reach {name}, one value a channel",
                    "pointwise": f"gates reach {name}, a 1x1 convolution over the fewer of open and closed channels",
                }[meeting.form]
                return _head(graph, tap, meeting, after, names, reached)
            why = f"gates do not pass {name} ({call.kind})"
            break
        flat = shape[:1] == (1,) and (shape[1] == channels or (len(shape) == 2 and shape[1] % channels == 0))
        passes = call.kind in ZERO_AT_ZERO | PASSED_ON or (call.kind in _POOLS and len(before) == 4 and flat)
        passes = passes or (call.kind in _RESHAPES and flat and call.rows == 1)
        if call.kind == "mean":
            dims = call.node.args[1] if len(call.node.args) > 1 else call.node.kwargs.get("dim")
            passes = passes and isinstance(dims, (tuple, list)) and sorted(d % 4 for d in dims) == [2, 3]
        if not passes or call.node.args[:1] != (node,):
            why = f"gates do not pass {name} ({call.kind})"
            break
        gain = gain or call.kind not in PASSED_ON | _RESHAPES
        node = call.node
        if shape[1] == channels:
            apart, gained = node, gain
    if not gained:
        return None, why
    return _head(graph, tap, Meeting("moved", apart, apart), after, names, f"gates moved to {names[apart]}; {why}")


def _head(
    graph: Graph, tap: fx.Node, meeting: Meeting, after: set[fx.Node], names: Mapping[fx.Node, str], why: str
) -> tuple[GatedHead | None, str]:
    """The head, unless it would read what only a gated pass computes (a size taken at the layer, say)."""
    head = GatedHead(graph, tap, meeting, after)
    lost = next((n for n in graph.nodes if n in head.reads & after), None)
    if lost is None:
        return head, why
    return None, f"{names.get(lost, lost.name)} is taken from the layer before the gates are met, and read after"


def _meeting(graph: Graph, source: fx.Node, node: fx.Node, channels: int, after: set[fx.Node]) -> Meeting | None:
    call, module = graph.calls[node], graph.submodule(node)
    weight: object
    bias: object
    if module is not None:
        weight, bias = module.weight, module.bias
    else:
        given = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
        weight = graph.parameter(node.args[1] if len(node.args) > 1 else node.kwargs.get("weight"))
        bias = graph.parameter(given)
        if given is not None and bias is None:
            return None
    if not isinstance(weight, torch.Tensor):
        return None
    bias = bias if isinstance(bias, torch.Tensor) else None
    shape = graph.calls[source].shape or ()
    if call.kind == "linear":
        if len(shape) != 2 or weight.shape[1] % channels:
            return None
        spatial = weight.shape[1] // channels
        return Meeting("table" if spatial > 1 else "product", source, node, weight, bias, spatial)
    if not isinstance(module, nn.Conv2d) or weight.shape[1:] != (channels, 1, 1):
        return None
    if module.stride != (1, 1) or module.padding not in ((0, 0), "valid"):
        return None
    pooled = node
    while True:
        users = [u for u in pooled.users if u in after and graph.calls[u].shape is not None]
        user = graph.calls[users[0]] if len(users) == 1 else None
        if user is not None and user.kind == "adaptiveavgpool2d" and (user.shape or ())[2:] == (1, 1):
            return Meeting("product", source, user.node, weight.flatten(1), bias, 1, 2)
        if user is None or user.kind not in PASSED_ON:
            break
        pooled = user.node
    rest = sum(graph.calls[n].flops for n in descendants(node) & after)
    if rest > call.flops / 4:
        return None
    return Meeting("pointwise", source, node, weight.flatten(1), bias)
