"""Run a job's steps in order into its run folder: lock, keys, plans, shards, reductions, totals."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from pipeline import plan as plans
from pipeline.errors import RaylensError, UsageError
from pipeline.events import Events
from pipeline.head_watch import HeadWatch
from pipeline.lock import RunLock
from pipeline.measure_step import MeasureStep
from pipeline.options import Options
from pipeline.progress import Progress
from pipeline.provenance import provenance
from pipeline.run import Run
from pipeline.shards import STATUSES, Receipt, Shards, digest
from pipeline.signals import Stop, StopOnSignals
from pipeline.steps import Job, Measure, Reduce, Train
from pipeline.storage import Folder
from pipeline.train_step import TrainStep

COMPLETE, FAILED, USAGE, ROWS_FAILED = 0, 1, 2, 3  # exit codes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    exit_code: int
    totals: Mapping[str, Mapping[str, int]]  # step -> rows by status
    fingerprints: Mapping[str, str]
    failed_share: float
    seconds: float


def execute(
    job: Job, url: str, options: Options | None = None, then: Callable[[Outcome], None] | None = None
) -> Outcome:
    """Run a job to its end, or as far as it goes; a rerun goes on where receipts end.

    ``then`` is called when all steps are there, while the run is still this driver's alone: for files that are written
    piece by piece.

    Raises RaylensError (UsageError before anything runs where possible). Rows that fail do not raise: see
    ``Outcome.exit_code``.
    """
    options = options or Options()
    run = Run(url)
    started = time.monotonic()
    lock = RunLock(run.folder, say=options.say)
    with StopOnSignals(lock) as stop:
        driver = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}-{secrets.token_hex(2)}"
        with Events(run.folder, driver) as events, HeadWatch(options.say):
            engine = _Engine(job, run, options, events, stop)
            try:
                events.say("begin", job=job.name, pid=os.getpid())
                outcome = engine.go(started)
                if then is not None:
                    engine.close()  # what it held is free for others meanwhile
                    then(outcome)
                events.say("end", exit_code=outcome.exit_code, seconds=round(outcome.seconds, 1))
                return outcome
            except BaseException as error:
                events.say("end", error=f"{type(error).__name__}: {error}")
                if lock.lost.is_set():
                    lock.check()
                raise
            finally:
                engine.close()


class _Engine:
    """One driver's walk through the graph."""

    def __init__(self, job: Job, run: Run, options: Options, events: Events, stop: Stop) -> None:
        self.job, self.run, self.options, self.events, self.stop = job, run, options, events, stop
        self._runner: Any = None
        self.fingerprints: dict[str, str] = {}
        self.receipts: dict[str, list[tuple[str, Receipt]]] = {}  # step -> (split, receipt) of everything it holds
        self.folders: dict[str, dict[str, Folder]] = {}
        self.trained: dict[str, str] = {}  # training -> the digest of what it learnt
        self.totals: dict[str, dict[str, int]] = {}
        self.times: dict[str, str] = {}  # where those of measuring steps went, in words, for the report

    @property
    def runner(self) -> Any:
        if self._runner is None:  # Ray is joined only when there is work: a finished run answers at once
            from pipeline.runner import Runner

            self._runner = Runner(self.options.resources, self.events, self.stop, self.options.say)
        return self._runner

    def close(self) -> None:
        if self._runner is not None:
            self._runner.close()

    def go(self, started: float) -> Outcome:
        wanted = _closure(self.job, self.options.only)
        for split, source in self.job.sources.items():
            self.run.freeze_keys(split, source)
        self._refuse_changed(wanted)
        described = provenance(self.job.config) | {"code_path": list(self.options.code_path)}
        self.times = self._known_times()
        self.run.write_description(self.job, described | self.times, self._known_fingerprints())
        for step in self.job.steps:
            if step.name not in wanted:
                continue
            if isinstance(step, Measure):
                self._measure(step)
            elif isinstance(step, Train):
                self._train(step)
            else:
                self._reduce(step)
            self.run.write_description(self.job, described | self.times, self._now())
        rows = sum(sum(t.values()) for t in self.totals.values())
        bad = sum(t["failed"] for t in self.totals.values())
        share = bad / rows if rows else 0.0
        # The share is taken step by step: a small step must not hide in a large one.
        over = any(
            t["failed"] > self.options.allow_failed * sum(t.values()) for t in self.totals.values() if sum(t.values())
        )
        return Outcome(
            ROWS_FAILED if over else COMPLETE, self.totals, self.fingerprints, share, time.monotonic() - started
        )

    def _now(self) -> dict[str, str]:
        """Fingerprints of the present settings: a step left out of this drive has none once its upstream changed."""
        before = self._known_fingerprints()
        now: dict[str, str] = {}
        for step in self.job.steps:
            moved = any(now.get(name) != before.get(name) for name in step.upstream)
            moved = moved or self._outlearnt(step, before.get(step.name, ""))
            now[step.name] = self.fingerprints.get(step.name, "" if moved else before.get(step.name, ""))
        return now

    def _outlearnt(self, step: Measure | Reduce | Train, mark: str) -> bool:
        """Whether a step left out of this drive stands on a training that was made again in it and learnt otherwise."""
        if not isinstance(step, Measure) or not mark:
            return False
        again = {f"upstream.{name}": self.trained[name] for name in step.trained.values() if name in self.trained}
        try:
            plan = (
                plans.load(self.run.step_folder(step.name, split=step.splits[0], fingerprint=mark)) if again else None
            )
        except RaylensError:  # status names it
            return False
        return plan is not None and any(plan.fields.get(field) != digest for field, digest in again.items())

    def _known_fingerprints(self) -> dict[str, str]:
        """What an earlier driver wrote for steps this one does not touch."""
        try:
            return {s["name"]: s.get("fingerprint", "") for s in self.run.describe()["steps"]}
        except RaylensError:
            return {}

    def _known_times(self) -> dict[str, str]:
        """What the last driver that worked on a step said of its time."""
        try:
            found = self.run.describe().get("provenance")
        except RaylensError:
            return {}
        steps = {f"time_of_{step.name}" for step in self.job.steps}
        return {name: str(found[name]) for name in steps & set(found)} if isinstance(found, dict) else {}

    def _refuse_changed(self, wanted: set[str]) -> None:
        """Before run.json is written anew, so that it goes on telling what made the rows that are there."""
        for step in self.job.steps:
            if step.name in wanted and isinstance(step, Train):
                self._training(step).refuse_other()
            if step.name in wanted and isinstance(step, Measure) and not self.job.keyed(step.name):
                for split in step.splits:
                    folder = self.run.step_folder(step.name, split=split)
                    plan = plans.load(folder)
                    if plan is not None:
                        plans.refuse_other(plan, self._fields(step), folder.path("plan.json"))

    def _fields(self, step: Measure) -> dict[str, Any]:
        keys = {s: self.run.key_table(s).digest for s in step.splits}
        return plans.measure_fields(step, self.job.limits, keys, self._digests(step))

    def _measure(self, step: Measure) -> None:
        tables = {}
        for name, upstream in step.tables.items():
            folder = next(iter(self.folders[upstream].values()))
            tables[name] = (folder.url, len(self.receipts[upstream]))
        trained = {name: (self.run.step_folder(of).url, self.trained[of]) for name, of in step.trained.items()}
        fields = self._fields(step)
        measuring = MeasureStep(step, self.job, self.run, self.options, self.events, fields, tables, trained)
        self.fingerprints[step.name], self.folders[step.name] = measuring.mark, measuring.folders
        self.receipts[step.name], told = measuring.go(lambda: self.runner)
        if told:
            self.times[f"time_of_{step.name}"] = told
        self.totals[step.name] = _sum(r for _, r in self.receipts[step.name])

    def _digests(self, step: Measure) -> dict[str, str]:
        return {name: self.trained.get(name) or digest(self.receipts[name]) for name in step.upstream}

    def _training(self, step: Train) -> TrainStep:
        return TrainStep(step, self.job, self.run, self.options)

    def _train(self, step: Train) -> None:
        training = self._training(step)
        self.fingerprints[step.name] = plans.fingerprint(training.fields)
        self.trained[step.name] = training.go(self.events, self.stop, self._free_gpus)

    def _free_gpus(self) -> None:
        """Actors of measuring steps leave the GPUs to what comes now."""
        if self._runner is not None:
            self._runner.pool.release_gpus()

    def _reduce(self, step: Reduce) -> None:
        from pipeline.reduce import Part, Reducing, reduce_on_ray

        upstream = [(s, r) for s, r in self.receipts[step.of] if not step.splits or s in step.splits]
        fields = plans.reduce_fields(step, digest(upstream))
        mark = plans.fingerprint(fields)
        folder = self.run.step_folder(step.name, fingerprint=mark)
        blocks = step.reduction.blocks()
        plan = plans.freeze(folder, plans.new_plan(step.name, "", fields, len(blocks), 1, plans.UNMEASURED, 1))
        shards = Shards(folder, plan.shards)
        good, bad = shards.complete()
        for block in bad:
            shards.withdraw(block)
        todo = [block for block in range(plan.shards) if block not in good]
        if todo:
            folders = self.folders[step.of]
            parts = tuple(Part(folders[split].url, split, receipt) for split, receipt in upstream)
            reducing = Reducing(step.name, step.reduction, folder.url, parts)
            if getattr(step.reduction, "accelerated", False):
                self._free_gpus()
            self._connect()
            with Progress(
                step.name, plan.shards, shards=plan.shards, done=len(good), shards_done=len(good), unit="blocks"
            ) as progress:
                reduce_on_ray(reducing, todo, self.stop, progress, self.options.resources)
            shards.sweep(orphans=True)
        if todo or not folder.exists("metrics.json"):
            table = pa.concat_tables(list(shards.tables(getattr(step.reduction, "summary_columns", None))))
            folder.write("metrics.json", json.dumps(step.reduction.summary(table), indent=1).encode())
        if step.label:
            folder.write("label.json", json.dumps({"label": step.label}).encode())
        self.fingerprints[step.name], self.folders[step.name] = mark, {"": folder}
        self.receipts[step.name] = [("", r) for _, r in sorted(shards.committed().items())]

    def _connect(self) -> None:
        from pipeline.cluster import connect

        connect(self.options.resources, self.options.say)


def _closure(job: Job, only: tuple[str, ...]) -> set[str]:
    """The steps asked for and everything they stand on."""
    names = [step.name for step in job.steps]
    if not only:
        return set(names)
    wanted: set[str] = set()
    todo = list(only)
    while todo:
        name = todo.pop()
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the steps are {', '.join(names)}"
            raise UsageError(f"job '{job.name}' has no step '{name}'", where="--only", cure=hint)
        if name not in wanted:
            wanted.add(name)
            todo += job.step(name).upstream
    return wanted


def _sum(receipts: Any) -> dict[str, int]:
    total = dict.fromkeys(STATUSES, 0)
    for receipt in receipts:
        for status, rows in receipt.rows.items():
            total[status] += rows
    return total
