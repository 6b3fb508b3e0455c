"""The comparison: every chosen method on the same images, boxes and thresholds, in one run, in one table.

compare (maps, boxes, points, masks, curves, attacks of each image) -> metrics -> report; and speed, a few images on
which each method is timed.
"""

from __future__ import annotations

import torch

from jobs.compare.config import CompareJobConfig, truth_classes
from jobs.compare.inputs import SolveInput, read_objects, resolved
from jobs.compare.masks import with_masks
from jobs.sections import source
from pipeline.engine import Outcome, execute
from pipeline.errors import RaylensError, UsageError
from pipeline.inputs import NetworkInput
from pipeline.models import Network as LoadedNetwork
from pipeline.models import load
from pipeline.options import Options
from pipeline.steps import Input, Job, Measure, Reduce, Source, Step
from stages.baselines.compare import Compare, CompareConfig
from stages.baselines.registry import Setting, check, layers_of
from stages.baselines.registry import build as build_method
from stages.baselines.speed import Speed
from stages.metrics.comparison import ComparisonConfig, ComparisonMetrics
from stages.network import cut
from stages.preprocess import Preprocess


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
        top5=asked.asks != "predicted",
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
        inclusive=config.inclusive,
        signed=asked.signed,
        output=asked.output,
        steps=asked.deletion_steps,
        attack=asked.attack,
        seed=config.seed,
        batch=asked.batch,
    )


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
        setting = Setting(stage.layers, stage.signed, tables, stage.options, stage.preprocess)
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
    from jobs.compare.report import write_report as write

    return write(run_url)
