"""The semantic job: a filtered COCO run -> two-level classifiers trained on it -> rows -> indexes -> report."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import pyarrow as pa

from jobs.semantic.backbones import require_features
from jobs.semantic.config import SemanticConfig
from jobs.semantic.data import CocoRun, require_rows, share
from jobs.semantic.train import TwoLevelTrainer
from jobs.semantic.variants import Variant, variants
from pipeline.engine import Outcome, execute
from pipeline.inputs import NetworkInput
from pipeline.models import preprocess_for
from pipeline.options import Options
from pipeline.steps import Job, Measure, Reduce, Source, Step, Train
from stages.preprocess import Preprocess
from stages.semantic.evaluate import TwoLevelEvaluate, TwoLevelEvaluateConfig
from stages.semantic.indexes import SemanticIndexes, SemanticIndexesConfig
from stages.semantic.network import TwoLevelConfig
from stages.semantic.train import TwoLevelTraining
from stages.training import TrainingConfig
from stages.training_augment import AugmentConfig


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
    from jobs.semantic.gather import write_report as write

    return write(run_url)
