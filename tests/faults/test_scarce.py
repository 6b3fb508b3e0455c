"""A cluster of one CPU and one GPU: the same rows however the work lies; what has no room there is told of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from driving import PATH, patiently, rows_of, wait_for
from toys import Sum, SumConfig, toy_job

from pipeline import plan as plans
from pipeline.engine import execute
from pipeline.estimate import Measured
from pipeline.events import Events
from pipeline.options import Options, Resources
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.signals import RunStopped, Stop
from pipeline.tasks import Work

pytestmark = pytest.mark.timeout(900)  # starts Ray, which a busy machine may do only at the third try


@pytest.fixture(scope="module")
def one_gpu() -> Iterator[None]:
    """A cluster of one CPU and one (logical) GPU."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        ray.shutdown()
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        patiently(lambda: ray.init(address="local", num_cpus=1, num_gpus=1, **quiet))
        yield
        ray.shutdown()


@pytest.mark.parametrize("share", [1.0, 0.5], ids=["decoding beside one actor", "two actors on one GPU"])
def test_decoding_apart_from_computing(one_gpu: None, tmp_path: Path, undisturbed: pa.Table, share: float) -> None:
    resources = Resources(shard_rows=24, mode="spread", gpus_per_actor=share)
    outcome = execute(toy_job(200), str(tmp_path / "run"), Options(resources, say=lambda _: None))
    assert outcome.exit_code == 0
    assert rows_of(tmp_path / "run").equals(undisturbed)


def taking(**resources: float) -> Any:
    """Somebody else's actor that holds all there is of these resources, and Ray knows it."""
    import ray

    class Greedy:
        def ready(self) -> bool:
            return True

    hog = ray.remote(Greedy).options(**resources).remote()
    ray.get(hog.ready.remote())
    taken = {"num_cpus": "CPU", "num_gpus": "GPU"}
    wait_for(lambda: not any(ray.available_resources().get(taken[name]) for name, held in resources.items() if held))
    return hog


def test_a_reduction_without_a_free_cpu_says_so(one_gpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from pipeline.reduce import Reducing, reduce_on_ray

    monkeypatch.setattr("pipeline.waiting._FIRST_S", 0.5)
    stop = Stop()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        stop.set()

    hog = taking(num_cpus=1)
    with Progress("sum", 1, stream=sys.stderr) as progress:
        monkeypatch.setattr(progress, "say", say)
        with pytest.raises(RunStopped):
            reduce_on_ray(Reducing("sum", Sum(SumConfig(blocks=1)), str(tmp_path), ()), [0], stop, progress)
    ray.kill(hog)
    assert said == [
        "waits for 1 CPU a task, and none was free; the cluster has 1 node with 1 CPU (0 free) and 1 GPU (1 free)"
    ]


@pytest.mark.parametrize(
    ("taken", "told"),
    [
        ({"num_gpus": 1, "num_cpus": 0}, ("waiting for a worker with 1 GPU to start", "and 1 GPU (0 free)")),
        ({"num_cpus": 1}, ("waiting for a CPU to decode on, 1 for each task", "and 1 GPU (0 free)")),
    ],
    ids=["no GPU for a worker", "no CPU for decoding"],
)
def test_what_is_waited_for_is_said(
    one_gpu: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    taken: dict[str, float],
    told: tuple[str, str],
) -> None:
    import ray

    from pipeline.runner import Runner

    monkeypatch.setattr("pipeline.waiting._FIRST_S", 0.5)
    monkeypatch.setattr("pipeline.loop._STOP_S", 0.5)
    run, job, stop = Run(str(tmp_path)), toy_job(40), Stop()
    step = job.steps[0]
    keys = run.freeze_keys("all", job.sources["all"])
    folder = run.step_folder("measure", split="all")
    fields = plans.measure_fields(step, job.limits, {"all": keys.digest}, {})
    plan = plans.freeze(folder, plans.new_plan("measure", "all", fields, 40, 8, Measured(1, 0, 0, 0, 0, "cpu", 1), 24))
    work = Work("w", step, run.keys.url, {"all": folder.url}, {"all": plan}, {}, job.limits)
    said: list[str] = []

    def say(text: str) -> None:
        if text.startswith(told[0]) or told[0].startswith("waiting for a worker"):
            said.append(text)
            stop.set()

    hog = taking(**taken)
    with Events(run.folder, "test") as events, Progress("measure", 40, stream=sys.stderr) as progress:
        monkeypatch.setattr(progress, "say", say)
        runner = Runner(Resources(mode="spread"), events, stop, say)
        try:
            with pytest.raises(RunStopped):
                runner.run(work, [("all", 0), ("all", 1)], progress)
        finally:
            runner.close()
            ray.kill(hog)
    start, end = told
    assert said[0].startswith(f"{start}; the cluster has 1 node with 1 CPU")
    assert said[0].endswith(end)
