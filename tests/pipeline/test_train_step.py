"""Training as a step of a run, in the driver's own process: what it is given, refused, told, and what stands on it."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.show import plan_lines, status_lines
from pipeline import plan as plans
from pipeline.engine import execute
from pipeline.errors import RaylensError, UsageError
from pipeline.estimate import Measured
from pipeline.events import Events
from pipeline.images import Limits
from pipeline.learnt import Learnt
from pipeline.lock import RunLock
from pipeline.options import Options, Resources
from pipeline.preview import preview, preview_trainings
from pipeline.run import Run
from pipeline.signals import RunStopped, Stop, StopOnSignals
from pipeline.status import status
from pipeline.steps import Job, Measure, Source, Train, config_fields
from pipeline.storage import Folder
from pipeline.tasks import Task, Work
from pipeline.train import Material, Worker, train
from pipeline.train_step import TrainStep, _Places, _places
from pipeline.trainings import training
from pipeline.verify import verify
from pipeline.worker import Worker as MeasuringWorker
from stages.training import TensorData, TrainingConfig, fit

QUIET = Options(resources=Resources(train_workers=0), say=lambda _: None)


@dataclasses.dataclass(frozen=True)
class LineConfig:
    epochs: int = 4
    lr: float = 0.1


class Line:
    """Fits y = 3 x to the rows of split "all"; remembers what it was given."""

    version = 1

    def __init__(self, config: LineConfig) -> None:
        self.config = config
        self.seen: list[Worker] = []

    def __call__(self, worker: Worker) -> Learnt:
        self.seen.append(worker)
        x = torch.tensor([[float(row["key"])] for row in worker.keys["all"].rows(0, len(worker.keys["all"]))])
        torch.manual_seed(0)
        net = torch.nn.Linear(1, 1)
        config = TrainingConfig(epochs=self.config.epochs, batch=4, lr=self.config.lr, channels_last=False)
        history = fit(
            worker.wrap(net),
            TensorData([str(i) for i in range(len(x))], x=x, y=3 * x),
            config,
            worker.checkpoints,
            loss=lambda model, batch: ((model(batch["x"]) - batch["y"]) ** 2).mean(),
            progress=worker.tell,
            rank=worker.rank,
            world=worker.world,
        )
        return Learnt({"slope.bin": net.weight.detach().numpy().tobytes()}, {"history": history})


@dataclasses.dataclass(frozen=True)
class Heavy:
    """An input: something heavy with a digest."""

    name: str = "heavy"

    def digest(self) -> str:
        return self.name

    def load(self, device: Any) -> Any:
        return (self.name, device)


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


class Slope:
    """Every key times what the training learnt."""

    version, wants, config = 1, "records", Nothing()
    schema = pa.schema([("value", pa.float32())])

    def micro_batch(self, device: Any) -> int:
        return 4

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"x": np.float32(row["key"])}

    def setup(self, device: Any, inputs: Any) -> None:
        self.trained = inputs["network"]

    def __call__(self, batch: Any) -> list[dict[str, Any]]:
        slope = np.frombuffer(self.trained.files["slope.bin"], np.float32)[0]
        return [{"value": float(x * slope)} for x in batch["x"][batch["valid"]]]


def job(config: LineConfig | None = None, *, keys: int = 8, inputs: Any = None, limits: Limits | None = None) -> Job:
    source = Source({"keys": keys}, lambda: pa.table({"key": [f"{i / 10}" for i in range(keys)]}))
    step = Train("line", Line(config or LineConfig()), ("all",), inputs or {})
    return Job("learning", {}, {"all": source}, (step,), limits=limits or Limits())


def standing_on_it(keys: int = 8) -> Job:
    whole = job(keys=keys)
    return dataclasses.replace(
        whole, steps=(*whole.steps, Measure("slope", Slope(), ("all",), trained={"network": "line"}))
    )


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = [line for file in sorted((run / "events").glob("*.jsonl")) for line in file.read_text().splitlines()]
    found = [event for event in map(json.loads, lines) if event["kind"] == kind]
    return sorted(found, key=lambda event: event["at"])  # of several drivers


def test_the_trainer_is_given_keys_inputs_and_limits(tmp_path: Path) -> None:
    limits = Limits(max_megapixels=7)
    whole = job(inputs={"backbone": Heavy()}, limits=limits)
    outcome = execute(whole, str(tmp_path), QUIET)
    worker = whole.steps[0].trainer.seen[0]  # type: ignore[union-attr, attr-defined]
    assert worker.keys["all"].table().column("key").to_pylist()[:2] == ["0.0", "0.1"]
    assert worker.inputs == {"backbone": ("heavy", torch.device("cpu"))}
    assert worker.limits == limits
    assert (worker.rank, worker.world) == (0, 1)
    assert outcome.exit_code == 0
    assert outcome.totals == {}, "a training has no rows"
    assert sorted(p.name for p in (tmp_path / "line").iterdir()) == ["checkpoints", "result", "training.json"]


def test_each_epoch_is_one_line_and_one_event(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    execute(job(), str(tmp_path), QUIET)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("line  epoch")]
    assert [line.split(":")[0] for line in lines] == [f"line  epoch {n}/4" for n in range(1, 5)]
    told = events(tmp_path, "epoch")
    assert [(e["step"], e["epoch"], e["epochs"]) for e in told] == [("line", n, 4) for n in range(1, 5)]
    assert told[-1]["metrics"]["loss"] < told[0]["metrics"]["loss"]


def test_a_rerun_trains_nothing(tmp_path: Path) -> None:
    execute(job(), str(tmp_path), QUIET)
    again = job()
    execute(again, str(tmp_path), QUIET)
    assert again.steps[0].trainer.seen == []  # type: ignore[union-attr, attr-defined]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (job(LineConfig(lr=0.2)), r"config\.lr: 0\.1 then, 0\.2 now"),
        (job(inputs={"backbone": Heavy("other")}), r"inputs\.backbone: None then, 'other' now"),
        (job(limits=Limits(max_megapixels=1)), r"images\.max_megapixels"),
    ],
    ids=["config", "input", "image limits"],
)
def test_other_settings_are_refused_before_anything_is_written(tmp_path: Path, other: Job, named: str) -> None:
    execute(job(), str(tmp_path), QUIET)
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UsageError, match=named):
        execute(other, str(tmp_path), QUIET)
    assert (tmp_path / "run.json").read_bytes() == before
    with pytest.raises(UsageError, match=named):
        preview_trainings(other, str(tmp_path))


def test_the_keys_are_in_the_fingerprint_and_the_workers_are_not() -> None:
    step = job().steps[0]
    assert isinstance(step, Train)
    one = plans.train_fields(step, Limits(), {"all": "a"})
    assert plans.fingerprint(one) != plans.fingerprint(plans.train_fields(step, Limits(), {"all": "b"}))
    assert not [name for name in one if "worker" in name]


def test_how_often_a_checkpoint_is_written_is_not_in_the_fingerprint() -> None:
    assert config_fields(TrainingConfig(checkpoint_every=5)) == config_fields(TrainingConfig())


def test_a_training_that_got_nowhere_may_be_given_other_settings(tmp_path: Path) -> None:
    wrong = job(LineConfig(lr=-1.0))
    with pytest.raises(UsageError, match="learning rate"):
        execute(wrong, str(tmp_path), QUIET)
    assert execute(job(), str(tmp_path), QUIET).exit_code == 0


def test_a_mistake_in_a_setting_is_told_as_one_and_a_bug_as_one(tmp_path: Path) -> None:
    whole = job(LineConfig(), keys=2)  # fewer rows than a batch
    with pytest.raises(UsageError, match=r"step 'line': 2 rows do not fill one batch"):
        execute(whole, str(tmp_path / "a"), QUIET)
    with pytest.raises(RaylensError, match=r"step 'line' failed: TypeError") as told:
        execute(job(LineConfig(epochs="many")), str(tmp_path / "b"), QUIET)  # type: ignore[arg-type]
    assert not isinstance(told.value, UsageError)


class TestStop:
    def asked_at(self, epoch: int, stop: Stop, folder: Path) -> Any:
        def saved(at: int) -> None:
            if at == epoch:
                stop.set()

        worker = job()
        run = Run(str(folder))
        run.freeze_keys("all", worker.sources["all"])
        step = worker.steps[0]
        assert isinstance(step, Train)
        return train(
            step.trainer,
            run.step_folder("line"),
            fingerprint={},
            saved=saved,
            stop=stop,
            material=Material(run.keys.url, ("all",)),
        )

    def test_a_stop_request_ends_it_at_the_next_checkpoint_and_it_goes_on_to_the_same_end(self, tmp_path: Path) -> None:
        with pytest.raises(RunStopped, match="run the same command again to resume"):
            self.asked_at(2, Stop(), tmp_path / "stopped")
        assert training("line", Run(str(tmp_path / "stopped")).step_folder("line")).checkpoints == (2, 1)
        resumed = self.asked_at(99, Stop(), tmp_path / "stopped")
        assert resumed == self.asked_at(99, Stop(), tmp_path / "undisturbed")

    def test_nothing_is_committed_after_the_request(self, tmp_path: Path) -> None:
        stop = Stop()

        class Asked(Line):
            def __call__(self, worker: Worker) -> Learnt:
                worker.checkpoints.save(1, {"state.json": b"{}"})
                stop.set()
                worker.checkpoints.save(2, {"state.json": b"{}"})
                raise AssertionError("went on")

        class AskedAtTheEnd(Line):
            def __call__(self, worker: Worker) -> Learnt:
                stop.set()
                return Learnt({})

        folder = Run(str(tmp_path)).step_folder("line")
        for trainer in (Asked(LineConfig()), AskedAtTheEnd(LineConfig())):
            with pytest.raises(RunStopped):
                train(trainer, folder, fingerprint={}, stop=stop)
            stop.clear()
        found = training("line", folder)
        assert found.checkpoints == (1,)
        assert not found.complete

    def test_a_driver_that_lost_its_lock_is_broken_off_in_the_middle_of_an_epoch(self, tmp_path: Path) -> None:
        lock = RunLock(Folder(str(tmp_path)))

        def looks_at_nothing() -> None:
            lock.lost.set()
            end = time.monotonic() + 60
            while time.monotonic() < end:
                pass

        with StopOnSignals(lock) as stop, pytest.raises(RunStopped), stop.breaking_off():
            looks_at_nothing()

    def test_a_signal_breaks_off_what_cannot_look(self) -> None:
        stop = Stop()
        with pytest.raises(RunStopped), stop.breaking_off():
            stop.ask()
        later = Stop()
        later.ask()  # nothing to break off: whoever waits looks at it
        assert later.is_set()
        with pytest.raises(RunStopped), later.breaking_off():
            pytest.fail("begun after the request")


class TestPlaces:
    @pytest.mark.parametrize(
        ("resources", "batch", "workers", "gpus_per_worker", "told"),
        [
            (Resources(), 64, 4, 1.0, "on 4 GPUs"),
            (Resources(), None, 4, 1.0, "on 4 GPUs"),
            (Resources(), 6, 3, 1.0, "on 3 GPUs of 4: a batch of 6 does not divide among more"),
            (Resources(), 7, 1, 1.0, "on 1 GPU of 4: a batch of 7 does not divide among more"),
            (Resources(train_workers=2), 64, 2, 1.0, "on 2 GPUs"),
            (Resources(train_workers=0), 64, 0, 1.0, "in this process on a GPU"),
            (Resources(gpus=0), 64, 0, 0.0, "in this process on the CPU"),
            (Resources(gpus=0, train_workers=0), 64, 0, 0.0, "in this process on the CPU"),
            (Resources(gpus=0, train_workers=2), 64, 2, 0.0, "on 2 CPU workers"),
        ],
    )
    def test_gpus_are_taken_where_there_are_some_for_us(
        self,
        monkeypatch: pytest.MonkeyPatch,
        resources: Resources,
        batch: int | None,
        workers: int,
        gpus_per_worker: float,
        told: str,
    ) -> None:
        self.there_are(monkeypatch, here=True, joined=False, gpus=4)
        assert _places(resources, batch) == _Places(workers, gpus_per_worker, told)

    @pytest.mark.parametrize("wanted", [None, 0])
    def test_a_cluster_without_gpus_leaves_this_machine_s_alone(
        self, monkeypatch: pytest.MonkeyPatch, wanted: int | None
    ) -> None:
        self.there_are(monkeypatch, here=True, joined=True, gpus=0)
        assert _places(Resources(train_workers=wanted), 64) == _Places(0, 0.0, "in this process on the CPU")

    def test_gpus_that_an_autoscaler_brings_are_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there_are(monkeypatch, here=False, joined=True, gpus=1)
        monkeypatch.setattr("pipeline.growth.autoscaled", lambda: False)
        assert _places(Resources("head:6379", gpus=4), 64).workers == 1, "nobody brings more"
        monkeypatch.setattr("pipeline.growth.autoscaled", lambda: True)
        assert _places(Resources("head:6379", gpus=4), 64) == _Places(4, 1.0, "on 4 GPUs")
        assert _places(Resources("head:6379"), 64) == _Places(1, 1.0, "on 1 GPU")
        assert _places(Resources(gpus=4), 64).workers == 4, "whoever joined it"
        monkeypatch.setattr("pipeline.cluster.joined", lambda: None)
        assert _places(Resources(gpus=4), 64).workers == 1, "nobody is asked for nodes of a Ray of our own"

    def test_gpus_that_are_not_there_are_waited_for_and_no_cpu_is_taken_instead(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.there_are(monkeypatch, here=False, joined=True, gpus=0)
        monkeypatch.setattr("pipeline.growth.autoscaled", lambda: None)
        assert _places(Resources("head:6379", gpus=2), 64) == _Places(2, 1.0, "on 2 GPUs"), (
            "for how long is of the room"
        )
        assert _places(Resources("head:6379", gpus=2, train_workers=0), 64).workers == 0, "the driver is to train"
        assert _places(Resources("head:6379", gpus=0), 64).workers == 0, "not wanted"

    def test_no_cluster_is_joined_where_it_would_not_matter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there_are(monkeypatch, here=False, joined=False, gpus=0)
        monkeypatch.setattr("pipeline.cluster.connect", lambda *_: pytest.fail("joined"))
        for wanted in (None, 0):
            assert _places(Resources(train_workers=wanted), 64).workers == 0

    def test_more_workers_than_gpus_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there_are(monkeypatch, here=True, joined=False, gpus=1)
        with pytest.raises(UsageError, match="2 training workers cannot share 1 GPU: each needs its own"):
            _places(Resources(train_workers=2), 64)

    def test_it_is_told_and_actors_leave_the_gpu_to_a_training_in_this_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        quiet = dataclasses.replace(QUIET, say=said.append)
        execute(job(), str(tmp_path / "cpu"), quiet)
        assert said == ["step 'line': trains in this process on the CPU"]
        assert [(e["workers"], e["world"]) for e in events(tmp_path / "cpu", "train")] == [(0, 1)]

        class FreedError(Exception):
            pass

        def free() -> None:
            raise FreedError

        monkeypatch.setattr("pipeline.train_step._places", lambda *_: _Places(0, 1.0, "in this process on a GPU"))
        run, whole = Run(str(tmp_path / "gpu")), job()
        run.freeze_keys("all", whole.sources["all"])
        step = whole.steps[0]
        assert isinstance(step, Train)
        with Events(run.folder, "driver") as told, pytest.raises(FreedError):
            TrainStep(step, whole, run, QUIET).go(told, Stop(), free)

    def test_workers_are_of_the_cluster_that_is_named_and_of_none_that_ray_finds(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class JoinedError(Exception):
            pass

        def join(resources: Resources, *_: object) -> None:
            raise JoinedError(resources.address)

        monkeypatch.setattr("pipeline.cluster.connect", join)
        named = Options(Resources("head:6379", gpus=0, train_workers=2), say=lambda _: None)
        with pytest.raises(JoinedError, match="head:6379"):
            execute(job(), str(tmp_path), named)

    def there_are(self, monkeypatch: pytest.MonkeyPatch, *, here: bool, joined: bool, gpus: int) -> None:
        """A GPU on this machine or not, a cluster joined already or not, with so many GPUs."""
        monkeypatch.setattr("torch.cuda.is_available", lambda: here)
        monkeypatch.setattr("pipeline.cluster.connect", lambda *_: None)
        monkeypatch.setattr("pipeline.cluster.joined", lambda: "head:6379" if joined else None)
        monkeypatch.setattr("pipeline.cluster.alive_nodes", lambda: {"a": {"GPU": float(gpus)}})


def begin(run: Run, whole: Job) -> tuple[str, Any]:
    """The measuring step on a finished training, as the engine lays it out; every shard committed."""
    step = whole.step("slope")
    assert isinstance(step, Measure)
    keys = run.key_table("all")
    learnt = training("line", run.step_folder("line")).digest
    fields = plans.measure_fields(step, whole.limits, {"all": keys.digest}, {"line": learnt})
    mark = plans.fingerprint(fields)
    folder = run.step_folder("slope", split="all", fingerprint=mark)
    plan = plans.freeze(folder, plans.new_plan("slope", "all", fields, 8, 4, Measured(1, 0, 0, 0, 0, "cpu", 1), 4))
    trained = {"network": (run.step_folder("line").url, learnt)}
    work = Work("w", step, run.keys.url, {"all": folder.url}, {"all": plan}, {}, whole.limits, trained=trained)
    run.write_description(whole, {}, {"line": "f" * 64, "slope": mark})
    return mark, work


class TestWhatStandsOnIt:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Run:
        execute(job(), str(tmp_path), QUIET)
        return Run(str(tmp_path))

    def test_the_stage_gets_what_was_learnt(self, run: Run) -> None:
        _, work = begin(run, standing_on_it())
        worker = MeasuringWorker(work, "cpu", 1)
        for shard in range(2):
            worker.run(Task("all", shard))
        worker.close()
        slope = np.frombuffer(worker.stage.trained.files["slope.bin"], np.float32)[0]  # type: ignore[attr-defined]
        rows = pa.concat_tables(list(worker.shards("all").tables()))
        assert rows.column("value").to_pylist() == [float(np.float32(i / 10) * slope) for i in range(8)]
        assert worker.stage.trained.facts["history"][-1]["epoch"] == 4  # type: ignore[attr-defined]
        found = status(run.url)
        assert found.complete
        assert [step.stale for step in found.steps] == [False]

    def test_its_folder_carries_its_fingerprint(self) -> None:
        assert standing_on_it().keyed("slope")
        assert not standing_on_it().keyed("line")

    def test_a_result_that_changed_meanwhile_is_not_used(self, run: Run) -> None:
        _, work = begin(run, standing_on_it())
        other = dataclasses.replace(work, trained={"network": (work.trained["network"][0], "0" * 64)})
        with pytest.raises(RaylensError, match="changed"):
            MeasuringWorker(other, "cpu", 1)

    def test_its_rows_are_stale_once_the_training_is_another(self, run: Run) -> None:
        _, work = begin(run, standing_on_it())
        worker = MeasuringWorker(work, "cpu", 1)
        for shard in range(2):
            worker.run(Task("all", shard))
        worker.close()
        result = run.step_folder("line").child("result")
        told = json.loads(result.read("receipt.json"))
        told["files"]["facts.json"]["sha256"] = "0" * 64
        result.write("receipt.json", json.dumps(told).encode())
        found = status(run.url)
        assert [step.stale for step in found.steps] == [True]
        assert not found.complete

    def test_its_rows_are_not_today_s_once_the_training_alone_was_made_again_and_learnt_otherwise(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mark, work = begin(run, standing_on_it())
        worker = MeasuringWorker(work, "cpu", 1)
        for shard in range(2):
            worker.run(Task("all", shard))
        worker.close()
        line = status(run.url).trainings[0].fingerprint
        run.write_description(standing_on_it(), {}, {"line": line, "slope": mark})
        only = dataclasses.replace(QUIET, only=("line",))

        def marks() -> dict[str, str]:
            return {step["name"]: step["fingerprint"] for step in run.describe()["steps"]}

        spoil(next(Path(run.url, "line/result").glob("slope-*")), "truncated")
        execute(standing_on_it(), run.url, only)
        assert marks()["slope"] == mark, "the same was learnt"
        assert status(run.url).complete
        spoil(next(Path(run.url, "line/result").glob("slope-*")), "truncated")
        monkeypatch.setattr(Line, "__call__", lambda *_: Learnt({"slope.bin": b"more"}))
        execute(standing_on_it(), run.url, only)
        assert marks()["slope"] == ""
        found = status(run.url)
        assert [(step.current, step.stale) for step in found.steps] == [(False, True)]
        assert found.waiting == ("slope",)
        assert not found.complete

    def test_plan_measures_it_with_what_was_learnt_and_leaves_it_out_before(self, run: Run, tmp_path: Path) -> None:
        whole = standing_on_it()
        before = {file: file.stat().st_mtime_ns for file in Path(run.url).rglob("*")}
        (found,) = preview(whole, run.url, QUIET)
        assert (found.step, found.committed, found.estimate.rows) == ("slope", 0, 8)
        assert found.plan.measured.rows_per_s > 0
        assert {file: file.stat().st_mtime_ns for file in Path(run.url).rglob("*")} == before
        assert preview(whole, str(tmp_path / "fresh"), QUIET) == []
        fresh = preview_trainings(whole, str(tmp_path / "fresh"))
        lines = plan_lines([], {}, ["slope"], fresh)
        assert (
            "line: a training, 4 epochs; its time, memory and cost cannot be estimated: its first epoch will tell"
            in (lines)
        )
        assert "slope: stands on other steps, is measured when the run gets there" in lines
        done = plan_lines([], {}, [], preview_trainings(whole, run.url))
        assert "line: a training on 8 images, 4 epochs; it is finished" in done
        assert not (tmp_path / "fresh").exists()

    def test_plan_takes_the_plan_that_is_frozen(self, run: Run) -> None:
        _, work = begin(run, standing_on_it())
        worker = MeasuringWorker(work, "cpu", 1)
        worker.run(Task("all", 0))
        worker.close()
        (found,) = preview(standing_on_it(), run.url, QUIET)
        assert (found.plan, found.committed) == (work.plans["all"], 1)

    def test_plan_measures_with_untrained_networks_where_the_trainer_gives_them(self, tmp_path: Path) -> None:
        given: list[Any] = []

        class Known(Line):
            def untrained(self, inputs: Any) -> Learnt:
                given.append(inputs)
                return Learnt({"slope.bin": np.float32(3).tobytes()})

        whole = standing_on_it()
        step = dataclasses.replace(whole.steps[0], trainer=Known(LineConfig()), inputs={"backbone": Heavy()})
        (found,) = preview(dataclasses.replace(whole, steps=(step, whole.steps[1])), str(tmp_path / "fresh"), QUIET)
        assert (found.step, found.committed, found.estimate.rows) == ("slope", 0, 8)
        assert given == [{"backbone": ("heavy", torch.device("cpu"))}]
        assert not (tmp_path / "fresh").exists()


class TestStatusAndVerify:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        execute(job(), str(tmp_path), QUIET)
        return tmp_path

    def test_a_finished_training_is_shown(self, run: Path) -> None:
        found = status(str(run))
        assert found.complete
        assert found.waiting == ()
        (one,) = found.trainings
        assert (one.epochs, one.wanted, one.complete, one.checkpoints) == (4, 4, True, (4, 3, 2))
        assert any(line.split()[:1] == ["line"] and "4/4" in line for line in status_lines(found))
        json.dumps(found.to_dict())
        told = json.loads((run / "run.json").read_text())["steps"][0]
        assert (told["name"], told["kind"], told["upstream"], told["splits"]) == ("line", "train", [], ["all"])
        assert told["fingerprint"] == one.fingerprint

    def test_one_under_way_is_not_complete(self, run: Path) -> None:
        for path in (run / "line/result").iterdir():
            path.unlink()
        found = status(str(run))
        assert not found.complete
        assert not found.trainings[0].complete
        report = verify(str(run))
        assert report.missing == ("line is not finished (epoch 4)",)
        assert not report.ok

    def test_a_job_that_has_not_begun_it_waits_for_it(self, tmp_path: Path) -> None:
        run = Run(str(tmp_path / "new"))
        run.write_description(job(), {}, {})
        assert status(run.url).waiting == ("line",)

    @pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
    def test_a_damaged_result_is_named_withdrawn_and_made_again(self, run: Path, how: str) -> None:
        before = training("line", Run(str(run)).step_folder("line")).digest
        spoil(next((run / "line/result").glob("slope-*")), how)
        found = verify(str(run))
        assert [p.where for p in found.problems] == ["line result"]
        assert (run / "line/result/receipt.json").exists(), "looking changes nothing"
        repaired = verify(str(run), repair=True)
        assert repaired.ok
        assert [p.mended for p in repaired.problems] == [True]
        again = job()
        execute(again, str(run), QUIET)
        assert training("line", Run(str(run)).step_folder("line")).digest == before
        assert [e["checkpoint"] for e in events(run, "train")][-1] == 4, "made again from the newest checkpoint"
        assert verify(str(run)).ok

    @pytest.mark.parametrize("how", ["flipped", "truncated", "gone"])
    def test_a_damaged_checkpoint_is_named_and_withdrawn(self, run: Path, how: str) -> None:
        spoil(next((run / "line/checkpoints/0004").glob("state-*.safetensors")), how)
        assert [p.where for p in verify(str(run)).problems] == ["line checkpoint 0004"]
        if how != "flipped":  # seen at a glance
            assert "checkpoint 4 is refused" in "\n".join(status_lines(status(str(run))))
        assert verify(str(run), repair=True).ok
        assert status(str(run)).trainings[0].checkpoints == (3, 2)

    def test_a_result_of_another_size_is_made_again_without_being_asked(self, run: Path) -> None:
        before = training("line", Run(str(run)).step_folder("line")).digest
        spoil(next((run / "line/result").glob("slope-*")), "truncated")
        assert "has 3 bytes" in "\n".join(status_lines(status(str(run))))
        execute(job(), str(run), QUIET)
        assert training("line", Run(str(run)).step_folder("line")).digest == before

    def test_files_that_no_receipt_names_go_on_request(self, run: Path) -> None:
        half = run / "line/checkpoints/0005"
        half.mkdir()
        (half / "state-00000000.json").write_bytes(b"its writer was killed")
        (run / "line/result/.slope.bin.0123456789ab.tmp").write_bytes(b"too")
        found = verify(str(run))
        assert found.ok
        assert {Path(name).name for name in found.orphans} == {"state-00000000.json", ".slope.bin.0123456789ab.tmp"}
        assert verify(str(run), clean=True).removed
        assert verify(str(run)).orphans == ()
        assert status(str(run)).trainings[0].complete


def spoil(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(data[:-1])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
