"""Steering: a user's own answers to some of the questions, the others answered as ever, and the picture follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from PIL import ImageColor
from torch import Tensor

from stages.asking.answers import truthful
from stages.asking.colour import rgb_to_lab
from stages.asking.paradigm import Agent, Task, Turn
from stages.asking.process import Process, process

MOST = 64  # questions
Others = Literal["truth", "guess"]
_FORMS = "#c03020, a colour's name, lab:50,20,30, or a task's own numbers as y:0.2,0.1"


class Coloured(Protocol):
    """A task whose answers are colours."""

    def told(self, lab: Tensor) -> Tensor:
        """A colour in CIELAB [3] as an answer [K]; what the task does not ask for (a lightness) is not used."""
        ...


@dataclass(frozen=True)
class Answer:
    """A user's answer: a colour in CIELAB, or numbers as the task has them ("y")."""

    values: tuple[float, ...]
    space: Literal["lab", "y"] = "lab"

    @classmethod
    def parse(cls, text: str) -> Answer:
        """From ``#c03020``, a CSS colour, ``lab:50,20,30`` or ``y:0.2,0.1``; ValueError where it is none of them."""
        space, colon, numbers = text.strip().partition(":")
        if colon and space.lower() in ("lab", "y"):
            return cls(_numbers(text, numbers), "lab" if space.lower() == "lab" else "y")
        try:
            rgb = torch.tensor(ImageColor.getrgb(text.strip())[:3], dtype=torch.float64) / 255
        except ValueError:
            raise ValueError(f"{text!r} is no colour: give {_FORMS}") from None
        return cls(tuple(rgb_to_lab(rgb.view(1, 3, 1, 1)).flatten().tolist()))

    def __post_init__(self) -> None:
        if self.space == "y":
            return
        if len(self.values) != 3 or not 0 <= self.values[0] <= 100 or max(map(abs, self.values[1:])) > 128:
            told = ", ".join(f"{value:g}" for value in self.values)
            raise ValueError(f"({told}) is no colour of CIELAB: L is in 0..100, a and b in -128..128")

    def told(self, task: Task) -> Tensor:
        """[K] float64; ValueError where the task's answers are no colours, or of another length."""
        if self.space == "y":
            if len(self.values) != task.answered:
                raise ValueError(f"an answer of task {task.name} has {task.answered} numbers, not {len(self.values)}")
            return torch.tensor(self.values, dtype=torch.float64)
        if not hasattr(task, "told"):
            raise ValueError(
                f"answers of task {task.name} are no colours: give {task.answered} numbers as y:0.2,..., "
                "or give the task a method told(lab)"
            )
        return cast(Coloured, task).told(torch.tensor(self.values, dtype=torch.float64))


class Steered:
    """Answers to the questions of one conversation: ``own`` by number from 0, else ``others``.

    ``others`` "truth" answers from ``truth``; "guess" with what the agent has there itself, for pictures whose colours
    nobody knows. A conversation asks :meth:`question` what is asked, and :meth:`answer` what is answered.
    """

    def __init__(self, task: Task, own: Mapping[int, Tensor], truth: Tensor, others: Others = "truth") -> None:
        self.task, self.own, self.truth, self.others = task, dict(own), truth, others

    def question(self, turn: Turn) -> Tensor:
        self._guess = turn.y
        return turn.question

    def answer(self, question: Tensor, number: int) -> Tensor:
        given = self.own.get(number)
        if given is not None:
            return given.to(question).expand(len(question), -1)
        return truthful(self.task.rule, self.truth if self.others == "truth" else self._guess)(question, number)


def steer(
    agent: Agent,
    task: Task,
    pixels: Tensor,
    own: Mapping[int, Answer | str],
    *,
    hints: int = 0,
    others: Others = "truth",
) -> Process:
    """The conversation about uint8 pictures [B, 3, H, W] in which ``own[n]`` is told to question n, from 1 on.

    Args:
        own: answers, or texts as ``Answer.parse`` takes them.
        hints: how many questions are answered; 0: as many as in the training.
        others: who answers the others: "truth" (the picture itself), "guess" (the agent's own picture).

    Raises:
        ValueError: no colour, no such question, or a task whose answers are no colours; says what to give instead.
    """
    if others not in ("truth", "guess"):
        raise ValueError(f"others are answered by 'truth' or 'guess', not {others!r}")
    count = hints or task.hints
    if not 0 < count <= MOST:
        raise ValueError(f"hints {count}: give 1 to {MOST}")
    told = {}
    for number, answer in own.items():
        if not 1 <= number <= count:
            raise ValueError(f"there is no question {number}: they are 1 to {count}; for more, give hints")
        try:
            told[number - 1] = (Answer.parse(answer) if isinstance(answer, str) else answer).told(task)
        except ValueError as error:
            raise ValueError(f"answer to question {number}: {error}") from None
    steered = Steered(task, told, task.truth(pixels.to(torch.float32) / 255), others)
    return process(agent, task, pixels, count, answerer=steered.answer, question=steered.question)


def _numbers(text: str, numbers: str) -> tuple[float, ...]:
    try:
        values = tuple(float(number) for number in numbers.split(","))
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"{text!r} is no answer: give {_FORMS}")
    return values
