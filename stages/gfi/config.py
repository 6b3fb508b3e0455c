"""What the GFI stage is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from stages.gfi.background import Background, check_background
from stages.gfi.explainer import Precision, Speed
from stages.gfi.layers import AUTO
from stages.gfi.recipe import Preset, Recipe, Score, recipe
from stages.metrics.boxes import CENTER_SIZES, THRESHOLDS, check_thresholds
from stages.metrics.mean_boxes import ALPHAS
from stages.metrics.truth import Frame
from stages.preprocess import Preprocess

NAMED_TARGETS = ("predicted", "label", "labels")


@dataclass(frozen=True)
class GfiConfig:
    """Fields that are None are the preset's (`stages.gfi.recipe`).

    ``targets``: what is explained, each with a mask of its own: a class id, "predicted" (of the image as the network
    sees it, so after an attack), "label" (the true class), "labels" (every class the source lists for the image).
    ``background``: "blur" (paper: of the input; authors: of the image at its own resolution), "mean" colour, "noise".
    ``inversion_layer`` and ``mask_layer`` (l0 and l1): a call's name, "last_pool", "last_conv", or "auto".
    ``attack``: FGSM against the true class, in grey levels of 255 (0: none); the mask is then of the attacked image.
    ``frame``: where boxes are compared: "image", "input", or "auto" (input for a crop, else image).
    """

    preset: Preset = "paper"
    targets: tuple[int | str, ...] = ("predicted",)
    background: Background = "blur"
    inversion_layer: str = AUTO
    mask_layer: str = AUTO
    inversion_steps: int | None = None
    class_steps: int | None = None
    gamma: float | None = None
    delta: float | None = None
    suppress: float | None = None
    score: Score | None = None
    attack: float = 0.0
    seed: int = 0
    preprocess: Preprocess = field(default_factory=Preprocess)
    frame: Literal["auto", "image", "input"] = "auto"
    inclusive: bool = True
    alphas: tuple[float, ...] = ALPHAS
    thresholds: tuple[float, ...] = THRESHOLDS
    center_sizes: tuple[float, ...] = CENTER_SIZES
    precision: Precision = "float32"
    speed: Speed = "eager"
    batch: int = field(default=0, metadata={"fingerprint": False})  # rows per call; 0 chooses by device and memory

    def __post_init__(self) -> None:
        check_thresholds(self.alphas)
        check_thresholds(self.thresholds)
        check_background(self.background)
        _ = self.recipe
        if not self.targets:
            raise ValueError("targets is empty: name at least one, for instance predicted")
        for target in self.targets:
            if isinstance(target, str) and target not in NAMED_TARGETS:
                raise ValueError(f"target {target!r} is neither a class id nor one of {', '.join(NAMED_TARGETS)}")
            if isinstance(target, int) and target < 0:
                raise ValueError(f"target {target} is no class id: they count from 0")
        if not 0 <= self.attack <= 255:
            raise ValueError(f"attack is {self.attack} grey levels: 0 (none) to 255")
        if self.precision not in get_args(Precision) or self.speed not in get_args(Speed):
            raise ValueError(f"precision {self.precision!r} or speed {self.speed!r} is not one of the choices")
        if self.frame not in ("auto", "image", "input"):
            raise ValueError(f"frame is {self.frame!r}: it is 'auto', 'image' or 'input'")
        if self.frame == "image" and self.preprocess.frame == "crop":
            raise ValueError("frame 'image' needs a mask of the whole image, and a crop sees a part: use 'input'")

    @property
    def recipe(self) -> Recipe:
        """The numbers of the optimisation: the preset's with this config's changes."""
        steps = recipe(self.preset).steps
        given = (self.inversion_steps, self.class_steps)
        return recipe(
            self.preset,
            steps=tuple(own if asked is None else asked for own, asked in zip(steps, given, strict=True)),
            gamma=self.gamma,
            delta=self.delta,
            suppress=self.suppress,
            score=self.score,
        )

    @property
    def in_input(self) -> bool:
        return self.frame == "input" or (self.frame == "auto" and self.preprocess.frame == "crop")

    @property
    def where(self) -> Frame:
        """The frame in which boxes are compared."""
        return Frame(self.preprocess, self.in_input, self.inclusive)
