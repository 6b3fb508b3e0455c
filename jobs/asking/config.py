"""What a user writes of an asking job: what is learnt, the network, its training, and what is kept of each image."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

from pydantic import Field, model_validator

from jobs.asking import evaluate
from jobs.asking.evaluate import EvaluateSection, SegmentedSection
from jobs.config import JobConfig, Section
from jobs.sections import Split
from jobs.training.config import FitSection
from stages.asking.lesson import LessonConfig
from stages.asking.paradigm import Task
from stages.asking.tasks import TASKS, Inpaint
from stages.asking.train import AskingTraining
from stages.asking.unet import UNetConfig
from stages.preprocess import Preprocess
from stages.training import TrainingConfig
from stages.training_augment import AugmentConfig

TRAIN, ASK, ANSWERED = "train", "ask", "answered"


class AskingData(Section):
    """Pictures to learn from, to watch the training with, and to ask about: three disjoint sets.

    ``segmented``: pictures with drawn classes, for the class precision of an evaluation.
    """

    train: Split
    tune: Split | None = None
    ask: Split | None = None
    segmented: SegmentedSection | None = None

    @model_validator(mode="after")
    def _no_split_twice(self) -> AskingData:
        given = {name: split for name in ("train", "tune", "ask") if (split := getattr(self, name)) is not None}
        for a, b in combinations(given, 2):
            if overlap(given[a], given[b]):
                raise ValueError(
                    f"{a} and {b} hold the same pictures, and train, tune and ask are three splits: use share: "
                    "[0, 0.9] and [0.9, 1] to part a folder"
                )
        learnt_from = [split for name, split in given.items() if name != "ask"]  # those of ask are welcome
        if self.segmented is not None and any(overlap(self.segmented.images, split) for split in learnt_from):
            raise ValueError("segmented.images are pictures that nothing was learnt from: neither train nor tune")
        return self


def overlap(a: Any, b: Any) -> bool:
    """Two sources are of the same pictures, and their shares of them are not apart.

    ``keys`` and ``exclude`` may part them too, so other ones make another source; draws and limits do not.
    """
    (one, mine), (other, theirs) = _parted(a), _parted(b)
    return one == other and mine[0] < theirs[1] and theirs[0] < mine[1]


def _parted(source: Any) -> tuple[dict[str, Any], tuple[float, float]]:
    """Which pictures a source is of, but for the share of them it takes, and that share."""
    return source.model_dump(exclude=_NOT_WHICH), source.share or (0.0, 1.0)


# Of a source: what thins its pictures out by chance or order, and what is told of them.
_NOT_WHICH = {
    "share", "sample", "seed", "limit",
    "label_pattern", "classes", "labelled", "crowds", "difficult", "boxes",
}  # fmt: skip


class LearnSection(Section):
    """What is learnt, and on what terms; see stages.asking.lesson.LessonConfig."""

    problem: Literal["natural", "drawing", "inpaint"] = "natural"  # L -> ab; outline -> RGB; what is behind a hole
    hints: int | None = Field(default=None, ge=1, le=64)  # T; absent: 4, drawings 6
    hole: float = Field(default=0.5, gt=0, le=1)  # of inpaint: the share of each side
    size: tuple[int, int] = (128, 128)  # height and width in pixels
    frame: Literal["squash", "crop"] = "squash"
    noise: float = Field(default=0.02, ge=0)  # on answers, in training only; in units of y
    smooth: float = Field(default=0.00005, ge=0)  # lambda_seg
    back: int | None = Field(default=None, ge=2)  # turns a gradient flows back through; absent: all
    told: Literal["asked", "random", "none"] = "asked"  # what the network asks for, squares at random, nothing
    side: int | None = Field(default=None, ge=1)  # of a square in pixels; absent: 9 of 256, odd


class UNetSection(Section):
    """The network: channels at full resolution, resolutions, and the most channels."""

    width: int = Field(default=32, ge=1)
    depth: int = Field(default=5, ge=1, le=10)
    most: int = Field(default=512, ge=1)

    @model_validator(mode="after")
    def _most_is_the_most(self) -> UNetSection:
        UNetConfig(**self.model_dump())
        return self


class TrainingSection(FitSection):
    """How to train the network that asks, and the sheets that show how it comes along."""

    batch: int = Field(default=32, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    clip: float | None = Field(default=1.0, gt=0)
    monitor: Literal["loss", "tune_loss"] | None = None
    samples: int = Field(default=4, ge=0, le=32)  # pictures of tune on a sample sheet
    sample_every: int = Field(default=1, ge=1)


class AskSection(Section):
    """What is kept of each image."""

    map_size: int = Field(default=32, ge=1)  # the side a question is stored at
    keep: Literal["all", "last", "none"] = "all"  # pictures: after 0..T answers, after all of them, none
    batch: int = Field(default=0, ge=0)


class AskingReportSection(Section):
    """What the page shows."""

    examples: int = Field(default=6, ge=0, le=30)


class AskingConfig(JobConfig):
    """``raylens asking``: see jobs/configs/asking-sample.yaml for a commented example."""

    task: Literal["train", "ask", "evaluate"]  # each does what stands before it, unless the run folder holds it
    data: AskingData
    learn: LearnSection = LearnSection()
    network: UNetSection = UNetSection()
    training: TrainingSection = TrainingSection()
    ask: AskSection = AskSection()
    evaluate: EvaluateSection = EvaluateSection()
    report: AskingReportSection = AskingReportSection()

    @model_validator(mode="after")
    def _splits_are_there(self) -> AskingConfig:
        if self.task != "train" and self.data.ask is None:
            raise ValueError(f"task {self.task} needs data.ask: the images to ask about")
        if self.task != "train" and self.learn.told != "asked":
            raise ValueError(f"task {self.task} is of a network that asks: learn.told {self.learn.told} is for train")
        if self.task == "evaluate" and (why := evaluate.refused(self.problem)):
            raise ValueError(why)
        if self.training.monitor == "tune_loss" and self.data.tune is None:
            raise ValueError("training.monitor tune_loss needs data.tune: images to watch the training with")
        replace(training_of(self), side=self.learn.side)  # what it says of sizes is told here
        return self

    @property
    def problem(self) -> Task:
        asked = self.learn
        hints: dict[str, Any] = {} if asked.hints is None else {"hints": asked.hints}
        if asked.problem == "inpaint":
            return Inpaint(hole=asked.hole, **hints)
        return TASKS[asked.problem](**hints)

    @property
    def preprocess(self) -> Preprocess:
        """Mean and deviation are not used: networks of this job read colours as the task gives them."""
        return Preprocess(self.learn.size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), self.learn.frame)


def training_of(config: AskingConfig) -> AskingTraining:
    """Of what is not used there is nothing in it, so that it is no other training for that."""
    given, asked = config.training, config.learn
    recipe = given.model_dump(exclude={"augment", "samples", "sample_every"})
    return AskingTraining(
        config.problem,
        UNetConfig(**config.network.model_dump()),
        LessonConfig(asked.noise, asked.smooth, asked.back) if asked.told == "asked" else LessonConfig(),
        TrainingConfig(**recipe, seed=config.seed),
        config.preprocess,
        None if given.augment is None else AugmentConfig(**given.augment.model_dump()),
        skip_unreadable=True,
        hints=asked.told,
        side=asked.side if asked.told == "random" else None,
        samples=given.samples,
        sample_every=given.sample_every,
    )
