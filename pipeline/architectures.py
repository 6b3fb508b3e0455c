"""Where networks come from: torchvision's builders with their published layouts, and users' own functions."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from pipeline.errors import UsageError
from pipeline.vision import torchvision

_AUXILIARY = {"inception_v3": ("AuxLogits",), "googlenet": ("aux1", "aux2")}


def entries(name: str) -> list[Any]:
    return list(torchvision.models.get_model_weights(name)) if name in architectures() else []


def architectures() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models))


def require_architecture(name: str) -> None:
    known = architectures()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, 3)
        cure = f"did you mean {' or '.join(near)}?" if near else "write a torchvision classifier, or module:function"
        raise UsageError(f"name: there is no network {name!r}", where="model", cure=cure)


def published_layout(
    name: str, entry: Any, state: Mapping[str, torch.Tensor] | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments with which torchvision itself builds a network for its published weights."""
    layout: dict[str, Any] = {}
    if name in _AUXILIARY:
        heads = _AUXILIARY[name]
        layout["init_weights"] = state is None
        layout["aux_logits"] = state is not None and any(f"{heads[0]}." in key for key in state)
        # Published weights expect input normalised to mean 0.5, which the network then does itself.
        layout["transform_input"] = given.get("transform_input", entry is not None)
    if entry is not None and "min_size" in entry.meta:
        if name.startswith("vit_"):
            layout["image_size"] = given.get("image_size", entry.meta["min_size"][0])
        if name.startswith("maxvit"):
            layout["input_size"] = given.get("input_size", entry.meta["min_size"])
    return layout


def drop_auxiliary(module: nn.Module, name: str) -> None:
    # Training's side heads take no part in eval: neither hooks nor operation counts should meet them.
    for head in _AUXILIARY.get(name, ()):
        setattr(module, head, None)
    if name in _AUXILIARY:
        module.aux_logits = False  # type: ignore[assignment]


def user_function(name: str) -> Callable[..., Any]:
    module_name, _, function = name.partition(":")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", module_name) or not function.isidentifier():
        raise UsageError(
            f"name: {name!r} is not module:function", where="model", cure="e.g. jobs.resnet20:cifar_resnet20"
        )
    # Console scripts start without the working directory; at the end of the path it can shadow nothing.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        inner = error.name or module_name
        cure = (
            f"looked beside the config, in {here} and on PYTHONPATH"
            if module_name.startswith(inner)
            else f"{module_name} needs it"
        )
        raise UsageError(f"name: there is no module {inner!r}", where="model", cure=cure) from error
    except Exception as error:
        raise UsageError(
            f"name: importing {module_name} fails: {type(error).__name__}: {error}",
            where="model",
            cure="mend the module",
        ) from error
    maker = getattr(module, function, None)
    if not callable(maker):
        have = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = difflib.get_close_matches(function, have, 2)
        cure = f"did you mean {' or '.join(near)}?" if near else f"write the function into {module.__file__}"
        raise UsageError(f"name: {module_name} has no function {function!r}", where="model", cure=cure)
    return maker


def near_architectures(asked: str) -> Callable[[Mapping[str, torch.Size]], str]:
    """Looks among torchvision's networks of alike names for the one whose tensors these are."""

    def cure(found: Mapping[str, torch.Size]) -> str:
        if ":" in asked:
            return ""
        family = re.match(r"[a-z]+", asked)
        alike = [n for n in architectures() if family is not None and n.startswith(family[0]) and n != asked]
        for name in difflib.get_close_matches(asked, alike, 12, 0.0):
            own: dict[str, torch.Size] = {}
            # A constructor that computes with tensors cannot run on meta; then there is just no hint.
            with contextlib.suppress(NotImplementedError, RuntimeError), torch.device("meta"):
                own = {k: v.shape for k, v in torchvision.models.get_model(name).state_dict().items()}
            counters = {k for k in own if k.endswith("num_batches_tracked")}
            if own and set(found) <= set(own) and all(found.get(k) == own[k] for k in set(own) - counters):
                return f"these are the weights of {name}: set name: {name}"
        return ""

    return cure
