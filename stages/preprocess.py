"""From a decoded image to a network's input, and from boxes on the image to boxes on that input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes a network's input; the *frame* is part of every localization protocol.

    ``squash`` resizes the whole image to ``size``, so that a map covers all of it. ``crop`` resizes the short side to
    ``resize`` (default: 8/7 of the larger side of ``size``, torchvision's 256 for 224) and keeps the centre.
    ``size`` is (height, width) in pixels; ``mean`` and ``std`` are RGB, for values in 0..1.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    frame: Literal["squash", "crop"] = "squash"
    resize: int | None = None

    def __post_init__(self) -> None:
        if self.frame not in ("squash", "crop"):
            raise ValueError(f"preprocess.frame is {self.frame!r}: it is 'squash' or 'crop'")
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"preprocess.size is {self.size!r}: give (height, width), both at least 1")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("preprocess.mean and preprocess.std hold three numbers each, std above 0")
        if self.resize is not None and self.frame == "crop" and self.resize < max(self.size):
            raise ValueError(
                f"preprocess.resize is {self.resize}, less than the crop {self.size}: make it at least {max(self.size)}"
            )

    def least(self) -> tuple[int, int]:
        """(height, width) of the smallest image that is not enlarged on its way into the frame."""
        return self.size if self.frame == "squash" else (self._short, self._short)

    @property
    def _short(self) -> int:
        """The short side in pixels before a crop."""
        return self.resize if self.resize is not None else round(max(self.size) * 8 / 7)

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) RGB -> uint8 (3, h, w): PIL's bilinear filter, which averages when it shrinks."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"expected uint8 (H, W, 3), got {image.dtype} {image.shape}: decode to RGB first")
        height, width = image.shape[:2]
        new_height, new_width, top, left = self._frame(width, height)
        if (new_height, new_width) != (height, width):
            resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
            image = np.asarray(resized)
        image = image[top : top + self.size[0], left : left + self.size[1]]
        return np.ascontiguousarray(image.transpose(2, 0, 1))

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 (B, 3, h, w) on any device -> float32 of the same shape: (x / 255 - mean) / std."""
        mean = torch.tensor(self.mean, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32, device=pixels.device).view(1, 3, 1, 1)
        return pixels.to(torch.float32).sub_(mean * 255).div_(std * 255)

    def to_frame(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """Boxes (n, 4) as x0, y0, x1, y1 in pixels of a ``width`` x ``height`` image -> float32 (n, 4) in input pixels.

        Clipped to the frame; a box that lies wholly outside a crop collapses to zero area and is not dropped.
        """
        out = np.asarray(boxes, np.float64).reshape(-1, 4).copy()
        new_height, new_width, top, left = self._frame(width, height)
        out[:, 0::2] = np.clip(out[:, 0::2] * (new_width / width) - left, 0, self.size[1])
        out[:, 1::2] = np.clip(out[:, 1::2] * (new_height / height) - top, 0, self.size[0])
        return out.astype(np.float32)

    def from_frame(self, boxes: np.ndarray, width: int, height: int) -> np.ndarray:
        """Boxes (n, 4) in input pixels -> float64 (n, 4) in pixels of the ``width`` x ``height`` image they came from.

        Clipped to the image. What ``to_frame`` does, undone, but for what a crop does not see.
        """
        out = np.asarray(boxes, np.float64).reshape(-1, 4).copy()
        new_height, new_width, top, left = self._frame(width, height)
        out[:, 0::2] = np.clip((out[:, 0::2] + left) * width / new_width, 0, width)
        out[:, 1::2] = np.clip((out[:, 1::2] + top) * height / new_height, 0, height)
        return out

    def _frame(self, width: int, height: int) -> tuple[int, int, int, int]:
        """(height, width) after resizing, and (top, left) of the kept window; torchvision's rounding."""
        if self.frame == "squash":
            return self.size[0], self.size[1], 0, 0
        short = self._short
        if width <= height:
            new_width, new_height = short, int(short * height / width)
        else:
            new_width, new_height = int(short * width / height), short
        return new_height, new_width, round((new_height - self.size[0]) / 2), round((new_width - self.size[1]) / 2)
