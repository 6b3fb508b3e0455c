"""The Ray loop of a measuring step: shards to actors, receipts back, failures classed, late shards doubled."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import time
from typing import Any

import ray

from pipeline import cluster
from pipeline.events import Events
from pipeline.late import Late
from pipeline.meters import Meters
from pipeline.pool import Member, Pool
from pipeline.progress import Progress
from pipeline.retries import Retries
from pipeline.shards import Receipt
from pipeline.signals import RunStopped, Stop
from pipeline.silence import Silence, what_became
from pipeline.spent import Spent
from pipeline.tasks import Done, Shard, Stopped, Task, Work
from pipeline.waiting import Patience, cluster_has, is_free

IN_FLIGHT = 2  # shards of one actor: the next decodes while this one computes
TICK_S = 0.5
DECODER = {"CPU": 1.0}  # what a decode task wants
_STOP_S = 15.0  # how long the slices in hand may take to finish
_GRACE_S = 5.0  # the same for attempts whose shard another worker has committed


@dataclasses.dataclass(frozen=True)
class Flight:
    """An attempt at a shard, and the worker that makes it."""

    member: Member
    task: Task

    @property
    def shard(self) -> Shard:
        return self.task.of


class ShardLoop:
    """Makes the shards of one step with the workers of ``pool``."""

    def __init__(
        self,
        pool: Pool,
        ledger: Any,
        events: Events,
        stop: Stop,
        work: Work,
        todo: list[Shard],
        progress: Progress,
    ) -> None:
        self._pool, self._ledger, self._events, self._stop = pool, ledger, events, stop
        self._work, self._progress = work, progress
        self._meters, self.spent = Meters(work.step.name), Spent(work.step.name)
        self._retries = Retries(work, todo, events, progress, self.spent, self._meters)
        self._queue = collections.deque(self._retries.first)
        self._wanted = len(self._queue)
        self._flying: dict[Any, Flight] = {}
        self._receipts: dict[Shard, Receipt] = {}
        self._late, self._silence = Late(), Silence(work, ledger)
        self._hung: set[Shard] = set()
        self._placing = Patience(progress.say, lambda: f"waiting for {pool.wanted} to start; {cluster_has()}")
        self._decoding = Patience(progress.say, self._undecoded)

    def go(self) -> dict[Shard, Receipt]:
        """Receipts by shard. Raises RunStopped, or RaylensError when a shard cannot be made."""
        self._pool.begin(self._work, wanted=self._wanted)
        clock = time.monotonic()
        try:
            while len(self._receipts) < self._wanted:
                if self._stop.is_set():
                    self._wind_down()
                self._queue.extendleft(self._retries.due())
                self._pool.refresh(wanted=len(self._queue) + len(self._retries) + len(self._flying))
                self._assign()
                self._double_late_ones()
                self._wait()
                self._end_hung()
                self._be_patient()
                if self._progress.due():
                    self._show()
                clock = self._hold(clock)
            self._let_losers_go()
        finally:
            self._hold(clock)
            self._meters.waiting(0, 0, 0)
            with contextlib.suppress(Exception):  # Ray may be gone, and what ended the loop is what counts
                self._ledger.forget.remote(self._work.id)
        return self._receipts

    def _hold(self, since: float) -> float:
        """Account for the workers held since then, not for those that wait for a GPU; gives the time now."""
        now = time.monotonic()
        held = [member for member in self._pool.members if member.ready or not member.waits()]
        gpus = sum(member.slot.gpus for member in held)
        self.spent.hold(len(held), gpus, now - since)
        self._meters.held(gpus * (now - since))
        return now

    def _be_patient(self) -> None:
        """Say what is waited for, when it takes long: never a silence that nobody can explain."""
        if any(member.ready for member in self._pool.members):
            self._placing.reset()
        elif self._queue:
            self._placing.tick()
        if self._flying and self._pool.mode == "spread":
            self._decoding.tick()

    def _undecoded(self) -> str:
        with contextlib.suppress(ray.exceptions.RayError):
            if not is_free(DECODER) and not ray.get(self._ledger.begun.remote(self._attempts()), timeout=5):
                return f"waiting for a CPU to decode on, 1 for each task; {cluster_has()}"
        return ""

    def _attempts(self) -> list[tuple[str, int]]:
        """What the ledger knows the attempts under way by; one for each shard that is not committed yet."""
        found = {f.shard: f.task for f in self._flying.values() if f.shard not in self._receipts}
        found |= {f.shard: f.task for f in self._flying.values() if f.shard in found and not f.task.duplicate}
        return [(task.track, task.attempt) for task in found.values()]

    def _assign(self) -> None:
        # Breadth first: a second shard goes to an actor only when every ready one has a first.
        # One that failed before has its actor to itself: another's decoding could kill it.
        alone = {id(flight.member) for flight in self._flying.values() if flight.task.apart}
        for depth in range(IN_FLIGHT):
            for member in self._pool.members:
                if depth and (id(member) in alone or (self._queue and self._queue[0].apart)):
                    continue
                if self._queue and member.ready and member.tasks == depth:
                    if self._queue[0].apart:
                        alone.add(id(member))
                    self._give(self._queue.popleft(), member)

    def _give(self, task: Task, member: Member) -> None:
        behind = member.tasks > 0
        member.tasks += 1
        reference = member.actor.run.remote(task)
        self._flying[reference] = Flight(member, task)
        self._late.begun(reference)
        if behind:
            member.actor.prefetch.remote(self._work.id, task)
        again = {"duplicate": True} if task.duplicate else {}
        self._events.say("start", step=self._work.step.name, shard=task.name, attempt=task.attempt, **again)

    def _double_late_ones(self) -> None:
        """A worker with nothing to do takes a shard that takes another far longer than shards do."""
        if self._queue or self._retries:
            return
        idle = [member for member in self._pool.members if member.ready and not member.tasks]
        attempts = collections.Counter(flight.shard for flight in self._flying.values())
        for reference, flight in list(self._flying.items()):
            if not idle:
                return
            shard = flight.shard
            if flight.task.apart or attempts[shard] > 1 or shard in self._receipts or shard in self._hung:
                continue
            if self._late.is_late(reference):
                self.spent.duplicates += 1
                self._meters.duplicates.add(1)
                self._progress.say(f"shard {flight.task.name} is late: a second worker makes it, too")
                # Of a duplicate that was left alone the next is an original again: the two are told apart by it.
                self._give(dataclasses.replace(flight.task, duplicate=not flight.task.duplicate), idle.pop())

    def _wait(self) -> None:
        references = [*self._flying, *self._pool.pending]
        if not references:
            time.sleep(min(TICK_S, self._retries.pause) if self._retries else 0.05)
            return
        done, _ = ray.wait(references, num_returns=len(references), timeout=0)
        if not done:
            done, _ = ray.wait(references, num_returns=1, timeout=TICK_S)
        for reference in done:
            if not self._pool.settle(reference) and reference in self._flying:
                self._take(reference)

    def _take(self, reference: Any) -> None:
        flight = self._land(reference)
        try:
            done: Done = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._failed(flight, error)
        except ray.exceptions.RayError as error:
            self._worker_lost(flight, error)
        else:
            self._late.done(reference)
            self._committed(flight, done)
        self._late.gone(reference)

    def _land(self, reference: Any) -> Flight:
        """The worker goes on with what it has behind this attempt, which is late from now on, not from before."""
        flight = self._flying.pop(reference)
        flight.member.tasks -= 1
        for other, next_flight in self._flying.items():
            if next_flight.member is flight.member:
                self._late.begun(other)
                break
        return flight

    def _committed(self, flight: Flight, done: Done) -> None:
        task = flight.task
        self._ledger.forget.remote(dataclasses.replace(task, duplicate=False).track)
        if flight.shard in self._receipts:  # another worker was first
            return
        self._receipts[flight.shard] = done.receipt
        self._progress.shard_done(done.receipt.rows)
        self._retries.committed()
        self.spent.add(task.name, done)
        self._meters.committed(done)
        self._events.say(
            "commit",
            step=self._work.step.name,
            shard=task.name,
            attempt=task.attempt,
            won=done.won,
            rows=dict(done.receipt.rows),
            waited_s=round(done.waited_s, 3),
            moved_s=round(done.moved_s, 3),
            computed_s=round(done.computed_s, 3),
            wrote_s=round(done.wrote_s, 3),
            notes=list(done.receipt.notes),
        )
        for note in done.receipt.notes:
            self._progress.say(f"shard {task.name}: {note}")

    def _made_elsewhere(self, flight: Flight) -> bool:
        """Whether this attempt's end decides nothing: its shard is committed, or another worker is making it."""
        return flight.shard in self._receipts or any(f.shard == flight.shard for f in self._flying.values())

    def _failed(self, flight: Flight, error: ray.exceptions.RayTaskError) -> None:
        """An exception that no row explains: the user's to mend, or one that may pass."""
        task = flight.task
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, Stopped):
            return
        self._events.say("error", step=self._work.step.name, shard=task.name, attempt=task.attempt, error=str(error))
        if self._made_elsewhere(flight):
            return
        self._retries.failed(task, cause)

    def _worker_lost(self, flight: Flight, error: Exception) -> None:
        member, task = flight.member, flight.task
        error = what_became(member.actor, member.slot.node, error, self._stop)
        why = type(error).__name__
        self._pool.drop(member)
        alive = member.slot.node in cluster.alive_nodes()
        if self._made_elsewhere(flight):
            told = "another worker makes it, or has made it"
            self._retries.tell_death(task, why, None, told, node_alive=alive)
            return
        inside, completed = None, []
        with contextlib.suppress(ray.exceptions.RayError):
            inside, completed = ray.get(self._ledger.history.remote(task.track, task.attempt), timeout=30)
        taken = getattr(error, "preempted", False) or isinstance(error, ray.exceptions.ActorUnavailableError)
        self._retries.died(task, why, inside, completed, node_alive=alive, taken=taken)

    def _end_hung(self) -> None:
        """End workers that will never come out of their slice: from here that is a death inside it."""
        flights = {(flight.task.track, flight.task.attempt): flight for flight in self._flying.values()}
        for attempt in self._silence.hung(list(flights)):
            flight, minutes = flights[attempt], self._silence.longest_s / 60
            self._progress.say(
                f"shard {flight.task.name}: its worker is ended, one slice took it over {minutes:.0f} min"
            )
            self._events.say("hung", step=self._work.step.name, shard=flight.task.name, attempt=attempt[1])
            self._hung.add(flight.shard)  # it is not late but deadly: another beside it would hide that
            self._pool.drop(flight.member)

    def _show(self) -> None:
        ready = sum(member.ready for member in self._pool.members)
        self._meters.waiting(len(self._queue) + len(self._retries), len(self._flying), ready)
        with contextlib.suppress(ray.exceptions.RayError):
            in_hand = ray.get(self._ledger.rows.remote(self._attempts()), timeout=5)
            self._progress.update(in_hand, workers=ready)

    def _let_losers_go(self) -> None:
        """Attempts at shards that are committed: asked to stop, and their workers given up if they do not."""
        for flight in self._flying.values():
            with contextlib.suppress(Exception):
                flight.member.actor.stop.remote()
        if self._flying:
            _, left = ray.wait(list(self._flying), num_returns=len(self._flying), timeout=_GRACE_S)
            for reference in left:
                self._pool.drop(self._flying[reference].member)

    def _wind_down(self) -> None:
        """Finish the slices in hand, keep what commits meanwhile, drop the rest."""
        self._progress.say("stopping: the slices in hand are finished, unfinished shards are dropped")
        self._pool.stop()
        deadline = time.monotonic() + _STOP_S
        while self._flying and time.monotonic() < deadline:
            done, _ = ray.wait(list(self._flying), timeout=TICK_S)
            for reference in done:
                flight = self._flying.pop(reference)
                with contextlib.suppress(ray.exceptions.RayError):
                    self._receipts[flight.shard] = ray.get(reference).receipt
        self._events.say("stopped", step=self._work.step.name, committed=len(self._receipts))
        raise RunStopped
