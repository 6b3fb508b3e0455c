"""What a user writes of how networks are trained; a job's own section adds to it and has its own defaults."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from jobs.config import Section
from stages.training_augment import AugmentConfig


class AugmentSection(Section):
    """Random resized crops and mirror images; fields as in stages.training_augment.AugmentConfig."""

    scale: tuple[float, float] = (0.35, 1.0)  # share of the picture that a crop keeps
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = True

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        AugmentConfig(**self.model_dump())
        return self


class FitSection(Section):
    """How to train; most fields as in stages.training.TrainingConfig."""

    epochs: int = Field(default=20, ge=1)
    batch: int = Field(default=64, ge=1)  # over all workers together
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(default=1e-4, gt=0)  # the peak of one_cycle
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: float = Field(default=0.1, ge=0, le=1)
    clip: float | None = Field(default=5.0, gt=0)
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    monitor: str | None = None  # the best epoch's weights are kept; null: the last one's
    patience: int | None = Field(default=None, ge=1)  # stop after so many epochs without a better one
    checkpoint_every: int = Field(default=1, ge=1)
    augment: AugmentSection | None = AugmentSection()

    @model_validator(mode="after")
    def _patience_needs_a_monitor(self) -> Self:
        if self.patience is not None and self.monitor is None:
            raise ValueError("patience needs training.monitor: what is watched")
        return self
