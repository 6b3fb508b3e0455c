"""Every byte of a run against its receipts, plans and keys; what is bad is named, and withdrawn where asked."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import checkpoints, compact, trainings, units
from pipeline import plan as plans
from pipeline.errors import RaylensError
from pipeline.lock import RunLock
from pipeline.products import products
from pipeline.run import KeyTable, Run
from pipeline.shards import Receipt, count_rows
from pipeline.units import Unit

_READERS = 8  # threads: each holds one file in memory


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong and where. ``mended``: the shard was withdrawn, so that the next run makes it again."""

    where: str
    what: str
    mended: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (" (withdrawn; run the job again)" if self.mended else "")


@dataclasses.dataclass(frozen=True)
class VerifyReport:
    """What was read, what is wrong, and what lies about."""

    url: str
    shards: int  # whose every byte was read
    bytes: int
    rows: int
    problems: tuple[Problem, ...]
    missing: tuple[str, ...]  # shards of the job's present settings that are not there (yet)
    orphans: tuple[str, ...]  # files no receipt names
    removed: bool  # whether the orphans are gone now

    @property
    def ok(self) -> bool:
        """Nothing is bad and nothing is missing; after a repair: nothing is bad that the next run does not mend."""
        mended = any(p.mended for p in self.problems)
        return all(p.mended for p in self.problems) and (mended or not self.missing)

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "ok": self.ok}


def verify(
    url: str, repair: bool = False, clean: bool = False, *, say: Callable[[str], None] = lambda _: None
) -> VerifyReport:
    """Check a run. ``repair`` withdraws bad shards, ``clean`` removes orphans; both ask for the run's lock.

    A RaylensError means that nothing could be checked; damage of any kind ends in the report.
    """
    run = Run(url)
    described = run.describe()
    with RunLock(run.folder, say=say) if repair or clean else contextlib.nullcontext():
        keys, problems = _check_keys(run)
        missing: list[str] = []
        orphans: list[str] = []
        shards = read = rows = 0
        for unit in units.units(run, described):
            say(f"verify  {unit.name}")
            checked = _Check(unit, keys.get(unit.split), repair)
            problems += checked.problems
            if _wanted(unit, described):
                missing += checked.missing
            orphans += [unit.folder.path(name) for name in checked.orphans]
            if clean:
                for name in checked.orphans:
                    unit.folder.remove(name)
            shards, read, rows = shards + checked.shards, read + checked.bytes, rows + checked.rows
        for training in trainings.trainings(run, described):
            say(f"verify  {training.name}")
            learnt = _Learnt(training, repair, clean)
            problems += learnt.problems
            orphans += learnt.orphans
            read += learnt.bytes
            if any(step["name"] == training.name for step in described["steps"]):
                missing += learnt.missing
        for product in (p for name in units.beside_steps(run, described) for p in products(run.folder.child(name))):
            read += product.folder.size(product.name) or 0
            if wrong := product.wrong():
                problems.append(Problem(product.path, wrong, mended=repair))
                if repair:
                    product.withdraw()
        for unit in units.units(run, described):
            large = compact.compacted(run, unit)
            wrong_there, size = compact.check(unit, large)
            read += size
            problems += [Problem(large.url, what, mended=repair) for what in wrong_there]
            if wrong_there and repair:
                large.remove(compact.MANIFEST)
    return VerifyReport(run.url, shards, read, rows, tuple(problems), tuple(missing), tuple(orphans), clean)


