"""What a user writes of a semantic job: networks, losses, how to train and how to judge."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from jobs.config import JobConfig, Location, Section
from jobs.sections import Network
from stages.training_augment import AugmentConfig

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


class AugmentSection(Section):
    """Random resized crops and mirror images; fields as in stages.training_augment.AugmentConfig."""

    scale: tuple[float, float] = (0.35, 1.0)  # share of the image that a crop keeps
    ratio: tuple[float, float] = (0.75, 4 / 3)
    flip: bool = True


class TrainingSection(Section):
    """How to train; most fields as in stages.training.TrainingConfig."""

    epochs: int = Field(default=20, ge=1)
    batch: int = Field(default=64, ge=1)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: float = Field(default=1e-4, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: float = Field(default=0.1, ge=0, le=1)
    clip: float | None = Field(default=5.0, gt=0)
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    # The weights of its best epoch are kept; empty: those of the last one.
    monitor: Literal["loss", "tune_loss", "coarse_accuracy"] | None = "tune_loss"
    patience: int | None = Field(default=None, ge=1)  # stop after so many epochs without a better one
    checkpoint_every: int = Field(default=1, ge=1)
    freeze: bool = False  # the backbone stays as it is: its features are computed once, only the heads train
    views: int = Field(default=1, ge=1)  # with freeze: fixed augmented forms of each image
    augment: AugmentSection | None = AugmentSection()

    @model_validator(mode="after")
    def _views_need_freeze(self) -> TrainingSection:
        if self.views > 1 and (not self.freeze or self.augment is None):
            raise ValueError("views: more than 1 needs freeze: true and augment")
        if self.patience is not None and self.monitor is None:
            raise ValueError("patience: needs a monitor to watch")
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
        AugmentConfig(**(self.training.augment or AugmentSection()).model_dump())
        return self
