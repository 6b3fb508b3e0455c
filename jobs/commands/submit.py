"""``raylens submit``, ``jobs`` and ``stop`` as the command line has them; see jobs.submit."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from jobs.commands.job import (
    JOBS,
    ConfigFile,
    Label,
    Only,
    RetryFailed,
    RunOption,
    Sets,
    Yes,
    as_sets,
    code_path,
    load,
    run_url,
)

ServerAddress = Annotated[str, typer.Option("--address", metavar="URL", help="The job server, as ray's dashboard.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Send the token over plain http to another machine.")]


def submit(
    job: Annotated[str, typer.Argument(metavar="JOB", help=f"One of: {', '.join(JOBS)}.")],
    config: ConfigFile,
    run: RunOption = None,
    sets: Sets = None,
    address: ServerAddress = "http://127.0.0.1:8265",
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Show the log; ctrl-C leaves it running.")
    ] = True,
    name: Annotated[str, typer.Option("--name", help="Begins the job's id there.")] = "",
    env_file: Annotated[
        Path | None, typer.Option("--env-file", help="NAME=value lines for the job; the cluster can read them.")
    ] = None,
    code: Annotated[str, typer.Option(metavar="auto|tree|installed", help="Which Raylens runs there.")] = "auto",
    python: Annotated[str, typer.Option(help="The Python of the head.")] = "python",
    only: Only = None,
    label: Label = None,
    retry_failed: RetryFailed = False,
    yes: Yes = False,
    insecure: Insecure = False,
) -> None:
    from jobs import submit as submission
    from pipeline.submission import environment_file

    env = environment_file(env_file) if env_file is not None else {}
    os.environ.update(env)  # the config's variables are resolved here
    _, settings = load(job, config, [*(sets or ()), *as_sets(label)])
    flags = [word for step in only or () for word in ("--only", step)]
    flags += [flag for flag, given in (("--retry-failed", retry_failed), ("--yes", yes)) if given]
    asked = submission.Submission(
        job,
        settings,
        run_url(run, settings),
        address,
        name,
        tuple(flags),
        env,
        code,
        code_path(config),
        python,
        insecure,
    )
    submitted, notes = submission.submit(asked)
    for line in notes:
        print(line, file=sys.stderr)
    print(f"{submitted.id} {submitted.status.lower()}", flush=True)
    raise typer.Exit(submission.follow(address, submitted.id, insecure=insecure) if follow else 0)


def list_jobs(address: ServerAddress = "http://127.0.0.1:8265", insecure: Insecure = False) -> None:
    from jobs.show import job_lines
    from pipeline.submission import JobServer

    print("\n".join(job_lines(JobServer(address, insecure=insecure).jobs(), time.time())))


def stop(
    job: Annotated[str, typer.Argument(metavar="ID", help="As 'raylens jobs' shows it.")],
    address: ServerAddress = "http://127.0.0.1:8265",
    insecure: Insecure = False,
) -> None:
    from pipeline.submission import JobServer

    print(f"{job} is being stopped" if JobServer(address, insecure=insecure).stop(job) else f"{job} was over already")
