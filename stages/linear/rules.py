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

from stages.tracing import Graph

Values = dict[fx.Node, Any]
Decision = tuple[torch.Tensor, ...]

_WEIGHTED = ("input", "weight", "bias")
_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
# Names of the positional operands where a call is a function; a module has them as attributes.
_OPERANDS: dict[str, tuple[str, ...]] = {
    "linear": _WEIGHTED,
    **{f"conv{transpose}{n}d": _WEIGHTED for transpose in ("", "transpose") for n in (1, 2, 3)},
    "batchnorm": _NORM,
    "instancenorm": _NORM,
    "hardtanh": ("input", "min_val", "max_val"),
    "leakyrelu": ("input", "negative_slope"),
    "prelu": ("input", "weight"),
    "maxpool2d": _POOL,
    "adaptivemaxpool2d": ("input", "output_size"),
    "pad": ("input", "pad", "mode", "value"),
}
_DEFAULTS = {"min_val": -1.0, "max_val": 1.0, "negative_slope": 0.01, "eps": 1e-5, "mode": "constant"} | {
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
}


class Site:
    """One call of the graph, with its operands by name whether it is a module, a function or a method."""

    def __init__(self, graph: Graph, node: fx.Node, image: set[fx.Node], name: str) -> None:
        self.graph, self.node, self.name = graph, node, name
        self.kind = graph.calls[node].kind
        self.module: Any = graph.submodule(node)
        self.images = [n for n in node.all_input_nodes if n in image]  # operands that depend on the image

    def operand(self, name: str, values: Values) -> Any:
        if self.module is not None and name != "input":
            return getattr(self.module, name, _DEFAULTS.get(name))
        names = _OPERANDS.get(self.kind, ("input",))
        found = dict(zip(names, self.node.args, strict=False)) | dict(self.node.kwargs)
        value = found.get(name, _DEFAULTS.get(name))
        return values[value] if isinstance(value, fx.Node) else value

    def source(self, values: Values) -> torch.Tensor:
        found: torch.Tensor = self.operand("input", values)
        return found

    def evaluate(self, values: Values) -> Any:
        """The call itself, on other values."""
        return self.graph.evaluate(self.node, values, copy_operand=self.graph.calls[self.node].mutates)

    def refusal(self, why: str, cure: str) -> ValueError:
        return ValueError(f"{self.name!r} ({self.kind}) {why}: {cure}")


class Rule(Protocol):
    jacobian: bool  # freezing equals the derivative at x0

    def check(self, site: Site) -> None:
        """ValueError where this call cannot be frozen."""

    def decide(self, site: Site, values: Values) -> Decision:
        """What to remember of x0, from the values at x0."""

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

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        return self._without(site, values, lambda operand: operand not in site.images)

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        if all(operand in site.images for operand in site.node.args[:2]):
            return None
        found: torch.Tensor = self._without(site, values, lambda operand: operand in site.images)
        return found

    def affine(self, site: Site, values: Values, frozen: Decision) -> Any:
        return site.evaluate(values)

    def _without(self, site: Site, values: Values, zero: Callable[[Any], bool]) -> Any:
        operands: list[Any] = []
        for operand in site.node.args[:2]:
            value = values[operand] if isinstance(operand, fx.Node) else operand
            operands.append(_zero(value) if zero(operand) else value)
        if site.graph.calls[site.node].mutates:
            operands[0] = operands[0].clone()
        return site.graph.target(site.node)(*operands, **site.node.kwargs)


