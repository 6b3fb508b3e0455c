"""Drawings from pictures: the dark side of every edge, as ink on white paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Outline:
    """A difference of Gaussians (Winnemoeller et al. 2012), of which only edges are kept and no tones.

    ``sigma``: of the narrow blur, in pixels; the wide one's is ``ratio`` times that. ``strength``: how fast a
    difference in luminance (0..1) beyond ``threshold`` becomes black.
    """

    sigma: float = 0.7
    ratio: float = 1.6
    strength: float = 40.0
    threshold: float = 0.005

    def __post_init__(self) -> None:
        if self.sigma <= 0 or self.ratio <= 1 or self.strength <= 0 or self.threshold < 0:
            raise ValueError(f"sigma and strength are above 0, ratio above 1, threshold at least 0; got {self}")

    def __call__(self, rgb: Tensor) -> Tensor:
        """sRGB in 0..1, [B, 3, H, W] -> [B, 1, H, W]: 1 is paper, 0 is ink."""
        red, green, blue = rgb.unbind(1)
        light = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
        dip = _blurred(light, self.sigma * self.ratio) - _blurred(light, self.sigma)
        return 1 - torch.tanh(self.strength * (dip - self.threshold).clamp(min=0))


def _blurred(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [B, 1, H, W], cut off at 4 sigma; beyond the edges the image goes on as it ends."""
    reach = int(4 * sigma + 0.5)
    at = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image, (reach, reach, reach, reach), mode="replicate")
    rows = sum(weight * padded[:, :, i : i + image.shape[2]] for i, weight in enumerate(kernel))
    assert isinstance(rows, Tensor)
    both = sum(weight * rows[..., i : i + image.shape[3]] for i, weight in enumerate(kernel))
    assert isinstance(both, Tensor)
    return both
