"""Class activation maps (Zhou et al. 2016): only for networks that end in global average pooling and a linear layer."""

from __future__ import annotations

import torch
from torch import fx, nn

from stages.baselines.placement import AtLayer
from stages.baselines.query import Query
from stages.layers import PASSED_ON
from stages.network import Cut
from stages.tracing import Call, Graph

_RESHAPES = frozenset(("flatten", "view", "reshape", "squeeze"))
_AVERAGES = frozenset(("adaptiveavgpool2d", "avgpool2d", "mean"))


class Cam(AtLayer):
    """sum_k w_ck A_k, signed, with w_c the row of the final linear layer for class c; at the layer's resolution."""

    name = "cam"
    passes = (0.0, 0.0)

    def check(self, cut: Cut) -> None:
        """ValueError unless nothing but average pooling and one linear layer stands behind the layer."""
        final_linear(cut, self.layer)

    def maps(self, query: Query) -> torch.Tensor:
        weight = final_linear(query.cut, self.layer).weight
        activation = query.activation(self.layer)
        return torch.einsum("brk,bkhw->brhw", weight[query.targets].to(activation.dtype), activation)


def final_linear(cut: Cut, layer: str) -> nn.Linear:
    """The linear layer that reads the layer's spatial means. ValueError naming the call that stands in the way."""
    graph = cut.graph
    node, pooled, found = cut._tap[layer], False, None
    while node is not graph.output:
        node = _only_reader(graph, node, layer)
        call = graph.calls[node]
        module = graph.submodule(node)
        if call.kind in _AVERAGES and call.shape is not None and call.shape[2:] in ((1, 1), ()):
            pooled = True
        elif call.kind == "linear" and isinstance(module, nn.Linear) and pooled and found is None:
            found = module
        elif call.kind not in PASSED_ON and not (call.kind in _RESHAPES and pooled):
            raise _refusal(call, layer)
    if found is None or found.in_features != cut.layers[layer].channels:
        raise ValueError(
            f"CAM reads a linear layer over the spatial means of {layer!r}, and there is none: use grad_cam"
        )
    return found


def _only_reader(graph: Graph, node: fx.Node, layer: str) -> fx.Node:
    readers = [user for user in node.users if user in graph.calls and graph.calls[user].shape is not None]
    if len(readers) != 1:
        raise ValueError(f"{layer!r} is read by {len(readers)} calls: CAM needs one way to the logits; use grad_cam")
    return readers[0]


def _refusal(call: Call, layer: str) -> ValueError:
    place = f" in {call.scope}" if call.scope else ""
    return ValueError(
        f"CAM needs global average pooling and one linear layer behind {layer!r}, and there is {call.kind}{place}: "
        "use grad_cam, which is the same where CAM is defined"
    )
