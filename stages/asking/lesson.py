"""What one image teaches: a conversation of as many answers as were drawn for it, and its loss."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.asking.answers import drawn, truthful
from stages.asking.losses import squared_error, total_variation
from stages.asking.paradigm import Task, converse
from stages.asking.points import laid_out, random_corners
from stages.training_data import Batch


@dataclass(frozen=True)
class LessonConfig:
    """``noise``: standard deviation of what is added to answers in training, in units of y. ``smooth``: lambda_seg,
    the weight of the questions' total variation. ``back``: turns a gradient flows back through (None: all); with one,
    no question would ever be learnt.
    """

    noise: float = 0.02
    smooth: float = 5e-5
    back: int | None = None

    def __post_init__(self) -> None:
        if self.noise < 0 or self.smooth < 0 or (self.back is not None and self.back < 2):
            raise ValueError(f"noise and smooth are at least 0, back at least 2 (or None: all turns); got {self}")


class Lesson(nn.Module):
    """A batch -> the loss of each image [B]: squared error of its last y + smooth * sum of its questions' TV.

    The batch holds ``x`` and ``truth`` as the task makes them, ``hints`` int64 [B], the number of answers, and
    ``noise`` [B, T, K], what is added to them. The whole conversation is one forward pass, as
    DistributedDataParallel wants it.
    """

    def __init__(self, agent: nn.Module, task: Task, config: LessonConfig) -> None:
        super().__init__()
        self.agent, self.task, self.config = agent, task, config

    def forward(self, batch: Batch) -> Tensor:
        # Falling, so that rows that are done can be cut off at the end; stable, so that the order is one.
        counts, order = batch["hints"].sort(descending=True, stable=True)
        x, truth, noise = (batch[name][order.to(batch[name].device)] for name in ("x", "truth", "noise"))
        answerer = truthful(self.task.rule, truth, noise * self.config.noise)
        numbers = counts.tolist()
        smooth, errors = x.new_zeros(len(x)), []
        for turn in converse(self.agent, self.task, x, numbers, answerer, back=self.config.back):
            if turn.asked is not None:
                smooth = smooth + F.pad(total_variation(turn.asked), (0, len(x) - len(turn.asked)))
            going = sum(count > turn.number for count in numbers)
            errors.append(squared_error(turn.y[going:], truth[going : len(turn.y)]))
        losses = torch.cat(errors[::-1]) + self.config.smooth * smooth
        return losses[order.argsort().to(losses.device)]


class PointLesson(nn.Module):
    """A batch -> the squared error of each image [B], all its hints told at once; with none, of x alone.

    The batch holds ``x``, ``truth``, ``hints`` int64 [B] and ``corners`` [B, T, 2], where squares of ``side`` pixels
    are told exactly: Zhang et al. add no noise.
    """

    def __init__(self, agent: nn.Module, task: Task, side: int) -> None:
        super().__init__()
        self.agent, self.task, self.side = agent, task, side

    def forward(self, batch: Batch) -> Tensor:
        x, truth = batch["x"], batch["truth"]
        known, hints = laid_out(self.task, truth, batch["corners"], batch["hints"], self.side)
        y, _ = self.agent(x, known, hints, torch.zeros_like(truth))
        return squared_error(y, truth)


def point_lesson_of(task: Task, rgb: Tensor, seeds: NDArray[np.uint64], hints: int, side: int) -> Batch:
    """A batch of ``PointLesson``: n_hint ~ U{0..hints} squares at random places, drawn from each row's own seed."""
    counts, _ = drawn(seeds, hints, task.answered)
    corners = random_corners(seeds, hints, side, *rgb.shape[2:])
    return {
        "x": task.observe(rgb),
        "truth": task.truth(rgb),
        "hints": torch.from_numpy(counts),
        "corners": corners,
    }


def lesson_of(task: Task, rgb: Tensor, seeds: NDArray[np.uint64]) -> Batch:
    """Pictures [B, 3, H, W], sRGB in 0..1 -> a batch of ``Lesson``; draws are each row's own, by its seed."""
    hints, noise = drawn(seeds, task.hints, task.answered)
    return {
        "x": task.observe(rgb),
        "truth": task.truth(rgb),
        "hints": torch.from_numpy(hints),  # read by the loop; DistributedDataParallel may move it
        "noise": torch.from_numpy(noise).to(rgb.device, rgb.dtype),
    }
