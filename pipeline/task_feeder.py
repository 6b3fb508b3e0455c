"""Decoding in Ray tasks, for workers whose device is faster than the CPUs beside it."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray

from pipeline.decode import Prepared, Row, prepare_slice, stack
from pipeline.failures import DEATHS, FREE_RETRIES, backoff
from pipeline.remote_errors import last_line
from pipeline.storage import UnreachableError
from pipeline.tasks import Range
from pipeline.worker import Worker

IN_FLIGHT_BYTES = 512 * 2**20  # decoded slices waiting for one actor


class TaskFeeder:
    """Decodes in Ray tasks anywhere on the cluster, with bounded bytes in flight, and feeds by object reference."""

    def __init__(self, worker: Worker, split: str, todo: Sequence[Range]) -> None:
        self._worker, self._split = worker, split
        self._todo = collections.deque(todo)
        self._ready: collections.deque[tuple[Range, Any]] = collections.deque()
        self._decode = ray.remote(_decode).options(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")
        self._stage = ray.put(worker.work.step.stage) if todo else None
        self._ahead = 2
        self.moved_s = 0.0
        self._fill()

    def _submit(self, rows: Sequence[Row]) -> Any:
        return self._decode.remote(self._stage, rows, self._worker.work.limits, self._worker.work.code_path)

    def _fill(self) -> None:
        while self._todo and len(self._ready) < self._ahead:
            piece = self._todo.popleft()
            self._ready.append((piece, self._submit(self._worker.rows(self._split, *piece))))

    def __iter__(self) -> Iterator[Prepared]:
        while self._ready:
            piece, reference = self._ready.popleft()
            try:
                ray.wait([reference], fetch_local=False)  # until it is decoded; what is left is its way here
                clock = time.perf_counter()
                prepared = ray.get(reference)
                self.moved_s += time.perf_counter() - clock
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:
                prepared = self._one_by_one(piece)
            if prepared.bytes:
                self._ahead = max(2, min(32, IN_FLIGHT_BYTES // prepared.bytes))
            self._fill()
            yield prepared

    def _one_by_one(self, piece: Range) -> Prepared:
        """A decoder was lost, and a row may have killed it: such a row fails, the others are decoded all the same."""
        results: list[Any] = []
        for row in self._worker.rows(self._split, *piece):
            one = self._alone(row)
            if isinstance(one, str):
                results.append(one)
            else:
                results.append({n: a[0] for n, a in one.arrays.items()} if one.good else one.errors[0])
        return stack(results)

    def _alone(self, row: Row) -> Prepared | str:
        """One row from a task of its own, or why it fails: it killed its decoder each time.

        A lost node, a lost object or a full memory, which others may have filled, is no fault of the row.
        """
        deaths = lost = 0
        while True:
            try:
                found: Prepared = ray.get(self._submit([row]))
                return found
            except ray.exceptions.RayTaskError:
                raise  # the decoder lives: its code or its storage is at fault, not this row
            except ray.exceptions.WorkerCrashedError as error:
                deaths += 1
                if deaths == DEATHS:
                    return f"killed its decoder {deaths} times ({type(error).__name__})"
            except ray.exceptions.RayError as error:
                lost += 1
                if lost > FREE_RETRIES:
                    why = f"its decoder was lost {lost} times ({type(error).__name__}: {last_line(error)})"
                    raise UnreachableError(why, where=str(row["key"])) from error
            self._worker.pause(backoff(deaths + lost))

    def close(self) -> None:
        self._todo.clear()
        for _, reference in self._ready:
            with contextlib.suppress(Exception):
                ray.cancel(reference, force=False)
        self._ready.clear()


def _decode(stage: Any, rows: Sequence[Row], limits: Any, code_path: Sequence[str]) -> Prepared:
    for path in reversed(code_path):
        if path not in sys.path:
            sys.path.insert(0, path)
    return prepare_slice(stage, rows, limits)
