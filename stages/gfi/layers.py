"""The two layers of guided feature inversion: by name, or found in the network's graph."""

from __future__ import annotations

from torch import fx

from stages.layers import LEARNED, Names, last_conv
from stages.tracing import Call, Graph

POOLS = frozenset(("maxpool2d", "avgpool2d", "lppool2d"))  # an adaptive one fits sizes for the classifier
AUTO = "auto"
LAST_POOL = "last_pool"


def last_pool(graph: Graph) -> Call:
    """The last pooling before the classifier that leaves a map: VGG's and AlexNet's pool5.

    A network that pools its last convolution to one value a channel (ResNet, SqueezeNet, DenseNet, Inception) has none:
    there it is the tensor that is pooled, :func:`stages.layers.last_conv`.
    """
    calls = graph.calls
    found = last_conv(graph)
    node = found.node
    while True:
        readers = [u for u in node.users if u in calls and calls[u].shape is not None]
        if len(readers) != 1:
            return found
        node = readers[0]
        call = calls[node]
        if call.kind in LEARNED or call.shape is None or len(call.shape) != 4 or call.shape[2:] == (1, 1):
            return found
        if call.kind in POOLS:
            found = call


def find_layers(graph: Graph, inversion: str, mask: str, *, one: bool) -> tuple[str, str]:
    """(inversion layer, mask layer) as names of calls. LookupError for an unknown name, with near matches.

    "auto": the last pooling inverts; the last convolution's activation makes the mask or, with ``one``, the inverted
    layer does.
    """
    names = Names(graph)

    def node_of(asked: str) -> fx.Node:
        return (last_pool(graph) if asked == LAST_POOL else names.find(asked)).node

    first = LAST_POOL if inversion == AUTO else inversion
    second = (first if one else "last_conv") if mask == AUTO else mask
    return names.canonical[node_of(first)], names.canonical[node_of(second)]
