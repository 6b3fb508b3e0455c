"""From channel weights to a mask over the image, and the two images that a mask makes of one."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn.functional import interpolate

from stages.resize import upsample

Upsampling = Literal["scaled", "enlarged"]


def combine(weights: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """sum_k w_k f_k: ``weights`` [B, K], ``features`` [B, K, h, w] -> [B, h, w]."""
    return torch.bmm(weights.unsqueeze(1), features.flatten(2)).unflatten(2, features.shape[2:]).squeeze(1)


def low_mask(heat: torch.Tensor, upsampling: Upsampling) -> torch.Tensor:
    """The map [B, h, w] at its own resolution, as it is stored: :func:`enlarge` makes the mask of it.

    "scaled": min-max to 0..1. "enlarged": divided by its largest magnitude, which the final form does not see. Maps
    without contrast (w = 0, dead features) divide 0 by 0: they are 0 everywhere, and so is their gradient.
    """
    if upsampling == "scaled":
        low = heat.amin(dim=(1, 2), keepdim=True)
        return _ratio(heat - low, heat.amax(dim=(1, 2), keepdim=True) - low)
    return _ratio(heat, heat.abs().amax(dim=(1, 2), keepdim=True))


def enlarge(low: torch.Tensor, size: tuple[int, int], upsampling: Upsampling) -> torch.Tensor:
    """:func:`low_mask`'s answer (or, for "enlarged", any positive multiple) at the input's size: [B, 1, H, W]."""
    if upsampling == "scaled":
        return upsample(low.unsqueeze(1), size)
    large = interpolate(low.unsqueeze(1), size=size, mode="bilinear", align_corners=True)
    return _ratio(large - large.amin(dim=(2, 3), keepdim=True), large.amax(dim=(2, 3), keepdim=True))


def mask_of(
    weights: torch.Tensor, features: torch.Tensor, size: tuple[int, int], upsampling: Upsampling
) -> torch.Tensor:
    """The mask [B, 1, H, W] of ``weights`` [B, K] over ``features`` [B, K, h, w]; unchanged when w is scaled."""
    heat = combine(weights, features)
    return enlarge(low_mask(heat, upsampling) if upsampling == "scaled" else heat, size, upsampling)


def kept(x: torch.Tensor, background: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Phi: the image where the mask is 1, the background where it is 0."""
    return x * mask + background * (1 - mask)


def removed(x: torch.Tensor, background: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Phi_bg: the background where the mask is 1, the image where it is 0."""
    return x * (1 - mask) + background * mask


def _ratio(value: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """value / scale, and 0 without a gradient where the scale is not above 0; NaN stays NaN."""
    usable = (scale > 0) | scale.isnan()
    return torch.where(usable, value / torch.where(usable, scale, 1), 0)
