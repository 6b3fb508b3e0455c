"""Every attribution method by name, behind one signature.

A method is built once (``build``) and then answers queries: ``maps(query) -> [B, R, h', w']`` float, one map for each
image and asked class, at whatever resolution it has. A map that is NaN everywhere means "no answer for this class"
(CHIP without a fit) and counts as wrong, apart. ``name:layer`` asks for another layer than the default, the last one
listed.

Real-time saliency (Dabkowski and Gal 2017) is not among them: its maps come from a masking network trained for each
classifier, and one trained in passing would not be theirs. Boxes that look at nothing are in
`stages.baselines.rectangles`.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Protocol

import torch

from stages.baselines.query import Query
from stages.network import Cut
from stages.preprocess import Preprocess


@dataclass(frozen=True)
class Setting:
    """What methods are built from: the layers by role (first to last), and tables such as CHIP's "solve".

    ``options`` are keyword arguments of methods by the method's name: ``{"lime": {"samples": 500}}``; ``preprocess``
    is how images became the network's input, for methods that look at their colours.
    """

    layers: tuple[str, ...] = ("first_conv", "last_conv")
    signed: bool = False
    tables: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)

    def layer(self, asked: str | None) -> str:
        if asked is None and not self.layers:
            raise ValueError("no layers are given: list at least one, for instance last_conv")
        return self.layers[-1] if asked is None else asked


class Method(Protocol):
    """An attribution method; ``layers`` are the taps it reads, so that one prefix pass serves all methods.

    ``passes`` is (forwards, backwards) per asked class besides the shared prefix, in whole networks: for estimates.
    """

    layers: Sequence[str]
    passes: tuple[float, float]

    def maps(self, query: Query) -> torch.Tensor: ...


# Names, not classes: a method is imported when it is asked for.
METHODS: dict[str, str] = {
    "chip": "stages.chip.maps:Chip",
    "refined_chip": "stages.chip.maps:RefinedChip",
    "guided_chip": "stages.chip.maps:GuidedChip",
    "grad_cam": "stages.baselines.grad_cam:GradCam",
    "gradient": "stages.baselines.gradient:Gradient",
    "guided_backprop": "stages.baselines.guided:GuidedBackprop",
    "smooth_grad": "stages.baselines.paths:SmoothGrad",
    "integrated_gradients": "stages.baselines.paths:IntegratedGradients",
    "guided_grad_cam": "stages.baselines.guided_grad_cam:GuidedGradCam",
    "cam": "stages.baselines.cam:Cam",
    "lrp": "stages.baselines.lrp:Lrp",
    "excitation_backprop": "stages.baselines.excitation:ExcitationBackprop",
    "c_mwp": "stages.baselines.excitation:ContrastiveMwp",
    "occlusion": "stages.baselines.occlusion:Occlusion",
    "lime": "stages.baselines.lime:Lime",
    "gfi": "stages.baselines.gfi:Gfi",
    "optimised_mask": "stages.baselines.optimised_mask:OptimisedMask",
    "ft": "stages.baselines.frequency_tuned:FrequencyTuned",
}


def build(name: str, setting: Setting) -> Method:
    """The method called ``name`` or ``name:layer``. LookupError for an unknown name or option, with near matches."""
    kind = name.partition(":")[0]
    check_options([kind], {k: v for k, v in setting.options.items() if k == kind})
    method: Method = _class_of(name).build(name.partition(":")[2] or None, setting)  # type: ignore[attr-defined]
    return method


def check(methods: Mapping[str, Method], cut: Cut) -> None:
    """ValueError for a method that this network cannot answer (CAM without global average pooling, say)."""
    for name, method in methods.items():
        own = getattr(method, "check", None)
        if own is not None:
            try:
                own(cut)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error


def check_options(names: Sequence[str], options: Mapping[str, Mapping[str, Any]]) -> None:
    """LookupError for options of a method that does not exist, or of one of ``names`` that does not have them."""
    kinds = {name.partition(":")[0] for name in names}
    for kind, mine in options.items():
        if kind not in kinds:
            _class_of(kind)  # those of a method that is not asked this time may stay
            continue
        parameters = signature(_class_of(kind)).parameters.values()
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            continue  # it knows its options itself
        known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        for option in mine:
            if option not in known:
                close = difflib.get_close_matches(option, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'none'}"
                raise LookupError(f"{kind} has no option {option!r}: {hint}")


def layers_of(names: Sequence[str], layers: Sequence[str]) -> tuple[str, ...]:
    """The layers a network must be cut at for these methods, each once; known without tables."""
    found: dict[str, None] = {}
    for name in names:
        wanted = _class_of(name).layers_for(name.partition(":")[2] or None, Setting(tuple(layers)))  # type: ignore[attr-defined]
        found.update(dict.fromkeys(wanted))
    return tuple(found)


def _class_of(name: str) -> type:
    kind = name.partition(":")[0]
    if kind not in METHODS:
        close = difflib.get_close_matches(kind, METHODS, n=2)
        hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(METHODS)}"
        raise LookupError(f"no attribution method {kind!r}: {hint}")
    module, attribute = METHODS[kind].split(":")
    found: type = getattr(importlib.import_module(module), attribute)
    return found
