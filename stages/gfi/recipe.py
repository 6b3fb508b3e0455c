"""The two published forms of guided feature inversion, as numbers.

``paper`` is the text of Du, Liu, Song and Hu (KDD 2018); ``authors`` is the code they released, which differs in
nearly every constant. Both find channel weights w >= 0 of a mask in two stages: *inversion* (does the kept part still
give the image's features?) and *class* (does the kept part hold the class, and the rest not?).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

Preset = Literal["paper", "authors"]
Score = Literal["softmax", "sigmoid", "logits"]  # sigmoid: of a network trained for several classes to an image


@dataclass(frozen=True)
class Recipe:
    """One way of doing it. Losses are per image and summed over images, so no image feels its neighbours.

    Inversion: ``|f(Phi) - f(x)|^2`` (``relative``: divided by ``|f(x)|^2``) ``+ gamma * penalty(w)``.
    Class: ``-f_c(Phi) + suppress * f_c(Phi_bg) + delta * penalty(w)``.
    ``penalty``: "l1" is the sum of |w|, "l2" the sum of w^2.
    ``upsampling``: "scaled" scales the map to 0..1 (min-max) and then enlarges it, corners not aligned; "enlarged"
    enlarges it first, corners aligned, and then takes (m - min) / max.
    ``one_optimiser``: Adam's moments and its halvings run on from the first stage into the second; else the second
    starts afresh and only there the rate halves.
    """

    preset: Preset
    relative: bool
    penalty: Literal["l1", "l2"]
    gamma: float
    delta: float
    upsampling: Literal["scaled", "enlarged"]
    one_optimiser: bool
    steps: tuple[int, int]  # of inversion, of class
    suppress: float = 1.0
    score: Score = "softmax"
    rate: float = 1e-2
    halve_every: int = 10
    start: float = 0.1

    def __post_init__(self) -> None:
        if min(self.steps) < 0 or sum(self.steps) < 1:
            raise ValueError(f"steps are (inversion, class), at least one in all, got {self.steps}")
        if self.score not in get_args(Score):
            raise ValueError(f"score is {self.score!r}: it is one of {', '.join(get_args(Score))}")
        if min(self.gamma, self.delta, self.suppress) < 0 or self.rate <= 0 or self.start <= 0 or self.halve_every < 1:
            raise ValueError("gamma, delta and suppress are >= 0; rate, start and halve_every are above 0")

    def rates(self) -> tuple[list[float], list[float]]:
        """Learning rates of the steps of both stages."""
        inversion, of_class = self.steps
        if self.one_optimiser:
            rates = [self.rate * 0.5 ** (i // self.halve_every) for i in range(inversion + of_class)]
            return rates[:inversion], rates[inversion:]
        return [self.rate] * inversion, [self.rate * 0.5 ** (i // self.halve_every) for i in range(of_class)]


RECIPES: dict[str, Recipe] = {
    "paper": Recipe(
        preset="paper",
        relative=False,
        penalty="l1",
        gamma=10.0,
        delta=1.0,
        upsampling="scaled",
        one_optimiser=False,
        steps=(10, 70),
    ),
    "authors": Recipe(
        preset="authors",
        relative=True,
        penalty="l2",
        gamma=5.0,
        delta=2.0,
        upsampling="enlarged",
        one_optimiser=True,
        steps=(11, 69),
    ),
}


def recipe(preset: str, **changes: Any) -> Recipe:
    """A preset with some fields changed; None leaves the preset's own. ValueError for an unknown preset."""
    if preset not in RECIPES:
        raise ValueError(f"gfi preset {preset!r}: it is one of {', '.join(RECIPES)}")
    return replace(RECIPES[preset], **{name: value for name, value in changes.items() if value is not None})
