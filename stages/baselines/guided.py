"""Guided backpropagation (Springenberg et al. 2015): at every ReLU only positive gradients pass on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from stages.baselines.placement import AtImage
from stages.baselines.query import Query

_RELUS = {
    F.relu,
    F.relu_,
    F.relu6,
    torch.relu,
    torch.relu_,
    torch.Tensor.relu,
    torch.Tensor.relu_,
}


class GuidedReLU(TorchFunctionMode):
    """While in force, a gradient that reaches the output of a ReLU (or ReLU6) is clipped at 0 before it goes on.

    Functions are watched, not modules: Inception and GoogLeNet have no ReLU modules, and hooks on modules silently give
    the plain gradient there. The clip hangs on the output tensor and goes with it.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        # nn.ReLU6 is a hardtanh from 0; one from -1 is another non-linearity and is left alone.
        relu6 = func in (F.hardtanh, F.hardtanh_) and (args[1] if len(args) > 1 else (kwargs or {}).get("min_val")) == 0
        if (func in _RELUS or relu6) and isinstance(out, torch.Tensor) and out.requires_grad:
            out.register_hook(lambda gradient: gradient.clamp(min=0))
        return out


def guided_gradient(query: Query) -> torch.Tensor:
    """The guided gradient at the normalised input: [B, R, 3, h, w], signed."""
    return query.once("guided_gradient", lambda: query.input_gradient_within(GuidedReLU()))


class GuidedBackprop(AtImage):
    """max over colour channels of the guided gradient's positive part, at the input's resolution."""

    name = "guided_backprop"

    def maps(self, query: Query) -> torch.Tensor:
        return guided_gradient(query).clamp(min=0).amax(dim=2)
