"""The COCO job: instances json -> filter -> summary -> the kept images as Parquet and as a COCO json -> report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import pyarrow as pa
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from jobs.coco_kept import write_kept
from jobs.coco_taxonomy import read_taxonomy, require_known
from jobs.config import JobConfig, Location, Section, located, located_if_file
from pipeline.engine import Outcome, execute
from pipeline.options import Options
from pipeline.sources.instances import InstancesSource, instances_table
from pipeline.steps import Job, Measure, Reduce, Source
from stages.coco.filter import CocoFilter, CocoFilterConfig
from stages.coco.rule import Reading
from stages.coco.summary import CocoSummary, CocoSummaryConfig
from stages.coco.taxonomy import Taxonomy


def _locate(values: Any, info: ValidationInfo) -> Any:
    if not isinstance(values, Mapping):
        return values
    paths = {"annotations": located, "images": located, "keys": located_if_file, "exclude": located_if_file}
    return {k: paths[k](v, info) if k in paths and isinstance(v, str) else v for k, v in values.items()}


class RuleSection(Section):
    """How the rule is read. The report counts every reading, whichever is chosen."""

    crowds: bool = True  # crowd regions count as objects
    people_only: bool = False  # images with nothing but public classes stay, without a coarse label


class CocoReportSection(Section):
    """What the page shows."""

    examples: int = Field(default=4, ge=0, le=12)  # images of each coarse class
    paper: bool = False  # put the paper's counts beside ours: only for the whole of COCO 2017


class CocoConfig(JobConfig):
    """``raylens coco``: see jobs/configs/coco-2017.yaml for a commented example."""

    splits: dict[str, Annotated[InstancesSource, BeforeValidator(_locate)]]
    taxonomy: Location | None = None  # a taxonomy file; absent: the paper's
    rule: RuleSection = RuleSection()
    report: CocoReportSection = CocoReportSection()

    @field_validator("splits")
    @classmethod
    def _splits_are_folders(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("name at least one split, with its annotations")
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
                raise ValueError(f"the split {name!r} becomes a folder: use letters, digits, '_', '-' and '.'")
        return value


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
    outcome = execute(build(config), run_url, options)
    if not options.only:
        for path in write_kept(run_url, config, outcome.fingerprints):
            options.say(f"kept images {path}")
        options.say(f"report {write_report(run_url)}")
    return outcome


def write_report(run_url: str) -> str:
    """Write the report of a run from what it holds; returns where."""
    from jobs.coco_report import write_report as write

    return write(run_url)
