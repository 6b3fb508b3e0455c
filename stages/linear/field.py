"""Receptive fields found by propagation: which inputs an output can read, along each image axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import fx

from stages.linear.sites import Site
from stages.linear.stream import Frozen

_ACTIVATIONS = ("relu", "relu6", "hardtanh", "leakyrelu", "prelu", "sigmoid", "tanh", "dropout", "dropout2d")
_NORMS = ("batchnorm", "batchnorm2d", "instancenorm", "instancenorm2d")
_ARITHMETIC = ("add", "sub", "rsub", "mul", "div", "truediv", "neg", "clone", "contiguous", "identity")
_KEEP = frozenset((*_ACTIVATIONS, *_NORMS, *_ARITHMETIC, "float", "double", "cat", "getitem", "chunk", "split"))
# Windows as functions: the names of their operands by place.
_CONV = ("input", "weight", "bias", "stride", "padding")
_WINDOWED: dict[str, tuple[str, ...]] = {
    "conv2d": (*_CONV, "dilation", "groups"),
    "convtranspose2d": (*_CONV, "output_padding", "groups", "dilation"),
    "maxpool2d": ("input", "kernel_size", "stride", "padding", "dilation"),
    "avgpool2d": ("input", "kernel_size", "stride", "padding"),
}
# How far beyond its padding an image is read at its border, in paddings.
_BEYOND = {"zeros": 0, "constant": 0, "replicate": 1, "reflect": 2}
_PADS = {"zeropad2d": "zeros", "constantpad2d": "zeros", "replicationpad2d": "replicate", "reflectionpad2d": "reflect"}


@dataclass(frozen=True)
class Axis:
    """Output i reads inputs within [step * i + low, step * i + high]."""

    step: Fraction = Fraction(1)
    low: Fraction = Fraction(0)
    high: Fraction = Fraction(0)

    def then(self, step: Fraction | int, low: Fraction | int, high: Fraction | int) -> Axis:
        """A call whose output i reads its own input within [step * i + low, step * i + high]."""
        return Axis(self.step * step, self.low + self.step * low, self.high + self.step * high)

    @property
    def width(self) -> int:
        """Most inputs one output reads: the size of a row's patch."""
        return math.floor(self.high - self.low) + 1

    @property
    def reach(self) -> int:
        """Most outputs that read one input: the size of a column's patch."""
        return math.floor((self.high - self.low) / self.step) + 1

    def first_input(self, i: int) -> int:
        """Where the row patch of output i begins (may lie outside the image)."""
        return math.ceil(self.step * i + self.low)

    def first_output(self, j: int) -> int:
        """Where the column patch of input j begins."""
        return math.ceil((j - self.high) / self.step)


Field = tuple[Axis, Axis]


def receptive_field(frozen: Frozen) -> Field | None:
    """(rows, columns) of the output's field, or None where it is not bounded (a linear layer, a global average).

    The output is an image (B, K, h, w). An instance norm is bounded: its mean and deviation are those of x0.
    """
    graph = frozen.graph
    shapes = [graph.calls[n].shape for n in (graph.input, graph.output)]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return None
    found: dict[fx.Node, Field | None] = {graph.input: (Axis(), Axis())}
    for node in frozen.nodes:
        site = frozen.sites.get(node)
        if site is None:
            continue
        fields = [found[n] for n in site.images]
        joined = _union(fields)
        found[node] = None if joined is None else _after(site, joined)
    return found[graph.output]


def _union(fields: list[Field | None]) -> Field | None:
    axes = []
    for k in range(2):
        parts = [f[k] for f in fields if f is not None]
        if len(parts) < len(fields) or len({p.step for p in parts}) != 1:
            return None
        axes.append(Axis(parts[0].step, min(p.low for p in parts), max(p.high for p in parts)))
    return axes[0], axes[1]


def _after(site: Site, field: Field) -> Field | None:
    kind = site.kind
    if kind in _KEEP:
        return field if _leaves_axes(site) else None
    if kind in ("interpolate", "upsample", "upsamplingnearest2d", "upsamplingbilinear2d"):
        return _enlarged(site, field)
    if kind in ("pad", *_PADS):
        return _padded(site, field)
    options = _options(site)
    if options is None:
        return None
    found = []
    for k, axis in enumerate(field):
        size, stride, pad, dilation = (_pick(options.get(n, d), k) for n, d in _WINDOW.items())
        span = dilation * (size - 1)
        if kind == "convtranspose2d":
            # output i reads input j where i = stride * j - pad + dilation * t
            found.append(axis.then(Fraction(1, stride), Fraction(pad - span, stride), Fraction(pad, stride)))
        elif kind == "pixelshuffle":
            found.append(axis.then(Fraction(1, size), Fraction(1 - size, size), 0))
        elif kind == "pixelunshuffle":
            found.append(axis.then(size, 0, size - 1))
        else:
            extra = options.get("beyond", 0) * pad
            found.append(axis.then(stride, -pad - extra, span - pad + extra))
    return found[0], found[1]


