"""Ray: connecting, the places where workers can run, and the actors that run there."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.decode import Prepared, Row, prepare_slice, stack
from pipeline.errors import RaylensError, UsageError
from pipeline.estimate import Measured
from pipeline.options import Resources
from pipeline.provenance import cpu_count
from pipeline.slices import DeviceLostError
from pipeline.worker import Done, Mark, Range, Task, Work, Worker

IN_FLIGHT_BYTES = 512 * 2**20  # decoded slices waiting for one actor
_DECODER_DEATHS = 3


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one worker."""

    node: str
    index: int
    device: str
    gpus: float
    threads: int


def connect(resources: Resources) -> None:
    """Join the cluster at ``address``, or start one on this machine. Does nothing when connected already."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A task that asked for no GPU must see none: reductions take one where they see one.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    if resources.address:
        settings = {"address": resources.address, "log_to_driver": False, "logging_level": logging.ERROR}
    else:
        # "local": never a cluster that somebody else started on this machine.
        settings |= {"address": "local", "num_cpus": resources.cpus or cpu_count()}
        if resources.gpus is not None:
            settings["num_gpus"] = resources.gpus
    try:
        with _signals_kept():
            ray.init(**settings)
    except Exception as error:  # Ray raises a bare one when its processes do not come up in time
        at, cure = "this machine", "run again when it is less busy"
        if resources.address:
            at, cure = resources.address, "check --address ('ray status' there), or leave it out to use this machine"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RaylensError(f"Ray could not be reached or started ({reason})", where=at, cure=cure) from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts its own handlers in place of ours, and a SIGTERM would then end the driver in mid-air."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def alive_nodes() -> dict[str, Mapping[str, float]]:
    """Living nodes and their total resources, by id."""
    return {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}


def slots(resources: Resources) -> tuple[str, list[Slot]]:
    """The mode chosen for this cluster as it is now, and every place where it has room for a worker."""
    nodes = alive_nodes()
    total_gpus = sum(r.get("GPU", 0.0) for r in nodes.values())
    total_cpus = sum(int(r.get("CPU", 0)) for r in nodes.values())
    mode = resources.mode
    if mode == "auto":
        mode = "spread" if total_gpus > 0 else "inline"
    if total_cpus == 0:  # a decode task could never be scheduled: actors decode for themselves
        mode = "inline"
    found: list[Slot] = []
    for node, total in sorted(nodes.items()):
        cpus, gpus = int(total.get("CPU", 0)), total.get("GPU", 0.0)
        if total_gpus > 0:
            share = resources.gpus_per_actor
            count = int(gpus / share + 1e-9)
            threads = max(1, cpus // max(1, count))
            found += [Slot(node, i, "cuda", share, threads) for i in range(count)]
        elif cpus:
            group = min(resources.cpus_per_actor or (cpus if mode == "spread" else min(cpus, 4)), cpus)
            found += [Slot(node, i, "cpu", 0.0, group) for i in range(max(1, cpus // group))]
    if not found:
        raise UsageError(
            f"the cluster has no place for a worker (CPUs {total_cpus}, "
            f"GPUs {total_gpus:g}, {resources.gpus_per_actor:g} GPU a worker)",
            where=resources.address or "this machine",
            cure="lower resources.gpus_per_actor, or add nodes",
        )
    return mode, found


class Ledger:
    """Remembers which slice each attempt is in, so that a death inside a slice can be told from any other."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], Range | None] = {}
        self._completed: dict[tuple[str, int], list[Range]] = collections.defaultdict(list)
        self._rows: dict[tuple[str, int], collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def mark(self, mark: Mark) -> None:
        attempt = (mark.task, mark.attempt)
        self._open[attempt] = mark.range if mark.begin else None
        if not mark.begin:
            self._completed[attempt].append(mark.range)
            self._rows[attempt].update(mark.rows)

    def history(self, task: str, attempt: int) -> tuple[Range | None, list[Range]]:
        """The slice an attempt is in, if any, and those it completed."""
        return self._open.get((task, attempt)), list(self._completed.get((task, attempt), ()))

    def begun(self, attempts: Sequence[tuple[str, int]]) -> bool:
        """Whether any of these attempts has come to a slice: the rows of its first are decoded."""
        return any(attempt in self._open for attempt in attempts)

    def rows(self, attempts: Sequence[tuple[str, int]]) -> dict[str, int]:
        """Rows by status that these attempts have done so far."""
        total: collections.Counter[str] = collections.Counter()
        for attempt in attempts:
            total.update(self._rows.get(attempt, {}))
        return dict(total)

    def forget(self, task: str) -> None:
        for store in (self._open, self._completed, self._rows):
            for attempt in [a for a in store if a[0] == task]:
                del store[attempt]


class Host:
    """The actor around a worker. It outlives a step: its process and its libraries are loaded once for a whole job."""

    def __init__(self, ledger: Any, slot: Slot, spread: bool) -> None:
        self._ledger, self._slot, self._spread = ledger, slot, spread
        self._worker: Worker | None = None

    def setup(self, work: Work) -> float:
        """Load what the step needs; returns seconds."""
        if self._worker is not None:
            self._worker.close()
        self._worker = None
        device = self._slot.device
        if device == "cuda":
            import torch

            if not torch.cuda.is_available():  # logical GPUs, as on a test cluster; receipts name the device
                device = "cpu"
            elif self._slot.gpus < 1:
                torch.cuda.set_per_process_memory_fraction(self._slot.gpus)
        worker = Worker(work, device, self._slot.threads)
        if self._spread:
            worker.make_feeder = lambda split, todo: TaskFeeder(worker, split, todo)
        self._worker = worker
        return worker.setup_s

    def measure(self, split: str, micro_batch: int, attempt: int) -> Measured:
        assert self._worker is not None
        return self._worker.measure(split, micro_batch, attempt)

    def micro_batch(self) -> int:
        assert self._worker is not None
        return self._worker.stage.micro_batch(self._worker.device)

    def run(self, task: Task) -> Done:
        assert self._worker is not None
        try:
            return self._worker.run(task, self._mark)
        except DeviceLostError as error:  # dying is what the driver understands: a death inside this slice
            print(f"raylens: {task.name}: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    @ray.method(concurrency_group="control")
    def prefetch(self, work_id: str, task: Task) -> None:
        if self._worker is not None and self._worker.work.id == work_id:
            self._worker.prefetch(task)

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()

    def _mark(self, mark: Mark) -> None:
        sent = self._ledger.mark.remote(mark)
        if mark.begin:  # must be known before the slice can kill this process
            ray.get(sent)


def start_ledger() -> Any:
    """The ledger, beside the driver."""
    here = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(here, soft=True)
    # It comes back empty if its process dies: what it knew only ever sharpens a verdict.
    endless = {"max_restarts": -1, "max_task_retries": -1}
    return ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=strategy, **endless).remote()


def start_host(slot: Slot, ledger: Any, spread: bool) -> Any:
    """A worker at a slot. It holds no CPU, so that it can never starve the tasks it waits for."""
    actor = ray.remote(concurrency_groups={"control": 1})(Host)
    return actor.options(
        num_cpus=0,
        num_gpus=slot.gpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node, soft=False),
    ).remote(ledger, slot, spread)


