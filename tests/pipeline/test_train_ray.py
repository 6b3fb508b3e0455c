"""What ends a training under Ray and what it survives, by what its workers died of; no cluster is asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from ray.train.v2.api.exceptions import WorkerGroupError

from pipeline import train_ray
from pipeline.errors import UsageError
from pipeline.learnt import Learnt
from pipeline.storage import Folder, UnreachableError
from pipeline.train_part import Channel, Material
from pipeline.train_worker import Worker

CUT_OFF = RuntimeError("Connection closed by peer")
KILLED = ray.exceptions.ActorDiedError()
Train = Callable[..., list[str]]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Trains where each attempt ends with the next of these causes by rank, then is done; gives what is said."""

    def run(*ends: dict[int, Exception]) -> list[str]:
        left, said = list(ends), list[str]()

        class Attempt:
            def __init__(self, *_: Any) -> None:
                pass

            def go(self) -> BaseException | None:
                return WorkerGroupError("its workers failed", left.pop(0)) if left else None

        monkeypatch.setattr(train_ray, "_Attempt", Attempt)
        monkeypatch.setattr("pipeline.failures._FIRST_BACKOFF_S", 0.0)
        train_ray.under_ray(len, Folder(str(tmp_path)), 2, 0, None, Material(), Channel(log=said.append))  # type: ignore[arg-type]
        return said

    return run


@pytest.mark.parametrize(
    "causes",
    [
        {0: ValueError("lr is negative"), 1: CUT_OFF},
        {0: CUT_OFF, 1: ValueError("lr is negative")},
        {0: KILLED, 1: ValueError("lr is negative")},
    ],
    ids=["the others cut off", "those heard first", "the others killed"],
)
def test_an_error_of_one_worker_ends_the_training_and_is_the_one_told(
    train: Train, causes: dict[int, Exception]
) -> None:
    with pytest.raises(UsageError, match="lr is negative"):
        train(causes)


@pytest.mark.parametrize(
    ("causes", "why"),
    [
        ({0: CUT_OFF, 1: KILLED}, "ActorDiedError"),
        ({0: CUT_OFF, 1: CUT_OFF}, "the workers lost each other"),
        ({0: UnreachableError("the bucket is away")}, "UnreachableError"),
    ],
    ids=["one killed", "all cut off", "storage away"],
)
def test_workers_that_were_killed_or_cut_off_are_started_again(
    train: Train, causes: dict[int, Exception], why: str
) -> None:
    assert train(causes) == [f"a worker was lost ({why}): training begins again"]


@pytest.mark.parametrize(("asked", "given"), [(None, 4), (2, 2)])
def test_a_node_s_cores_are_shared_among_the_workers_on_it(
    asked: int | None, given: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Eight workers in all, three of them on this node of twelve cores.
    context = SimpleNamespace(get_world_rank=lambda: 5, get_world_size=lambda: 8, get_local_world_size=lambda: 3)
    met: list[tuple[int, int, int, int]] = []
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(current_actor=None))
    monkeypatch.setattr("pipeline.train_part.cpu_count", lambda: 12)

    def function(worker: Worker) -> Learnt:
        met.append((worker.rank, worker.world, worker.local_world, torch.get_num_threads()))
        return Learnt({})

    settings = {"function": function, "folder": Folder(str(tmp_path)), "gpu": False, "threads": asked}
    train_ray._ray_worker({**settings, "material": Material(), "lines": SimpleNamespace(put=lambda _: None)})
    assert met == [(5, 8, 3, given)]
