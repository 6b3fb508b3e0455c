"""What commands that take a CONFIG go by: which jobs there are, shared options, and how a file becomes settings."""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import UsageError

if TYPE_CHECKING:
    from jobs.config import JobConfig

# name -> (module, config class, what it does). A module has build(config) -> Job, run(config, run_url, options) ->
# Outcome and write_report(run_url) -> path; it may have plan_lines(config, job, estimates) -> what `plan` says more.
JOBS = {
    "chip": ("jobs.chip", "ChipConfig", "CHIP: which channels of a network tell a class, and where they look."),
    "classifier": ("jobs.classifier", "ClassifierConfig", "A network's last layer trained anew for other classes."),
    "compare": ("jobs.compare", "CompareJobConfig", "Every method on the same images, by every measure, in one table."),
    "gfi": ("jobs.gfi", "GfiConfig", "Guided feature inversion: a mask of what a network needs to see its class."),
    "linear": (
        "jobs.linear",
        "LinearConfig",
        "Linear interpreters: what a network adds up, layer by layer and pixel by pixel.",
    ),
    "coco": ("jobs.coco", "CocoConfig", "Filter a COCO-format dataset and relabel it at two levels."),
    "semantic": (
        "jobs.semantic",
        "SemanticConfig",
        "Two-level classifiers on a relabelled dataset, and their indexes.",
    ),
    "asking": (
        "jobs.asking",
        "AskingConfig",
        "Networks that ask: for a colour here, then there; trained, then applied.",
    ),
}

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="The job's YAML config.", show_default=False)]
RunOption = Annotated[str | None, typer.Option("--run", metavar="URL", help="The run folder; resumes what is there.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a field of the config; may be repeated.")
]
Only = Annotated[
    list[str] | None, typer.Option("--only", metavar="STEP", help="This step and what it stands on; may be repeated.")
]
Label = Annotated[str | None, typer.Option(metavar="NAME", help="Your name for this setting, shown beside others.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do what would be refused for its size (see 'raylens plan').")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Make the shards with failed rows again, quarantined keys too.")
]


def load(name: str, path: Path, sets: list[str]) -> tuple[Any, JobConfig]:
    if name not in JOBS:
        near = difflib.get_close_matches(name, JOBS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the jobs are {', '.join(JOBS)}"
        raise UsageError(f"there is no job '{name}'", cure=hint)
    from jobs.config import check_file, read_values

    values = read_values(path, sets)  # before the job is imported: a missing file is told at once
    module = importlib.import_module(JOBS[name][0])
    sys.path[:0] = [folder for folder in code_path(path) if folder not in sys.path]  # a user's module:function
    return module, check_file(getattr(module, JOBS[name][1]), path, values, sets)


def as_sets(
    label: str | None, address: str | None = None, allow_failed: float | None = None, mode: str | None = None
) -> list[str]:
    """Flags are settings, so they are checked and told in the same way."""
    given = {"resources.address": address, "allow_failed": allow_failed, "resources.mode": mode, "label": label}
    return [f"{name}={json.dumps(value)}" for name, value in given.items() if value is not None]


def run_url(run: str | None, settings: JobConfig) -> str:
    url = run or settings.run
    if not url:
        raise UsageError("no run folder is given", cure="add --run FOLDER, or 'run: FOLDER' to the config")
    return url


def code_path(config: Path) -> tuple[str, ...]:
    """Where a user's own ``module:function`` is looked for: beside the config, then in the current folder."""
    return tuple(dict.fromkeys([str(config.resolve().parent), str(Path.cwd())]))
