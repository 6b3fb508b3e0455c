"""Where a method's map lies: at the image or at a layer. What all methods of either kind share in being built."""

from __future__ import annotations

from typing import ClassVar, Self

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
        return cls(**setting.options.get(cls.name, {}))


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
        return cls(setting.layer(layer), **setting.options.get(cls.name, {}))
