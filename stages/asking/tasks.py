"""What can be learnt by asking: colours of a grey picture, colours of a drawing, what is behind a hole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stages.asking.answers import MeanAnswer
from stages.asking.colour import lab_to_rgb, rgb_to_lab
from stages.asking.outline import Outline
from stages.asking.paradigm import AnswerRule, Task

_AB = 110.0  # a and b of sRGB's colours are within -108..98: y is about -1..1


@dataclass(frozen=True)
class ColorNatural:
    """L -> ab in CIELAB. An answer is a mean ab. x = L / 50 - 1, y = ab / 110."""

    name: str = "natural"
    hints: int = 4

    observed = 1
    produced = 2
    answered = 2

    @property
    def rule(self) -> AnswerRule:
        return MeanAnswer()

    def observe(self, rgb: Tensor) -> Tensor:
        return rgb_to_lab(rgb)[:, :1] / 50 - 1

    def truth(self, rgb: Tensor) -> Tensor:
        return rgb_to_lab(rgb)[:, 1:] / _AB

    def picture(self, x: Tensor, y: Tensor) -> Tensor:
        return lab_to_rgb(torch.cat([(x + 1) * 50, y * _AB], 1))

    def seen(self, x: Tensor) -> Tensor:
        return self.picture(x, x.new_zeros(len(x), 2, *x.shape[2:]))

    def colour(self, x: Tensor, question: Tensor, answer: Tensor) -> Tensor:
        """At the mean lightness of what was asked about."""
        light = self.rule.answer(question, x)
        return self.picture(light[:, :, None, None], answer[:, :, None, None])[:, :, 0, 0]

    def told(self, lab: Tensor) -> Tensor:
        """A colour of CIELAB [3] as an answer [2]: its a and b; the picture has its own lightness."""
        return lab[1:] / _AB


@dataclass(frozen=True)
class ColorDrawing:
    """Outline -> RGB; ``outline`` makes the drawing from the picture. An answer is a mean RGB. y is 2 RGB - 1."""

    name: str = "drawing"
    hints: int = 6
    outline: Outline = field(default_factory=Outline)

    observed = 1
    produced = 3
    answered = 3

    @property
    def rule(self) -> AnswerRule:
        return MeanAnswer()

    def observe(self, rgb: Tensor) -> Tensor:
        return self.outline(rgb) * 2 - 1

    def truth(self, rgb: Tensor) -> Tensor:
        return rgb * 2 - 1

    def picture(self, x: Tensor, y: Tensor) -> Tensor:
        return ((y + 1) / 2).clamp(0, 1)

    def seen(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2).expand(-1, 3, -1, -1)

    def colour(self, x: Tensor, question: Tensor, answer: Tensor) -> Tensor:
        return ((answer + 1) / 2).clamp(0, 1)

    def told(self, lab: Tensor) -> Tensor:
        """A colour of CIELAB [3] as an answer [3]."""
        return _told(lab)


@dataclass(frozen=True)
class Inpaint:
    """A picture with a square hole in its middle -> the picture; ``hole`` is the share of each side that is missing.

    x is 2 RGB - 1, 0 in the hole, and the hole as a channel of its own. An answer is a mean RGB of what is hidden:
    what the question covers outside the hole does not count.
    """

    name: str = "inpaint"
    hints: int = 4
    hole: float = 0.5

    observed = 4
    produced = 3
    answered = 3

    def __post_init__(self) -> None:
        if not 0 < self.hole <= 1:
            raise ValueError(f"hole {self.hole}: it is a share of each side, above 0 and at most 1")

    @property
    def rule(self) -> AnswerRule:
        return _InHole(self.hole)

    def observe(self, rgb: Tensor) -> Tensor:
        hidden = hole_of(rgb, self.hole)
        return torch.cat([(rgb * 2 - 1) * (1 - hidden), hidden.expand(len(rgb), -1, -1, -1)], 1)

    def truth(self, rgb: Tensor) -> Tensor:
        return rgb * 2 - 1

    def picture(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = x[:, 3:]
        return ((torch.where(hidden > 0, y, x[:, :3]) + 1) / 2).clamp(0, 1)

    def seen(self, x: Tensor) -> Tensor:
        return (x[:, :3] + 1) / 2

    def colour(self, x: Tensor, question: Tensor, answer: Tensor) -> Tensor:
        return ((answer + 1) / 2).clamp(0, 1)

    def told(self, lab: Tensor) -> Tensor:
        """A colour of CIELAB [3] as an answer [3]."""
        return _told(lab)


@dataclass(frozen=True)
class _InHole(MeanAnswer):
    """The mean rule, about what is hidden only."""

    hole: float = 0.5

    def answer(self, question: Tensor, truth: Tensor) -> Tensor:
        return super().answer(question * hole_of(question, self.hole), truth)

    def paint(self, y: Tensor, question: Tensor, hint: Tensor) -> Tensor:
        hidden = hole_of(y, self.hole)
        return super().paint(y, question * hidden, hint * hidden)


def _told(lab: Tensor) -> Tensor:
    """CIELAB [3] -> 2 RGB - 1 [3], the nearest that sRGB has."""
    return lab_to_rgb(lab.view(1, 3, 1, 1)).flatten() * 2 - 1


def hole_of(image: Tensor, share: float) -> Tensor:
    """1 in the square hole in the middle of [B, C, H, W], 0 outside: [1, 1, H, W]."""
    hidden = image.new_zeros(1, 1, *image.shape[2:])
    inside = []
    for size in image.shape[2:]:
        length = max(1, round(size * share))
        start = (size - length) // 2
        inside.append(slice(start, start + length))
    hidden[:, :, inside[0], inside[1]] = 1
    return hidden


TASKS: dict[str, type[ColorNatural] | type[ColorDrawing] | type[Inpaint]] = {
    "natural": ColorNatural,
    "drawing": ColorDrawing,
    "inpaint": Inpaint,
}


def task_of(described: Mapping[str, Any]) -> Task:
    """A task from its fields (``dataclasses.asdict``); LookupError names those there are."""
    fields = dict(described)
    if fields["name"] not in TASKS:
        raise LookupError(f"there is no task {fields['name']!r}: the tasks are {', '.join(TASKS)}")
    if isinstance(fields.get("outline"), Mapping):
        fields["outline"] = Outline(**fields["outline"])
    return TASKS[fields["name"]](**fields)
