"""A driver's way through a measuring step, with a worker in this process instead of Ray's."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.engine import execute
from pipeline.errors import RaylensError
from pipeline.estimate import Measured
from pipeline.options import Options, Resources
from pipeline.quarantine import quarantines, write_quarantine
from pipeline.shards import Receipt
from pipeline.spent import Spent
from pipeline.status import status
from pipeline.steps import Job, Measure, Source
from pipeline.storage import Folder
from pipeline.tasks import Task, Work
from pipeline.worker import Worker

QUIET = Options(resources=Resources(shard_rows=4), say=lambda _: None)


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


class Double:
    """Every key times two."""

    version, wants, config = 1, "records", Nothing()
    schema = pa.schema([("value", pa.float32())])

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"x": np.float32(row["key"])}

    def setup(self, device: Any, inputs: Any) -> None: ...

    def __call__(self, batch: Any) -> list[dict[str, Any]]:
        return [{"value": float(2 * x)} for x in batch["x"][batch["valid"]]]


class Here:
    """Makes shards in this process; remembers which."""

    def __init__(self, *_: Any) -> None:
        self.made: list[tuple[str, int]] = []

    def measure(self, work: Work, split: str, micro_batch: int | None) -> tuple[int, Measured]:
        return 4, Measured(1, 0, 0, 0, 0, "cpu", 1)

    def run(self, work: Work, todo: list[tuple[str, int]], progress: Any) -> tuple[dict[Any, Receipt], Spent]:
        worker = Worker(work, "cpu", 1)
        self.made += todo
        found = {(split, shard): worker.run(Task(split, shard)).receipt for split, shard in todo}
        worker.close()
        return found, Spent(work.step.name)

    def close(self) -> None: ...


def job() -> Job:
    source = Source({"keys": 12}, lambda: pa.table({"key": [f"{i:02d}" for i in range(12)]}))
    return Job("doubling", {}, {"all": source}, (Measure("double", Double(), ("all",)),))


def test_what_killed_writers_left_goes_with_the_next_drive_that_makes_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = Here()
    monkeypatch.setattr("pipeline.runner.Runner", lambda *_: runner)
    execute(job(), str(tmp_path), QUIET)
    step = tmp_path / "double/all"
    left = [step / ".part-00001-of-00003-0a1b2c3d.parquet.0123456789ab.tmp", step / "receipts/.00001.json.ba98.tmp"]
    for file in left:
        file.write_bytes(b"PAR1")
    execute(job(), str(tmp_path), QUIET)
    assert all(file.exists() for file in left), "nothing was made"
    (step / "receipts/00001.json").unlink()
    execute(job(), str(tmp_path), QUIET)
    assert not any(file.exists() for file in left)
    assert runner.made == [("all", 0), ("all", 1), ("all", 2), ("all", 1)]
    assert status(str(tmp_path)).complete


def test_what_a_killed_drivers_worker_left_after_the_drive_began_goes_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray takes a moment to kill the workers of a driver that is gone: one of them may die in the middle of a file."""
    step = tmp_path / "double/all"
    late = [
        step / ".part-00001-of-00003-0a1b2c3d.parquet.0123456789ab.tmp",
        step / "part-00001-of-00003-0a1b2c3d.parquet",
    ]

    class WithAnother(Here):
        def run(self, work: Work, todo: list[tuple[str, int]], progress: Any) -> tuple[dict[Any, Receipt], Spent]:
            for file in late:
                file.write_bytes(b"PAR1")
            return super().run(work, todo, progress)

    monkeypatch.setattr("pipeline.runner.Runner", WithAnother)
    execute(job(), str(tmp_path), QUIET)
    assert not any(file.exists() for file in late)
    assert len(list(step.glob("part-*.parquet"))) == 3
    assert status(str(tmp_path)).complete


def test_what_is_written_in_the_end_is_written_by_the_one_who_holds_the_run(tmp_path: Path) -> None:
    seen: list[tuple[int, bool]] = []

    def then(outcome: Any) -> None:
        with pytest.raises(RaylensError, match="another driver is working on this run"):
            execute(job(), str(tmp_path), QUIET)
        seen.append((outcome.exit_code, (tmp_path / "lock.json").exists()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.runner.Runner", Here)
        execute(job(), str(tmp_path), QUIET, then)
    assert seen == [(0, True)]
    assert not (tmp_path / "lock.json").exists()


def test_where_few_of_many_shards_have_quarantined_keys_only_theirs_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    write_quarantine(folder, 7, {"k": "it kills"})
    read: list[str] = []
    monkeypatch.setattr(Folder, "read", lambda self, name: read.append(name) or b'{"k": "it kills"}')
    of = quarantines(folder)
    assert [of(shard) for shard in range(1000)] == [{"k": "it kills"} if shard == 7 else {} for shard in range(1000)]
    assert read == ["00007.json"]
