"""The COCO job: instances json -> filter -> summary -> the kept images as Parquet and as a COCO json -> report."""

from __future__ import annotations

import json
from collections.abc import Callable

import pyarrow as pa

from jobs.coco.config import CocoConfig
from jobs.coco.kept import write_kept
from jobs.coco.taxonomy import read_taxonomy, require_known
from pipeline.engine import Outcome, execute
from pipeline.options import Options
from pipeline.sources.instances import InstancesSource, instances_table
from pipeline.steps import Job, Measure, Reduce, Source
from stages.coco.filter import CocoFilter, CocoFilterConfig
from stages.coco.rule import Reading
from stages.coco.summary import CocoSummary, CocoSummaryConfig
from stages.coco.taxonomy import Taxonomy


def build(config: CocoConfig) -> Job:
    """The job's graph. Reads the taxonomy only."""
    taxonomy = read_taxonomy(config.taxonomy)
    splits = tuple(config.splits)
    chosen = CocoFilterConfig(taxonomy, Reading(config.rule.crowds, config.rule.people_only))
    return Job(
        "coco",
        config.model_dump(mode="json"),
        {
            name: Source(split.model_dump(mode="json"), _lister(split, taxonomy))
            for name, split in config.splits.items()
        },
        (
            Measure("filter", CocoFilter(chosen), splits),
            Reduce("summary", CocoSummary(CocoSummaryConfig(taxonomy.coarse_names)), "filter", label=config.label),
        ),
        limits=config.images,
    )


def _lister(split: InstancesSource, taxonomy: Taxonomy) -> Callable[[], pa.Table]:
    def listed() -> pa.Table:
        table = instances_table(split)
        require_known(taxonomy, json.loads(table.schema.metadata[b"categories"]), split.annotations)
        return table

    return listed


def run(config: CocoConfig, run_url: str, options: Options | None = None) -> Outcome:
    """Run the job to its end, write the kept images' json of each split and the report; a rerun goes on."""
    options = options or config.options()

    def keep(outcome: Outcome) -> None:
        for path in write_kept(run_url, config, outcome.fingerprints):
            options.say(f"kept images {path}")

    outcome = execute(build(config), run_url, options, None if options.only else keep)
    if not options.only:
        options.say(f"report {write_report(run_url)}")
    return outcome


def write_report(run_url: str) -> str:
    """Write the report of a run from what it holds; returns where."""
    from jobs.coco.report import write_report as write

    return write(run_url)
