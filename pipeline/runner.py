"""The Ray loop of a measuring step: shards to actors, receipts back, failures classed and answered.

The driver holds no state: kill it, start it again, it lists receipts and goes on. Results never pass through it.
"""

from __future__ import annotations

import collections
import contextlib
import heapq
import time
from collections.abc import Callable
from typing import Any

import ray

from pipeline import cluster
from pipeline.errors import RaylensError
from pipeline.estimate import Measured
from pipeline.events import Events
from pipeline.failures import ShardFate, Verdict
from pipeline.pool import Member, Pool
from pipeline.progress import Progress
from pipeline.quarantine import read_quarantine, write_quarantine
from pipeline.remote_errors import last_line, told
from pipeline.run import KeyTable
from pipeline.shards import Receipt
from pipeline.signals import RunStopped, Stop
from pipeline.slices import is_out_of_memory
from pipeline.storage import Folder, UnreachableError
from pipeline.waiting import Patience, cluster_has, is_free
from pipeline.worker import Done, Stopped, Task, Work

IN_FLIGHT = 2  # shards of one actor: the next decodes while this one computes
_TICK_S = 0.5
_STOP_S = 15.0  # how long the slices in hand may take to finish
_SAMPLES = 4  # micro-runs, each on other rows, before a step is given up
_DEATHS_IN_A_ROW = 100  # without a commit in between: one bad row costs at most about 30
_DECODER = {"CPU": 1.0}  # what a decode task wants
_ERRORS = 3  # of one shard: exceptions of the engine or the storage, which may pass


