"""A small classifier and four images, as the stages are handed them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from linear_cases import awake
from torch import nn

from stages.preprocess import Preprocess

SMALL = Preprocess(size=(8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
LABELS = (2, 0, None, 3)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return awake(
        nn.Sequential(
            nn.Conv2d(3, 5, 3, padding=1),
            nn.BatchNorm2d(5),
            nn.ReLU6(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(80, 4),
        )
    )


def batch(chosen: tuple[int, ...] = (0, 1, 2, 3), valid: tuple[bool, ...] | None = None) -> dict[str, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)
    rows = [{"key": f"{i}.png", "label": LABELS[i]} for i in chosen]
    keep = np.array(valid or [True] * len(chosen))
    return {"key": [r["key"] for r in rows], "rows": rows, "valid": keep, "pixels": pixels[list(chosen)]}


def input_of(b: dict[str, Any], i: int) -> torch.Tensor:
    return SMALL.normalise(torch.from_numpy(b["pixels"][i : i + 1])).double().requires_grad_(True)
