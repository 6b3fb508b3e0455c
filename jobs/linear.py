"""The linear job: what linear interpreters say of every image of a dataset, for one network or several side by side.

Tasks: ``residual``, ``layers`` and ``votes`` of classifiers (jobs/linear_classify.py); ``filters`` and ``svd`` of
networks from image to image.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from jobs.config import JobConfig, Section
from jobs.linear_classify import ClassifySection
from jobs.linear_filters import FiltersSection, SvdSection
from jobs.linear_sizes import affordable, size_lines, sizes_of
from jobs.sections import Network, Split, source
from pipeline.engine import Outcome, execute
from pipeline.options import Options
from pipeline.preview import StepEstimate
from pipeline.run import Run
from pipeline.steps import Job

Task = Literal["residual", "layers", "votes", "filters", "svd"]
CLASSIFY = ("residual", "layers", "votes")


class LinearData(Section):
    """The images that are interpreted."""

    images: Split


class LinearReportSection(Section):
    """What the page of residual, layers and votes shows."""

    examples: int = Field(default=4, ge=0, le=30)  # images with their votes
    paper: bool = False  # the paper's Tables 3 and 4 beside ours: for torchvision's weights on ILSVRC


class LinearConfig(JobConfig):
    """``raylens linear``: see jobs/configs/linear-residual-ilsvrc.yaml for a commented example."""

    task: Task
    networks: dict[str, Network] = Field(min_length=1)  # the name shown -> the network
    data: LinearData
    classify: ClassifySection = ClassifySection()  # of residual, layers and votes
    filters: FiltersSection = FiltersSection()
    svd: SvdSection = SvdSection()  # its method serves filters.svd too
    report: LinearReportSection = LinearReportSection()

    @field_validator("networks")
    @classmethod
    def _names_are_those_of_folders(cls, value: dict[str, Network]) -> dict[str, Network]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
                raise ValueError(f"'{name}' names a folder too: use letters, digits, '.', '_' and '-', at most 64")
        return value


def build(config: LinearConfig) -> Job:
    """The job's graph. Loads every network once: what cannot be interpreted is refused here, by name."""
    if config.task in CLASSIFY:
        from jobs import linear_classify

        found = linear_classify.inspect(config)
        steps = linear_classify.steps(config, found)
        images = source(config.data.images, "images", linear_classify.label_limit(config, found))
    else:
        from jobs.linear_filters import steps as filters_steps

        steps = filters_steps(config)
        images = source(config.data.images)
    return Job("linear", config.model_dump(mode="json"), {"images": images}, steps, limits=config.images)


def run(config: LinearConfig, run_url: str, options: Options | None = None) -> Outcome:
    """Run the job to its end and write its report; a rerun goes on where it stopped."""
    options = options or config.options()
    job, options = affordable(config, build(config), run_url, options)
    outcome = execute(job, run_url, options)
    if not options.only:
        options.say(f"report {write_report(run_url)}")
    return outcome


def plan_lines(config: LinearConfig, job: Job, found: list[StepEstimate]) -> list[str]:
    """What ``raylens plan`` says of filters: rows, columns and bytes of every network."""
    sizes = sizes_of(job)
    images = next((step.plan.keys for step in found if step.step in sizes), 0)
    return size_lines(config, sizes, images) if sizes else []


def write_report(run_url: str) -> str:
    """Write the report of a run from what it holds; returns where."""
    run = Run(run_url)
    described = run.describe()
    if described["config"]["task"] in CLASSIFY:
        from jobs.linear_gather import write_report as write
    else:
        from jobs.explorer import write_page as write
    return write(run, described)
