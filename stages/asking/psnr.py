"""Peak signal-to-noise ratio of 8-bit pictures."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 100.0  # dB that an image without any error counts in a mean


def psnr(picture: Tensor, truth: Tensor) -> Tensor:
    """10 log10(255^2 / mean over channels and pixels of the squared difference), for each image, in dB.

    uint8 [B, 3, H, W] twice -> float64 [B]; infinite where the two are equal.
    """
    if picture.dtype != torch.uint8 or truth.dtype != torch.uint8 or picture.shape != truth.shape:
        raise ValueError(f"PSNR is of 8-bit pictures of one shape: got {picture.dtype} {tuple(picture.shape)} and "
                         f"{truth.dtype} {tuple(truth.shape)}; round with stages.asking.colour.to_bytes")  # fmt: skip
    error = (picture.to(torch.int32) - truth.to(torch.int32)).square().double().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error)
