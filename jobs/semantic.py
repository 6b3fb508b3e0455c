"""The semantic job: a filtered COCO run -> two-level classifiers trained on it -> rows -> indexes -> report."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from jobs.config import JobConfig, Location, Section
from jobs.sections import Network
from jobs.semantic_backbones import require_features
from jobs.semantic_data import CocoRun, require_rows, share
from jobs.semantic_train import TwoLevelTrainer
from pipeline.engine import Outcome, execute
from pipeline.inputs import NetworkInput
from pipeline.models import ModelSpec, preprocess_for
from pipeline.options import Options
from pipeline.steps import Job, Measure, Reduce, Source, Step, Train
from stages.preprocess import Preprocess
from stages.semantic.evaluate import TwoLevelEvaluate, TwoLevelEvaluateConfig
from stages.semantic.indexes import SemanticIndexes, SemanticIndexesConfig
from stages.semantic.network import TwoLevelConfig
from stages.semantic.rules import rules_for
from stages.semantic.train import TwoLevelTraining
from stages.training import TrainingConfig
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


@dataclasses.dataclass(frozen=True)
class Variant:
    """One network to train: a backbone and what is learnt on it."""

    network: str  # a short name, unique in the job
    spec: ModelSpec
    kind: Literal["focal", "bce", "coarse"]

    @property
    def name(self) -> str:
        return f"{self.network}_{self.kind}"

    @property
    def rules(self) -> tuple[str, ...]:
        return () if self.kind == "coarse" else rules_for(self.kind)


def variants(config: SemanticConfig) -> list[Variant]:
    """Every network with every loss, and its baseline."""
    kinds: list[Any] = [*config.losses, *(["coarse"] if config.baseline else [])]
    names: list[str] = []
    for spec in config.networks:
        short = spec.name.rpartition(":")[2]
        count = sum(name.split("-")[0] == short for name in names)
        names.append(f"{short}-{count + 1}" if count else short)
    return [Variant(name, spec, kind) for name, spec in zip(names, config.networks, strict=True) for kind in kinds]


def build(config: SemanticConfig) -> Job:
    """The job's graph. Reads what the COCO run says of itself; UsageError where it is not finished,
    or where a network cannot be cut at its features."""
    coco = CocoRun(os.path.abspath(config.coco) if "://" not in config.coco else config.coco)
    named = config.splits
    used = [named.train, *([named.tune] if named.tune else []), named.eval]
    fine, coarse = coco.fine_names(used), coco.coarse_names
    for spec in config.networks:
        require_features(spec)
    steps: list[Step] = []
    for variant in variants(config):
        steps += _steps(config, variant, fine, coarse)
    return Job("semantic", config.model_dump(mode="json"), _sources(config, coco), tuple(steps), limits=config.images)


def _steps(config: SemanticConfig, variant: Variant, fine: tuple[str, ...], coarse: tuple[str, ...]) -> list[Step]:
    given, asked = config.training, config.evaluation
    backbone = {"backbone": NetworkInput(variant.spec)}
    preprocess = Preprocess(**preprocess_for(variant.spec))
    model = TwoLevelConfig(
        fine=len(fine),
        coarse=len(coarse),
        loss="bce" if variant.kind == "bce" else "focal",
        coarse_input="fine" if variant.kind == "coarse" else config.coarse_input,
        coarse_only=variant.kind == "coarse",
        freeze=given.freeze,
        **(config.focal.model_dump() if variant.kind == "focal" else {}),  # what a loss does not read is not its own
    )
    recipe = given.model_dump(exclude={"freeze", "views", "augment"})
    mode: Literal["min", "max"] = "max" if given.monitor == "coarse_accuracy" else "min"
    training = TwoLevelTraining(
        model,
        TrainingConfig(**recipe, seed=config.seed, mode=mode),
        preprocess,
        None if given.augment is None else AugmentConfig(**given.augment.model_dump()),
        given.views,
        skip_unreadable=True,
    )
    evaluate = TwoLevelEvaluateConfig(preprocess)
    read = {rule: getattr(asked, rule) for rule in variant.rules if rule in ("threshold", "relative")}
    indexes = SemanticIndexesConfig(
        variant.rules,
        fine,
        coarse,
        asked.a,
        asked.literal,
        asked.batch,
        resamples=asked.draws,
        confidence=asked.confidence,
        seed=config.seed,
        **read,
    )
    learn, rows, answer = (f"{step}_{variant.name}" for step in ("train", "rows", "indexes"))
    return [
        Train(learn, TwoLevelTrainer(training), ("train", "tune"), backbone),
        Measure(rows, TwoLevelEvaluate(evaluate), ("tune", "eval"), backbone, trained={"network": learn}),
        Reduce(answer, SemanticIndexes(indexes), rows, label=config.label),
    ]


def _sources(config: SemanticConfig, coco: CocoRun) -> dict[str, Source]:
    """train, tune and eval: kept images of the COCO run, identified by what its rows are and not by where they lie."""
    named, count = config.splits, len(coco.coarse_names)
    part = named.tune_share if named.tune is None else 0.0
    wanted = {
        "train": (named.train, part, 1.0, config.training.batch, "to train on"),
        "tune": (named.tune or named.train, 0.0, part or 1.0, 1, "to watch the training with"),
        "eval": (named.eval, 0.0, 1.0, 1, "to evaluate on"),
    }

    def lister(split: str, lo: float, hi: float, least: int, what: str) -> Callable[[], pa.Table]:
        def listed() -> pa.Table:
            table = coco.kept(split)
            found = table if (lo, hi) == (0.0, 1.0) else share(table, lo, hi, config.seed)
            require_rows(found, least, what, count, coco.run.url)
            return found

        return listed

    sources = {}
    for name, (split, lo, hi, least, what) in wanted.items():
        described: dict[str, Any] = {"split": split, "rows": coco.identity(split)}
        if (lo, hi) != (0.0, 1.0):
            described |= {"share": [lo, hi], "seed": config.seed}
        sources[name] = Source(described, lister(split, lo, hi, least, what))
    return sources


def run(config: SemanticConfig, run_url: str, options: Options | None = None) -> Outcome:
    """Run the job to its end and write its report; a rerun goes on where it stopped."""
    options = options or config.options()
    outcome = execute(build(config), run_url, options)
    if not options.only:
        options.say(f"report {write_report(run_url)}")
    return outcome


def write_report(run_url: str) -> str:
    """Write the report of a run from what it holds; returns where."""
    from jobs.semantic_gather import write_report as write

    return write(run_url)
