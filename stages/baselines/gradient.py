"""Backpropagation to the image (Simonyan, Vedaldi, Zisserman 2014, section 3)."""

from __future__ import annotations

import torch

from stages.baselines.query import Query
from stages.baselines.registry import Setting


class Gradient:
    """max over colour channels of |d score / d x|, at the input's resolution; x is the normalised input."""

    passes = (1.0, 1.0)

    def __init__(self) -> None:
        self.layers: tuple[str, ...] = ()

    @classmethod
    def layers_for(cls, layer: str | None, setting: Setting) -> tuple[str, ...]:
        if layer is not None:
            raise ValueError(f"gradient:{layer}: the gradient is taken at the image, so it takes no layer")
        return ()

    @classmethod
    def build(cls, layer: str | None, setting: Setting) -> Gradient:
        cls.layers_for(layer, setting)
        return cls()

    def maps(self, query: Query) -> torch.Tensor:
        return query.input_gradient().abs().amax(dim=2)
