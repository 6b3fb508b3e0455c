"""What a traced call does with its operands, read from how the call is written, before anything runs."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

_IN_PLACE_OPERATORS = {operator.iadd, operator.imul, operator.isub, operator.itruediv}


def stand_first(node: fx.Node, module: nn.Module) -> None:
    """Let the first operand stand first where it was given by name: ``relu(input=x)`` as ``relu(x)``."""
    if node.args or node.op not in ("call_module", "call_function"):
        return
    called: Any = module.get_submodule(str(node.target)).forward if node.op == "call_module" else node.target
    try:
        first = next(iter(inspect.signature(called).parameters.values()))
        name = first.name if first.kind is first.POSITIONAL_OR_KEYWORD else "input"
    except (TypeError, ValueError, StopIteration):  # built-in functions have no signature
        name = "input"
    if name in node.kwargs:
        node.args = (node.kwargs[name],)
        node.kwargs = {k: v for k, v in node.kwargs.items() if k != name}


# Where a norm's running mean stands among its operands, by function: torch's own take the weights first.
_RUNNING_MEAN: dict[Any, int] = {F.batch_norm: 1, F.instance_norm: 1, torch.batch_norm: 3, torch.instance_norm: 3}


def learns(node: fx.Node, of_image: bool) -> bool:
    """A norm as a function that changes running statistics, or a batch norm by the statistics of its batch.

    Weights may be normalised that way.
    """
    place = _RUNNING_MEAN.get(node.target) if node.op == "call_function" else None
    if place is None:
        return False
    instance = node.target in (F.instance_norm, torch.instance_norm)
    flag = "use_input_stats" if instance else "training"
    own = node.args[5] if len(node.args) > 5 else node.kwargs.get(flag, instance)
    mean = node.args[place] if len(node.args) > place else node.kwargs.get("running_mean")
    return bool(own) and (mean is not None or (of_image and not instance))


def mutates(node: fx.Node, module: nn.Module) -> bool:
    """Does the call work in place on its first operand?"""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        return bool(getattr(called, "inplace", False)) and "Dropout" not in type(called).__name__
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).startswith("__")
    if node.op != "call_function":
        return False
    if node.target in _IN_PLACE_OPERATORS:
        return True
    name = getattr(node.target, "__name__", "")
    if name.endswith("_") and not name.endswith("__"):
        return True
    if "dropout" in name:
        return False  # in eval mode it hands its input on
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # built-in functions have no signature, and no inplace flag either
        return bool(node.kwargs.get("inplace", False))
    return bool(bound.arguments.get("inplace", False))
