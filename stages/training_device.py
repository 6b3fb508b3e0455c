"""How a device is set up for a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def tuned(device: torch.device) -> Iterator[None]:
    """On a GPU, cuDNN tries its convolutions once for each shape and takes the fastest; ours are of few shapes."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or device.type == "cuda"
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass: TrainingConfig's ``precision``."""
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype=kind or torch.bfloat16, enabled=kind is not None)