class Scale(Moved):
    """Products with what does not depend on the image, and quotients by it."""

    def check(self, site: Site) -> None:
        if len(site.images) != 1 or sum(a is site.images[0] for a in site.node.args) != 1:
            raise site.refusal(
                "multiplies two values that both depend on the image",
                "freezing does not make it linear; compute one of them outside the network and give it as a constant",
            )
        if site.kind in ("div", "truediv") and site.node.args[0] is not site.images[0]:
            raise site.refusal("divides by what depends on the image", "only the image's own stream may be divided")


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
        if site.module is not None:
            return functional_call(site.module, {"bias": torch.zeros_like(bias)}, (site.source(values),))
        args = fx.node.map_arg(site.node.args, values.__getitem__)
        kwargs = fx.node.map_arg(site.node.kwargs, values.__getitem__)
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
        return x * _channels(self._scale(site, values), x)

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        shift = -site.operand("running_mean", values) * self._scale(site, values)
        bias = site.operand("bias", values)
        return _channels(shift if bias is None else shift + bias, site.source(values))

    def affine(self, site: Site, values: Values, frozen: Decision) -> Any:
        return site.evaluate(values)

    def _scale(self, site: Site, values: Values) -> torch.Tensor:
        scale = torch.rsqrt(site.operand("running_var", values) + site.operand("eps", values))
        weight = site.operand("weight", values)
        found: torch.Tensor = scale if weight is None else scale * weight
        return found


class InstanceNorm(BatchNorm):
    """Mean and standard deviation of x0 (unless running statistics are used: then it is a batch norm)."""

    jacobian = False

    def check(self, site: Site) -> None:
        if site.module is not None and site.module.running_mean is not None:
            raise site.refusal("uses running statistics", "in eval mode that is a batch norm: use nn.BatchNorm2d")

    def decide(self, site: Site, values: Values) -> Decision:
        x = site.source(values)
        var, mean = torch.var_mean(x, dim=tuple(range(2, x.dim())), correction=0, keepdim=True)
        scale = torch.rsqrt(var + site.operand("eps", values))
        weight, bias = site.operand("weight", values), site.operand("bias", values)
        scale = scale if weight is None else scale * _channels(weight, x)
        shift = -mean * scale
        return scale, shift if bias is None else shift + _channels(bias, x)

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        return site.source(values) * frozen[0]

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        return frozen[1]

    def affine(self, site: Site, values: Values, frozen: Decision) -> Any:
        return site.source(values) * frozen[0] + frozen[1]


_SATURATING = ("relu6", "hardtanh")


class Gate(Moved):
    """ReLU and its kin: a mask of x0. What saturates (ReLU6 at 6) is a constant."""

    def decide(self, site: Site, values: Values) -> Decision:
        x = site.source(values)
        if site.kind not in _SATURATING:
            return (x > 0,)
        low, high = self._limits(site, values)
        return (x > low) & (x < high), x >= high

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        x = site.source(values)
        if site.kind == "leakyrelu":
            return torch.where(frozen[0], x, x * site.operand("negative_slope", values))
        if site.kind == "prelu":
            weight = site.operand("weight", values)
            return torch.where(frozen[0], x, x * (_channels(weight, x) if weight.numel() > 1 else weight))
        return torch.where(frozen[0], x, torch.zeros((), dtype=x.dtype, device=x.device))

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        if site.kind not in _SATURATING:
            return None
        low, high = self._limits(site, values)
        like = site.source(values)
        below = torch.where(frozen[0] | frozen[1], like.new_tensor(0), like.new_tensor(low))
        return torch.where(frozen[1], like.new_tensor(high), below)

    def affine(self, site: Site, values: Values, frozen: Decision) -> Any:
        out = self.linear(site, values, frozen)
        added = self.constant(site, values, frozen)
        return out if added is None else torch.where(frozen[0], out, added)

    def _limits(self, site: Site, values: Values) -> tuple[float, float]:
        if site.kind == "relu6":
            return 0.0, 6.0
        return float(site.operand("min_val", values)), float(site.operand("max_val", values))


