"""How each call of a network is frozen at x0: a linear map of its operand, and a constant.

With every non-linear decision frozen, call after call is affine: ``linear(v)`` is its part without constants, and
``constant`` what it adds (a bias, a shift, ReLU6's saturation). A decision is whatever has to be remembered of x0: a
mask, indices, a mean and a standard deviation. Everything has a batch axis; a decision of one image serves any number
of probes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import fx
from torch.func import functional_call
from torch.nn import functional as F

from stages.linear.sites import Decision, Site, Values


class Rule(Protocol):
    jacobian: bool  # freezing equals the derivative at x0

    def check(self, site: Site) -> None:
        """ValueError where this call cannot be frozen."""

    def decide(self, site: Site, values: Values) -> Decision:
        """What to remember of x0, from the values at x0."""

    def keeps(self, site: Site, shape: torch.Size, itemsize: int) -> int:
        """Bytes of one image's decision, where the call gives ``shape``, in numbers of ``itemsize`` bytes."""

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        """The call without its constants, on probes."""

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        """What it adds to ``linear``, broadcastable to the output; None where it adds nothing.

        ``values`` are asked for shapes and weights only, never for what the probes are.
        """

    def affine(self, site: Site, values: Values, frozen: Decision) -> Any:
        """Both together, computed as the network computes it where that is the same."""


class Moved:
    """Calls that are linear as they are: moves, averages, interpolation, padding by what is there."""

    jacobian = True

    def check(self, site: Site) -> None:
        if site.kind in ("cat", "stack") and len(site.images) < len(site.node.all_input_nodes):
            raise site.refusal("joins the image with fixed values", "join them to what reads this call instead")

    def decide(self, site: Site, values: Values) -> Decision:
        return ()

    def keeps(self, site: Site, shape: torch.Size, itemsize: int) -> int:
        return 0

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        return site.evaluate(values)

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        return None

    def affine(self, site: Site, values: Values, frozen: Decision) -> Any:
        out = self.linear(site, values, frozen)
        added = self.constant(site, values, frozen)
        return out if added is None else out + added


class Sum(Moved):
    """Sums and differences; what does not depend on the image is a constant."""

    def check(self, site: Site) -> None:
        if len(site.node.args) > 2 or not {"input", "other"} <= site.given.keys():
            raise site.refusal("is called in an unknown way", "give it two operands, and alpha by name")

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        return self._without(site, values, lambda operand: operand not in site.images)

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        if all(site.given[name] in site.images for name in ("input", "other")):
            return None
        found: torch.Tensor = self._without(site, values, lambda operand: operand in site.images)
        return found

    def affine(self, site: Site, values: Values, frozen: Decision) -> Any:
        return site.evaluate(values)

    def _without(self, site: Site, values: Values, zero: Callable[[Any], bool]) -> Any:
        operands: list[Any] = []
        for operand in (site.given["input"], site.given["other"]):
            value = values[operand] if isinstance(operand, fx.Node) else operand
            operands.append(_zero(value) if zero(operand) else value)
        if site.graph.calls[site.node].mutates:
            operands[0] = operands[0].clone()
        options = {name: value for name, value in site.node.kwargs.items() if name != "other"}
        return site.graph.target(site.node)(*operands, **options)


class Scale(Moved):
    """Products with what does not depend on the image, and quotients by it."""

    def check(self, site: Site) -> None:
        if len(site.images) != 1 or sum(a is site.images[0] for a in site.given.values()) != 1:
            raise site.refusal(
                "multiplies two values that both depend on the image",
                "freezing does not make it linear; compute one of them outside the network and give it as a constant",
            )
        if site.kind in ("div", "truediv") and site.given["input"] is not site.images[0]:
            raise site.refusal("divides by what depends on the image", "only the image's own stream may be divided")
        if site.given.get("rounding_mode") is not None:
            raise site.refusal("rounds its quotients", "that is not linear; divide without rounding_mode")


class Padded(Moved):
    """Padding: by zeros or by what is there it is linear, another value is a constant."""

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        if self._value(site, values) == 0:
            return site.evaluate(values)
        return F.pad(site.source(values), self._pad(site, values))

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        value = self._value(site, values)
        if value == 0:
            return None
        inside = torch.zeros_like(site.source(values)[:1])
        return F.pad(inside, self._pad(site, values), value=value)

    def _value(self, site: Site, values: Values) -> float:
        if site.module is None and site.operand("mode", values) != "constant":
            return 0.0
        return float(site.operand("value", values) or 0.0)

    def _pad(self, site: Site, values: Values) -> list[int]:
        return list(site.operand("pad" if site.module is None else "padding", values))


class Weighted(Moved):
    """Convolutions, transposed convolutions and linear layers."""

    def check(self, site: Site) -> None:
        if len(site.images) != 1:
            raise site.refusal("has a weight that depends on the image", "only fixed weights can be frozen")

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        bias = site.operand("bias", values)
        if bias is None:
            return site.evaluate(values)
        args = fx.node.map_arg(site.node.args, values.__getitem__)
        kwargs = fx.node.map_arg(site.node.kwargs, values.__getitem__)
        if site.module is not None:
            return functional_call(site.module, {"bias": torch.zeros_like(bias)}, args, kwargs)
        return site.graph.target(site.node)(
            *args[:2],
            *((None,) if len(args) > 2 else ()),
            *args[3:],
            **kwargs | ({"bias": None} if "bias" in kwargs else {}),
        )

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        bias = site.operand("bias", values)
        if bias is None or site.kind == "linear":
            return bias
        found: torch.Tensor = bias.view(-1, *([1] * (site.source(values).dim() - 2)))
        return found

    def affine(self, site: Site, values: Values, frozen: Decision) -> Any:
        return site.evaluate(values)


class BatchNorm(Moved):
    """A scale and a shift in eval mode."""

    def check(self, site: Site) -> None:
        if site.node.target is torch.batch_norm:
            raise site.refusal("is torch.batch_norm", "call torch.nn.functional.batch_norm or nn.BatchNorm2d")
        if site.module is not None and site.module.running_mean is None:
            raise site.refusal("has no running statistics", "an image would depend on its batch; track them")

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        x = site.source(values)
        return x * channels(self.scale(site, values), x)

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        shift = -site.operand("running_mean", values) * self.scale(site, values)
        bias = site.operand("bias", values)
        return channels(shift if bias is None else shift + bias, site.source(values))

    def affine(self, site: Site, values: Values, frozen: Decision) -> Any:
        return site.evaluate(values)

    def scale(self, site: Site, values: Values) -> torch.Tensor:
        """What each channel is multiplied by."""
        scale = torch.rsqrt(site.operand("running_var", values) + site.operand("eps", values))
        weight = site.operand("weight", values)
        found: torch.Tensor = scale if weight is None else scale * weight
        return found


def _zero(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else 0


def channels(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(K) -> (1, K, 1, 1), as many axes as ``like`` has."""
    return vector.view(1, -1, *([1] * (like.dim() - 2)))
