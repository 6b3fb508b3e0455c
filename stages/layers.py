"""Names for the calls of a network, and the two layers CHIP asks for by role: ``first_conv`` and ``last_conv``.

A layer is a *call*, not a module: ResNet-18 has 9 ReLU modules and 17 ReLU calls, Inception has none and calls the
function. A call is addressed by

* the module it calls, ``features.29``; ``layer4.1.relu:1`` is the second call of that module;
* the module whose forward returned it, ``features.12`` (a Fire module's concatenation) or ``layer4.1``;
* the module it was made in and the function's name, ``relu``, ``Mixed_7c.branch_pool.relu``, ``layer1.0.add``.
"""

from __future__ import annotations

import difflib

from torch import fx

from stages.tracing import Call, Graph, ancestors

# Activations that map zero to zero: for a binary gate, f(d * a) = d * f(a).
ZERO_AT_ZERO = frozenset(
    ("relu", "relu6", "silu", "gelu", "hardswish", "leakyrelu", "elu", "celu", "selu", "prelu", "mish", "tanh")
)
ACTIVATIONS = ZERO_AT_ZERO | {"softplus", "hardtanh", "sigmoid", "hardsigmoid"}
NORMS = frozenset(
    ("batchnorm", "batchnorm2d", "groupnorm", "layernorm", "layernorm2d", "instancenorm", "instancenorm2d")
)
CONVOLUTIONS = frozenset(("conv2d", "convtranspose2d"))
LEARNED = CONVOLUTIONS | {"linear", "bilinear", "matmul", "addmm", "conv1d"}
GLOBAL_POOLS = frozenset(("adaptiveavgpool2d", "adaptivemaxpool2d", "mean", "amax", "avgpool2d", "maxpool2d"))
# Calls that hand their input on in eval mode.
PASSED_ON = frozenset(
    ("dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featuredropout", "identity", "stochasticdepth")
) | {"contiguous"}


