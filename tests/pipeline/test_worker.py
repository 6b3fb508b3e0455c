"""A worker by itself, without Ray: what it hands to decoders, and when it decodes."""

from __future__ import annotations

import dataclasses
import gc
import weakref

import numpy as np
import pyarrow as pa
import pytest

from pipeline import plan as plans
from pipeline.errors import RaylensError
from pipeline.estimate import Measured
from pipeline.images import Limits
from pipeline.run import Run
from pipeline.steps import Measure, Source
from pipeline.storage import UnreachableError
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
        SAID.append(f"{'open' if what.decoding else 'begin' if what.begin else 'end'} {what.range[0]}")

    worker.prefetch(Task("all", 0, attempt=2))
    worker.run(Task("all", 0, attempt=2), mark)
    said = [sorted(SAID[i + 1 : i + 3]) for i in (0, 5, 10)]
    assert SAID[::5] == ["open 0", "open 2", "open 4"]
    assert SAID[3::5] == ["begin 0", "begin 2", "begin 4"]
    assert SAID[4::5] == ["end 0", "end 2", "end 4"]
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


def test_a_row_without_room_fails_alone_and_the_others_do_not(worker):
    """Out of memory down to single rows: what there was room for is kept."""

    class Large(Stage):
        def __call__(self, batch):
            if 4.0 in batch["x"][batch["valid"]]:
                raise MemoryError("no room")
            return super().__call__(batch)

    worker.stage = Large()
    receipt = worker.run(Task("all", 0)).receipt
    rows = worker.shards("all").table(0).to_pylist()
    assert [row["value"] for row in rows] == [0.0, 1.0, 2.0, 3.0, None, 5.0]
    assert [row["error"] for row in rows if row["status"] == "failed"] == ["MemoryError: no room"]
    assert receipt.notes == ("out of memory: micro-batch halved to 1",)


def test_a_worker_that_is_let_go_holds_nothing(worker):
    """No circle keeps its network on the device until Python collects them."""
    work = worker.work
    gc.collect()
    gc.disable()
    try:
        other = Worker(work, "cpu", 1)
        other.run(Task("all", 0))
        held = weakref.ref(other), weakref.ref(other.stage)
        other.close()
        del other
        assert [reference() for reference in held] == [None, None]
    finally:
        gc.enable()


class Far(Stage):
    """Some of its keys cannot be reached."""

    gone: frozenset[str] = frozenset()

    def prepare(self, image, row):
        if row["key"] in self.gone:
            raise UnreachableError("no route to host", where=row["key"])
        return super().prepare(image, row)


@pytest.mark.parametrize(
    ("gone", "forgiving", "made"),
    [
        ("3", False, None),
        ("3", True, [0.0, 1.0, 2.0, None, 4.0, 5.0]),
        ("23", True, [0.0, 1.0, None, None, 4.0, 5.0]),
        ("012345", True, None),
    ],
)
def test_rows_that_cannot_be_reached_fail_once_that_is_known_to_be_theirs(worker, gone, forgiving, made):
    worker.stage = Far()
    worker.stage.gone = frozenset(gone)
    task = Task("all", 0, attempt=2, forgiving=forgiving)
    if made is None:
        with pytest.raises(UnreachableError):
            worker.run(task)
        assert worker.shards("all").committed() == {}
        return
    worker.run(task)
    rows = worker.shards("all").table(0).to_pylist()
    assert [row["value"] for row in rows] == made
    assert {row["error"] for row in rows if row["status"] == "failed"} == {"cannot be reached: no route to host"}


def test_a_shard_of_dead_links_alone_fails_where_others_of_its_split_can_be_reached(worker):
    """Keys are sorted, so those of one server lie together."""
    worker.work.plans["all"] = dataclasses.replace(worker.work.plans["all"], shard_rows=2)
    worker.stage = Far()
    worker.stage.gone = frozenset("23")
    worker.run(Task("all", 1, attempt=2, forgiving=True))
    assert [row["status"] for row in worker.shards("all").table(1).to_pylist()] == ["failed", "failed"]
    worker.stage.gone = frozenset("012345")
    with pytest.raises(UnreachableError, match="neither these images nor others can be reached"):
        worker.run(Task("all", 2, attempt=2, forgiving=True))


@dataclasses.dataclass
class Weights:
    """An input whose file may differ from node to node."""

    here: str = "a"

    def digest(self):
        return self.here

    def load(self, device):
        return self.here


def test_an_input_that_is_another_one_here_is_refused(worker):
    step = dataclasses.replace(worker.work.step, inputs={"network": Weights()})
    Worker(dataclasses.replace(worker.work, step=step, digests={"network": "a"}), "cpu", 1).close()
    with pytest.raises(RaylensError, match=r"node .*: the step's input 'network' is another one than where the run"):
        Worker(dataclasses.replace(worker.work, step=step, digests={"network": "b"}), "cpu", 1)
