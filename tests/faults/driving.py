"""Toy runs for the tests here: drivers as processes of their own, what an undisturbed run gives, what a run holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import ray

from pipeline import plan as plans
from pipeline.estimate import Measured
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.steps import Measure
from pipeline.storage import Folder
from pipeline.tasks import Task, Work
from pipeline.worker import Worker

HERE = Path(__file__).parent
PATH = os.pathsep.join([str(HERE), str(HERE.parents[1])])  # the toys, and the tree they lie in
SHARD_ROWS = 24  # three slices of eight
NOT_REACHED = "Ray could not be reached or started"  # as the engine says it


def environment(**settings: str) -> dict[str, str]:
    """Of a process that imports the toys."""
    return {**os.environ, "PYTHONPATH": PATH, **settings}


def start(
    run: Path | str,
    config: Mapping[str, Any],
    resources: Mapping[str, Any],
    output: IO[str] | int = subprocess.PIPE,
    settings: Mapping[str, str] | None = None,
    program: str = "toys.py",
) -> subprocess.Popen[str]:
    """A driver: its run, the toy's settings, its resources; ``settings`` go into its environment."""
    given = json.dumps({"shard_rows": SHARD_ROWS, **resources})
    command = [sys.executable, str(HERE / program), str(run), json.dumps(config), given]
    return subprocess.Popen(
        command, env=environment(**(settings or {})), stdout=output, stderr=output, text=True, start_new_session=True
    )


def told(out: str) -> dict[str, Any]:
    """What a driver printed as its outcome, wherever Ray's own lines are."""
    _, mark, rest = out.partition("outcome: ")
    assert mark, out
    found: dict[str, Any] = json.JSONDecoder().raw_decode(rest)[0]
    return found


def wait_for(what: Callable[[], Any], seconds: float = 180.0) -> Any:
    """What it gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def patiently(begin: Callable[[], Any], tries: int = 4, only: str = "") -> Any:
    """What it gives: Ray gives up where a machine is too busy to start it in half a minute.

    ``only``: words of the error that is worth another try.
    """
    for _ in range(tries - 1):
        try:
            return begin()
        except Exception as error:  # Ray raises a bare one
            if only not in str(error):
                raise
            print(f"Ray did not start ({str(error).splitlines()[0][:80]}); once more")
            ray.shutdown()
    return begin()


def receipts(run: Path | str) -> int:
    """How many shards a toy run has committed."""
    return len(list((Path(run) / "measure/all/receipts").glob("*.json")))


def rows_of(url: Path | str) -> pa.Table:
    """All rows of a toy run's measuring step, read the way a consumer reads: through receipts."""
    folder = Run(str(url)).step_folder("measure", split="all")
    plan = plans.load(folder)
    assert plan is not None
    return pa.concat_tables(list(Shards(folder, plan.shards).tables())).combine_chunks()


def files_of(url: Path | str) -> dict[str, bytes]:
    """The data files that a toy run's receipts vouch for, with all their bytes."""
    folder = Run(str(url)).step_folder("measure", split="all")
    plan = plans.load(folder)
    assert plan is not None
    found = Shards(folder, plan.shards).committed().values()
    return {file.name: folder.read(file.name) for receipt in found for file in receipt.files}


def bare_worker(url: Path | str, step: Measure, job: Any, shard_rows: int = SHARD_ROWS) -> Worker:
    """A worker in this process, without Ray: as a driver's actor would be."""
    run = Run(str(url))
    keys = run.freeze_keys("all", job.sources["all"])
    folder = run.step_folder(step.name, split="all")
    fields = plans.measure_fields(step, job.limits, {"all": keys.digest}, {})
    size = step.stage.micro_batch("cpu")
    new = plans.new_plan(step.name, "all", fields, len(keys), size, Measured(1, 0, 0, 0, 0, "cpu", 1), shard_rows)
    plan = plans.freeze(Folder(folder.url), new)
    return Worker(Work("w", step, run.keys.url, {"all": folder.url}, {"all": plan}, {}, job.limits), "cpu", 1)


def undisturbed(url: Path | str, job: Any, shard_rows: int = SHARD_ROWS) -> pa.Table:
    """What a job's first step gives when nothing goes wrong: one worker in this process, shard after shard."""
    step = job.steps[0]
    worker = bare_worker(url, step, job, shard_rows)
    for shard in range(worker.work.plans["all"].shards):
        worker.run(Task("all", shard))
    worker.close()
    return rows_of(url) if step.name == "measure" else pa.concat_tables(list(worker.shards("all").tables()))