class _Check:
    """One unit, read through."""

    def __init__(self, unit: Unit, keys: pa.ChunkedArray | None, repair: bool) -> None:
        self.unit, self.keys = unit, keys
        self.problems: list[Problem] = []
        read: collections.Counter[str] = collections.Counter()
        if unit.problem:
            where, _, what = unit.problem.rpartition(": ")
            self.problems.append(Problem(where, what))
        good, bad = unit.shards.complete(each=True)
        with ThreadPoolExecutor(_READERS) as pool:
            for shard, reason, counts in pool.map(self._shard, good.values()):
                read.update(counts)
                if reason:
                    bad[shard] = reason
        for shard in sorted(bad):
            if repair:
                unit.shards.withdraw(shard)
            self.problems.append(Problem(f"{unit.name} shard {shard}", bad[shard], mended=repair))
        self.shards, self.bytes, self.rows = read["shards"], read["bytes"], read["rows"]
        count = unit.plan.shards if unit.plan else 0
        absent = [n for n in range(count) if n not in good and n not in bad]
        self.missing = [f"{unit.name} shard {n} is not committed" for n in absent]
        # Without a plan it is not known what the files are: they are left alone.
        self.orphans = [*unit.shards.orphans(), *unit.shards.leftovers()] if unit.plan else []

    def _shard(self, receipt: Receipt) -> tuple[int, str, collections.Counter[str]]:
        """(shard, what is wrong with it, what was read); runs in a thread beside others, so it touches nothing."""
        read: collections.Counter[str] = collections.Counter()
        try:
            return receipt.shard, self._wrong(receipt, read), read
        except FileNotFoundError as error:
            return receipt.shard, f"{error.filename or error} vanished while it was read", read
        except RaylensError as error:
            return receipt.shard, f"{error.where}: {error.what}", read

    def _wrong(self, receipt: Receipt, read: collections.Counter[str]) -> str:
        """Why this shard is not what its receipt and the plan say; "" when all is well."""
        unit = self.unit
        table: pa.Table | None = None
        for file in receipt.files:
            data = unit.folder.read(file.name)
            if hashlib.sha256(data).hexdigest() != file.sha256:
                return f"{unit.folder.path(file.name)} does not have the content its receipt vouches for"
            if table is None:
                try:
                    table = _rows(data)
                except pa.ArrowException as error:
                    return f"{unit.folder.path(file.name)} is no Parquet file ({str(error).splitlines()[0]})"
            read["bytes"] += len(data)
        assert table is not None
        if count_rows(table) != dict(receipt.rows):
            return f"{unit.folder.path(receipt.files[0].name)} has other rows than its receipt counts"
        if unit.plan is not None and receipt.shard >= unit.plan.shards:
            return f"the plan has only {unit.plan.shards} shards"
        if unit.plan is not None and unit.split:
            lo, hi = unit.plan.range(receipt.shard)
            if table.num_rows != hi - lo:
                return f"has {table.num_rows} rows where the plan has {hi - lo}"
            if self.keys is not None and table.column("key").to_pylist() != self.keys.slice(lo, hi - lo).to_pylist():
                return "its keys are not those of the plan"
        read.update(shards=1, rows=table.num_rows)
        return ""


class _Learnt:
    """One training, read through: its result and each of its checkpoints."""

    def __init__(self, training: trainings.Training, repair: bool, clean: bool) -> None:
        self.problems: list[Problem] = []
        self.orphans: list[str] = []
        self.bytes = 0
        for name, folder in training.places:
            try:
                found = checkpoints.read_committed(folder)
                self.bytes += sum(map(len, found.files.values())) if found else 0
            except checkpoints.DamagedError as error:
                if repair:
                    checkpoints.withdraw(folder)
                self.problems.append(Problem(name, error.what, mended=repair))
            left = checkpoints.leftovers(folder)
            self.orphans += [folder.path(file) for file in left]
            if clean:
                for file in left:
                    folder.remove(file)
        if not training.fields:
            self.problems.append(Problem(training.folder.path("training.json"), training.problem or "is missing"))
        # A damaged result is told above; where there is none, training has not come to its end.
        done = training.complete or training.problem
        self.missing = [] if done else [f"{training.name} is not finished (epoch {training.reached})"]


def _rows(data: bytes) -> pa.Table:
    """Only what is counted; every byte has been hashed already."""
    file = pq.ParquetFile(pa.BufferReader(data))
    columns = [name for name in ("key", "status") if name in file.schema_arrow.names]
    return file.read(columns=columns or file.schema_arrow.names[:1])


def _check_keys(run: Run) -> tuple[dict[str, pa.ChunkedArray], list[Problem]]:
    """The keys of every split whose table is what was frozen; by another, no shard is judged."""
    good: dict[str, pa.ChunkedArray] = {}
    problems: list[Problem] = []
    for split in run.splits():
        where = run.keys.path(f"{split}.parquet")
        try:
            keys = KeyTable(run.keys, split)
            table = keys.table()
            if plans.table_digest(table) != keys.digest or table.num_rows != len(keys):
                problems.append(Problem(where, "is not the key table that was frozen"))
            else:
                good[split] = table.column("key")
        except FileNotFoundError:
            problems.append(Problem(where, "is missing"))
        except (RaylensError, KeyError) as error:  # KeyError: a table without keys
            found = (
                Problem(error.where, error.what) if isinstance(error, RaylensError) else Problem(where, "has no keys")
            )
            problems.append(found)
    return good, problems


def _wanted(unit: Unit, described: dict[str, Any]) -> bool:
    """Whether the job, as it is now, wants all of this unit; abandoned settings may stay half-done."""
    step = next((s for s in described["steps"] if s["name"] == unit.step), None)
    return step is not None and (not unit.setting or str(step.get("fingerprint", ""))[:8] == unit.setting)
