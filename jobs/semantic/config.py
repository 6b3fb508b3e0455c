"""What a user writes of a semantic job: networks, losses, how to train and how to judge."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from jobs.config import JobConfig, Location, Section
from jobs.sections import Network
from jobs.training.config import FitSection

Loss = Literal["focal", "bce"]


class SplitsSection(Section):
    """Which splits of the COCO run are learnt from, watched while learning, and measured at the end."""

    train: str = "train"
    tune: str | None = None  # absent: a share of train, by key hash and seed
    tune_share: float = Field(default=0.1, gt=0, lt=1)
    eval: str = "val"

    @model_validator(mode="after")
    def _eval_is_not_learnt_from(self) -> SplitsSection:
        if self.eval in (self.train, self.tune) or self.tune == self.train:
            raise ValueError("train, tune and eval are three splits: no image may be in two of them")
        return self


class FocalSection(Section):
    """The focal loss's own."""

    alpha: float = Field(default=1.0, gt=0)
    gamma: float = Field(default=2.0, ge=0)


class TrainingSection(FitSection):
    """How to train the two-level networks."""

    monitor: Literal["loss", "tune_loss", "coarse_accuracy"] | None = "tune_loss"
    freeze: bool = False  # the backbone stays as it is: its features are computed once, only the heads train
    views: int = Field(default=1, ge=1)  # with freeze: fixed augmented forms of each image

    @model_validator(mode="after")
    def _views_need_freeze(self) -> TrainingSection:
        if self.views > 1 and (not self.freeze or self.augment is None):
            raise ValueError("views: more than 1 needs freeze: true and augment")
        return self


class EvaluationSection(Section):
    """How fine scores become sets, and how images become indexes (PROTOCOLS section 3)."""

    threshold: float = Field(default=0.7, gt=0, lt=1)  # bce: scores above it are predicted
    relative: float = Field(default=0.5, gt=0, le=1)  # focal, without the oracle: scores of this share of the best
    a: tuple[float, ...] = (1.0,)  # of IF_a
    literal: bool = False  # IF_a with the denominator as printed, without a^2
    batch: int = Field(default=32, ge=0)  # of the mean over batches, beside the aggregate over the set; 0: none
    draws: int = Field(default=2000, ge=1)  # of the bootstrap
    confidence: float = Field(default=0.95, gt=0, lt=1)

    @field_validator("a")
    @classmethod
    def _a_is_positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or min(value) <= 0:
            raise ValueError("name at least one a, all above 0")
        return value


class SemanticReportSection(Section):
    """What the page shows."""

    examples: int = Field(default=3, ge=0, le=12)  # decision paths of each kind
    paper: bool = False  # put the paper's Tables 2, 3 and 4 beside ours: only for COCO 2017 and its networks


class SemanticConfig(JobConfig):
    """``raylens semantic``: see jobs/configs/semantic-coco2017.yaml for a commented example."""

    coco: Location  # the run folder of a finished 'raylens coco'
    splits: SplitsSection = SplitsSection()
    networks: tuple[Network, ...] = Field(min_length=1)
    losses: tuple[Loss, ...] = ("focal", "bce")
    baseline: bool = True  # also a network without a fine head
    coarse_input: Literal["fine", "features"] = "fine"  # what the coarse head reads
    focal: FocalSection = FocalSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()
    report: SemanticReportSection = SemanticReportSection()

    @model_validator(mode="after")
    def _something_is_trained(self) -> SemanticConfig:
        if not self.losses and not self.baseline:
            raise ValueError("losses is empty and baseline false: nothing would be trained")
        if len(set(self.losses)) != len(self.losses):
            raise ValueError("losses: name each loss once")
        return self