_WINDOW = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}


def _options(site: Site) -> dict[str, Any] | None:
    """Window, stride, padding and dilation of a call; None where its field is not known to be bounded."""
    module, kind = site.module, site.kind
    if kind in ("pixelshuffle", "pixelunshuffle"):
        name = "upscale_factor" if kind == "pixelshuffle" else "downscale_factor"
        factor = getattr(module, name) if module is not None else _given(site, ("input", name)).get(name)
        return {"kernel_size": factor} if isinstance(factor, int) else None
    if kind not in _WINDOWED:
        return None
    if module is not None:
        found = {name: getattr(module, name, default) for name, default in _WINDOW.items()}
        beyond = _BEYOND.get(getattr(module, "padding_mode", "zeros"))
    else:
        found, beyond = _WINDOW | ({"stride": None} if "pool" in kind else {}) | _given(site, _WINDOWED[kind]), 0
        weight = found.pop("weight", None)
        if isinstance(weight, fx.Node):
            found["kernel_size"] = (site.graph.calls[weight].shape or ())[2:]
    if found["stride"] is None:  # a pool's own size
        found["stride"] = found["kernel_size"]
    if found["padding"] == "valid":
        found["padding"] = 0
    if found["padding"] == "same" and all(_pick(found["kernel_size"], k) % 2 for k in range(2)):
        found["padding"] = tuple(_pick(found["dilation"], k) * (_pick(found["kernel_size"], k) // 2) for k in range(2))
    known = all(_is_numbers(found[name]) for name in _WINDOW) and beyond is not None
    return found | {"beyond": beyond} if known else None


def _given(site: Site, names: tuple[str, ...]) -> dict[str, Any]:
    """The operands of a function's call, by name."""
    return dict(zip(names, site.node.args, strict=False)) | dict(site.node.kwargs)


def _is_numbers(value: Any) -> bool:
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return bool(parts) and all(isinstance(part, int) for part in parts)


def _padded(site: Site, field: Field) -> Field | None:
    """Padding by a module or a function, on the image axes alone."""
    if site.module is not None:
        pads, mode = site.module.padding, _PADS[site.kind]
    else:
        given = _given(site, ("input", "pad", "mode", "value"))
        pads, mode = given.get("pad"), given.get("mode", "constant")
    if not _is_numbers(pads) or len(pads) != 4 or mode not in _BEYOND:
        return None
    left, right, top, bottom = pads
    found = []
    for axis, (before, after) in zip(field, ((top, bottom), (left, right)), strict=True):
        # At the far border output i stands for input i - before - (beyond * how far it lies outside).
        low, high = -before - _BEYOND[mode] * max(after, 0), -before + _BEYOND[mode] * max(before, 0)
        found.append(axis.then(1, low, high))
    return found[0], found[1]


def _pick(value: Any, k: int) -> int:
    return int(value[k]) if isinstance(value, (tuple, list)) else int(value)


def _leaves_axes(site: Site) -> bool:
    """The image axes stay as they are: joins, splits and slices are along the channels."""
    node, kind = site.node, site.kind
    if kind in ("cat", "chunk", "split"):
        place = 1 if kind == "cat" else 2
        return node.kwargs.get("dim", node.args[place] if len(node.args) > place else 0) in (1, -3)
    source = node.args[0] if node.args else None
    if kind != "getitem" or not isinstance(source, fx.Node) or site.graph.calls[source].shape is None:
        return True  # picking one of several tensors
    index: Any = node.args[1]
    parts = list(index) if isinstance(index, tuple) else [index]
    whole = slice(None)
    return parts[0] == whole and all(p == whole for p in parts[2:]) and isinstance(parts[-1], slice)


_TAPS = {"nearest": (-1, 0), "bilinear": (-1, 1), "bicubic": (-2, 2)}


def _enlarged(site: Site, field: Field) -> Field | None:
    """Interpolation to a whole multiple of the size; others are not known to be bounded."""
    shapes = [site.graph.calls[n].shape for n in (site.images[0], site.node)]
    if site.module is None:
        names = ("input", "size", "scale_factor", "mode", "align_corners")
        asked: dict[str, Any] = dict(zip(names, site.node.args, strict=False)) | dict(site.node.kwargs)
    else:
        asked = {"mode": site.module.mode, "align_corners": site.module.align_corners}
    taps = _TAPS.get(asked.get("mode", "nearest"))
    if taps is None or asked.get("align_corners") or asked.get("antialias"):
        return None
    found = []
    for axis, before, after in zip(field, (shapes[0] or ())[2:], (shapes[1] or ())[2:], strict=True):
        scale = Fraction(after, before)
        if scale.denominator != 1:
            return None
        # Half-pixel centres, except for nearest.
        centre = Fraction(0) if taps[1] == 0 else 1 / (2 * scale) - Fraction(1, 2)
        found.append(axis.then(1 / scale, centre + taps[0], centre + taps[1]))
    return found[0], found[1]