class Curve(Moved):
    """Sigmoid and tanh: h(x0) / x0 times the probe; where x0 is near 0 the tangent and c = h(x0) - A x0.

    With ``taylor`` the tangent serves everywhere, and freezing is the derivative.
    """

    near = 1e-3  # |x0| below which h(x0) / x0 is not taken (sigmoid's goes to infinity)

    def __init__(self, taylor: bool) -> None:
        self.jacobian = taylor

    def decide(self, site: Site, values: Values) -> Decision:
        x = site.source(values)
        h = torch.tanh(x) if site.kind == "tanh" else torch.sigmoid(x)
        slope = 1 - h * h if site.kind == "tanh" else h * (1 - h)
        if self.jacobian:
            return slope, h - slope * x
        small = x.abs() < self.near
        scale = torch.where(small, slope, h / torch.where(small, 1.0, x))
        return scale, torch.where(small, h - scale * x, 0.0)

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        return site.source(values) * frozen[0]

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        return frozen[1]


class Winner(Moved):
    """Max pooling: what stood where x0 had its maximum."""

    def decide(self, site: Site, values: Values) -> Decision:
        x = site.source(values)
        if site.kind == "adaptivemaxpool2d":
            return (F.adaptive_max_pool2d(x, site.operand("output_size", values), return_indices=True)[1],)
        operands = [site.operand(name, values) for name in _POOL[1:]]
        return (F.max_pool2d(x, *operands, return_indices=True)[1],)

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        x, places = site.source(values), frozen[0]
        found = x.flatten(2).gather(2, places.flatten(2).expand(x.shape[0], -1, -1))
        return found.unflatten(2, places.shape[2:])


_MOVED = (
    "flatten view reshape permute transpose squeeze unsqueeze getitem chunk split unbind contiguous clone float "
    "double to cat stack mean sum neg identity unfold fold roll flip expand repeat "
    "avgpool1d avgpool2d adaptiveavgpool1d adaptiveavgpool2d pixelshuffle pixelunshuffle channelshuffle "
    "interpolate upsample upsamplingnearest2d upsamplingbilinear2d "
    "dropout dropout1d dropout2d dropout3d alphadropout featurealphadropout featuredropout stochasticdepth "
    "zeropad2d reflectionpad1d reflectionpad2d replicationpad2d circularpad2d"
)
_SHAPES = frozenset(("size", "dim", "ndimension", "numel", "zeroslike", "oneslike", "newzeros", "newones"))
_ATTRIBUTES = frozenset(("shape", "dtype", "device", "ndim"))


def tells_shape(graph: Graph, node: fx.Node) -> bool:
    """The call gives nothing of its operand's values, only of its shape or type."""
    kind = graph.calls[node].kind
    return kind in _SHAPES or (node.target is getattr and node.args[1] in _ATTRIBUTES)


def rules(taylor: bool) -> dict[str, Rule]:
    """The rule of every known kind of call."""
    weighted, gate, curve = Weighted(), Gate(), Curve(taylor)
    found: dict[str, Rule] = dict.fromkeys(_MOVED.split(), Moved())
    found |= dict.fromkeys(("add", "sub", "rsub"), Sum())
    found |= dict.fromkeys(("mul", "div", "truediv", "matmul"), Scale())
    found |= dict.fromkeys(("pad", "constantpad2d"), Padded())
    found |= {kind: weighted for kind in _OPERANDS if _OPERANDS[kind] is _WEIGHTED}
    found |= dict.fromkeys(("batchnorm", "batchnorm1d", "batchnorm2d"), BatchNorm())
    found |= dict.fromkeys(("instancenorm", "instancenorm1d", "instancenorm2d"), InstanceNorm())
    found |= dict.fromkeys(("relu", "relu6", "hardtanh", "leakyrelu", "prelu"), gate)
    found |= dict.fromkeys(("sigmoid", "tanh"), curve)
    found |= dict.fromkeys(("maxpool2d", "adaptivemaxpool2d"), Winner())
    return found


def _zero(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else 0


def _channels(vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(K) -> (1, K, 1, 1), as many axes as ``like`` has."""
    return vector.view(1, -1, *([1] * (like.dim() - 2)))
