"""Random resized crops and mirror images on uint8 tensors, in whole numbers.

A row comes out the same, to the last bit, in whatever batch and on whatever device: what is drawn depends on its seed,
and bilinear weights are 7-bit integers. Nothing is averaged when a window shrinks: let the images come in little larger
than the network's input (``crop_frame``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.preprocess import Preprocess
from stages.training_draws import uniform

ONE = 128  # a bilinear weight of 1


@dataclass(frozen=True)
class AugmentConfig:
    """``scale``: share of the image's area that a crop keeps; ``ratio``: its width over its height, log-uniform."""

    scale: tuple[float, float] = (0.35, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        if not (0 < self.scale[0] <= self.scale[1] <= 1 and 0 < self.ratio[0] <= self.ratio[1]):
            raise ValueError(f"scale {self.scale}, ratio {self.ratio}: give (low, high), above 0, scale at most 1")


def crop_frame(frame: Preprocess) -> Preprocess:
    """How images are best held that crops are taken from: at 8/7 of the size that the network sees."""
    height, width = frame.size
    return replace(frame, size=(round(height * 8 / 7), round(width * 8 / 7)), resize=None)


def windows(
    seeds: NDArray[np.uint64], height: int, width: int, config: AugmentConfig
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """What each row keeps of its image: [B, (top, left, height, width)] in pixels, and whether it is mirrored [B].

    A window that would be larger than the image ends at its edges.
    """
    area, ratio, top, left, mirror = uniform(seeds, 5).T
    area = (config.scale[0] + area * (config.scale[1] - config.scale[0])) * height * width
    low, high = np.log(config.ratio)
    ratio = np.exp(low + ratio * (high - low))
    h = np.clip(np.rint(np.sqrt(area / ratio)), 1, height).astype(np.int64)
    w = np.clip(np.rint(np.sqrt(area * ratio)), 1, width).astype(np.int64)
    y = (top * (height - h + 1)).astype(np.int64)
    x = (left * (width - w + 1)).astype(np.int64)
    return np.stack([y, x, h, w], axis=1), (mirror < 0.5) & config.flip


def resample(image: Tensor, window: NDArray[np.int64], mirrored: NDArray[np.bool_], size: tuple[int, int]) -> Tensor:
    """uint8 [B, c, H, W] -> uint8 [B, c, *size]: each row's window, bilinear, pixel centres at halves."""
    at = torch.from_numpy(window).to(image.device)
    y0, y1, v = _positions(at[:, 0], at[:, 2], size[0])
    x0, x1, u = _positions(at[:, 1], at[:, 3], size[1])
    turned = torch.from_numpy(mirrored).to(image.device)[:, None]
    x0, x1, u = (torch.where(turned, part.flip(1), part) for part in (x0, x1, u))
    rows = torch.arange(len(image), device=image.device)[:, None, None]
    channels = torch.arange(image.shape[1], device=image.device)[None, :, None]
    upper, lower = (image[rows, channels, y[:, None, :]] for y in (y0, y1))
    v16 = v[:, None, :, None].to(torch.int16)
    lines = upper.to(torch.int16).mul_(ONE - v16).add_(lower.to(torch.int16).mul_(v16))  # at most 255 * 128
    shape = (-1, image.shape[1], size[0], -1)
    left, right = (lines.gather(3, x[:, None, None, :].expand(shape)) for x in (x0, x1))
    u32 = u[:, None, None, :].to(torch.int32)
    blend = left.to(torch.int32).mul_(ONE - u32).add_(right.to(torch.int32).mul_(u32))
    return blend.add_(ONE * ONE // 2).div_(ONE * ONE, rounding_mode="floor").to(torch.uint8)


def whole(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The whole image at ``size``; itself where it has it."""
    if tuple(image.shape[2:]) == tuple(size):
        return image
    window = np.tile(np.array([0, 0, image.shape[2], image.shape[3]]), (len(image), 1))
    return resample(image, window, np.zeros(len(image), dtype=bool), size)


def vary(image: Tensor, seeds: NDArray[np.uint64], config: AugmentConfig, size: tuple[int, int]) -> Tensor:
    """A random window of each image, perhaps mirrored, at ``size``."""
    window, mirrored = windows(seeds, image.shape[2], image.shape[3], config)
    return resample(image, window, mirrored, size)


def _positions(start: Tensor, length: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two source pixels [B, count] of each output pixel, and the second one's weight in 1/128."""
    step = 2 * torch.arange(count, device=start.device) + 1
    # (i + 1/2) length / count - 1/2, in 1/128 of a pixel.
    exact = torch.div((step * length[:, None] - count) * ONE, 2 * count, rounding_mode="floor")
    exact = exact.clamp(min=0).minimum((length[:, None] - 1) * ONE)
    first = torch.div(exact, ONE, rounding_mode="floor")
    second = (first + 1).minimum(length[:, None] - 1)
    return start[:, None] + first, start[:, None] + second, exact - first * ONE
