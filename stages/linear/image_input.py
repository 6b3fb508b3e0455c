"""From a decoded image to the input of an image-to-image network: luminance or RGB in 0..1, or as its mean and std say.

The input's size and colours are the same for all networks of a run, so that their filters stand side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from stages.preprocess import Preprocess

Colour = Literal["luminance", "rgb"]
LUMINANCE = (0.299, 0.587, 0.114)  # Y of JPEG and of ITU-R BT.601, full range
_PLAIN = Preprocess(size=(64, 64), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), frame="crop")


@dataclass(frozen=True)
class ImageInput:
    """``preprocess`` frames the image; its mean and std are 0 and 1 for networks of images in 0..1."""

    preprocess: Preprocess = _PLAIN
    colour: Colour = "luminance"

    def __post_init__(self) -> None:
        if self.colour not in ("luminance", "rgb"):
            raise ValueError(f"colour is {self.colour!r}: it is 'luminance' or 'rgb'")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (1 if self.colour == "luminance" else 3, *self.preprocess.size)

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) of any size -> uint8 (3, h, w) of the input's."""
        return self.preprocess.pixels(image)

    def tensor(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, h, w) on any device -> float64 (B, C, h, w)."""
        mean, std = (torch.tensor(v, dtype=torch.float64, device=pixels.device) for v in self._scale())
        x = (pixels.to(torch.float64) / 255 - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
        if self.colour == "rgb":
            return x
        weights = torch.tensor(LUMINANCE, dtype=torch.float64, device=pixels.device)
        return (x * weights.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)

    def _scale(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.preprocess.mean, self.preprocess.std
