"""The CHIP job: sweep -> statistics -> solve -> localize -> metrics -> report.

The sweep is the expensive pass and stores raw measurements; everything after it is a reduction or a pass over the
evaluation images that reruns in seconds to minutes, beside earlier settings.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from jobs import chip_costs
from jobs.config import JobConfig, Section
from jobs.sections import Network, Split, source
from pipeline.engine import Outcome, execute
from pipeline.errors import UsageError
from pipeline.inputs import NetworkInput
from pipeline.models import load
from pipeline.options import Options
from pipeline.preview import StepEstimate
from pipeline.run import Run
from pipeline.steps import Job, Measure, Reduce, Source, Step
from stages.chip.localize import Localize, LocalizeConfig
from stages.chip.solve import ChipSolve, SolveConfig
from stages.chip.statistics import ChipStatistics, StatisticsConfig
from stages.chip.sweep import ChipSweep, SweepConfig
from stages.metrics.boxes import CENTER_SIZES, THRESHOLDS
from stages.metrics.localization import LocalizationConfig, LocalizationMetrics
from stages.network import Cut, cut
from stages.preprocess import Preprocess


class ChipData(Section):
    """Splits: the weights are fitted on ``fit``, thresholds chosen on ``tune``, errors measured on ``eval``.

    Without ``tune`` the thresholds are chosen on one half of ``eval`` and applied to the other, both ways.
    """

    fit: Split
    tune: Split | None = None
    eval: Split | None = None


class SweepSection(Section):
    """The perturbed networks; fields as in stages.chip.sweep.SweepConfig."""

    gates: int = Field(default=100, ge=1)
    classes: Literal["coverage", "all"] = "coverage"
    min_share: float = Field(default=0.01, ge=0, le=1)
    max_classes: int = Field(default=16, ge=1)
    output: Literal["softmax", "logits"] = "softmax"
    shared_gates: bool = False
    precision: Literal["network", "bfloat16", "float16"] = "network"
    draft: bool = False
    batch: int = Field(default=0, ge=0)


class SolveSection(Section):
    """The sparse fit; fields as in stages.chip.solve.SolveConfig. ``sigma2`` absent means K/4."""

    sigma2: float | None = Field(default=None, gt=0)
    holdout: float = Field(default=0.2, ge=0, lt=1)
    lambda_rel: float = Field(default=0.01, ge=0)
    path: int = Field(default=20, ge=0)
    choose: bool = False  # take the lambda of the path with the best held-out R^2 instead of lambda_rel
    solver: Literal["admm", "newton"] = "admm"
    rho_rel: float | None = Field(default=None, gt=0)
    classes: list[int] | None = None


class LocalizeSection(Section):
    """Maps and the boxes drawn from them; fields as in stages.chip.localize.LocalizeConfig."""

    methods: tuple[str, ...] = ("chip", "refined_chip", "grad_cam", "gradient")
    thresholds: tuple[float, ...] = THRESHOLDS
    signed: bool = False
    frame: Literal["auto", "image", "input"] = "auto"
    inclusive: bool = True
    iou: float = Field(default=0.5, gt=0, le=1)
    batch: int = Field(default=0, ge=0)


class ReportSection(Section):
    """What the page shows."""

    classes: tuple[int, ...] = ()  # of the heatmap; empty: those with the most images
    venn: tuple[tuple[int, ...], ...] = ()  # groups of two or three classes; empty: neighbours in the heatmap
    examples: int = Field(default=4, ge=1, le=20)  # images each of good, median and bad
    paper: bool = False  # put the paper's Table II beside ours: only for VGG16 on ILSVRC


class ChipConfig(JobConfig):
    """``raylens chip``: see jobs/configs/chip-folder.yaml for a commented example."""

    model: Network
    data: ChipData
    layers: tuple[str, ...] = ("first_conv", "last_conv")
    sweep: SweepSection = SweepSection()
    solve: SolveSection = SolveSection()
    localize: LocalizeSection = LocalizeSection()
    report: ReportSection = ReportSection()

    @model_validator(mode="after")
    def _methods_have_their_layers(self) -> ChipConfig:
        self.sweep_config(Preprocess())
        try:
            if self.data.eval is not None:
                LocalizeConfig(methods=self.localize.methods, layers=self.layers, thresholds=self.localize.thresholds)
        except LookupError as error:
            raise ValueError(str(error.args[0])) from error
        return self

    def sweep_config(self, preprocess: Preprocess) -> SweepConfig:
        fields = self.sweep.model_dump()
        return SweepConfig(layers=self.layers, seed=self.seed, preprocess=preprocess, **fields)


def network_cut(config: ChipConfig) -> tuple[Cut, int, Preprocess, list[str] | None]:
    """The network cut at the config's layers, its number of classes, preprocessing and class names."""
    network = load(config.model)
    preprocess = Preprocess(**network.preprocess)
    try:
        with torch.no_grad():
            found = cut(network.module, config.layers, torch.zeros(1, 3, *preprocess.size))
    except (LookupError, ValueError) as error:
        raise UsageError(str(error.args[0]), where=f"layers of {config.model.name}") from error
    assert network.num_classes is not None
    return found, network.num_classes, preprocess, network.classes


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
    chosen = SolveConfig(**solve_fields(statistics, solve))
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
        inclusive=asked.inclusive,
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
    return chip_costs.class_lines(_class_costs(job, images), config.sweep.classes)


def _class_costs(job: Job, images: int) -> dict[str, chip_costs.ClassCosts]:
    sweep, statistics = job.step("sweep"), job.step("statistics")
    assert isinstance(sweep, Measure)
    assert isinstance(statistics, Reduce)
    return chip_costs.class_costs(sweep.stage.config, statistics.reduction.config, images)


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
    chip_costs.refuse_too_large(_class_costs(job, images)["all"])
    return job


def write_report(run_url: str) -> str:
    """Write the report of a run from what it holds; returns where."""
    from jobs.chip_gather import write_report as write

    return write(run_url)
