"""A copy of a network in which batch norms are part of the convolutions before them.

In eval mode a batch norm is a scale and a shift, which the convolution can do itself: the same function to rounding,
one pass over memory less in each direction.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stages.layers import Names
from stages.tracing import Graph


def folded(graph: Graph, keep: Collection[str] = ()) -> nn.Module:
    """A copy of ``graph.module`` with its batch norms folded in; the network itself is left as it is.

    Names of calls stay: the norm's module hands its input on. Convolutions named in ``keep`` are read by others and
    stay what they are.
    """
    module = copy.deepcopy(graph.module)
    names = Names(graph)
    called = Counter(str(n.target) for n in graph.nodes if n.op == "call_module")
    for node in graph.nodes:
        norm = graph.submodule(node)
        source = node.args[0] if node.args else None
        if not isinstance(norm, nn.BatchNorm2d) or norm.running_mean is None or source not in graph.calls:
            continue
        convolution = graph.submodule(source)  # type: ignore[arg-type]
        alone = len(source.users) == 1 and called[str(source.target)] == called[str(node.target)] == 1  # type: ignore[union-attr]
        if type(convolution) is not nn.Conv2d or not alone or names.canonical[source] in keep:  # type: ignore[index]
            continue
        fused = fuse_conv_bn_eval(
            module.get_submodule(str(source.target)),  # type: ignore[union-attr, type-var]
            module.get_submodule(str(node.target)),  # type: ignore[arg-type]
        )
        _put(module, str(source.target), fused)  # type: ignore[union-attr]
        _put(module, str(node.target), nn.Identity())
    return module.eval().requires_grad_(False)


def _put(module: nn.Module, path: str, replacement: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, replacement)
