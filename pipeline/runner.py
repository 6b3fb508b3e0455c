"""Measuring steps on Ray, one after another: their micro-runs and their shards, on one pool of actors.

The driver holds no state: kill it, start it again, it lists receipts and goes on. Results never pass through it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import ray

from pipeline import cluster
from pipeline.errors import RaylensError
from pipeline.estimate import Measured
from pipeline.events import Events
from pipeline.failures import backoff
from pipeline.ledger import start_ledger
from pipeline.loop import DECODER, TICK_S, ShardLoop
from pipeline.pool import Member, Pool
from pipeline.progress import Progress
from pipeline.remote_errors import last_line, told
from pipeline.shards import Receipt
from pipeline.signals import RunStopped, Stop
from pipeline.slices import is_out_of_memory
from pipeline.spent import Spent
from pipeline.storage import UnreachableError
from pipeline.tasks import Work
from pipeline.waiting import Patience, cluster_has, is_free
from pipeline.worker import MICRO_RUNS


class Runner:
    """Runs measuring steps one after another on one pool of actors."""

    def __init__(
        self, resources: cluster.Resources, events: Events, stop: Stop, say: Callable[[str], None] = print
    ) -> None:
        cluster.connect(resources, say)
        self._ledger = start_ledger()
        self._events, self._stop, self._say = events, stop, say
        self.pool = Pool(resources, self._ledger, events.say, say)

    def measure(self, work: Work, split: str, micro_batch: int | None) -> tuple[int, Measured]:
        """A micro-run on an actor; ``micro_batch`` None asks the stage. Rows that kill it are stepped over."""
        try:
            return self._measure(work, split, micro_batch)
        finally:
            self.pool.ask_no_more()

    def _measure(self, work: Work, split: str, micro_batch: int | None) -> tuple[int, Measured]:
        died, size = "", 0
        for attempt in range(MICRO_RUNS):
            member = self._first_ready(work)
            try:
                size = micro_batch or ray.get(member.actor.micro_batch.remote())
                return size, self._await(work, member.actor.measure.remote(split, size, attempt))
            except ray.exceptions.RayTaskError as error:
                cause = error.cause
                if isinstance(cause, UnreachableError) and attempt < MICRO_RUNS - 1:
                    self._say(f"step '{work.step.name}': its micro-run is tried again: {last_line(cause)}")
                    self._stop.wait(backoff(attempt + 3))
                    continue
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
            f"{MICRO_RUNS} micro-runs of step '{work.step.name}' on different rows each lost their worker ({died})",
            cure="look at the memory of the nodes; --set resources.micro_batch=1 needs the least",
        )

    def _await(self, work: Work, reference: Any) -> Measured:
        """The micro-run's answer, unless asked to stop."""

        def tell() -> str:
            if self.pool.mode != "spread" or is_free(DECODER):
                return ""
            return f"step '{work.step.name}': its micro-run may wait for a CPU to decode on; {cluster_has()}"

        patience = Patience(self._say, tell)
        while not ray.wait([reference], timeout=TICK_S)[0]:
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
                time.sleep(TICK_S)
            for reference in ray.wait(pending, timeout=TICK_S)[0] if pending else []:
                self.pool.settle(reference)
            for member in self.pool.members:
                if member.ready:
                    return member

    def run(
        self, work: Work, todo: list[tuple[str, int]], progress: Progress
    ) -> tuple[dict[tuple[str, int], Receipt], Spent]:
        """Make the shards of ``todo``; raises RunStopped, or RaylensError when a shard cannot be made."""
        loop = ShardLoop(self.pool, self._ledger, self._events, self._stop, work, todo, progress)
        try:
            return loop.go(), loop.spent
        finally:
            self.pool.ask_no_more()

    def close(self) -> None:
        self.pool.close()
        with contextlib.suppress(Exception):
            ray.kill(self._ledger)
