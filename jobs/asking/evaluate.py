"""The evaluation of networks that ask: beside networks of their family that are told otherwise, and beside solves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from jobs.asking.train import AskingTrainer
from jobs.compare.masks import Masks, with_masks
from jobs.config import Section
from jobs.sections import Split, source
from pipeline.errors import UsageError
from pipeline.steps import Measure, Reduce, Source, Step, Train
from stages.asking.bilateral import BilateralSolver
from stages.asking.contest import Contest, ContestConfig
from stages.asking.contest_table import ContestTable, ContestTableConfig, OrderConfig, QuestionOrder
from stages.asking.lesson import LessonConfig
from stages.asking.precision import Precision, PrecisionConfig, PrecisionTable
from stages.asking.train import AskingTraining

RANDOM, NONE, EXACT = "train_random", "train_none", "train_exact"
CONTEST, TABLE, ORDER = "contest", "psnr", "order"
PRECISION, CLASSES = "precision", "classes"


_MASKS = "give masks: {root: FOLDER, kind: index}, PNG files whose pixels are class ids"


class SegmentedSection(Section):
    """Pictures with drawn classes; ``masks`` are PNG files beside them, where the source has none of its own (COCO)."""

    images: Split
    masks: Masks | None = None

    @model_validator(mode="after")
    def _classes_are_drawn(self) -> SegmentedSection:
        if self.masks is None and self.images.kind != "coco":
            raise ValueError(f"a {self.images.kind} source has no masks of its own: {_MASKS}, or give a coco source")
        if self.masks is not None and self.masks.kind != "index":
            raise ValueError(f"masks of kind {self.masks.kind} say where something is, not of which class: {_MASKS}")
        return self


class BilateralSection(Section):
    """Of the bilateral solver; see stages.asking.bilateral.BilateralSolver."""

    place: float = Field(default=4.0, gt=0)  # pixels
    light: float = Field(default=1 / 32, gt=0)  # share of the lightness
    strength: float = Field(default=128.0, gt=0)


class EvaluateSection(Section):
    """What stands beside the network that asks."""

    exact: bool = True  # a second network that asks, trained without noise on its answers; none where learn.noise is 0
    classical: bool = True  # Levin et al., and Barron and Poole
    bilateral: BilateralSection = BilateralSection()
    moves: int = Field(default=8, ge=1)  # random places a question is moved to, where classes are drawn
    batch: int = Field(default=0, ge=0)


def segmented(given: SegmentedSection) -> Source:
    """Refused when it is listed, so before any training, where no picture of it has a class drawn."""
    found = source(given.images)
    found = found if given.masks is None else with_masks(found, given.masks)
    return Source(found.description, lambda: _drawn(found.list()))


def _drawn(table: pa.Table) -> pa.Table:
    if not pc.any(pc.is_valid(pc.list_flatten(table["masks"]))).as_py():
        raise UsageError(
            f"none of its {table.num_rows:,} pictures has a mask",
            where="data.segmented",
            cure="give a COCO file with segmentations, or masks whose names are those of the pictures",
        )
    return table


def steps(
    given: EvaluateSection,
    asked: AskingTraining,
    side: int | None,
    train: str,
    learnt_from: tuple[str, ...],
    drawn: bool,
    label: str,
) -> list[Step]:
    """Everything beside the training of the network that asks, the step ``train``.

    The other networks, with the same schedule (that told at random: in squares of ``side``), the contest on split
    "ask", and, where there are ``drawn`` classes, precision on split "segmented".
    """
    plain = replace(asked, lesson=LessonConfig())  # about questions: nothing to those that ask none
    others = {RANDOM: replace(plain, hints="random", side=side), NONE: replace(plain, hints="none")}
    exact = given.exact and asked.lesson.noise > 0  # else it would be the network itself, trained twice
    if exact:
        others[EXACT] = replace(asked, lesson=replace(asked.lesson, noise=0.0))
    found: list[Step] = [Train(name, AskingTrainer(training), learnt_from) for name, training in others.items()]
    seed, hints = asked.training.seed, int(asked.task.hints)
    contest = ContestConfig(
        asked.preprocess,
        hints,
        exact,
        given.classical,
        BilateralSolver(**given.bilateral.model_dump()) if given.classical else BilateralSolver(),
        seed,
        given.batch,
    )
    asking = {"asked": train, **({"exact": EXACT} if exact else {})}
    trained = {**asking, "points": RANDOM, "none": NONE}
    found += [
        Measure(CONTEST, Contest(contest), ("ask",), trained=trained),
        Reduce(TABLE, ContestTable(ContestTableConfig(contest.methods, hints)), CONTEST, label=label),
        Reduce(ORDER, QuestionOrder(OrderConfig(hints)), CONTEST, label=label),
    ]
    if drawn:
        config = PrecisionConfig(asked.preprocess, hints, tuple(asking), given.moves, seed, given.batch)
        found += [
            Measure(PRECISION, Precision(config), ("segmented",), trained=asking),
            Reduce(CLASSES, PrecisionTable(config), PRECISION, label=label),
        ]
    return found


def refused(task: Any) -> str:
    """Why an evaluation is not of this task; empty where it is."""
    return "" if task.observed == 1 else f"task evaluate is of colours: learn.problem {task.name} is not"
