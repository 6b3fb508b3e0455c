"""How far a run is: what its folder says, without touching it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pipeline import plan as plans
from pipeline import trainings, units
from pipeline.errors import RaylensError
from pipeline.lock import NAME as LOCK
from pipeline.lock import Owner
from pipeline.run import Run
from pipeline.shards import STATUSES, Receipt, Shards
from pipeline.storage import Folder
from pipeline.units import Unit

_FAILED_SHOWN = 20  # keys of one step and split that are named; all of them are counted


@dataclasses.dataclass(frozen=True)
class FailedRow:
    """A row that is not there, and why."""

    step: str
    split: str
    key: str
    error: str


@dataclasses.dataclass(frozen=True)
class StepStatus:
    """One step on one split, or one setting of a reduction."""

    step: str
    kind: str
    split: str
    fingerprint: str
    label: str
    url: str
    current: bool  # run.json's setting; others stand beside it
    stale: bool  # its upstream rows have changed: the next run computes it again
    shards: int
    committed: int
    keys: int
    rows: dict[str, int]  # by status, of the committed shards
    quarantined: int
    broken: tuple[str, ...]  # shards whose files are not what their receipts say, and damaged plans
    failed: tuple[FailedRow, ...]  # the first ones

    @property
    def complete(self) -> bool:
        return self.shards > 0 and self.committed == self.shards and not self.broken

    @property
    def name(self) -> str:
        return f"{self.step}/{self.split}" if self.split else self.step


@dataclasses.dataclass(frozen=True)
class TrainingStatus:
    """One training: how far it is, and what it would go on from."""

    step: str
    fingerprint: str
    url: str
    current: bool  # a step of the job as it is now
    epochs: int  # done, as far as checkpoints tell
    wanted: int | None  # None where the trainer's config has no field "epochs"
    complete: bool
    digest: str
    checkpoints: tuple[int, ...]  # epochs, newest first
    refused: tuple[str, ...]  # checkpoints that are passed over, and why
    broken: str  # why its result is not to be believed


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """A run at a glance; ``waiting`` are the steps of the job that have no plan yet."""

    url: str
    job: str
    steps: tuple[StepStatus, ...]
    waiting: tuple[str, ...]
    driver: str  # who holds the lock, "" for nobody
    trainings: tuple[TrainingStatus, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether all that the job wants now is there."""
        measured = all(s.complete and not s.stale for s in self.steps if s.current)
        return not self.waiting and measured and all(t.complete for t in self.trainings if t.current)

    @property
    def failed(self) -> int:
        return sum(s.rows.get("failed", 0) for s in self.steps if s.current)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "complete": self.complete}


def status(url: str) -> RunStatus:
    """Read a run folder; UsageError when it is none."""
    run = Run(url)
    described = run.describe()
    found = units.units(run, described)
    good: dict[str, dict[int, Receipt]] = {}
    bad: dict[str, dict[int, str]] = {}
    for unit in found:
        good[unit.name], bad[unit.name] = unit.shards.complete()
    learnt = trainings.trainings(run, described)
    today = {training.name: training.digest for training in learnt}
    rows = tuple(
        _step(unit, described, good[unit.name], bad[unit.name], units.stale(unit, found, good, today)) for unit in found
    )
    trained = tuple(_training(training, described) for training in learnt)
    begun = {row.step for row in rows if row.current} | {training.step for training in trained if training.current}
    waiting = tuple(str(s["name"]) for s in described["steps"] if s["name"] not in begun)
    return RunStatus(run.url, str(described.get("job", "")), rows, waiting, _driver(run.folder), trained)


def _training(found: trainings.Training, described: dict[str, Any]) -> TrainingStatus:
    return TrainingStatus(
        step=found.name,
        fingerprint=plans.fingerprint(found.fields),
        url=found.folder.url,
        current=any(s["name"] == found.name for s in described["steps"]),
        epochs=found.reached,
        wanted=trainings.epochs_wanted(found.fields),
        complete=found.complete,
        digest=found.digest,
        checkpoints=found.checkpoints,
        refused=trainings.refused(found),
        broken=found.problem,
    )


def _step(
    unit: Unit, described: dict[str, Any], good: dict[int, Receipt], bad: dict[int, str], stale: bool
) -> StepStatus:
    rows = dict.fromkeys(STATUSES, 0)
    for receipt in good.values():
        for name, count in receipt.rows.items():
            rows[name] += count
    step: dict[str, Any] = next((s for s in described["steps"] if s["name"] == unit.step), {})
    wanted = str(step.get("fingerprint", ""))
    current = bool(step) and (not unit.setting or wanted[:8] == unit.setting)
    return StepStatus(
        step=unit.step,
        kind=unit.kind,
        split=unit.split,
        fingerprint=unit.plan.fingerprint if unit.plan else unit.setting,
        label=_label(unit, step if current else {}),
        url=unit.folder.url,
        current=current,
        stale=stale,
        shards=unit.plan.shards if unit.plan else 0,
        committed=len(good),
        keys=unit.plan.keys if unit.plan else 0,
        rows=rows,
        quarantined=_quarantined(unit.folder),
        broken=tuple([unit.problem] if unit.problem else []) + tuple(bad.values()),
        failed=failed_rows(unit, good, _FAILED_SHOWN),
    )


def failed_rows(unit: Unit, receipts: dict[int, Receipt], limit: int) -> tuple[FailedRow, ...]:
    """The first failed rows of the committed shards, with their reasons."""
    found: list[FailedRow] = []
    for _, receipt in sorted(receipts.items()):
        if len(found) >= limit:
            break
        if receipt.rows.get("failed", 0):
            found += _failed_in(unit, receipt)
    return tuple(found[:limit])


def _failed_in(unit: Unit, receipt: Receipt) -> list[FailedRow]:
    shards: Shards = unit.shards
    try:
        table = shards.open(receipt, columns=["key", "status", "error"])
    except RaylensError as error:  # verify tells more
        return [FailedRow(unit.step, unit.split, f"shard {receipt.shard}", error.what)]
    keys, states, errors = (table.column(name).to_pylist() for name in ("key", "status", "error"))
    return [
        FailedRow(unit.step, unit.split, key, why or "")
        for key, state, why in zip(keys, states, errors, strict=True)
        if state == "failed"
    ]


def _label(unit: Unit, step: dict[str, Any]) -> str:
    """The user's name for a setting: kept beside its plan, and in run.json for the setting of the day."""
    try:
        return str(json.loads(unit.folder.read("label.json"))["label"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return str(step.get("label", ""))


def _quarantined(folder: Folder) -> int:
    """Keys that killed their workers: one JSON object of key -> reason for each shard."""
    quarantine = folder.child("quarantine")
    count = 0
    for name in quarantine.list():
        if name.endswith(".json"):
            try:
                entries = json.loads(quarantine.read(name))
            except (FileNotFoundError, ValueError):
                continue
            count += len(entries) if isinstance(entries, (dict, list)) else 0
    return count


def _driver(folder: Folder) -> str:
    try:
        owner = Owner.from_json(folder.read(LOCK))
    except FileNotFoundError:
        return ""
    return f"{owner} (dead: the next run takes over)" if owner.dead else str(owner)
