"""The linear job: what linear interpreters say of every image of a dataset, for one network or several side by side.

Tasks: ``residual``, ``layers`` and ``votes`` of classifiers (jobs/linear/classify.py); ``filters`` and ``svd`` of
networks from image to image (jobs/linear/filters.py).
"""

from __future__ import annotations

from jobs.linear import classify, filters
from jobs.linear.config import CLASSIFY, LinearConfig
from jobs.linear.sizes import affordable, size_lines, sizes_of
from jobs.sections import source
from pipeline.engine import Outcome, execute
from pipeline.options import Options
from pipeline.preview import StepEstimate
from pipeline.run import Run
from pipeline.steps import Job


def build(config: LinearConfig) -> Job:
    """The job's graph. Loads every network once: what cannot be interpreted is refused here, by name."""
    if config.task in CLASSIFY:
        found = classify.inspect(config)
        steps = classify.steps(config, found)
        images = source(config.data.images, "images", classify.label_limit(config, found))
    else:
        steps = filters.steps(config)
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
        from jobs.linear.gather import write_report as write
    else:
        from jobs.explorer.write import write_page as write
    return write(run, described)
