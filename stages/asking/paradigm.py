"""Learning by asking: a recurrent agent, the question function, and the answer rule h(q, y).

A turn is one look of the agent at the image x, at what it was just told, and at its own last result y. After it the
question function says which places are asked about next; someone answers; the rule says what an answer to a question
is, and how it is laid out for the agent to read. Tasks (stages.asking.tasks) fill in x, y and the rule; the loop knows
none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class AnswerRule(Protocol):
    """h(q, y): what is answered to a question where y is the truth."""

    def answer(self, question: Tensor, truth: Tensor) -> Tensor:
        """[B, 1, H, W] and [B, C, H, W] -> [B, K]; an image's answer depends on nothing but its own row."""
        ...

    def hint(self, question: Tensor, answer: Tensor) -> Tensor:
        """The answer laid out over the question, for the agent to read: [B, K, H, W]."""
        ...

    def paint(self, y: Tensor, question: Tensor, hint: Tensor) -> Tensor:
        """What the answer alone makes of y [B, C, H, W]; y itself, where answers are not in its units."""
        ...


class Task(Protocol):
    """What is learnt: what the agent sees of a picture, what it makes of it, and the rule of answers."""

    @property
    def name(self) -> str: ...

    @property
    def observed(self) -> int:
        """Channels of x."""
        ...

    @property
    def produced(self) -> int:
        """Channels of y."""
        ...

    @property
    def answered(self) -> int:
        """Numbers in an answer."""
        ...

    @property
    def hints(self) -> int:
        """T: how many answers it is trained to take."""
        ...

    @property
    def rule(self) -> AnswerRule: ...

    def observe(self, rgb: Tensor) -> Tensor:
        """sRGB in 0..1, [B, 3, H, W] -> x [B, observed, H, W]."""
        ...

    def truth(self, rgb: Tensor) -> Tensor:
        """The same -> y as it should be, [B, produced, H, W]."""
        ...

    def picture(self, x: Tensor, y: Tensor) -> Tensor:
        """What x and y show: sRGB in 0..1, [B, 3, H, W]."""
        ...

    def seen(self, x: Tensor) -> Tensor:
        """What x alone shows, for people: sRGB in 0..1, [B, 3, H, W]."""
        ...

    def colour(self, x: Tensor, question: Tensor, answer: Tensor) -> Tensor:
        """An answer as a colour for people: sRGB in 0..1, [B, 3]."""
        ...


class Agent(Protocol):
    """f(x, q, c, y) -> y', q': one turn. ``question`` is in 0..1."""

    def __call__(self, x: Tensor, question: Tensor, hint: Tensor, y: Tensor) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Turn:
    """What one turn led to. Rows that have all their answers are no longer in it."""

    number: int  # answers given so far
    x: Tensor  # [B, observed, H, W]
    y: Tensor  # [B, produced, H, W]
    question: Tensor  # [B, 1, H, W]: what the agent would ask next
    asked: Tensor | None  # [B, 1, H, W]: what was asked before this turn; None in the first
    answer: Tensor | None  # [B, K]: and what was answered


Answerer = Callable[[Tensor, int], Tensor]  # (question, its number from 0) -> answer [B, K]
QuestionFunction = Callable[[Turn], Tensor]  # what is asked after a turn: [B, 1, H, W]


def own_question(turn: Turn) -> Tensor:
    """The agent asks for itself."""
    return turn.question


def converse(
    agent: Agent,
    task: Task,
    x: Tensor,
    counts: Sequence[int],
    answerer: Answerer,
    *,
    question: QuestionFunction = own_question,
    back: int | None = None,
) -> Iterator[Turn]:
    """Turns 0, 1, ... of a batch: all that is told at turn 0 is x; q, c and y are zero.

    Args:
        counts: answers each row gets, none larger than the one before it. Turn t holds the first rows, those with
            ``counts`` >= t.
        answerer: asked once between two turns, for the rows that go on.
        question: what is asked, where it is not the agent that decides.
        back: gradients flow through the last ``back`` turns of a row only (truncated back-propagation).

    Raises:
        ValueError: ``counts`` rises, or is not one number from 0 on for each row.
    """
    counts = list(counts)
    if len(counts) != len(x) or min(counts, default=-1) < 0 or counts != sorted(counts, reverse=True):
        raise ValueError(f"{len(x)} rows need as many counts from 0 on, none above the one before; got {counts}")
    asked = answer = None
    state = _start(task, x)
    for number in range(counts[0] + 1):
        y, wish = agent(x, *state)
        turn = Turn(number, x, y, wish, asked, answer)
        yield turn
        going = sum(count > number for count in counts)
        if not going:
            return
        asked = question(turn)[:going]
        answer = answerer(asked, number)
        x, state = x[:going], (asked, task.rule.hint(asked, answer), y[:going])
        cut = 0 if back is None else sum(count - number >= back for count in counts)
        if cut:
            a, b, c = (torch.cat([part[:cut].detach(), part[cut:]]) for part in state)
            state = (a, b, c)


def _start(task: Task, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, _, height, width = x.shape
    question, hint, y = (x.new_zeros(rows, c, height, width) for c in (1, task.answered, task.produced))
    return question, hint, y
