"""A Gaussian blur of tensors."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn.functional import conv2d, pad


def gaussian_blur(x: torch.Tensor, sigma: float, edges: Literal["reflect", "replicate"] = "reflect") -> torch.Tensor:
    """Images [n, C, h, w] under a Gaussian cut at 3 sigma; beyond the edges they are mirrored or their edge repeated.

    A mirror reaches no further than the image does, so there the Gaussian is cut, too. Blurring commutes with the
    normalisation of colours, so it may be applied to a normalised input.
    """
    out = x.flatten(0, 1).unsqueeze(1)
    for axis in (2, 3):
        reach = int(3 * sigma + 0.5)
        reach = min(reach, x.shape[axis] - 1) if edges == "reflect" else reach
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        kernel = torch.exp(-0.5 * (at / sigma) ** 2)
        kernel = (kernel / kernel.sum()).to(x).view(1, 1, *((-1, 1) if axis == 2 else (1, -1)))
        around = (0, 0, reach, reach) if axis == 2 else (reach, reach, 0, 0)
        out = conv2d(pad(out, around, mode=edges), kernel)
    return out.squeeze(1).unflatten(0, x.shape[:2])
