"""Maps at another resolution."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[B, R, h, w] to (height, width): bilinear, align_corners=False."""
    return interpolate(maps, size=size, mode="bilinear", align_corners=False)
