"""The comparison: every chosen method on the same images, boxes and thresholds, in one run, in one table.

compare (maps, boxes, points, masks, curves, attacks of each image) -> metrics -> report; and speed, a few images on
which each method is timed.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from jobs.compare_inputs import SolveInput, read_objects, resolved
from jobs.compare_masks import Masks, with_masks
from jobs.config import JobConfig, Location, Section
from jobs.sections import JudgedSplit, Network, source
from pipeline.engine import Outcome, execute
from pipeline.errors import RaylensError, UsageError
from pipeline.inputs import NetworkInput
from pipeline.models import Network as LoadedNetwork
from pipeline.models import load
from pipeline.options import Options
from pipeline.sources.classes import Classes, read_classes
from pipeline.steps import Input, Job, Measure, Reduce, Source, Step
from stages.baselines.asking import Asked
from stages.baselines.compare import Compare, CompareConfig
from stages.baselines.registry import Setting, check, layers_of
from stages.baselines.registry import build as build_method
from stages.baselines.speed import Speed
from stages.metrics.boxes import THRESHOLDS
from stages.metrics.comparison import ComparisonConfig, ComparisonMetrics
from stages.metrics.mean_boxes import ALPHAS
from stages.network import cut
from stages.preprocess import Preprocess

METHODS = ("gradient", "guided_backprop", "grad_cam", "guided_grad_cam", "c_mwp", "lrp")
Papers = Literal["chip-table-2", "gfi-table-1", "gfi-pointing"]


class CompareData(Section):
    """Everything is reported on ``eval``; thresholds are chosen on ``tune``, or on halves of ``eval`` for each other.

    ``masks`` are PNG files beside the images of ``eval``; sources that have masks of their own (COCO) need none.
    """

    eval: JudgedSplit
    tune: JudgedSplit | None = None
    masks: Masks | None = None
    tune_masks: Masks | None = None


class MeasureSection(Section):
    """What is measured; fields as in stages.baselines.compare.CompareConfig.

    ``deletion_steps`` and ``attack`` (FGSM's epsilon for pixels in 0..1) cost passes, so they are 0, off, unless asked.
    """

    asks: Asked = "label"
    most: int = Field(default=8, ge=1)
    any_object: bool = False
    thresholds: tuple[float, ...] = THRESHOLDS
    alphas: tuple[float, ...] = ALPHAS
    frame: Literal["auto", "image", "input"] = "auto"
    inclusive: bool = True
    iou: float = Field(default=0.5, gt=0, le=1)
    signed: bool = False
    output: Literal["logits", "softmax"] = "logits"
    deletion_steps: int = Field(default=0, ge=0)
    attack: float = Field(default=0.0, ge=0, lt=1)
    speed_images: int = Field(default=16, ge=0)  # 0: no method is timed
    batch: int = Field(default=0, ge=0)


class CompareReport(Section):
    """What the page shows."""

    examples: int = Field(default=8, ge=0, le=40)
    keys: tuple[str, ...] = ()  # these images instead of examples spread over the table
    classes: int = Field(default=20, ge=0)  # rows of the breakdown by class: those with the most images
    papers: tuple[Papers, ...] = ()  # tables of the papers, where the dataset is theirs


class CompareJobConfig(JobConfig):
    """``raylens compare``: see jobs/configs/compare-ilsvrc.yaml for a commented example."""

    model: Network
    data: CompareData
    methods: tuple[str, ...] = METHODS
    parameters: dict[str, dict[str, Any]] = Field(default_factory=dict)  # of methods, by name: {lime: {samples: 500}}
    layers: tuple[str, ...] | None = None  # absent: those of the CHIP run, else first_conv and last_conv
    chip: Location | None = None  # a solved CHIP run, for chip, refined_chip and guided_chip
    objects: Location | dict[str | int, Any] | None = None  # a YAML file, or what it would hold
    measure: MeasureSection = MeasureSection()
    report: CompareReport = CompareReport()

    @model_validator(mode="after")
    def _methods_can_be_built(self) -> CompareJobConfig:
        needs = [m for m in self.methods if m.partition(":")[0] in ("chip", "refined_chip", "guided_chip")]
        if needs and self.chip is None:
            raise ValueError(f"{', '.join(needs)} take channel weights from a solved CHIP run: name it as chip: RUN")
        try:
            CompareConfig(
                methods=self.methods, options=self.parameters, layers=self.layers or ("first_conv", "last_conv")
            )
        except LookupError as error:
            raise ValueError(str(error.args[0])) from error
        return self


def build(config: CompareJobConfig) -> Job:
    """The job's graph. Loads the network once, to know that every method can answer it."""
    network = NetworkInput(config.model)
    inputs: dict[str, Input] = {"network": network}
    chip = None if config.chip is None else SolveInput(config.chip)
    if chip is not None:
        chip.require_network(network)
        inputs["solve"] = chip
    layers = config.layers or (chip.config().layers if chip is not None else ("first_conv", "last_conv"))
    loaded = load(config.model)
    stage = stage_config(config, loaded, layers)
    _require_answers(config, stage, loaded, chip)
    sources = {"eval": _split(config, "eval", loaded.num_classes)}
    if config.data.tune is not None:
        sources["tune"] = _split(config, "tune", loaded.num_classes)
    splits = tuple(name for name in ("tune", "eval") if name in sources)
    asked = config.measure
    metrics = ComparisonConfig(
        methods=config.methods,
        thresholds=asked.thresholds,
        alphas=asked.alphas,
        iou=asked.iou,
        curves=asked.deletion_steps > 0,
        attack=asked.attack > 0,
    )
    steps: list[Step] = [
        Measure("compare", Compare(stage), splits, inputs),
        Reduce("metrics", ComparisonMetrics(metrics), "compare", label=config.label),
    ]
    if asked.speed_images:
        few = config.data.eval.model_copy(update={"sample": asked.speed_images})
        sources["speed"] = source(few)
        steps.append(Measure("speed", Speed(stage), ("speed",), inputs))
    return Job("compare", config.model_dump(mode="json"), sources, tuple(steps), limits=config.images)


def stage_config(config: CompareJobConfig, network: LoadedNetwork, layers: tuple[str, ...]) -> CompareConfig:
    asked = config.measure
    objects: tuple[tuple[int, tuple[int, ...]], ...] = ()
    if config.objects is not None:
        objects = resolved(read_objects(config.objects), network.classes, truth_classes(config))
    return CompareConfig(
        methods=config.methods,
        layers=layers,
        options=config.parameters,
        thresholds=asked.thresholds,
        alphas=asked.alphas,
        preprocess=Preprocess(**network.preprocess),
        asks=asked.asks,
        most=asked.most,
        objects=objects,
        any_object=asked.any_object,
        frame=asked.frame,
        inclusive=asked.inclusive,
        signed=asked.signed,
        output=asked.output,
        steps=asked.deletion_steps,
        attack=asked.attack,
        seed=config.seed,
        batch=asked.batch,
    )


def truth_classes(config: CompareJobConfig) -> Classes | None:
    """Names of the classes that boxes and masks have."""
    if config.data.masks is not None and config.data.masks.classes is not None:
        return config.data.masks.named()
    names = getattr(config.data.eval, "classes", None)
    return None if names is None else read_classes(names)


def _split(config: CompareJobConfig, name: str, classes: int | None) -> Source:
    split = config.data.eval if name == "eval" else config.data.tune
    # Where objects stand between them, labels need not be the network's.
    found = source(split, name, classes if config.objects is None else None)
    masks = config.data.masks if name == "eval" else config.data.tune_masks
    return found if masks is None else with_masks(found, masks)


def _require_answers(
    config: CompareJobConfig, stage: CompareConfig, network: LoadedNetwork, chip: SolveInput | None
) -> None:
    """UsageError for a layer that is not there, or a method that this network or this CHIP run cannot answer."""
    try:
        layers = layers_of(stage.methods, stage.layers) or ("last_conv",)
        with torch.no_grad():
            found = cut(network.module, layers, torch.zeros(1, 3, *stage.preprocess.size))
        tables = {} if chip is None else {"solve": chip.load("cpu")}
        setting = Setting(stage.layers, stage.signed, tables, stage.options)
        check({name: build_method(name, setting) for name in stage.methods}, found)
    except RaylensError:
        raise
    except (LookupError, ValueError) as error:
        raise UsageError(str(error.args[0]), where=f"methods on {config.model.name}") from error


def run(config: CompareJobConfig, run_url: str, options: Options | None = None) -> Outcome:
    """Run the job to its end and write its report; a rerun goes on where it stopped."""
    options = options or config.options()
    outcome = execute(build(config), run_url, options)
    if not options.only:
        options.say(f"report {write_report(run_url)}")
    return outcome


def write_report(run_url: str) -> str:
    """Write the report of a run from what it holds; returns where."""
    from jobs.compare_report import write_report as write

    return write(run_url)
