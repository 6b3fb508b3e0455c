"""sRGB and CIELAB (D65, 2 degree observer) as tensors: differentiable everywhere, on any device.

The constants are scikit-image's, and tests hold the numbers to it; sums are written out, so that autocast and TF32 do
not round them. kornia's functions give the same numbers, but under bf16 autocast they are off by 2.6 units of CIELAB
(measured with 0.9.0), and kornia does not import without a compiled package of its own, kornia-rs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
_TO_RGB = tuple(map(tuple, torch.tensor(_TO_XYZ, dtype=torch.float64).inverse().tolist()))
_WHITE = (0.95047, 1.0, 1.08883)
_DARK, _SLOPE, _OFFSET = 0.008856, 7.787, 16 / 116  # below _DARK the cube root becomes a line
_DARK_ROOT = 0.2068966


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """sRGB in 0..1, float [B, 3, H, W] -> L in 0..100, a and b about -110..110."""
    # What a branch does not take is clamped out of it: else its gradient would be 0 * inf.
    linear = torch.where(rgb > 0.04045, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    parts = zip(_mixed(linear, _TO_XYZ), _WHITE, strict=True)
    x, y, z = (_compressed(part / white) for part, white in parts)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """[B, 3, H, W] -> sRGB clipped to 0..1: many a colour of CIELAB is none of sRGB's."""
    y = (lab[:, 0] + 16) / 116
    roots = (y + lab[:, 1] / 500, y, (y - lab[:, 2] / 200).clamp(min=0))
    xyz = torch.stack([_expanded(root) * white for root, white in zip(roots, _WHITE, strict=True)], dim=1)
    linear = torch.stack(_mixed(xyz, _TO_RGB), dim=1)
    bright = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, bright, 12.92 * linear).clamp(0, 1)


def to_unit(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in 0..1."""
    return pixels.to(torch.float32) / 255


def to_bytes(rgb: Tensor) -> Tensor:
    """0..1 -> uint8, rounded and clipped."""
    return (rgb * 255).round().clamp(0, 255).to(torch.uint8)


def _mixed(image: Tensor, matrix: tuple[tuple[float, ...], ...]) -> list[Tensor]:
    first, second, third = image.unbind(1)
    return [a * first + b * second + c * third for a, b, c in matrix]


def _compressed(value: Tensor) -> Tensor:
    return torch.where(value > _DARK, value.clamp(min=_DARK) ** (1 / 3), _SLOPE * value + _OFFSET)


def _expanded(root: Tensor) -> Tensor:
    return torch.where(root > _DARK_ROOT, root**3, (root - _OFFSET) / _SLOPE)