class Runner:
    """Runs measuring steps one after another on one pool of actors."""

    def __init__(
        self, resources: cluster.Resources, events: Events, stop: Stop, say: Callable[[str], None] = print
    ) -> None:
        cluster.connect(resources)
        self._ledger = cluster.start_ledger()
        self._events, self._stop, self._say = events, stop, say
        self.pool = Pool(resources, self._ledger)

    def measure(self, work: Work, split: str, micro_batch: int | None) -> tuple[int, Measured]:
        """A micro-run on an actor; ``micro_batch`` None asks the stage. Rows that kill it are stepped over."""
        died, size = "", 0
        for attempt in range(_SAMPLES):
            member = self._first_ready(work)
            try:
                size = micro_batch or ray.get(member.actor.micro_batch.remote())
                return size, self._await(work, member.actor.measure.remote(split, size, attempt))
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if not (cause and is_out_of_memory(cause)) or size == 1:
                    raise told(error, work.step.name) from error
                micro_batch = max(1, size // 2)
                died = "out of memory"
                self._events.say("out of memory", step=work.step.name, shard=f"{split} (micro-run)", micro_batch=size)
            except ray.exceptions.RayError as error:
                died = type(error).__name__
                self._events.say("death", step=work.step.name, shard=f"{split} (micro-run)", error=died)
                self.pool.drop(member)
        raise RaylensError(
            f"{_SAMPLES} micro-runs of step '{work.step.name}' on different rows each killed their worker ({died})",
            cure="look at the memory of the nodes; --set resources.micro_batch=1 needs the least",
        )

    def _await(self, work: Work, reference: Any) -> Measured:
        """The micro-run's answer, unless asked to stop."""

        def tell() -> str:
            if self.pool.mode != "spread" or is_free(_DECODER):
                return ""
            return f"step '{work.step.name}': its micro-run may wait for a CPU to decode on; {cluster_has()}"

        patience = Patience(self._say, tell)
        while not ray.wait([reference], timeout=_TICK_S)[0]:
            self._stop.check()
            patience.tick()
        found: Measured = ray.get(reference)
        return found

    def _first_ready(self, work: Work) -> Member:
        self.pool.begin(work, wanted=1)
        patience = Patience(
            self._say, lambda: f"step '{work.step.name}': waiting for {self.pool.wanted} to start; {cluster_has()}"
        )
        while True:
            patience.tick()
            if self._stop.is_set():
                raise RunStopped
            self.pool.refresh(1)
            pending = self.pool.pending
            if not pending:
                time.sleep(_TICK_S)
            for reference in ray.wait(pending, timeout=_TICK_S)[0] if pending else []:
                self.pool.settle(reference)
            for member in self.pool.members:
                if member.ready:
                    return member

    def run(self, work: Work, todo: list[tuple[str, int]], progress: Progress) -> dict[tuple[str, int], Receipt]:
        """Make the shards of ``todo``; raises RunStopped, or RaylensError when a shard cannot be made."""
        return _Loop(self, work, todo, progress).go()

    def close(self) -> None:
        self.pool.close()
        with contextlib.suppress(Exception):
            ray.kill(self._ledger)


class _Loop:
    """One step's worth of the loop's state."""

    def __init__(self, runner: Runner, work: Work, todo: list[tuple[str, int]], progress: Progress) -> None:
        self._runner, self._pool, self._ledger = runner, runner.pool, runner._ledger
        self._events, self._stop, self._work, self._progress = runner._events, runner._stop, work, progress
        self._queue: collections.deque[Task] = collections.deque()
        self._fates: dict[str, ShardFate] = {}
        for split, shard in todo:
            task = Task(split, shard, quarantined=read_quarantine(self._quarantine(split), shard))
            self._queue.append(task)
            self._fates[task.name] = ShardFate(task)
        self._delayed: list[tuple[float, int, Task]] = []
        self._flying: dict[Any, tuple[Member, Task]] = {}
        self._errors: collections.Counter[str] = collections.Counter()
        self._receipts: dict[tuple[str, int], Receipt] = {}
        self._ticket = self._deaths = 0
        self._placing = Patience(progress.say, lambda: f"waiting for {self._pool.wanted} to start; {cluster_has()}")
        self._decoding = Patience(progress.say, self._undecoded)

    def go(self) -> dict[tuple[str, int], Receipt]:
        self._pool.begin(self._work, wanted=len(self._queue))
        while self._queue or self._delayed or self._flying:
            if self._stop.is_set():
                self._wind_down()
            self._release_delayed()
            self._pool.refresh(wanted=len(self._queue) + len(self._delayed) + len(self._flying))
            self._assign()
            self._wait()
            self._be_patient()
            if self._progress.due():
                self._show()
        return self._receipts

    def _be_patient(self) -> None:
        """Say what is waited for, when it takes long: never a silence that nobody can explain."""
        if any(member.ready for member in self._pool.members):
            self._placing.reset()
        elif self._queue:
            self._placing.tick()
        if self._flying and self._pool.mode == "spread":
            self._decoding.tick()

    def _undecoded(self) -> str:
        attempts = [(task.name, task.attempt) for _, task in self._flying.values()]
        with contextlib.suppress(ray.exceptions.RayError):
            if not is_free(_DECODER) and not ray.get(self._ledger.begun.remote(attempts), timeout=5):
                return f"waiting for a CPU to decode on, 1 for each task; {cluster_has()}"
        return ""

    def _assign(self) -> None:
        # Breadth first: a second shard goes to an actor only when every ready one has a first.
        # One that failed before has its actor to itself: another's decoding could kill it.
        alone = {id(member) for member, task in self._flying.values() if task.apart}
        for depth in range(IN_FLIGHT):
            for member in self._pool.members:
                if depth and (id(member) in alone or (self._queue and self._queue[0].apart)):
                    continue
                if self._queue and member.ready and member.tasks == depth:
                    if self._queue[0].apart:
                        alone.add(id(member))
                    task = self._queue.popleft()
                    member.tasks += 1
                    self._flying[member.actor.run.remote(task)] = (member, task)
                    if depth:
                        member.actor.prefetch.remote(self._work.id, task)
                    self._events.say("start", step=self._work.step.name, shard=task.name, attempt=task.attempt)

    def _wait(self) -> None:
        references = [*self._flying, *self._pool.pending]
        if not references:
            time.sleep(min(_TICK_S, max(0.0, self._delayed[0][0] - time.monotonic())) if self._delayed else 0.05)
            return
        done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        if not done:
            done, _ = ray.wait(references, num_returns=1, timeout=_TICK_S)
        for reference in done:
            if not self._pool.settle(reference) and reference in self._flying:
                self._take(reference)

    def _take(self, reference: Any) -> None:
        member, task = self._flying.pop(reference)
        member.tasks -= 1
        try:
            done: Done = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._failed(task, error)
        except ray.exceptions.RayError as error:
            self._worker_lost(member, task, error)
        else:
            self._receipts[(task.split, task.shard)] = done.receipt
            self._progress.shard_done(done.receipt.rows)
            self._deaths = 0
            self._ledger.forget.remote(task.name)
            self._events.say(
                "commit",
                step=self._work.step.name,
                shard=task.name,
                attempt=task.attempt,
                won=done.won,
                rows=dict(done.receipt.rows),
                waited_s=round(done.waited_s, 3),
                computed_s=round(done.computed_s, 3),
                wrote_s=round(done.wrote_s, 3),
                notes=list(done.receipt.notes),
            )
            for note in done.receipt.notes:
                self._progress.say(f"shard {task.name}: {note}")

    def _failed(self, task: Task, error: ray.exceptions.RayTaskError) -> None:
        """An exception that no row explains: the user's to mend, or one that may pass."""
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, Stopped):
            return
        self._events.say("error", step=self._work.step.name, shard=task.name, attempt=task.attempt, error=str(error))
        if isinstance(cause, UnreachableError):
            self._retry(task, self._fates[task.name].lost(last_line(cause)))
            return
        if isinstance(cause, RaylensError):
            raise cause from None
        self._errors[task.name] += 1
        why = f"{type(cause).__name__}: {last_line(cause)}"
        if self._errors[task.name] >= _ERRORS:
            raise RaylensError(
                f"shard {task.name} of step '{self._work.step.name}' failed {_ERRORS} times: {why}",
                cure="the whole traceback is in the run's events folder; what is committed is kept",
            ) from error
        self._progress.say(f"shard {task.name} is tried again: {why}")
        self._later(self._fates[task.name].next_task({}), 1.0)

    def _worker_lost(self, member: Member, task: Task, error: Exception) -> None:
        """A death on a living node inside a slice counts against that slice; everything else is free."""
        self._pool.drop(member)
        node_alive = member.slot.node in cluster.alive_nodes()
        inside, completed = None, []
        with contextlib.suppress(ray.exceptions.RayError):
            inside, completed = ray.get(self._ledger.history.remote(task.name, task.attempt), timeout=30)
        fate = self._fates[task.name]
        for piece in completed:
            fate.acquit(tuple(piece))
        why = type(error).__name__
        if inside is not None and node_alive and not getattr(error, "preempted", False):
            verdict = fate.died(tuple(inside))
        else:
            verdict = fate.lost(f"{why} ({'between slices' if node_alive else 'its node is gone'})")
        self._events.say(
            "death",
            step=self._work.step.name,
            shard=task.name,
            attempt=task.attempt,
            inside=inside,
            node_alive=node_alive,
            error=why,
            verdict=verdict.note,
        )
        self._progress.say(f"a worker was lost in shard {task.name}: {verdict.note}")
        self._deaths += 1
        if self._deaths > _DEATHS_IN_A_ROW:
            raise RaylensError(
                f"{self._deaths} workers of step '{self._work.step.name}' died and no shard was finished in between",
                cure="this is no single bad image: look at the nodes' memory and at the method, then run again",
            )
        self._retry(task, verdict)

    def _retry(self, task: Task, verdict: Verdict) -> None:
        if verdict.action == "give up":
            raise RaylensError(
                f"shard {task.name} of step '{self._work.step.name}' is given up: {verdict.note}",
                cure="look at the nodes ('ray status'); run again to go on, what is committed is kept",
            )
        quarantined = {}
        if verdict.quarantined is not None:
            quarantined = self._put_in_quarantine(task, verdict.quarantined)
        self._later(self._fates[task.name].next_task(quarantined), verdict.delay_s)

    def _put_in_quarantine(self, task: Task, position: int) -> dict[str, str]:
        key = KeyTable(Folder(self._work.keys_url), task.split).names(position, position + 1)[0]
        entry = {key: "quarantined: it alone killed its worker 3 times"}
        write_quarantine(self._quarantine(task.split), task.shard, entry)
        self._progress.say(f"{key} is quarantined: it alone killed its worker 3 times")
        self._events.say("quarantine", step=self._work.step.name, shard=task.name, key=key)
        return entry

    def _quarantine(self, split: str) -> Folder:
        return Folder(self._work.folders[split]).child("quarantine")

    def _later(self, task: Task, delay_s: float) -> None:
        self._ticket += 1
        heapq.heappush(self._delayed, (time.monotonic() + delay_s, self._ticket, task))

    def _release_delayed(self) -> None:
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            self._queue.appendleft(heapq.heappop(self._delayed)[2])

    def _show(self) -> None:
        attempts = [(task.name, task.attempt) for _, task in self._flying.values()]
        with contextlib.suppress(ray.exceptions.RayError):
            in_hand = ray.get(self._ledger.rows.remote(attempts), timeout=5)
            self._progress.update(in_hand, workers=sum(m.ready for m in self._pool.members))

    def _wind_down(self) -> None:
        """Finish the slices in hand, keep what commits meanwhile, drop the rest."""
        self._progress.say("stopping: the slices in hand are finished, unfinished shards are dropped")
        self._pool.stop()
        deadline = time.monotonic() + _STOP_S
        while self._flying and time.monotonic() < deadline:
            done, _ = ray.wait(list(self._flying), timeout=_TICK_S)
            for reference in done:
                _, task = self._flying.pop(reference)
                with contextlib.suppress(ray.exceptions.RayError):
                    self._receipts[(task.split, task.shard)] = ray.get(reference).receipt
        self._events.say("stopped", step=self._work.step.name, committed=len(self._receipts))
        raise RunStopped
