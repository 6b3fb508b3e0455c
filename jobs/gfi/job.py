"""The GFI job: a mask, boxes and scores for every image -> localization and scores -> report."""

from __future__ import annotations

from jobs.gfi.config import GfiConfig
from jobs.gfi.network import inspect
from jobs.sections import source
from pipeline.engine import Outcome, execute
from pipeline.inputs import NetworkInput
from pipeline.options import Options
from pipeline.steps import Job, Measure, Reduce
from stages.gfi.metrics import GfiMetrics, GfiMetricsConfig
from stages.gfi.stage import GfiStage
from stages.metrics.boxes import CENTER_SIZES


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
    from jobs.gfi.gather import write_report as write

    return write(run_url)
