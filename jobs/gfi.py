"""The GFI job: a mask, boxes and scores for every image -> localization and scores -> report."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from pydantic import Field, model_validator

from jobs.config import JobConfig, Section
from jobs.sections import JudgedSplit, Network, source
from pipeline.engine import Outcome, execute
from pipeline.errors import UsageError
from pipeline.inputs import NetworkInput
from pipeline.models import load
from pipeline.options import Options
from pipeline.steps import Job, Measure, Reduce
from stages.gfi.boxes import ALPHAS
from stages.gfi.config import GfiConfig as StageConfig
from stages.gfi.layers import AUTO, find_layers
from stages.gfi.metrics import GfiMetrics, GfiMetricsConfig
from stages.gfi.stage import GfiStage
from stages.metrics.boxes import CENTER_SIZES, THRESHOLDS
from stages.preprocess import Preprocess
from stages.tracing import Graph


class GfiData(Section):
    """Thresholds are chosen on ``tune`` (without it: on one half of ``eval`` for the other), measured on ``eval``."""

    eval: JudgedSplit
    tune: JudgedSplit | None = None


class GfiSection(Section):
    """What is optimised; fields as in stages.gfi.config.GfiConfig.

    ``framing``: "preset" lets the authors' preset resize the short side and crop the centre, as their code does;
    "model" takes what ``model.preprocess`` says for either preset.
    """

    preset: Literal["paper", "authors"] = "paper"
    targets: tuple[int | str, ...] = ("predicted",)
    background: Literal["blur", "mean", "noise"] = "blur"
    inversion_layer: str = AUTO
    mask_layer: str = AUTO
    inversion_steps: int | None = Field(default=None, ge=0)
    class_steps: int | None = Field(default=None, ge=0)
    gamma: float | None = Field(default=None, ge=0)
    delta: float | None = Field(default=None, ge=0)
    suppress: float | None = Field(default=None, ge=0)
    score: Literal["softmax", "sigmoid", "logits"] | None = None
    attack: float = Field(default=0.0, ge=0, le=255)
    framing: Literal["preset", "model"] = "preset"
    frame: Literal["auto", "image", "input"] = "auto"
    inclusive: bool = True
    alphas: tuple[float, ...] = ALPHAS
    thresholds: tuple[float, ...] = THRESHOLDS
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    speed: Literal["eager", "compile", "cuda_graphs"] = "eager"
    batch: int = Field(default=0, ge=0)


class GfiReportSection(Section):
    """What the page shows."""

    examples: int = Field(default=4, ge=1, le=20)  # images each of good, median and bad
    paper: bool = False  # put the paper's Table 1 beside ours: only for VGG-19 on ILSVRC


class GfiConfig(JobConfig):
    """``raylens gfi``: see jobs/configs/gfi-vgg19-ilsvrc.yaml for a commented example."""

    model: Network
    data: GfiData
    gfi: GfiSection = GfiSection()
    iou: float = Field(default=0.5, gt=0, le=1)  # the overlap that counts
    report: GfiReportSection = GfiReportSection()

    @model_validator(mode="after")
    def _the_stage_agrees(self) -> GfiConfig:
        self.stage_config(Preprocess(frame=self.model.preprocess.frame))
        return self

    def stage_config(self, preprocess: Preprocess) -> StageConfig:
        """The stage's config for a network with this preprocessing."""
        fields = self.gfi.model_dump(exclude={"framing"})
        if self.gfi.preset == "authors" and self.gfi.framing == "preset":
            preprocess = dataclasses.replace(preprocess, frame="crop", resize=max(preprocess.size))
        return StageConfig(seed=self.seed, preprocess=preprocess, **fields)


@dataclasses.dataclass(frozen=True)
class Found:
    """The network as the config names it: how images are framed, its classes, and the two layers that were found."""

    stage: StageConfig
    classes: int
    names: list[str] | None
    inversion_layer: str
    mask_layer: str


def inspect(config: GfiConfig) -> Found:
    """Loads the network once; UsageError where a layer or a class is none of it."""
    network = load(config.model)
    stage = config.stage_config(Preprocess(**network.preprocess))
    try:
        with torch.no_grad():
            graph = Graph(network.module, torch.zeros(1, 3, *stage.preprocess.size))
            layers = find_layers(graph, stage.inversion_layer, stage.mask_layer, one=stage.preset == "authors")
    except (LookupError, ValueError) as error:
        raise UsageError(str(error.args[0]), where=f"layers of {config.model.name}") from error
    assert network.num_classes is not None
    beyond = [t for t in stage.targets if isinstance(t, int) and t >= network.num_classes]
    if beyond:
        raise UsageError(
            f"target {beyond[0]} is no class of {config.model.name}",
            where="gfi.targets",
            cure=f"its classes are 0 to {network.num_classes - 1}",
        )
    return Found(stage, network.num_classes, network.classes, *layers)


def build(config: GfiConfig) -> Job:
    """The job's graph."""
    found = inspect(config)
    splits = {"tune": config.data.tune, "eval": config.data.eval}
    sources = {name: source(split) for name, split in splits.items() if split is not None}
    metrics = GfiMetricsConfig(
        targets=found.stage.targets,
        classes=found.classes,
        alphas=found.stage.alphas,
        thresholds=found.stage.thresholds,
        center_sizes=CENTER_SIZES,
        iou=config.iou,
    )
    steps = (
        Measure("gfi", GfiStage(found.stage), tuple(sources), {"network": NetworkInput(config.model)}),
        Reduce("metrics", GfiMetrics(metrics), "gfi", label=config.label),
    )
    return Job("gfi", config.model_dump(mode="json"), sources, steps, limits=config.images)


def run(config: GfiConfig, run_url: str, options: Options | None = None) -> Outcome:
    """Run the job to its end and write its report; a rerun goes on where it stopped."""
    options = options or config.options()
    outcome = execute(build(config), run_url, options)
    if not options.only:
        options.say(f"report {write_report(run_url)}")
    return outcome


def write_report(run_url: str) -> str:
    """Write the report of a run from what it holds; returns where."""
    from jobs.gfi_gather import write_report as write

    return write(run_url)
