"""The calls that decide by the image, frozen as they were at x0: norms of an image, ReLUs, curves, max pooling."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from stages.linear.affine import BatchNorm, Moved, channels
from stages.linear.sites import POOL, Decision, Site, Values


class InstanceNorm(BatchNorm):
    """Mean and standard deviation of x0 (unless running statistics are used: then it is a batch norm)."""

    jacobian = False

    def check(self, site: Site) -> None:
        if site.node.target is torch.instance_norm:
            raise site.refusal("is torch.instance_norm", "call torch.nn.functional.instance_norm or nn.InstanceNorm2d")
        given = site.module is None and not site.given.get("use_input_stats", True)
        if given or (site.module is not None and site.module.running_mean is not None):
            raise site.refusal("uses running statistics", "in eval mode that is a batch norm: use nn.BatchNorm2d")

    def decide(self, site: Site, values: Values) -> Decision:
        x = site.source(values)
        var, mean = torch.var_mean(x, dim=tuple(range(2, x.dim())), correction=0, keepdim=True)
        scale = torch.rsqrt(var + site.operand("eps", values))
        weight, bias = site.operand("weight", values), site.operand("bias", values)
        scale = scale if weight is None else scale * channels(weight, x)
        shift = -mean * scale
        return scale, shift if bias is None else shift + channels(bias, x)

    def keeps(self, site: Site, shape: torch.Size, itemsize: int) -> int:
        return 2 * shape[1] * itemsize

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

    def keeps(self, site: Site, shape: torch.Size, itemsize: int) -> int:
        return shape.numel() * (2 if site.kind in _SATURATING else 1)

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        x = site.source(values)
        if site.kind == "leakyrelu":
            return torch.where(frozen[0], x, x * site.operand("negative_slope", values))
        if site.kind == "prelu":
            weight = site.operand("weight", values)
            return torch.where(frozen[0], x, x * (channels(weight, x) if weight.numel() > 1 else weight))
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

    def keeps(self, site: Site, shape: torch.Size, itemsize: int) -> int:
        return 2 * shape.numel() * itemsize

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        return site.source(values) * frozen[0]

    def constant(self, site: Site, values: Values, frozen: Decision) -> torch.Tensor | None:
        return frozen[1]


class Winner(Moved):
    """Max pooling: what stood where x0 had its maximum."""

    def check(self, site: Site) -> None:
        asked = site.given.get("return_indices", False) if site.module is None else site.module.return_indices
        if asked:
            raise site.refusal("gives the places of its maxima too", "ask for the maxima alone, without return_indices")

    def decide(self, site: Site, values: Values) -> Decision:
        x = site.source(values)
        if site.kind == "adaptivemaxpool2d":
            return (F.adaptive_max_pool2d(x, site.operand("output_size", values), return_indices=True)[1],)
        operands = [site.operand(name, values) for name in POOL]
        return (F.max_pool2d(x, *operands, return_indices=True)[1],)

    def keeps(self, site: Site, shape: torch.Size, itemsize: int) -> int:
        return 8 * shape.numel()

    def linear(self, site: Site, values: Values, frozen: Decision) -> Any:
        x, places = site.source(values), frozen[0]
        found = x.flatten(2).gather(2, places.flatten(2).expand(x.shape[0], -1, -1))
        return found.unflatten(2, places.shape[2:])
