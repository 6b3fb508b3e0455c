"""One worker: makes whole shards of a step, slice by slice, and commits them. It knows nothing of Ray.

The Ray actor in host.py wraps it; ``raylens plan`` and tests use it as it is.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline import slices
from pipeline.decode import Feeder, Prepared, ReachedFeeder, Row, ThreadFeeder, prepare_row, prepare_what_is_reached
from pipeline.estimate import Measured
from pipeline.key_table import KeyTable
from pipeline.loading import load_inputs
from pipeline.redaction import redact_urls
from pipeline.shards import Shards, parquet
from pipeline.steps import row_schema
from pipeline.storage import Folder, UnreachableError
from pipeline.tasks import Done, Mark, Range, Stopped, Task, Work
from pipeline.torch_in_use import device_for, full_float32, set_threads
from pipeline.trainings import finished

MICRO_RUNS = 4  # each on other rows, before a step is given up
_MICRO_RUN_SLICES = 4, 12  # at least and at most; so many more than four as it takes to fill
_MICRO_RUN_SECONDS = 4.0  # this time, so that a busy moment of the machine does not decide,
_MICRO_RUN_LEAST = 0.1  # but none where four slices take less than this,
_MICRO_RUN_MOST = 12.0  # and not even four in longer than this
_FAILED_TOLD = 20  # rows of a shard
_ASKED = 8  # rows, of a shard and of its split, that are tried to see whether the storage is there


class Worker:
    """Holds a set-up stage on one device and makes shards with it."""

    def __init__(self, work: Work, device: str, threads: int) -> None:
        for path in reversed(work.code_path):
            if path not in sys.path:
                sys.path.insert(0, path)
        self.work, self.threads = work, max(1, threads)
        self.device = device_for(device)
        set_threads(self.threads)
        self.stage = copy.copy(work.step.stage)  # work keeps the bare one: decoders elsewhere need no network
        self._pool = ThreadPoolExecutor(max(2, self.threads), thread_name_prefix="decode")
        self._stopping = threading.Event()
        self._upcoming: dict[tuple[Any, ...], Feeder] = {}
        # No bound method: such a circle would hold the network in the device's memory when this worker is let go.
        self.feeder: Callable[[Worker, str, Sequence[Range]], Feeder] = _thread_feeder
        started = time.perf_counter()
        inputs = load_inputs(work.step.inputs, self.device, work.digests)
        for name, (url, count) in work.tables.items():
            inputs[name] = read_all(Shards(Folder(url), count))
        for name, (url, digest) in work.trained.items():
            inputs[name] = finished(Folder(url), digest)
        full_float32()
        self.stage.setup(self.device, inputs)
        self.setup_s = time.perf_counter() - started
        self.schema = row_schema(self.stage)
        self._keys = {split: KeyTable(Folder(work.keys_url), split) for split in work.step.splits}

    def stop(self) -> None:
        """Finish the slice in hand, drop the unfinished shard."""
        self._stopping.set()

    def pause(self, seconds: float) -> None:
        """Raises Stopped when asked to stop meanwhile, or before."""
        if self._stopping.wait(seconds):
            raise Stopped

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def prefetch(self, task: Task) -> None:
        """Begin decoding a shard that will come next, so that its first slice does not wait."""
        if task.apart:
            return
        while len(self._upcoming) >= 2:  # the driver changed its mind: what was decoded for it is let go
            self._upcoming.pop(next(iter(self._upcoming))).close()
        self._upcoming[(task.split, task.shard, task.attempt)] = self.feeder(self, task.split, self._ranges(task))

    def run(self, task: Task, mark: Callable[[Mark], None] = lambda _: None) -> Done:
        """Make and commit one shard. Raises Stopped when asked to stop on the way."""
        started = time.perf_counter()
        set_threads(self.threads)  # a setting of the calling thread, which need not be the one of setup
        todo = self._ranges(task)
        feeder = self._upcoming.pop((task.split, task.shard, task.attempt), None)
        feeder = feeder or self.feeder(self, task.split, [] if task.apart else todo)
        lo, hi = self.work.plans[task.split].range(task.shard)
        names = self._keys[task.split].names(lo, hi)
        found: dict[int, Row] = {}
        notes: list[str] = []
        shape = self.work.plans[task.split].micro_batch
        waited = computed = 0.0
        getattr(self.stage, "begin", lambda: None)()
        with contextlib.closing(feeder):
            prepared_slices = iter(feeder)
            for piece in todo:
                if self._stopping.is_set():
                    raise Stopped(task.name)
                if task.apart:
                    mark(Mark(task.track, task.attempt, piece, begin=True, decoding=True))
                clock = time.perf_counter()
                prepared = self._prepared(task, piece) if task.apart else next(prepared_slices)
                waited += time.perf_counter() - clock
                mark(Mark(task.track, task.attempt, piece, begin=True))
                clock = time.perf_counter()
                rows, shape = self._slice(task.split, piece, prepared, shape, notes)
                computed += time.perf_counter() - clock
                found.update(zip(range(*piece), rows, strict=True))
                mark(Mark(task.track, task.attempt, piece, begin=False, rows=slices.counts(rows)))
        for position, name in zip(range(lo, hi), names, strict=True):
            if position not in found:
                found[position] = {"key": name, "status": "failed", "error": task.quarantined[name]}
        _tell_failed(self.work.step.name, task.name, found.values())
        clock = time.perf_counter()
        table = slices.to_table([found[i] for i in range(lo, hi)], self.schema, type(self.stage).__name__)
        receipt, won = self.shards(task.split).commit(
            task.shard,
            table,
            seconds=round(clock - started, 3),
            attempt=task.attempt,
            device=str(self.device),
            notes=[*notes, *getattr(self.stage, "notes", ())],
        )
        moved = min(waited, getattr(feeder, "moved_s", 0.0))
        return Done(receipt, won, waited - moved, computed, time.perf_counter() - clock, moved)

    def shards(self, split: str) -> Shards:
        return Shards(Folder(self.work.folders[split]), self.work.plans[split].shards)

    def measure(self, split: str, micro_batch: int, attempt: int = 0) -> Measured:
        """A micro-run over rows spread evenly through the split, other ones for each attempt: nothing is written."""
        set_threads(self.threads)
        total = len(self._keys[split])
        size = max(1, min(micro_batch, total) >> attempt)
        least, most = _MICRO_RUN_SLICES
        places = [(5 * i % most + attempt / 4) / most for i in range(most)]  # the first four are far apart, too
        starts = [round(place * (total - size)) for place in places] if total > size else [0]
        todo = [(start, start + size) for start in dict.fromkeys(starts)]
        clock = time.perf_counter()
        patient = attempt == MICRO_RUNS - 1  # to the end: dead links of a list may be everywhere
        for row in self.rows(split, *todo[0]):
            with contextlib.suppress(UnreachableError) if patient else contextlib.nullcontext():
                prepare_row(self.stage, row, self.work.limits)
        decode_s = (time.perf_counter() - clock) / size
        rows: list[Row] = []
        compute: list[float] = []
        wall: list[float] = []
        began = time.perf_counter()
        with contextlib.closing((_reached_feeder if patient else self.feeder)(self, split, todo)) as feeder:
            clock = began
            for piece, prepared in zip(todo, feeder, strict=True):
                if patient and not prepared.good and (wall or piece != todo[-1]):
                    clock = time.perf_counter()  # how long dead links take says nothing of the others
                    continue
                computing = time.perf_counter()
                rows += slices.run_slice(self.stage, split, self.rows(split, *piece), prepared, micro_batch)
                compute.append((time.perf_counter() - computing) / size)
                wall.append((time.perf_counter() - clock) / size)
                clock = time.perf_counter()
                took, enough = clock - began, len(wall) >= least
                over = took > _MICRO_RUN_MOST or (enough and not _MICRO_RUN_LEAST <= took < _MICRO_RUN_SECONDS)
                if over and piece != todo[-1]:  # the feeder has the last word
                    break
        # The first slice warms kernels and caches up: it counts only when it is alone.
        per_row = _mean(wall[1:] or wall)
        table = slices.to_table(rows, self.schema, type(self.stage).__name__)
        return Measured(
            rows_per_s=1.0 / max(per_row, 1e-9),
            decode_s=decode_s,
            compute_s=_mean(compute[1:] or compute),
            bytes_per_row=len(parquet(table)) / len(rows),
            setup_s=self.setup_s,
            device=str(self.device),
            threads=self.threads,
            costs=getattr(self.stage, "cost", dict)(),
        )

    def rows(self, split: str, lo: int, hi: int) -> list[Row]:
        return self._keys[split].rows(lo, hi)

    def _prepared(self, task: Task, piece: Range) -> Prepared:
        """One slice, decoded now."""
        try:
            with contextlib.closing(self.feeder(self, task.split, [piece])) as feeder:
                return next(iter(feeder))
        except UnreachableError:
            if not task.forgiving:
                raise
        prepared, reached = self._what_is_reached(self.rows(task.split, *piece))
        if not reached and not self._is_storage_there(task):
            raise UnreachableError("neither these images nor others can be reached", where=f"split '{task.split}'")
        return prepared

    def _is_storage_there(self, task: Task) -> bool:
        """Whether any of some images can be reached, of the shard and of the whole split."""
        lo, hi = self.work.plans[task.split].range(task.shard)
        places = {*_spread(lo, hi), *_spread(0, len(self._keys[task.split]))}
        others = [row for n in sorted(places) for row in self.rows(task.split, n, n + 1)]
        return bool(self._what_is_reached([row for row in others if row["key"] not in task.quarantined])[1])

    def _what_is_reached(self, rows: Sequence[Row]) -> tuple[Prepared, int]:
        return prepare_what_is_reached(self.stage, rows, self.work.limits, self._pool)

    def _ranges(self, task: Task) -> list[Range]:
        """The slices of a shard; suspects first and apart, so that a killer shows itself before work is done."""
        plan = self.work.plans[task.split]
        lo, hi = plan.range(task.shard)
        pieces = slices.ranges(lo, hi, plan.micro_batch)
        if task.suspects:
            whole = [p for p in pieces if not any(s[0] < p[1] and p[0] < s[1] for s in task.suspects)]
            pieces = [*task.suspects, *whole]
        if not task.quarantined:
            return pieces
        names = self._keys[task.split].names(lo, hi)
        dead = {lo + i for i, name in enumerate(names) if name in task.quarantined}
        return [part for piece in pieces for part in _without(piece, dead)]

    def _slice(
        self, split: str, piece: Range, prepared: Prepared, shape: int, notes: list[str]
    ) -> tuple[list[Row], int]:
        """Result rows of a slice, and the micro-batch shape that had room for it."""
        planned, rows = self.work.plans[split].micro_batch, self.rows(split, *piece)

        def run(lo: int, hi: int, shape: int) -> list[Row]:
            offset = self._place(split, piece[0]) if shape == planned else 0
            return slices.run_slice(self.stage, split, rows[lo:hi], _part(prepared, lo, hi), shape, offset)

        return slices.run_where_there_is_room(run, rows, shape, notes)

    def _place(self, split: str, position: int) -> int:
        """Where a row sits in its slice."""
        plan = self.work.plans[split]
        return (position % plan.shard_rows) % plan.micro_batch


def _thread_feeder(worker: Worker, split: str, todo: Sequence[Range]) -> Feeder:
    pieces = [worker.rows(split, lo, hi) for lo, hi in todo]
    return ThreadFeeder(worker._pool, worker.stage, pieces, worker.work.limits, ahead=3)


def _reached_feeder(worker: Worker, split: str, todo: Sequence[Range]) -> Feeder:
    pieces = [worker.rows(split, lo, hi) for lo, hi in todo]
    return ReachedFeeder(worker._pool, worker.stage, pieces, worker.work.limits)


def _tell_failed(step: str, shard: str, rows: Iterable[Row]) -> None:
    """A line of JSON for each of a shard's first failed rows, where Ray keeps what its workers say."""
    failed = [row for row in rows if row["status"] == "failed"]
    for row in failed[:_FAILED_TOLD]:
        told = {
            "kind": "failed row",
            "step": step,
            "shard": shard,
            "key": redact_urls(row["key"]),
            "error": row.get("error"),
        }
        print(json.dumps(told), file=sys.stderr, flush=True)


def read_all(shards: Shards) -> Any:
    """A reduction's rows as one table."""
    import pyarrow as pa

    return pa.concat_tables(list(shards.tables()))


def _part(prepared: Prepared, lo: int, hi: int) -> Prepared:
    if lo == 0 and hi > max([*prepared.good, *prepared.errors], default=-1):
        return prepared  # all of it: nothing is copied
    chosen = [j for j, i in enumerate(prepared.good) if lo <= i < hi]
    return Prepared(
        {name: array[chosen] for name, array in prepared.arrays.items()},
        tuple(prepared.good[j] - lo for j in chosen),
        {i - lo: why for i, why in prepared.errors.items() if lo <= i < hi},
    )


def _spread(lo: int, hi: int) -> range:
    """Places all over [lo, hi)."""
    return range(lo, hi, max(1, (hi - lo) // _ASKED))


def _without(piece: Range, dead: set[int]) -> list[Range]:
    """A range in parts that leave out the dead positions."""
    parts: list[Range] = []
    start = piece[0]
    for position in range(*piece):
        if position in dead:
            if start < position:
                parts.append((start, position))
            start = position + 1
    if start < piece[1]:
        parts.append((start, piece[1]))
    return parts


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
