"""What becomes of rows whose decoders were lost, on tasks that only pretend."""

from __future__ import annotations

import collections
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from pipeline import task_feeder
from pipeline.decode import Prepared
from pipeline.errors import RaylensError
from pipeline.failures import FREE_RETRIES
from pipeline.storage import UnreachableError
from pipeline.task_feeder import TaskFeeder
from pipeline.tasks import Stopped

KILLED = ray.exceptions.WorkerCrashedError()
LOST = [
    ray.exceptions.NodeDiedError("the node died"),
    ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
    ray.exceptions.ObjectLostError("0" * 56, None, ""),
    ray.exceptions.LocalRayletDiedError(),
]


class Decoders(TaskFeeder):
    """Rows a, b and c of one slice; each task of a row alone ends as ``ends`` says, else with its number."""

    def __init__(self, **ends: list[Exception]) -> None:
        self._ends = {key: collections.deque(errors) for key, errors in ends.items()}
        self.pauses: list[float] = []
        worker: Any = SimpleNamespace(
            rows=lambda split, lo, hi: [{"key": key} for key in "abc"[lo:hi]], pause=self.pauses.append
        )
        super().__init__(worker, "all", [])

    def _submit(self, rows: Any) -> Any:
        ((key,),) = [row.values() for row in rows]
        ends = self._ends.get(key)
        return ends.popleft() if ends else Prepared({"x": np.array([ord(key)])}, (0,), {})

    @property
    def slice(self) -> tuple[list[int], dict[int, str]]:
        found = self._one_by_one((0, 3))
        return found.arrays["x"].tolist(), dict(found.errors)


@pytest.fixture(autouse=True)
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(outcome: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(task_feeder, "ray", SimpleNamespace(get=get, exceptions=ray.exceptions, remote=ray.remote))


def test_a_row_that_kills_its_decoder_three_times_fails_and_no_other() -> None:
    feeder = Decoders(a=[KILLED] * 2, b=[KILLED] * 3)
    assert feeder.slice == ([97, 99], {1: "killed its decoder 3 times (WorkerCrashedError)"})


@pytest.mark.parametrize("error", LOST, ids=lambda error: type(error).__name__)
def test_a_decoder_lost_through_no_fault_of_its_row_costs_retries_that_come_ever_later(error: Exception) -> None:
    feeder = Decoders(b=[KILLED, error, error, KILLED, *[error] * (FREE_RETRIES - 2)])
    assert feeder.slice == ([97, 98, 99], {})
    assert len(feeder.pauses) == 2 + FREE_RETRIES
    assert feeder.pauses == sorted(feeder.pauses)
    assert (feeder.pauses[0], feeder.pauses[-1]) == (0.5, 30.0)


def test_decoders_that_are_lost_again_and_again_are_a_matter_of_the_cluster_not_of_the_row() -> None:
    with pytest.raises(UnreachableError, match=r"b: its decoder was lost 21 times \(NodeDiedError: the node died\)"):
        _ = Decoders(b=[LOST[0]] * (FREE_RETRIES + 1)).slice


def test_what_a_living_decoder_raises_is_raised_at_once() -> None:
    with pytest.raises(ray.exceptions.RayTaskError):
        _ = Decoders(b=[ray.exceptions.RayTaskError("decode", "", RaylensError("no bucket"))]).slice


def test_a_worker_that_is_asked_to_stop_waits_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def pause(seconds: float) -> None:
        raise Stopped

    feeder = Decoders(b=[LOST[0]])
    monkeypatch.setattr(feeder._worker, "pause", pause)
    with pytest.raises(Stopped):
        _ = feeder.slice
