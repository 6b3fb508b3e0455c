"""Gradients averaged over inputs near the image: SmoothGrad and integrated gradients."""

from __future__ import annotations

import numpy as np
import torch

from stages.baselines.draws import generators
from stages.baselines.placement import AtImage
from stages.baselines.query import Query


class SmoothGrad(AtImage):
    """|mean gradient under noise|, its largest colour channel (Smilkov et al. 2017).

    ``noise`` is the noise's standard deviation as a share of the image's own range, max - min of the normalised input.
    """

    name = "smooth_grad"

    def __init__(self, *, samples: int = 25, noise: float = 0.15) -> None:
        if samples < 1 or noise < 0:
            raise ValueError(f"smooth_grad takes at least 1 sample and noise >= 0, got {samples} and {noise}")
        self.samples, self.noise = samples, noise
        self.passes = (float(samples), float(samples))

    def maps(self, query: Query) -> torch.Tensor:
        x = query.x
        draws = generators(query.seed, query.keys, self.name, len(x))
        sigma = self.noise * (x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True))
        total: torch.Tensor | float = 0.0
        for _ in range(self.samples):
            noise = np.stack([draw.standard_normal(x.shape[1:], dtype=np.float32) for draw in draws])
            total = total + query.input_gradient_at(x + sigma * torch.from_numpy(noise).to(x))
        assert isinstance(total, torch.Tensor)
        return (total / self.samples).abs().amax(dim=2)


class IntegratedGradients(AtImage):
    """(x - x') times the mean gradient on the straight way from x' to x, summed over colours (Sundararajan 2017).

    x' is the mean colour, 0 of the normalised input. Gauss-Legendre nodes; signed: the map sums to the score at x minus
    the score at x', but for the quadrature's error.
    """

    name = "integrated_gradients"

    def __init__(self, *, steps: int = 32) -> None:
        if steps < 1:
            raise ValueError(f"integrated_gradients takes at least 1 step, got {steps}")
        self.steps = steps
        self.passes = (float(steps), float(steps))

    def maps(self, query: Query) -> torch.Tensor:
        return self.attribution(query).sum(dim=2)

    def attribution(self, query: Query) -> torch.Tensor:
        """Per colour: [B, R, 3, h, w]."""
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        total: torch.Tensor | float = 0.0
        for node, weight in zip((1 + nodes) / 2, weights / 2, strict=True):
            total = total + float(weight) * query.input_gradient_at(float(node) * query.x)
        assert isinstance(total, torch.Tensor)
        return total * query.x[:, None]
