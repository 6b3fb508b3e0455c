"""What stands where the mask hides the image: a blurred copy, the mean colour, or noise."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageFilter

from stages.blur import gaussian_blur

Background = Literal["blur", "mean", "noise"]
RADIUS = 11.0  # standard deviation of the blur in pixels, as PIL's GaussianBlur takes it


def check_background(name: str) -> None:
    if name not in get_args(Background):
        raise ValueError(f"background is {name!r}: it is 'blur', 'mean' or 'noise'")


def blurred(x: torch.Tensor, radius: float = RADIUS) -> torch.Tensor:
    """Gaussian blur of [B, C, H, W], ``radius`` its standard deviation; edges are repeated, as PIL's are."""
    return gaussian_blur(x, radius, edges="replicate")


def blurred_image(image: np.ndarray, radius: float = RADIUS) -> np.ndarray:
    """uint8 [H, W, 3] blurred at its own resolution, by PIL, as the authors' code does before it resizes."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius=radius)))


def noise(seed: int, keys: Sequence[str], shape: Sequence[int]) -> torch.Tensor:
    """White noise [B, *shape], float32, standard normal in the units of a normalised input, from (seed, key) alone."""
    count = math.prod(shape)
    half = -(-count // 2)
    out = np.empty((len(keys), 2 * half))
    for i, key in enumerate(keys):
        digest = hashlib.blake2b(f"gfi noise\0{int(seed)}\0".encode() + key.encode(), digest_size=16).digest()
        words = np.random.Philox(key=np.frombuffer(digest, "<u8").astype(np.uint64)).random_raw(2 * half)
        uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53  # [0, 1), as numpy promises its words only
        radius, angle = np.sqrt(-2 * np.log1p(-uniform[:half])), 2 * np.pi * uniform[half:]
        out[i] = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return torch.from_numpy(out[:, :count].astype(np.float32)).unflatten(1, tuple(shape))
