"""Hints at points, as user-guided colorization takes them: small squares, at random or where the error is largest.

The baseline of Zhang et al. (2017): all hints so far lie on one map, and the network looks once. It is the same U-Net;
only where it is told something, and how, differs from an agent that asks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stages.asking.paradigm import Agent, QuestionFunction, Task, Turn
from stages.training_draws import uniform

_SALT = np.uint64(0x706F696E7473)  # other draws than those of augmentation and of answers
_LARGEST = 9 / 256  # Zhang et al. draw squares of up to 9 pixels on pictures of 256

Fill = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, where there are hints [B, 1, H, W], hints [B, K, H, W]) -> y


def side_of(height: int, width: int) -> int:
    """A hint's side in pixels where none is given: odd, at least Zhang et al.'s largest share of the picture."""
    return 2 * math.ceil((min(height, width) * _LARGEST - 1) / 2) + 1


def squares(corners: Tensor, side: int, height: int, width: int) -> Tensor:
    """Top left corners int64 [..., 2] (row, column) -> float32 [..., height, width]: 1 in the squares, 0 outside."""
    rows = torch.arange(height, device=corners.device) - corners[..., :1]
    columns = torch.arange(width, device=corners.device) - corners[..., 1:]
    down, across = ((at >= 0) & (at < side) for at in (rows, columns))
    return (down[..., :, None] & across[..., None, :]).float()


def random_corners(seeds: NDArray[np.uint64], hints: int, side: int, height: int, width: int) -> Tensor:
    """From each row's own seed: corners of ``hints`` squares inside the picture, all alike likely. [B, hints, 2]."""
    numbers = uniform(seeds ^ _SALT, 2 * hints).reshape(len(seeds), hints, 2)
    places = np.array([height - side + 1, width - side + 1])
    return torch.from_numpy(np.minimum((numbers * places).astype(np.int64), places - 1))


def at_random(seeds: NDArray[np.uint64], hints: int, side: int) -> QuestionFunction:
    """Asks about random squares, whatever has been said."""

    def asked(turn: Turn) -> Tensor:
        height, width = turn.x.shape[2:]
        corners = random_corners(seeds, hints, side, height, width)[:, turn.number]
        return squares(corners.to(turn.x.device), side, height, width)[:, None].to(turn.x.dtype)

    return asked


@dataclass
class AtLargestError:
    """Asks about the square with the largest squared error: told by someone who knows the truth [B, C, H, W].

    The first one (by rows) of several; what was asked before counts as right. Of one conversation.
    """

    truth: Tensor
    side: int
    known: Tensor | None = None

    def __call__(self, turn: Turn) -> Tensor:
        error = (turn.y - self.truth).square().sum(1, keepdim=True)
        if self.known is not None:
            error = error * (1 - self.known)
        inside = F.avg_pool2d(error, self.side, stride=1)
        at, across = inside.flatten(1).argmax(1), inside.shape[3]
        corners = torch.stack([at // across, at % across], 1)
        asked = squares(corners, self.side, *turn.x.shape[2:])[:, None].to(turn.x.dtype)
        self.known = asked if self.known is None else torch.maximum(self.known, asked)
        return asked


class OnOneMap:
    """Hints of a conversation gathered on one map, for what looks at all of them at once. Of one conversation.

    A later hint covers an earlier one. It never asks by itself: give the conversation a question function.
    """

    def __init__(self, fill: Fill) -> None:
        self._fill = fill
        self._known: Tensor | None = None
        self._hints: Tensor | None = None

    def __call__(self, x: Tensor, question: Tensor, hint: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self._known is None or self._hints is None:
            self._known, self._hints = torch.zeros_like(question), torch.zeros_like(hint)
        self._hints = torch.where(question > 0, hint, self._hints)
        self._known = torch.maximum(self._known, question)
        return self._fill(x, self._known, self._hints), torch.zeros_like(question)


def network(agent: Agent, task: Task) -> Fill:
    """A trained network that is told everything at once: its last question is where hints are, its last y nothing."""

    def filled(x: Tensor, known: Tensor, hints: Tensor) -> Tensor:
        return agent(x, known, hints, x.new_zeros(len(x), task.produced, *x.shape[2:]))[0]

    return filled


def laid_out(task: Task, truth: Tensor, corners: Tensor, counts: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The first ``counts`` [B] hints of each row at ``corners`` [B, T, 2]: where there are some, and what they tell.

    Returns float [B, 1, H, W] and [B, K, H, W], as :class:`OnOneMap` gathers them.
    """
    rows, _, height, width = truth.shape
    given = torch.arange(corners.shape[1], device=counts.device) < counts[:, None]
    drawn = squares(corners.to(truth.device), side, height, width).to(truth.dtype)
    drawn = drawn * given.to(truth.device, truth.dtype)[:, :, None, None]
    known, hints = truth.new_zeros(rows, 1, height, width), truth.new_zeros(rows, task.answered, height, width)
    for place in drawn.unbind(1):
        asked = place[:, None]
        hints = torch.where(asked > 0, task.rule.hint(asked, task.rule.answer(asked, truth)), hints)
        known = torch.maximum(known, asked)
    return known, hints
