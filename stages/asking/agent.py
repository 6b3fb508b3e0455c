"""The agent: a U-Net f(x, q, c, y) -> y', q' with a sigmoid for the question, and how it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from stages.asking.paradigm import Task
from stages.asking.tasks import task_of
from stages.asking.unet import UNet, UNetConfig

WEIGHTS = "agent.safetensors"
SHARPNESS = 2.0  # of a question, in standard deviations of its logits
_FLAT = 1e-6  # added to the variance: logits that are all alike ask for everything alike


class UNetAgent(nn.Module):
    """One turn of a task (stages.asking.paradigm.Agent); results are float32 under autocast too.

    A turn says by how much the last y changes (at first: from 0), so that what earlier answers told is not lost. A
    question is the sigmoid of logits that are standardised over the picture (:func:`question_of`).
    """

    def __init__(self, task: Task, config: UNetConfig) -> None:
        super().__init__()
        self.config, self.produced = config, task.produced
        self.body = UNet(task.observed + 1 + task.answered + task.produced, task.produced + 1, config)

    def forward(self, x: Tensor, question: Tensor, hint: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([x, question, hint, y], 1)
        out = self.body(seen.contiguous(memory_format=torch.channels_last))
        out = out if out.dtype == torch.float64 else out.float()
        return y + out[:, : self.produced], question_of(out[:, self.produced :])

    def to_files(self) -> dict[str, bytes]:
        tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in self.state_dict().items()}
        return {WEIGHTS: safetensors.torch.save(tensors)}


def question_of(logits: Tensor) -> Tensor:
    """[B, 1, H, W] -> in 0..1: always some places rather than others, whatever the logits' level and scale.

    A plain sigmoid of photographs settles on asking about everything at once: the answer is then the mean of the whole
    picture, every time, and questions that are near 1 everywhere hardly learn (tests/bench/RESULTS.md).
    """
    centred = logits - logits.mean((2, 3), keepdim=True)
    deviation = (centred.square().mean((2, 3), keepdim=True) + _FLAT).sqrt()
    return (SHARPNESS * centred / deviation).sigmoid()


def new_agent(task: Task, config: UNetConfig, seed: int = 0) -> UNetAgent:
    """An untrained agent; its start follows from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNetAgent(task, config)


def described(task: Task, config: UNetConfig) -> dict[str, Any]:
    """What :func:`trained_agent` needs to know beside the weights, JSON-able."""
    return {"task": asdict(task), "unet": asdict(config), "sharpness": SHARPNESS}  # type: ignore[call-overload]


def trained_agent(facts: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[Task, UNetAgent]:
    """The task and its trained agent in eval mode, from what a training returned.

    Raises ValueError where the weights are of another network, or one whose questions had other edges.
    """
    if facts.get("sharpness") != SHARPNESS:
        raise ValueError("the network was trained with another formula for its questions: train again")
    task = task_of(facts["task"])
    agent = UNetAgent(task, UNetConfig(**facts["unet"]))
    tensors, own = safetensors.torch.load(files[WEIGHTS]), agent.state_dict()
    wrong = sorted(
        k for k in own.keys() | tensors.keys() if k not in own or k not in tensors or own[k].shape != tensors[k].shape
    )
    if wrong:
        raise ValueError(f"the trained weights are of another network (they differ at {wrong[0]}): train again")
    agent.load_state_dict(tensors)
    return task, agent.requires_grad_(False).eval()
