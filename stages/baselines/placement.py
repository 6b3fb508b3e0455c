"""Where a method's map lies: at the image or at a layer. What all methods of either kind share in being built."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from stages.baselines.registry import Setting


class AtImage:
    """A method whose map has the input's resolution; it takes no layer.

    Keyword arguments of ``__init__`` are the method's options, by these names in ``Setting.options[name]``.
    """

    name: ClassVar[str]
    passes: tuple[float, float] = (1.0, 1.0)
    layers: tuple[str, ...] = ()

    @classmethod
    def layers_for(cls, layer: str | None, setting: Setting) -> tuple[str, ...]:
        if layer is not None:
            raise ValueError(f"{cls.name}:{layer}: the map of {cls.name} lies at the image, so it takes no layer")
        return ()

    @classmethod
    def build(cls, layer: str | None, setting: Setting) -> Self:
        cls.layers_for(layer, setting)
        return cls(**given(cls, setting))


class AtLayer:
    """A method whose map has a layer's resolution: by default the last of the setting's layers."""

    name: ClassVar[str]
    passes: tuple[float, float] = (0.0, 0.05)  # from the last layer on; a rough share

    def __init__(self, layer: str) -> None:
        self.layer = layer
        self.layers: tuple[str, ...] = (layer,)

    @classmethod
    def layers_for(cls, layer: str | None, setting: Setting) -> tuple[str, ...]:
        return (setting.layer(layer),)

    @classmethod
    def build(cls, layer: str | None, setting: Setting) -> Self:
        return cls(setting.layer(layer), **given(cls, setting))


def given(method: type[AtImage] | type[AtLayer], setting: Setting) -> Mapping[str, Any]:
    """The options a setting gives a method. LookupError for one that the method has not, with near matches."""
    options = setting.options.get(method.name, {})
    known = [p.name for p in inspect.signature(method).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'none'}"
            raise LookupError(f"{method.name} has no option {name!r}: {hint}")
    return options
