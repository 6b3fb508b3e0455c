"""A worker by itself, without Ray: what it hands to decoders, and when it decodes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from pipeline import plan as plans
from pipeline.estimate import Measured
from pipeline.images import Limits
from pipeline.run import Run
from pipeline.steps import Measure, Source
from pipeline.tasks import Stopped, Task, Work
from pipeline.worker import Worker

SAID: list[str] = []


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


class Stage:
    version = 1
    wants = "records"
    config = Nothing()
    schema = pa.schema([("value", pa.float64())])

    def prepare(self, image, row):
        SAID.append(f"decode {row['key']}")
        return {"x": np.array(float(row["key"]))}

    def setup(self, device, inputs):
        self.network = "heavy"

    def __call__(self, batch):
        return [{"value": float(x)} for x in batch["x"][batch["valid"]]]

    def micro_batch(self, device):
        return 2


@pytest.fixture
def worker(tmp_path):
    SAID.clear()
    run = Run(str(tmp_path))
    keys = pa.table({"key": [f"{i}" for i in range(6)]})
    run.freeze_keys("all", Source({}, lambda: keys))
    step = Measure("measure", Stage(), ("all",))
    folder = run.step_folder("measure", split="all")
    plan = plans.new_plan("measure", "all", {}, 6, 2, Measured(1, 0, 0, 0, 0, "cpu", 1), 6)
    found = Worker(Work("w", step, run.keys.url, {"all": folder.url}, {"all": plan}, {}, Limits()), "cpu", 1)
    yield found
    found.close()


def test_what_decoders_get_holds_no_network(worker):
    assert worker.stage.network == "heavy"
    assert not hasattr(worker.work.step.stage, "network")


def test_after_a_failure_each_slice_is_decoded_inside_its_own_mark(worker):
    """So that a key that kills its decoder is told from the innocent ones before it."""

    def mark(what):
        SAID.append(f"{'begin' if what.begin else 'end'} {what.range[0]}")

    worker.prefetch(Task("all", 0, attempt=2))
    worker.run(Task("all", 0, attempt=2), mark)
    said = [sorted(SAID[i + 1 : i + 3]) for i in (0, 4, 8)]
    assert SAID[::4] == ["begin 0", "begin 2", "begin 4"]
    assert SAID[3::4] == ["end 0", "end 2", "end 4"]
    assert said == [["decode 0", "decode 1"], ["decode 2", "decode 3"], ["decode 4", "decode 5"]]


def test_what_a_stage_notes_of_a_shard_is_in_that_shards_receipt(worker):
    class Noting(Stage):
        notes = ()

        def begin(self):
            self.notes = []

        def __call__(self, batch):
            if "2" in batch["key"]:
                self.notes.append("out of memory: took half")
            return super().__call__(batch)

    worker.stage = Noting()
    worker.stage.setup(worker.device, {})
    assert worker.run(Task("all", 0)).receipt.notes == ("out of memory: took half",)
    worker.shards("all").withdraw(0)
    worker.work.plans["all"] = dataclasses.replace(worker.work.plans["all"], shard_rows=2)
    notes = [worker.run(Task("all", shard)).receipt.notes for shard in range(3)]
    assert notes == [(), ("out of memory: took half",), ()]


def test_a_second_attempt_makes_the_same_rows(worker):
    first = worker.run(Task("all", 0)).receipt
    worker.shards("all").withdraw(0)
    again = worker.run(Task("all", 0, attempt=2, suspects=((2, 3), (3, 4)))).receipt
    assert again.files == first.files


def test_one_that_is_asked_to_stop_waits_for_nothing(worker):
    worker.pause(0.0)
    worker.stop()
    with pytest.raises(Stopped):
        worker.pause(3600.0)
