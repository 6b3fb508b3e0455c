"""What a job will take, told without doing it: measured where nothing is frozen, taken from the plan where it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import plan as plans
from pipeline.errors import UsageError
from pipeline.estimate import Measured
from pipeline.learnt import Learnt
from pipeline.options import Options, Resources
from pipeline.preview import preview
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.steps import Job, Measure, Source, Train

KEYS = 40
OPTIONS = Options(resources=Resources(price_per_hour=2.0), say=lambda _: None)


@dataclasses.dataclass(frozen=True)
class HalfConfig:
    factor: float = 0.5


class Half:
    version, wants = 1, "records"
    schema = pa.schema([("value", pa.float64())])

    def __init__(self, config: HalfConfig) -> None:
        self.config = config

    def micro_batch(self, device: Any) -> int:
        return 4

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"x": np.float64(row["key"])}

    def setup(self, device: Any, inputs: Mapping[str, Any]) -> None:
        pass

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        return [{"value": float(x) * self.config.factor} for x in batch["x"][batch["valid"]]]


def job(factor: float = 0.5) -> Job:
    source = Source({"keys": KEYS}, lambda: pa.table({"key": [f"{i:02d}" for i in range(KEYS)]}))
    first = Measure("half", Half(HalfConfig(factor)), ("all",))
    later = Measure("later", Half(HalfConfig()), ("all",), tables={"solve": "solve"})
    return Job("toy", {}, {"all": source}, (first, later))


def begin(url: str) -> plans.Plan:
    """A run whose plan is frozen and whose first shard is committed."""
    run, whole = Run(url), job()
    step = whole.step("half")
    assert isinstance(step, Measure)
    keys = run.freeze_keys("all", whole.sources["all"])
    fields = plans.measure_fields(step, whole.limits, {"all": keys.digest}, {})
    folder = run.step_folder("half", split="all")
    measured = Measured(10.0, 0.0, 0.1, 100.0, 0.0, "cpu", 1)
    plan = plans.freeze(folder, plans.new_plan("half", "all", fields, KEYS, 4, measured, 8))
    names = keys.names(0, 8)
    rows = pa.table({"key": names, "status": ["ok"] * 8, "error": pa.nulls(8, pa.string()), "value": [0.0] * 8})
    Shards(folder, plan.shards).commit(0, rows)
    return plan


def test_a_new_job_is_measured_here_and_leaves_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (found,) = preview(job(), str(run), OPTIONS)
    assert (found.step, found.split, found.committed) == ("half", "all", 0)
    assert found.plan.keys == found.estimate.rows == KEYS
    assert found.plan.micro_batch == 4
    assert found.plan.measured.rows_per_s > 0
    assert found.estimate.cost == pytest.approx(2.0 * found.estimate.worker_hours)
    assert not run.exists()


def test_steps_on_others_are_left_out(tmp_path: Path) -> None:
    assert [step.step for step in preview(job(), str(tmp_path / "run"), OPTIONS)] == ["half"]


def test_a_frozen_plan_is_told_as_it_is(tmp_path: Path) -> None:
    plan = begin(str(tmp_path))
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    (found,) = preview(job(), str(tmp_path), OPTIONS, workers=5)
    assert found.plan == plan
    assert found.committed == 1
    assert found.estimate.hours == pytest.approx(0.8 / 3600), "five workers, a shard of 8 rows each, 10 rows a second"
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_a_plan_of_other_settings_is_refused(tmp_path: Path) -> None:
    begin(str(tmp_path))
    with pytest.raises(UsageError, match=r"config\.factor: 0\.5 -> 0\.25"):
        preview(job(0.25), str(tmp_path), OPTIONS)


def test_sizes_that_were_asked_for_are_planned_with(tmp_path: Path) -> None:
    asked = Options(resources=Resources(shard_rows=10, micro_batch=3), say=lambda _: None)
    (found,) = preview(job(), str(tmp_path / "run"), asked)
    assert (found.plan.micro_batch, found.plan.shard_rows) == (3, 9), "whole micro-batches"
    assert found.plan.shards == 5


class Counted:
    """An input, and how often it was loaded."""

    def __init__(self) -> None:
        self.loads = 0

    def digest(self) -> str:
        return "counted"

    def load(self, device: Any) -> Any:
        self.loads += 1


class Learner:
    version, config = 1, HalfConfig()

    def __call__(self, worker: Any) -> Learnt:
        raise AssertionError("trained")

    def untrained(self, inputs: Any) -> Learnt:
        return Learnt({"network": b""})


def test_an_untrained_network_is_made_once_for_all_that_stands_on_it(tmp_path: Path) -> None:
    counted, whole = Counted(), job()
    standing = [
        Measure(name, Half(HalfConfig()), ("all",), trained={"network": "line", "again": "line"})
        for name in ("one", "two")
    ]
    steps = (Train("line", Learner(), ("all",), {"backbone": counted}), *standing)
    found = preview(dataclasses.replace(whole, steps=steps), str(tmp_path / "run"), OPTIONS)
    assert [step.step for step in found] == ["one", "two"]
    assert counted.loads == 1