class Names:
    """Every name of every call of a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.canonical: dict[fx.Node, str] = {}
        self.calls: dict[str, fx.Node] = {}
        self._counts: dict[str, int] = {}
        computed = [n for n in graph.nodes if n.op in ("call_module", "call_function", "call_method")]
        for node in computed:
            if node.op == "call_module":
                self._name(node, str(node.target))
        for path, node in graph.returned:
            scope = graph.calls[node].scope if node in graph.calls else ""
            if node in set(computed) and (scope == path or scope.startswith(path + ".")):
                self._name(node, path)
        for node in computed:
            if node.op != "call_module":
                scope = graph.calls[node].scope
                function = getattr(node.target, "__name__", str(node.target)).strip("_")
                self._name(node, f"{scope}.{function}" if scope else function)

    def _name(self, node: fx.Node, name: str) -> None:
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        numbered = f"{name}:{count}"
        self.calls.setdefault(numbered, node)
        if count == 0:
            self.calls.setdefault(name, node)
        self.canonical.setdefault(node, name if count == 0 else numbered)

    def find(self, asked: str) -> Call:
        """The call that ``asked`` names. LookupError names near matches."""
        if asked == "first_conv":
            return first_conv(self.graph)
        if asked == "last_conv":
            return last_conv(self.graph)
        if asked in self.calls:
            return self.graph.calls[self.calls[asked]]
        base, _, index = asked.partition(":")
        network = type(self.graph.module).__name__
        if index and base in self._counts:
            raise LookupError(
                f"{network} has no call {asked!r}: {base} is called {self._counts[base]} time(s), numbered from :0"
            )
        if base in dict(self.graph.module.named_modules()):
            raise LookupError(f"{network} has a module {asked!r}, but its forward never calls it (in eval mode)")
        raise LookupError(f"{network} has no layer {asked!r}{self._near(asked)}; first_conv and last_conv always exist")

    def _near(self, asked: str) -> str:
        known = [n for n in self.calls if not n.endswith(":0")]
        lower = {n.lower(): n for n in reversed(known)}
        close = [lower[n] for n in difflib.get_close_matches(asked.lower(), lower, n=4, cutoff=0.6)]
        tail = asked.lower().rsplit(".", 1)[-1]
        close += [n for n in known if tail and n.lower().rsplit(".", 1)[-1] == tail][-3:]
        names = list(dict.fromkeys(close))[:5] or known[:2] + known[-3:]
        return f": did you mean {', '.join(names)}?" if close else f"; some of its layers: {', '.join(names)}"


def first_conv(graph: Graph) -> Call:
    """The activation of the first convolution; its norm, or itself, where no activation follows directly."""
    calls = graph.calls
    reaching = ancestors([graph.output])
    node = next((n for n in graph.nodes if n in reaching and calls[n].kind in CONVOLUTIONS), None)
    if node is None:
        raise LookupError(f"{type(graph.module).__name__} has no convolution: name a layer instead of first_conv")
    found = node
    permuted = False
    while True:
        users = [u for u in node.users if u in reaching and calls[u].shape is not None]
        if len(users) != 1:
            return calls[found]
        node = users[0]
        kind = calls[node].kind
        if kind in ("permute", "transpose", "movedim"):  # a norm over channels-last data, as in ConvNeXt
            permuted = not permuted
        elif kind not in NORMS and kind not in ACTIVATIONS:
            return calls[found]
        if not permuted:
            found = node
        if kind in ACTIVATIONS:
            return calls[found]


def last_conv(graph: Graph) -> Call:
    """The last spatial tensor that alone feeds the classifier: after activation, concatenation or residual sum.

    It lies on every path from the image to the logits, before any global pooling, and something learned (a linear layer
    or a convolution to classes) still follows it. Pooling and dropout belong to what follows.
    """
    calls = graph.calls
    chain = _alone(graph)
    candidates: list[fx.Node] = []
    for node in chain:
        call = calls[node]
        if call.shape is not None and (len(call.shape) < 3 or _collapses(graph, call)):
            break
        if call.shape is None or len(call.shape) != 4:
            continue  # a channel shuffle, say, works on five axes in between
        if call.kind in ACTIVATIONS | NORMS | CONVOLUTIONS or call.kind in ("cat", "add", "mul"):
            candidates.append(node)
    order = {n: i for i, n in enumerate(graph.nodes)}
    reaching = ancestors([graph.output])
    learned = [order[n] for n in reaching if calls[n].kind in LEARNED]
    for node in reversed(candidates):
        if any(i > order[node] for i in learned):
            return calls[node]
    raise LookupError(
        f"{type(graph.module).__name__} has no spatial tensor that alone feeds its classifier: name a layer instead of "
        "last_conv"
    )


def _alone(graph: Graph) -> list[fx.Node]:
    """The calls every path from the image to the logits goes through, in order. Sizes do not count as paths."""
    calls = graph.calls
    reaching = ancestors([graph.output])
    tensors = [n for n in graph.nodes if n in reaching and calls[n].shape is not None and calls[n].rows]
    order = {n: i for i, n in enumerate(tensors)}
    last_use = {n: max((order[u] for u in _readers(graph, n) if u in order), default=order[n]) for n in tensors}
    chain, open_until = [], 0
    for i, node in enumerate(tensors):
        if open_until <= i:
            chain.append(node)
        open_until = max(open_until, last_use[node])
    return chain


def _readers(graph: Graph, node: fx.Node) -> list[fx.Node]:
    """Tensor calls that read a value, looking through tuples (chunk, split) but not through sizes."""
    found: list[fx.Node] = []
    for user in node.users:
        call = graph.calls.get(user)
        if call is None:
            continue
        if call.shape is not None:
            found.append(user)
        elif call.kind in ("chunk", "split", "unbind", "tensorsplit"):
            found.extend(_readers(graph, user))
    return found


def _collapses(graph: Graph, call: Call) -> bool:
    """Does the call end the spatial part: a global pooling, or a convolution as large as its input?"""
    source = next((graph.calls[n] for n in call.node.all_input_nodes if graph.calls[n].shape), None)
    if source is None or source.shape is None or call.shape is None or len(source.shape) != 4:
        return False
    if call.shape[2:] != (1, 1):
        return False
    if call.kind in GLOBAL_POOLS:
        return source.shape[2:] != (1, 1) or call.kind.startswith("adaptive") or call.kind == "mean"
    module = graph.submodule(call.node)
    kernel = getattr(module, "kernel_size", None)
    return kernel is not None and kernel == source.shape[2:] and kernel != (1, 1) and call.kind in CONVOLUTIONS