class TaskFeeder:
    """Decodes in Ray tasks anywhere on the cluster, with bounded bytes in flight, and feeds by object reference."""

    def __init__(self, worker: Worker, split: str, todo: Sequence[Range]) -> None:
        self._worker, self._split = worker, split
        self._todo = collections.deque(todo)
        self._ready: collections.deque[tuple[Range, Any]] = collections.deque()
        self._decode = ray.remote(_decode).options(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")
        self._stage = ray.put(worker.work.step.stage) if todo else None
        self._ahead = 2
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
                prepared = ray.get(reference)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:
                prepared = self._one_by_one(piece)
            if prepared.bytes:
                self._ahead = max(2, min(32, IN_FLIGHT_BYTES // prepared.bytes))
            self._fill()
            yield prepared

    def _one_by_one(self, piece: Range) -> Prepared:
        """A decoder died: find the row that kills it. A lost node costs a retry, a killer becomes a failed row."""
        results: list[Any] = []
        for row in self._worker.rows(self._split, *piece):
            why = ""
            for _ in range(_DECODER_DEATHS):
                try:
                    one = ray.get(self._submit([row]))
                    results.append({n: a[0] for n, a in one.arrays.items()} if one.good else one.errors[0])
                    break
                except ray.exceptions.RayTaskError:
                    raise  # the decoder lives: its code or its storage is at fault, not this row
                except ray.exceptions.RayError as again:
                    why = f"killed its decoder {_DECODER_DEATHS} times ({type(again).__name__})"
            else:
                results.append(why)
        return stack(results)

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
