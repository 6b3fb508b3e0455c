"""Trainings whose workers and drivers are really killed: what is learnt is what an undisturbed training learns."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from driving import start, wait_for
from learning import Line, LineConfig, job

from pipeline.engine import execute
from pipeline.errors import RaylensError, UsageError
from pipeline.learnt import Learnt, Trained, read_trained
from pipeline.options import Options, Resources
from pipeline.signals import RunStopped, Stop
from pipeline.status import status
from pipeline.storage import Folder
from pipeline.train import Epoch, Worker, train
from pipeline.verify import verify

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def options(**resources: Any) -> Options:
    return Options(resources=Resources(shard_rows=24, **resources), say=lambda _: None)


@contextlib.contextmanager
def held(run: Path, markers: Path, address: str, at: int, workers: int) -> Iterator[subprocess.Popen[str]]:
    """A driver whose training has come to this step and goes no further."""
    markers.mkdir()
    config = {"hold_at": at, "markers": str(markers), "train_only": True}
    driver = start(run, config, {"address": address, "train_workers": workers}, program="learning.py")
    try:
        end = time.monotonic() + 240
        while not (markers / "held").exists():
            assert driver.poll() is None, driver.communicate()[1]
            assert time.monotonic() < end, "it never came"
            time.sleep(0.02)
        yield driver
    finally:
        driver.kill()
        driver.communicate()


def learnt(run: Path) -> Trained:
    found = read_trained(Folder(str(run / "line")))
    assert found is not None
    return found


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [line for file in sorted((run / "events").glob("*.jsonl")) for line in file.read_text().splitlines()]
    found = [event for event in map(json.loads, lines) if event["kind"] == kind]
    return sorted(found, key=lambda event: event["at"])  # of several drivers


@pytest.fixture(scope="module", autouse=True)
def looked_after_often() -> Iterator[None]:
    """Ray Train looks every two seconds whether its workers have begun or ended; here that is most of a training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What six epochs in one process learn; no cluster is asked."""
    run = tmp_path_factory.mktemp("undisturbed")
    execute(job(train_only=True), str(run), options(train_workers=0))
    return learnt(run)


def test_a_job_trains_and_measures_with_what_it_learnt(cluster: str, tmp_path: Path, undisturbed: Trained) -> None:
    run = tmp_path / "run"
    outcome = execute(job(), str(run), options())
    assert outcome.exit_code == 0
    assert outcome.totals == {"score": {"ok": 40, "filtered": 0, "failed": 0}}
    assert learnt(run) == undisturbed
    assert status(str(run)).complete
    assert verify(str(run)).ok
    # Trained anew, and otherwise: the rows of both stand side by side, and the reduction is of today's.
    for part in ("checkpoints/0006", "checkpoints/0005", "checkpoints/0004", "result"):
        for file in (run / "line" / part).iterdir():
            file.unlink()
    again = execute(job(epochs=7), str(run), options())
    assert learnt(run) != undisturbed
    assert again.fingerprints["score"] != outcome.fingerprints["score"]
    steps = [(step.step, step.current, step.stale) for step in status(str(run)).steps]
    assert sorted(steps) == [
        ("score", False, True),
        ("score", True, False),
        ("sum", False, False),
        ("sum", True, False),
    ]
    assert status(str(run)).complete


@pytest.mark.long
def test_a_killed_training_worker_costs_no_more_than_an_epoch(
    cluster: str, tmp_path: Path, undisturbed: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    run, markers = tmp_path / "run", tmp_path / "markers"
    markers.mkdir()
    whole = job(train_only=True, fault="mid-epoch", markers=str(markers))
    execute(whole, str(run), options(train_workers=2))
    assert (markers / "died").exists(), "nothing was killed: this test shows nothing"
    assert "training goes on from checkpoint 2" in capfd.readouterr().err
    epochs = [event["epoch"] for event in events(run, "epoch")]
    assert epochs == [1, 2, 3, 4, 5, 6], "the epochs before it were not made again"
    found = [epoch["loss"] for epoch in learnt(run).facts["history"]]
    # Two workers add their gradients up in another order than one does.
    assert found == pytest.approx([epoch["loss"] for epoch in undisturbed.facts["history"]], rel=1e-6)


@pytest.mark.long
def test_drivers_stopped_and_killed_in_mid_epoch_are_resumed_to_the_same_end(
    cluster: str, tmp_path: Path, undisturbed: Trained
) -> None:
    """One that trains itself is stopped, one with a worker is, and another with a worker is killed."""
    run = tmp_path / "run"
    with held(run, tmp_path / "first", cluster, at=7, workers=0) as driver:
        with pytest.raises(RaylensError, match=f"another driver is working on this run: process {driver.pid}"):
            execute(job(train_only=True), str(run), options(train_workers=0))
        stopped(driver, run)
    assert status(str(run)).trainings[0].checkpoints == (1,)
    with held(run, tmp_path / "second", cluster, at=8, workers=1) as driver:
        stopped(driver, run)
    assert status(str(run)).trainings[0].checkpoints == (2, 1)
    with held(run, tmp_path / "third", cluster, at=8, workers=1) as driver:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        assert driver.returncode == -signal.SIGKILL
    assert status(str(run)).trainings[0].checkpoints == (3, 2, 1)
    assert not status(str(run)).complete
    execute(job(train_only=True), str(run), options(train_workers=0))
    assert events(run, "train")[-1]["checkpoint"] == 3
    assert learnt(run) == undisturbed


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_done_of_an_epoch_is_heard_before_its_end(cluster: str, tmp_path: Path, workers: int) -> None:
    def function(worker: Worker) -> Learnt:
        worker.within(0.5)
        worker.tell(Epoch(1, 1, {"loss": 2.0}, 0.1))
        return Learnt({"weights.bin": b"w"}, {})

    heard: list[float] = []
    told = {"within": heard.append, "heard": lambda done: heard.append(done.epoch), "log": len}
    train(function, Folder(str(tmp_path)), fingerprint={}, workers=workers, **told)
    assert heard == [0.5, 1]


def stopped(driver: subprocess.Popen[str], run: Path) -> None:
    """Asked to, it leaves in good order: it cannot wait for the next checkpoint, for there will be none."""
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=120)
    assert driver.returncode == 1
    # After 20 s it would be gone without having wound down, and say so in other words.
    assert "stopped on request" in err
    assert "run the same command again to resume" in err
    assert "Traceback" not in err
    assert not (run / "lock.json").exists()


def test_workers_for_whom_the_cluster_has_no_room_are_refused_instead_of_waited_for(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.growth.COMING_S", 1.0)  # in which nodes may join a cluster
    for at in (None, cluster):
        with pytest.raises(
            UsageError, match="this machine: no room for 3 training workers of 1 CPU: the cluster has 1 node with 2 CPU"
        ):
            execute(job(train_only=True), str(tmp_path), options(train_workers=3, address=at))


def test_workers_that_cannot_be_placed_are_told_of_instead_of_waited_for_in_silence(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr("pipeline.waiting._FIRST_S", 0.0)

    @ray.remote(num_cpus=2)
    class Greedy:
        def ready(self) -> bool:
            return True

    hog = Greedy.remote()
    ray.get(hog.ready.remote())
    wait_for(lambda: not ray.available_resources().get("CPU"))
    stop, said = Stop(), []

    def say(line: str) -> None:
        said.append(line)
        stop.set()

    with pytest.raises(RunStopped):
        train(Line(LineConfig()), Folder(str(tmp_path)), fingerprint={}, workers=1, log=say, stop=stop)
    assert said == [
        "waiting for 1 training worker of 1 CPU; the cluster has 1 node with 2 CPU (0 free) and 0 GPU (0 free)"
    ]
    ray.kill(hog)
