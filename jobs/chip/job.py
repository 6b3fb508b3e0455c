"""The CHIP job: sweep -> statistics -> solve -> localize -> metrics -> report.

The sweep is the expensive pass and stores raw measurements; everything after it is a reduction or a pass over the
evaluation images that reruns in seconds to minutes, beside earlier settings.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.chip import costs
from jobs.chip.config import ChipConfig, SolveSection
from jobs.chip.network import network_cut
from jobs.sections import inclusive, source
from pipeline.engine import Outcome, execute
from pipeline.errors import UsageError
from pipeline.inputs import NetworkInput
from pipeline.options import Options
from pipeline.preview import StepEstimate
from pipeline.run import Run
from pipeline.steps import Job, Measure, Reduce, Source, Step
from stages.chip.localize import Localize, LocalizeConfig
from stages.chip.solve import ChipSolve, SolveConfig
from stages.chip.statistics import ChipStatistics, StatisticsConfig
from stages.chip.sweep import ChipSweep
from stages.metrics.boxes import CENTER_SIZES
from stages.metrics.localization import LocalizationConfig, LocalizationMetrics
from stages.preprocess import Preprocess


def build(config: ChipConfig) -> Job:
    """The job's graph. Loads the network once, to know its layers and classes."""
    found, classes, preprocess, _ = network_cut(config)
    network = NetworkInput(config.model)
    channels = tuple(found.layers[layer].channels for layer in config.layers)
    solve = config.solve
    statistics = StatisticsConfig(
        layers=config.layers,
        channels=channels,
        classes=classes,
        gates=config.sweep.gates,
        seed=config.seed,
        shared_gates=config.sweep.shared_gates,
        sigma2=solve.sigma2,
        holdout=solve.holdout,
    )
    try:
        chosen = SolveConfig(**solve_fields(statistics, solve))
    except ValueError as error:  # classes, which only the network knows
        raise UsageError(str(error), where="solve") from error
    steps: list[Step] = [
        Measure("sweep", ChipSweep(config.sweep_config(preprocess)), ("fit",), {"network": network}),
        Reduce("statistics", ChipStatistics(statistics), "sweep"),
        Reduce("solve", ChipSolve(chosen), "statistics", label=config.label),
    ]
    sources = {"fit": source(config.data.fit, "fit", classes)}
    splits = {"tune": config.data.tune, "eval": config.data.eval}
    sources |= {name: source(split, name, classes) for name, split in splits.items() if split is not None}
    if config.data.eval is not None:
        steps += _localization(config, preprocess, network, tuple(n for n in ("tune", "eval") if n in sources))
    return Job("chip", config.model_dump(mode="json"), sources, tuple(steps), limits=config.images)


def solve_fields(statistics: StatisticsConfig, solve: SolveSection) -> dict[str, Any]:
    """SolveConfig's fields from the config's section."""
    fields: dict[str, Any] = {
        "statistics": statistics,
        "solver": solve.solver,
        "lambda_rel": solve.lambda_rel,
        "path": solve.path,
        "choose": solve.choose,
        "classes": None if solve.classes is None else tuple(solve.classes),
    }
    return fields | ({} if solve.rho_rel is None else {"rho_rel": solve.rho_rel})


def _localization(
    config: ChipConfig, preprocess: Preprocess, network: NetworkInput, splits: tuple[str, ...]
) -> list[Step]:
    asked = config.localize
    localize = LocalizeConfig(
        methods=asked.methods,
        layers=config.layers,
        thresholds=asked.thresholds,
        preprocess=preprocess,
        signed=asked.signed,
        frame=asked.frame,
        inclusive=inclusive(asked.inclusive, config.data.tune, config.data.eval),
        batch=asked.batch,
    )
    metrics = LocalizationConfig(
        methods=asked.methods, thresholds=asked.thresholds, center_sizes=CENTER_SIZES, iou=asked.iou
    )
    return [
        Measure("localize", Localize(localize), splits, {"network": network}, {"solve": "solve"}),
        Reduce("metrics", LocalizationMetrics(metrics), "localize", label=config.label),
    ]


def run(config: ChipConfig, run_url: str, options: Options | None = None) -> Outcome:
    """Run the job to its end and write its report; a rerun goes on where it stopped."""
    options = options or config.options()
    outcome = execute(_affordable(config, build(config), run_url, options), run_url, options)
    if not options.only:
        options.say(f"report {write_report(run_url)}")
    return outcome


def plan_lines(config: ChipConfig, job: Job, found: list[StepEstimate]) -> list[str]:
    """What ``raylens plan`` says of the classes: both ways to keep them, for the fit split."""
    images = next((step.plan.keys for step in found if step.step == "sweep"), 0)
    return costs.class_lines(_class_costs(job, images), config.sweep.classes)


def _class_costs(job: Job, images: int) -> dict[str, costs.ClassCosts]:
    sweep, statistics = job.step("sweep"), job.step("statistics")
    assert isinstance(sweep, Measure)
    assert isinstance(statistics, Reduce)
    return costs.class_costs(sweep.stage.config, statistics.reduction.config, images)


def _affordable(config: ChipConfig, job: Job, run_url: str, options: Options) -> Job:
    """The job, unless keeping all classes is too large and was not asked for twice; counts images before it writes."""
    if config.sweep.classes != "all" or options.yes:
        return job
    frozen = Run(run_url).key_table("fit")
    if frozen.folder.exists("fit.json"):
        images = len(frozen)
    else:  # listed once: the run freezes this very table
        table = job.sources["fit"].list()
        images = table.num_rows
        listed = Source(job.sources["fit"].description, lambda: table)
        job = dataclasses.replace(job, sources={**job.sources, "fit": listed})
    costs.refuse_too_large(_class_costs(job, images)["all"])
    return job


def write_report(run_url: str) -> str:
    """Write the report of a run from what it holds; returns where."""
    from jobs.chip.gather import write_report as write

    return write(run_url)
