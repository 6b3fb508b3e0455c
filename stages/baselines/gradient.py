"""Backpropagation to the image (Simonyan, Vedaldi, Zisserman 2014, section 3)."""

from __future__ import annotations

import torch

from stages.baselines.placement import AtImage
from stages.baselines.query import Query


class Gradient(AtImage):
    """max over colour channels of |d score / d x|, at the input's resolution; x is the normalised input."""

    name = "gradient"

    def maps(self, query: Query) -> torch.Tensor:
        return query.input_gradient().abs().amax(dim=2)
