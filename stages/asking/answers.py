"""Answers: the mean under the question, told by someone who knows the truth, with noise while training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.asking.paradigm import Answerer, AnswerRule
from stages.training_draws import uniform

_SALT = np.uint64(0x61736B696E67)  # these draws are others than those of augmentation


@dataclass(frozen=True)
class MeanAnswer:
    """a = sum(q * y) / sum(q) over the pixels, for each channel of y; c = q * a."""

    def answer(self, question: Tensor, truth: Tensor) -> Tensor:
        """Only the shape of the question matters, not its scale; one that is 0 everywhere is answered with 0."""
        top = question.detach().amax((2, 3), keepdim=True)
        weight = question / torch.where(top > 0, top, 1)  # so that nothing is lost to underflow
        total = weight.sum((2, 3))
        return (weight * truth).sum((2, 3)) / torch.where(total > 0, total, 1)

    def hint(self, question: Tensor, answer: Tensor) -> Tensor:
        return question * answer[:, :, None, None]

    def paint(self, y: Tensor, question: Tensor, hint: Tensor) -> Tensor:
        """(1 - q) y + c: the answer over what was asked."""
        return y + hint - question * y


def truthful(rule: AnswerRule, truth: Tensor, noise: Tensor | None = None) -> Answerer:
    """Answers by the rule; ``noise`` [B, T, K] is added. Of ``truth`` [B, C, H, W] the first rows are read."""

    def answered(question: Tensor, number: int) -> Tensor:
        found = rule.answer(question, truth[: len(question)])
        return found if noise is None else found + noise[: len(question), number]

    return answered


def drawn(seeds: NDArray[np.uint64], hints: int, answered: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each row, from its own seed: n_hint ~ U{0..hints} [B], and standard normal numbers [B, hints, answered]."""
    count = hints * answered
    numbers = uniform(seeds ^ _SALT, 1 + 2 * count)
    n_hint = np.minimum((numbers[:, 0] * (hints + 1)).astype(np.int64), hints)
    radius = np.sqrt(-2 * np.log1p(-numbers[:, 1 : 1 + count]))  # Box and Muller; 1 - u is in (0, 1]
    normal = radius * np.cos(2 * np.pi * numbers[:, 1 + count :])
    return n_hint, normal.reshape(len(seeds), hints, answered).astype(np.float32)
