"""The agent: a U-Net f(x, q, c, y) -> y', q' with a sigmoid for the question, and how it is kept."""

from __future__ import annotations

import math
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
# What makes a question of logits (:func:`question_of`): which formula, log-odds a standard deviation, log-odds where
# all is alike, and the share of the last question that is taken off.
FORMULA = {"form": 2, "sharpness": 3.0, "level": 1.0, "refusal": 0.7}
_FLAT = 1e-6  # added to variances: logits alike but for rounding ask for everything alike, later for the rest


class UNetAgent(nn.Module):
    """One turn of a task (stages.asking.paradigm.Agent); results are float32 under autocast too.

    A turn starts from what the answer makes of y by itself (``AnswerRule.paint``), and the U-Net says by how much that
    changes: what earlier answers told is not lost, and an answer is of use before anything is learnt.
    """

    def __init__(self, task: Task, config: UNetConfig) -> None:
        super().__init__()
        self.config, self.produced, self.rule = config, task.produced, task.rule
        self.body = UNet(task.observed + 1 + task.answered + task.produced, task.produced + 1, config)

    def forward(self, x: Tensor, question: Tensor, hint: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([x, question, hint, y], 1)
        out = self.body(seen.contiguous(memory_format=torch.channels_last))
        out = out if out.dtype == torch.float64 else out.float()
        change, logits = out[:, : self.produced], out[:, self.produced :]
        return self.rule.paint(y, question, hint) + change, question_of(logits, question)

    def to_files(self) -> dict[str, bytes]:
        tensors = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in self.state_dict().items()}
        return {WEIGHTS: safetensors.torch.save(tensors)}


def question_of(logits: Tensor, last: Tensor) -> Tensor:
    """Logits and the last question, [B, 1, H, W] each -> in 0..1: some places rather than others.

    sigmoid(s z - log mean exp(s z) + level), z = standardised(logits - refusal * their deviation * standardised(last)).
    A plain sigmoid of photographs settles on asking about everything at once. Without the refusal agents settle on
    asking about a picture's largest part again and again (tests/bench/RESULTS.md has both). It pushes away from the
    last question, and from that one alone: a wish that correlates 0.7 with it comes out uncorrelated, the very same
    wish unchanged. Taken off the mean of exp, something small can be asked about alone.
    """
    wish = logits - FORMULA["refusal"] * _deviation(logits) * _standard(last)
    z = FORMULA["sharpness"] * _standard(wish)
    mean = z.flatten(1).logsumexp(1) - math.log(z[0].numel())
    return (z - mean[:, None, None, None] + FORMULA["level"]).sigmoid()


def _deviation(plane: Tensor) -> Tensor:
    return (plane.var((2, 3), correction=0, keepdim=True) + _FLAT).sqrt()


def _standard(plane: Tensor) -> Tensor:
    return (plane - plane.mean((2, 3), keepdim=True)) / _deviation(plane)


def new_agent(task: Task, config: UNetConfig, seed: int = 0) -> UNetAgent:
    """An untrained agent; its start follows from ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNetAgent(task, config)


def described(task: Task, config: UNetConfig) -> dict[str, Any]:
    """What :func:`trained_agent` needs to know beside the weights, JSON-able."""
    return {"task": asdict(task), "unet": asdict(config), "question": dict(FORMULA)}  # type: ignore[call-overload]


def trained_agent(facts: Mapping[str, Any], files: Mapping[str, bytes]) -> tuple[Task, UNetAgent]:
    """The task and its trained agent in eval mode, from what a training returned.

    Raises ValueError where the weights are of another network, or one that asked by another formula.
    """
    if facts.get("question") != FORMULA:
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
