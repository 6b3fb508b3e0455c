"""One Ray session for all modules here, with the toys importable by every worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)


_SHARED: dict[str, str] = {}  # the address of the session that the last module left behind


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray session of two CPUs; gives the address that other drivers can join.

    Starting one takes longer than most tests, so the next module that wants one finds it. A module that starts
    another of its own shuts this one down first.
    """
    import ray

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = HERE
    address = ray.get_runtime_context().gcs_address if ray.is_initialized() else None
    if address is None or address != _SHARED.get("address"):
        ray.shutdown()
        context = ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        _SHARED["address"] = context.address_info["gcs_address"]
    yield _SHARED["address"]
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], pa.Table]:
    """All rows of a toy run's measuring step, read the way a consumer reads: through receipts."""
    from pipeline import plan as plans
    from pipeline.run import Run
    from pipeline.shards import Shards

    def read(url: Path | str) -> pa.Table:
        folder = Run(str(url)).step_folder("measure", split="all")
        plan = plans.load(folder)
        assert plan is not None
        tables = list(Shards(folder, plan.shards).tables())
        return pa.concat_tables(tables).combine_chunks()

    return read


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, rows_of: Callable[[Path], pa.Table]) -> pa.Table:
    """What 200 toy rows are when nothing goes wrong: computed by one worker in this process, without Ray."""
    from toys import toy_job

    from pipeline import plan as plans
    from pipeline.estimate import Measured
    from pipeline.run import Run
    from pipeline.worker import Task, Work, Worker

    run, job = Run(str(tmp_path_factory.mktemp("undisturbed"))), toy_job(200)
    step = job.steps[0]
    keys = run.freeze_keys("all", job.sources["all"])
    folder = run.step_folder("measure", split="all")
    fields = plans.measure_fields(step, job.limits, {"all": keys.digest}, {})
    plan = plans.freeze(folder, plans.new_plan("measure", "all", fields, 200, 8, Measured(1, 0, 0, 0, 0, "cpu", 1), 24))
    worker = Worker(Work("w", step, run.keys.url, {"all": folder.url}, {"all": plan}, {}, job.limits), "cpu", 1)
    for shard in range(plan.shards):
        worker.run(Task("all", shard))
    worker.close()
    return rows_of(run.url)
