"""A network as a list of calls (torch.fx): what each one computes, its shape, and how it depends on the batch.

In-place calls are rewritten as values: whatever the network reads after ``relu_(x)`` reads the ReLU's result, so that a
tensor can be kept, gated or replayed. The rewritten graph is compared with the network itself before it is used.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from stages.operands import learns, mutates, stand_first
from stages.products import linear

_SAME_OPERATION = {"iadd": "add", "imul": "mul", "isub": "sub", "concat": "cat", "concatenate": "cat"}


@dataclass(frozen=True)
class Call:
    """One call of the forward pass, with what two probes (one image, two images) showed of its value."""

    node: fx.Node
    scope: str  # path of the module whose forward made the call; for a leaf module, its own path
    kind: str  # "conv2d", "relu", "cat", ...: the same word for a module, a function and a method
    shape: tuple[int, ...] | None  # for one image, batch axis included; None when the value is not a tensor
    rows: int  # rows of axis 0 for each image; 0 when the value does not grow with the batch
    regular: bool  # False when the value depends on the batch in another way than by its first axis
    mutates: bool  # works in place on its first operand
    flops: float  # per image, a multiply-add counting as two


class Graph:
    """The calls of ``module`` in order, probed with noise of ``example``'s shape.

    Shares the module's parameters and changes nothing in it. A network whose output is no (batch, classes) table is
    refused unless ``logits`` is False.
    """

    def __init__(self, module: nn.Module, example: torch.Tensor, *, logits: bool = True) -> None:
        training = next((name for name, m in module.named_modules() if m.training), None)
        if training is not None:
            raise ValueError(f"module {training or type(module).__name__!r} is in training mode: call .eval() first")
        self.module = module
        self._logits = logits
        tracer = _Tracer()
        try:
            graph = tracer.trace(module)
        except Exception as error:  # whatever a user's forward raises is told the same way
            raise _untraceable(module, error) from error
        self.returned = tracer.returned
        self.nodes: list[fx.Node] = list(graph.nodes)
        self._graph = graph  # owns the nodes
        for node in self.nodes:
            stand_first(node, module)
        placeholders = [n for n in self.nodes if n.op == "placeholder"]
        self.input = placeholders[0]
        of_image = descendants(self.input)
        for node in self.nodes:  # before the first probe: it would change the network
            if learns(node, node in of_image):
                raise ValueError(
                    f"call {node.name!r} ({self._kind(node)}, in {node.meta.get('scope') or 'the top module'}) takes "
                    "statistics of its input as in training: images would depend on each other, or the network on "
                    "them; give it training=self.training (an instance norm: no running statistics)"
                )
        self.defaults = {n: n.args[0] for n in placeholders[1:] if n.args}
        final = self.nodes[-1].args[0]
        if not isinstance(final, fx.Node):
            raise ValueError(
                f"{type(module).__name__} returns a {type(final).__name__}, not one tensor of logits: "
                "wrap it in a module that returns the logits"
            )
        self._mutating = {n for n in self.nodes if mutates(n, module)}
        self.output = self._as_values(final)
        self._targets: dict[str, Any] = {}
        weight = next(module.parameters(), example)
        self.calls = self._probe(torch.rand(example[:1].shape, generator=torch.Generator().manual_seed(0)).to(weight))

    def _as_values(self, output: fx.Node) -> fx.Node:
        """Let every later reader of an in-place call's operand read its result."""
        order = {node: i for i, node in enumerate(self.nodes)}
        for node in self.nodes:
            operand = node.args[0] if node in self._mutating and node.args else None
            if not isinstance(operand, fx.Node):
                continue
            for reader in [r for r in operand.users if order[r] > order[node]]:
                reader.replace_input_with(operand, node)
            output = node if output is operand else output
        return output

    def _probe(self, one: torch.Tensor) -> dict[fx.Node, Call]:
        with torch.no_grad():
            single = self._record(one)
            two = torch.cat([one, one.flip(-1)])  # a second image that is not the first
            values: dict[fx.Node, Any] = {}
            double = self._record(two, values)
            expected, got = self.module(two), values[self.output]
        if not isinstance(got, torch.Tensor) or (self._logits and got.dim() != 2):
            form = tuple(got.shape) if isinstance(got, torch.Tensor) else type(got).__name__
            raise ValueError(
                f"{type(self.module).__name__} gives {form}, not (batch, classes): wrap it so that it does"
            )
        if not bool(expected.isfinite().all()):
            raise ValueError(
                f"{type(self.module).__name__} gives numbers that are not finite for plain noise: its weights hold NaN "
                "or infinity, or overflow this precision"
            )
        scale = expected.abs().max().clamp_min(1e-30)
        if not bool(((got - expected).abs().max() / scale) < 1e-4):
            raise ValueError(
                f"the traced graph of {type(self.module).__name__} does not reproduce the network: its forward decides "
                "in Python by values or keeps state; move the decision into tensors (torch.where) or torch.fx.wrap it"
            )
        calls = {}
        for node in self.nodes:
            if node.op == "output":
                continue
            shape: tuple[int, ...] | None = single[node] if isinstance(single[node], tuple) else None
            rows, regular = _batch_dependence(single[node], double[node])
            kind = self._kind(node)
            calls[node] = Call(
                node=node,
                scope=node.meta.get("scope", ""),
                kind=kind,
                shape=shape,
                rows=rows,
                regular=regular,
                mutates=node in self._mutating,
                flops=self._flops(node, kind, shape, single),
            )
        return calls

    def _record(self, x: torch.Tensor, values: dict[fx.Node, Any] | None = None) -> dict[fx.Node, Any]:
        """Run every call, out of place; tensors are recorded by shape (a tuple), other values as they are."""
        env: dict[fx.Node, Any] = {self.input: x, **self.defaults}
        seen: dict[fx.Node, Any] = {n: _shape(v) for n, v in env.items()}
        readers = {n: len(n.users) for n in self.nodes}
        for node in self.nodes:
            if node.op in ("placeholder", "output"):
                if node not in env and node.op == "placeholder":
                    raise ValueError(
                        f"the forward needs {node.name!r} besides the image: wrap it in a module of one input"
                    )
                continue
            try:
                value = self.evaluate(node, env, copy_operand=node in self._mutating)
            except Exception as error:
                raise ValueError(
                    f"call {node.name!r} ({self._kind(node)}, in {node.meta.get('scope') or 'the top module'}) fails "
                    f"on a batch of {x.shape[0]}: {error}. Is a batch size fixed in the forward? Use x.size(0) or "
                    "torch.flatten(x, 1)"
                ) from error
            env[node] = value
            seen[node] = _shape(value)
            for used in node.all_input_nodes:
                readers[used] -= 1
                if readers[used] == 0 and used is not self.output:
                    env.pop(used, None)
        if values is not None:
            values[self.output] = env[self.output]
        return seen

    def evaluate(self, node: fx.Node, env: dict[fx.Node, Any], *, copy_operand: bool = False) -> Any:
        """The value of one call. ``copy_operand`` protects the first operand of an in-place call."""
        args = fx.node.map_arg(node.args, env.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, env.__getitem__)
        if copy_operand and isinstance(args[0], torch.Tensor):
            args = (args[0].clone(), *args[1:])
        return self.target(node)(*args, **kwargs)

    def target(self, node: fx.Node) -> Callable[..., Any]:
        """What a node calls: the module itself, the function, the method, or a getter of a parameter."""
        found: Any = self._targets.get(node.name)
        if found is None:
            if node.op == "call_module":
                module = self.module.get_submodule(str(node.target))
                found = _Linear(module) if type(module) is nn.Linear else module
            elif node.op == "call_method":
                found = _Method(str(node.target))
            elif node.op == "get_attr":
                found = _Attribute(self.module, str(node.target))
            else:
                found = node.target
            self._targets[node.name] = found
        return found

    def submodule(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def parameter(self, argument: Any) -> torch.Tensor | None:
        """A weight given to a function call: the tensor when it is a plain attribute of the network, else None."""
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            value = self.target(argument)()
            return value if isinstance(value, torch.Tensor) else None
        return None

    def _kind(self, node: fx.Node) -> str:
        if node.op == "call_module":
            name = type(self.module.get_submodule(str(node.target))).__name__
        elif node.op == "call_function":
            name = getattr(node.target, "__name__", str(node.target))
        else:
            name = str(node.target) if node.op == "call_method" else node.op
        name = name.lower().strip("_").replace("_", "")
        return _SAME_OPERATION.get(name, name)

    def _flops(self, node: fx.Node, kind: str, shape: tuple[int, ...] | None, shapes: dict[fx.Node, Any]) -> float:
        if shape is None or node.op in ("placeholder", "get_attr"):
            return 0.0
        size = float(torch.Size(shape).numel())
        if kind in ("conv2d", "conv1d", "conv3d", "linear"):
            module = self.submodule(node)
            if module is not None:
                weight = tuple(module.weight.shape)  # type: ignore[arg-type]
            else:
                operand = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
                weight = shapes.get(operand, ()) if isinstance(operand, fx.Node) else ()
            return 2 * size * float(torch.Size(weight[1:]).numel()) if weight else size
        return size


class _Tracer(fx.Tracer):
    """Remembers in which module each call was made, and which call each non-leaf module returned."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = [""]
        self.returned: list[tuple[str, fx.Node]] = []

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        self.stack.append(path)
        try:
            out = super().call_module(m, forward, args, kwargs)
        finally:
            self.stack.pop()
        if isinstance(out, fx.Proxy) and not self.is_leaf_module(m, path):
            self.returned.append((path, out.node))
        return out

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        node.meta["scope"] = self.stack[-1]
        return node


class _Linear:
    """nn.Linear on the faster kernel."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.module.weight, self.module.bias)


class _Method:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, owner: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(owner, self.name)(*args, **kwargs)


class _Attribute:
    def __init__(self, module: nn.Module, path: str) -> None:
        parent, _, self.name = path.rpartition(".")
        self.owner = module.get_submodule(parent)

    def __call__(self) -> Any:
        return getattr(self.owner, self.name)


def _shape(value: Any) -> Any:
    """What is remembered of a value: a tensor's shape, several tensors' shapes, or the value itself."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, torch.Size):
        return list(value)
    if isinstance(value, (tuple, list)):
        return [_shape(v) for v in value]
    return value


def _batch_dependence(one: Any, two: Any) -> tuple[int, bool]:
    """(rows per image, regular) from the recorded values for one and for two images."""
    if isinstance(one, tuple):
        if one == two:
            return 0, True
        grows = len(one) == len(two) and one[1:] == two[1:] and two[0] == 2 * one[0]
        return (one[0], True) if grows else (0, False)
    if isinstance(one, list):
        parts = [_batch_dependence(a, b) for a, b in zip(one, two, strict=False)]
        first = all(isinstance(v, tuple) for v in one) or not any(p[0] for p in parts[1:])
        return max((p[0] for p in parts), default=0), first and len(one) == len(two) and all(p[1] for p in parts)
    if isinstance(one, (int, float)) and not isinstance(one, bool):
        if one == two:
            return 0, True
        return 1, two == 2 * one
    return 0, True


def _untraceable(module: nn.Module, error: Exception) -> ValueError:
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename and f.name != "__init__"
    ]
    frame = frames[-1] if frames else None
    place = f"`{frame.line}` ({frame.filename}:{frame.lineno}, in {frame.name})" if frame else type(module).__name__
    return ValueError(
        f"{type(module).__name__} cannot be traced at {place}: {error}\n  -> a branch or loop over tensor values, or a "
        "tensor made item by item, hides the graph: use torch.where and fixed sizes, or torch.fx.wrap the function"
    )


def ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The given calls and everything they are computed from."""
    found: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def descendants(node: fx.Node) -> set[fx.Node]:
    """Everything computed from a call, without the call itself."""
    found: set[fx.Node] = set()
    stack = list(node.users)
    while stack:
        user = stack.pop()
        if user not in found:
            found.add(user)
            stack.extend(user.users)
    return found
