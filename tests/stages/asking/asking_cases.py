"""What the tests of asking networks share."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.asking.agent import UNetAgent, new_agent
from stages.asking.paradigm import Task
from stages.asking.tasks import ColorDrawing, ColorNatural, Inpaint
from stages.asking.unet import UNetConfig

ALL_TASKS = [ColorNatural(), ColorDrawing(), Inpaint()]
SMALL = UNetConfig(width=4, depth=3)


def pictures(count: int, height: int = 12, width: int = 10, seed: int = 0) -> Tensor:
    """uint8 [count, 3, height, width]: smooth colours with an edge."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 3, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(corners, (height, width), mode="bilinear", align_corners=True)
    smooth[:, :, height // 3 :, width // 2 :] *= 0.3
    return (smooth * 255).round().to(torch.uint8)


def small_agent(task: Task, seed: int = 0) -> UNetAgent:
    return new_agent(task, SMALL, seed).double()
