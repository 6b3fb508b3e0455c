"""Ray: connecting, the places where workers can run, and the actors that run there."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import threading
import time
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
from pipeline.tasks import Done, Mark, Range, Task, Work
from pipeline.worker import Worker

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
    """Join the cluster that is named, or start one on this machine. Does nothing when connected already."""
    if ray.is_initialized():
        return
    address = resources.cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What is dropped when a run is stopped would be told as an error, with a traceback.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # A task that asked for no GPU must see none: reductions take one where they see one.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    if address:
        settings = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
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
        if address:
            at, cure = address, "check --address ('ray status' there), or leave it out to use this machine"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RaylensError(f"Ray could not be reached or started ({reason})", where=at, cure=cure) from error


def joined() -> str | None:
    """The cluster that this process has joined, whoever said so; None for a Ray of its own, to which nothing comes."""
    from ray._private.worker import _global_node as node

    if not ray.is_initialized() or (node is not None and node.is_head()):
        return None
    with contextlib.suppress(Exception):  # Ray Client
        return str(ray.get_runtime_context().gcs_address)
    return "the cluster"


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


def free_of_nodes() -> dict[str, Mapping[str, float]] | None:
    """What nobody holds of the living nodes, by id; None where Ray does not tell (Ray Client)."""
    with contextlib.suppress(Exception):
        from ray._private.state import available_resources_per_node

        found: dict[str, Mapping[str, float]] = available_resources_per_node()
        return found
    return None


def slots(resources: Resources) -> list[Slot]:
    """Every place for a worker on the cluster as it is now, whoever holds it; on CPUs where ``gpus`` is 0."""
    nodes = alive_nodes()
    total_gpus = sum(r.get("GPU", 0.0) for r in nodes.values())
    on_gpus = total_gpus > 0 and resources.gpus != 0
    total_cpus = sum(int(r.get("CPU", 0)) for r in nodes.values())
    found: list[Slot] = []
    for node, total in sorted(nodes.items()):
        cpus, gpus = int(total.get("CPU", 0)), total.get("GPU", 0.0)
        if on_gpus:
            share = resources.gpus_per_actor
            count = int(gpus / share + 1e-9)
            threads = max(1, cpus // max(1, count))
            found += [Slot(node, i, "cuda", share, threads) for i in range(count)]
        elif cpus:
            group = min(resources.cpus_per_actor or (cpus if resources.mode == "spread" else min(cpus, 4)), cpus)
            found += [Slot(node, i, "cpu", 0.0, group) for i in range(max(1, cpus // group))]
    if not found:
        raise UsageError(
            f"the cluster has no place for a worker (CPUs {total_cpus}, "
            f"GPUs {total_gpus:g}, {resources.gpus_per_actor:g} GPU a worker)",
            where=resources.cluster or "this machine",
            cure="lower resources.gpus_per_actor, or add nodes",
        )
    return found


def bundle(resources: Resources, places: Sequence[Slot]) -> dict[str, float]:
    """What one more worker needs of a node: as the others have, a GPU where there are none (``gpus: 0``: CPUs)."""
    if places and not places[0].gpus:
        return {"CPU": float(max(place.threads for place in places))}
    if not places and resources.gpus == 0:
        return {"CPU": float(resources.cpus_per_actor or 1)}  # how large nodes are is seen when the first is there
    return {"GPU": resources.gpus_per_actor}


class Host:
    """The actor around a worker. It outlives a step: its process and its libraries are loaded once for a whole job."""

    def __init__(self, ledger: Any, slot: Slot) -> None:
        self._ledger, self._slot = ledger, slot
        self._worker: Worker | None = None

    def setup(self, work: Work, spread: bool) -> float:
        """Load what the step needs; returns seconds. ``spread``: rows are decoded by tasks anywhere."""
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
        if spread:
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
            told = {"kind": "device lost", "step": self._worker.work.step.name, "shard": task.name, "error": str(error)}
            print(json.dumps(told), file=sys.stderr, flush=True)
            os._exit(1)

    @ray.method(concurrency_group="control")
    def prefetch(self, work_id: str, task: Task) -> None:
        if self._worker is not None and self._worker.work.id == work_id:
            self._worker.prefetch(task)

    @ray.method(concurrency_group="control")
    def placed(self) -> None:
        """Answers as soon as its process is there."""

    @ray.method(concurrency_group="control")
    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()

    def _mark(self, mark: Mark) -> None:
        sent = self._ledger.mark.remote(mark)
        if mark.begin:  # must be known before the slice can kill this process
            with contextlib.suppress(ray.exceptions.RayActorError):  # it starts again: a death here will be free
                ray.get(sent)


def start_host(slot: Slot, ledger: Any) -> Any:
    """A worker at a slot. It holds no CPU, so that it can never starve the tasks it waits for."""
    actor = ray.remote(concurrency_groups={"control": 1})(Host)
    return actor.options(
        num_cpus=0,
        num_gpus=slot.gpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node, soft=False),
    ).remote(ledger, slot)


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
