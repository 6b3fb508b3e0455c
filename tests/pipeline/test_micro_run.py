"""The micro-run behind every plan: which rows it looks at, and for how long."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.estimate import estimate
from pipeline.images import Limits
from pipeline.run import Run
from pipeline.steps import Measure, Source
from pipeline.storage import UnreachableError
from pipeline.tasks import Work
from pipeline.worker import MICRO_RUNS, Worker

KEYS, BATCH = 1000, 10


@dataclasses.dataclass(frozen=True)
class PauseConfig:
    pause_s: float = 0.0


class Pause:
    """Takes its time over a slice and remembers whom it saw."""

    version = 1
    wants = "records"

    def __init__(self, config: PauseConfig) -> None:
        self.config = config

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field("zero", pa.int8())])

    def micro_batch(self, device: Any) -> int:
        return BATCH

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"x": np.zeros(1)}

    def setup(self, device: Any, inputs: Mapping[str, Any]) -> None:
        self.seen: list[int] = []

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        time.sleep(self.config.pause_s)
        self.seen.append(int(next(key for key, valid in zip(batch["key"], batch["valid"], strict=True) if valid)))
        return [{"zero": 0}] * int(batch["valid"].sum())

    def cost(self) -> dict[str, float]:
        return {"networks_per_row": 100.0, "forwards_per_row": 3.0, "flops_per_row": 7.0}


def worker(folder: Path, pause_s: float, keys: int = KEYS) -> Worker:
    names = [f"{i:06d}" for i in range(keys)]
    run = Run(str(folder))
    run.freeze_keys("all", Source({"keys": keys}, lambda: pa.table({"key": names, "uri": names})))
    step = Measure("pause", Pause(PauseConfig(pause_s)), ("all",))
    return Worker(Work("w", step, run.keys.url, {}, {}, {}, Limits()), "cpu", 1)


def test_a_slow_stage_is_measured_on_slices_from_all_over_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.worker._MICRO_RUN_SECONDS", 60.0)  # a busy machine does not cut it short
    monkeypatch.setattr("pipeline.worker._MICRO_RUN_MOST", 60.0)
    made = worker(tmp_path, 0.05)
    found = made.measure("all", BATCH)
    seen = made.stage.seen  # type: ignore[attr-defined]
    assert 4 < len(seen) <= 12  # four of them take longer than a tenth of a second, so more are looked at
    assert max(np.diff(sorted(seen[:4]))) < KEYS / 2
    assert len(set(seen)) == len(seen)
    assert found.rows_per_s < BATCH / 0.05  # it slept so long for each
    again = made.measure("all", BATCH, 1)
    assert not set(made.stage.seen[len(seen) :]) & set(seen)  # type: ignore[attr-defined]
    assert again.bytes_per_row > 0


@pytest.mark.parametrize("keys", [1, 5, 10, 11, 25])
def test_small_splits_are_measured_too(tmp_path: Path, keys: int) -> None:
    made = worker(tmp_path, 0.0, keys)
    assert made.measure("all", BATCH).rows_per_s > 0
    assert max(made.stage.seen) < keys  # type: ignore[attr-defined]


def test_an_estimate_scales_the_stages_own_counts(tmp_path: Path) -> None:
    found = estimate(worker(tmp_path, 0.0).measure("all", BATCH), rows=1000, shards=8)
    assert (found.networks, found.forwards, found.flops) == (100_000.0, 3000.0, 7000.0)
    assert found.networks_per_s == pytest.approx(100 * found.rows_per_s)


def test_dead_links_are_stepped_over_at_last_unless_there_is_nothing_else(tmp_path: Path) -> None:
    """Where they are one in ten, no micro-run would be without one."""
    made = worker(tmp_path, 0.0)
    gone = 10

    def prepare(image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        if int(row["key"]) % 10 < gone:
            raise UnreachableError("no route to host", where=row["key"])
        return {"x": np.zeros(1)}

    made.stage.prepare = prepare  # type: ignore[method-assign]
    with pytest.raises(UnreachableError, match="no image that was looked at can be reached"):
        made.measure("all", BATCH * 8, MICRO_RUNS - 1)
    gone = 1
    for attempt in range(MICRO_RUNS - 1):
        with pytest.raises(UnreachableError, match="no route to host"):
            made.measure("all", BATCH * 8, attempt)
    assert made.measure("all", BATCH * 8, MICRO_RUNS - 1).bytes_per_row > 0


def test_one_dead_link_is_not_all_of_a_list_even_where_slices_are_single_rows(tmp_path: Path) -> None:
    made = worker(tmp_path, 0.0)
    seen: list[str] = []

    def prepare(image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        seen.append(row["key"])
        if len(set(seen)) == 1:
            raise UnreachableError("no route to host", where=row["key"])
        return {"x": np.zeros(1)}

    made.stage.prepare = prepare  # type: ignore[method-assign]
    assert made.measure("all", 1, MICRO_RUNS - 1).bytes_per_row > 0
