"""From a classifier to its features: the vector that its own classes are read from.

* The input of the last linear layer, where the classes are that layer's: VGG16's second hidden layer (4096, after ReLU
  and dropout), the spatial mean of ResNet34's last block (512) and of DenseNet121's final ReLU (1024), MobileNet-v2's
  (1280). Whatever the network does before its classes (pooling, hidden layers, dropout) stays as it was trained.
* Else the spatial mean of the last spatial tensor: SqueezeNet's classes are a convolution, so its features are those of
  its last Fire module (512).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from stages.layers import PASSED_ON, Names, last_conv
from stages.tracing import Graph, ancestors


@dataclass(frozen=True)
class Features:
    """``module`` maps normalised images (B, 3, h, w) to features (B, width). It has weights of its own: a copy."""

    module: nn.Module
    layer: str  # the call the features come from
    width: int
    why: str
    flops: float  # per image


def backbone_features(classifier: nn.Module, example: Tensor) -> Features:
    """Cut ``classifier`` (eval mode) at its features. ``example`` (B, 3, h, w) fixes the shapes.

    The module can be trained: its layers follow train() and eval(). What the forward itself decides by its mode is
    decided as in eval (auxiliary outputs are gone, functional dropout is off).

    Raises ValueError for a network that cannot be traced, or with neither a last linear layer nor a spatial tensor.
    """
    graph = Graph(copy.deepcopy(classifier), example)
    names = Names(graph)
    linear = last_linear(graph)
    if linear is not None:
        source = linear.all_input_nodes[0]
        shape = graph.calls[source].shape
        layer, why = names.canonical.get(source, source.name), f"the input of the last linear layer, {linear.target}"
    else:
        try:
            call = last_conv(graph)
        except LookupError as error:
            raise ValueError(f"no features: {error}") from error
        source, shape, layer = call.node, call.shape, names.canonical[call.node]
        why = "the spatial mean of the last spatial tensor: the classes are not those of a linear layer"
    assert shape is not None  # a tensor in both cases
    module = _up_to(graph, source, pooled=linear is None)
    flops = sum(graph.calls[n].flops for n in ancestors([source]))
    return Features(module, layer, shape[1], why, flops)


def last_linear(graph: Graph) -> fx.Node | None:
    """The linear layer whose outputs are the classes, if all that they depend on goes through it."""
    node = graph.output
    while graph.calls[node].kind in PASSED_ON or graph.calls[node].kind in ("flatten", "softmax", "logsoftmax"):
        node = node.all_input_nodes[0]
    call = graph.calls[node]
    if node.op != "call_module" or call.kind != "linear":
        return None
    source = graph.calls[node.all_input_nodes[0]]
    return node if source.shape is not None and len(source.shape) == 2 and source.rows == 1 else None


def _up_to(graph: Graph, last: fx.Node, pooled: bool) -> fx.GraphModule:
    """The calls up to ``last`` as a module that shares the graph's weights."""
    wanted = ancestors([last])
    short = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node in wanted or node is graph.input:
            copies[node] = short.node_copy(node, copies.__getitem__)
    out = copies[last]
    short.output(short.call_function(spatial_mean, (out,)) if pooled else out)
    return fx.GraphModule(graph.module, short)


def spatial_mean(x: Tensor) -> Tensor:
    """(B, K, h, w) -> (B, K)."""
    return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
