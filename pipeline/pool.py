"""The workers of a run: one actor at each place the cluster has, replaced when it dies, kept from step to step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import ray

from pipeline.cluster import Slot
from pipeline.decoding import Decoding
from pipeline.demand import Demand
from pipeline.estimate import Measured
from pipeline.host import start_host
from pipeline.options import Resources
from pipeline.places import Places
from pipeline.setups import LIMIT, Setups
from pipeline.tasks import Work
from pipeline.waiting import in_words

SHARDS_EACH = 2  # that a worker has at a time: nodes are asked for while there are so many for each worker on them
_REFRESH_S = 5.0
_RESTART_S = 0.5
_PLACED_S = 60.0  # after which a worker without a process waits for what somebody else holds: a start may be slow


@dataclasses.dataclass(eq=False)
class Member:
    """One actor and what it is doing."""

    slot: Slot
    actor: Any
    placed: Any  # a reference: there when the actor's process is
    ready: bool = False
    tasks: int = 0
    patience: float = 0.0  # after which it goes where it need not wait
    began: float = dataclasses.field(default_factory=lambda: time.monotonic())

    def waits(self, seconds: float = 0.0) -> bool:
        """Whether it has been without a process for so long; on CPUs it holds nothing to wait for."""
        late = self.slot.gpus and time.monotonic() - self.began >= seconds
        return bool(late) and not ray.wait([self.placed], timeout=0)[0]


class Pool:
    """Actors on the cluster as it is now: nodes may come and go, and are asked for where an autoscaler brings them."""

    def __init__(
        self,
        resources: Resources,
        ledger: Any,
        tell: Callable[..., None] = lambda kind, **fields: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._max_workers, self._ledger = resources.max_workers, ledger
        self._places, self._demand, self._decoding = Places(resources), Demand(), Decoding(resources.mode, tell)
        self.members: list[Member] = []
        self._setups: dict[Any, Member] = {}
        self._work: Work | None = None
        self._work_ref: Any = None
        self._ends = Setups(tell, say)
        self._stuck = Counter[Slot]()  # how often a worker waited there in vain, in this step
        self._refreshed, self._not_before = -_REFRESH_S, 0.0

    @property
    def mode(self) -> str:
        """Where rows are decoded for workers that start now: "inline" or "spread"."""
        return self._decoding.mode

    def begin(self, work: Work, wanted: int) -> None:
        """Set the actors up for a step; ``wanted`` is how many can be used."""
        self._work, self._work_ref = work, ray.put(work)
        self._decoding.mode = ""
        self._setups.clear()  # of an earlier step: it waits for its workers' turn, and they are set up anew
        self._ends.begin(work.step.name)
        self._stuck.clear()
        self._places.begin(self._measured)
        self._renew()
        if any(free for _, free in self._open()):  # from nodes that went, and from CPUs where GPUs came
            for member in [m for m in self.members if m.slot not in self._places.slots]:
                self.drop(member)
        for member in self.members:
            member.ready, member.tasks = False, 0
            self._set_up(member)
        self._start(wanted)
        self._ask(wanted)

    def _set_up(self, member: Member) -> None:
        self._setups[member.actor.setup.remote(self._work_ref, self.mode == "spread")] = member

    def refresh(self, wanted: int) -> None:
        """Start actors at free places, at most ``wanted`` in all; ask for places where an autoscaler has more."""
        if due := time.monotonic() - self._refreshed > _REFRESH_S:
            self._renew()
        self._start(wanted)
        if due:  # after the start: what came for a worker is held for it until it is there
            self._ask(wanted)

    def _renew(self) -> None:
        """See where workers can run now."""
        self._refreshed = time.monotonic()
        try:
            self._places.look()
        finally:
            if not self._places.grows:
                self._demand.withdraw()
        threads = max((slot.threads for slot in self._places.slots), default=1)
        self._decoding.choose(self._name, self._measured, threads, self._places.grows)
        working = Counter(member.slot.node for member in self.members)
        waiting = Counter(member.slot.node for member in self.members if member.waits())
        spread = self.mode == "spread"
        self._places.count_room(self._demand.asked, self._demand.reserved(), working, waiting, spread=spread)

    def _open(self) -> list[tuple[Slot, bool]]:
        """Places without a worker: first those where setups end well, and where it would not wait (in vain, again)."""
        found = self._places.open(member.slot for member in self.members)
        if self.members:  # else one of those that are given up is better than none
            found = [place for place in found if self._ends.failures(place[0]) < LIMIT]
        return sorted(found, key=lambda place: (self._ends.rank(place[0]), not place[1], self._stuck[place[0]]))

    def _start(self, wanted: int) -> None:
        if time.monotonic() < self._not_before:
            return
        for slot, free in self._open():
            if len(self.members) >= min(wanted, self._max_workers or wanted):
                stuck = next((m for m in self.members if m.waits(m.patience)), None) if free else None
                if stuck is None:
                    break
                self._stuck[stuck.slot] += 1
                self.drop(stuck)  # what it waits for is held by somebody else
            self._places.take(slot)
            actor = start_host(slot, self._ledger)
            member = Member(slot, actor, actor.placed.remote(), patience=self._patience(free))
            self.members.append(member)
            self._set_up(member)

    def _patience(self, free: bool) -> float:
        """A start may be slow: where nobody else is expected it is left to end, and each next one is given longer."""
        if free and not self._places.grows:
            return math.inf
        return _PLACED_S * min(1 + self._stuck.total(), 10)

    def _ask(self, wanted: int) -> None:
        """Ask for as many places as are missing of those that are of use."""
        if not self._places.grows:
            return
        useful, bundle = min(-(-wanted // SHARDS_EACH), self._max_workers or wanted), self._places.bundle
        if "CPU" in bundle and self.mode != "spread":
            # Workers on CPUs hold none, so that they starve nothing; what was asked for holds them.
            self._demand.ask(useful, bundle, hold=True)
            return
        there = sum(not member.waits(_PLACED_S) for member in self.members) + len(self._open())
        self._demand.ask(max(0, useful - there), bundle)

    def ask_no_more(self) -> None:
        """A step is over: what was asked for it is not wanted any more, and nodes without work may go."""
        self._demand.withdraw()
        self._refreshed = -_REFRESH_S

    @property
    def pending(self) -> list[Any]:
        """References of setups under way: to be waited for beside the work."""
        return list(self._setups)

    @property
    def wanted(self) -> str:
        """What a worker needs, in words."""
        if self._demand.asked:
            needs = in_words(self._places.bundle)
            return f"a worker with {needs} ({self._demand.asked} asked of the cluster's autoscaler)"
        gpus = max((slot.gpus for slot in self._places.slots), default=0.0)
        return f"a worker with {gpus:g} GPU" if gpus else "a worker"

    def settle(self, reference: Any) -> bool:
        """Take in a finished setup. False when this reference is none of ours."""
        member = self._setups.pop(reference, None)
        if member is None:
            return False
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            self.drop(member)
            pause = self._ends.failed(
                member.slot,
                error,
                working=any(other.ready for other in self.members),
                pending=[other.slot for other in self._setups.values() if not other.waits()],
                free=[slot for slot, free in self._open() if free],
            )
            self._not_before = max(self._not_before, time.monotonic() + pause)
            return True
        self._ends.worked(member.slot)
        member.ready = True
        return True

    @property
    def _name(self) -> str:
        return self._work.step.name if self._work else ""

    @property
    def _measured(self) -> list[Measured]:
        """The micro-runs of the step, none before the first."""
        return [plan.measured for plan in self._work.plans.values()] if self._work else []

    def drop(self, member: Member) -> None:
        """Forget an actor that is gone or not to be trusted any more; its place is free again shortly."""
        with contextlib.suppress(Exception):
            ray.kill(member.actor)
        if member in self.members:
            self.members.remove(member)
        self._setups = {r: m for r, m in self._setups.items() if m is not member}
        self._not_before = time.monotonic() + _RESTART_S

    def stop(self) -> None:
        """Ask every actor to finish the slice in hand and drop its shard."""
        for member in self.members:
            with contextlib.suppress(Exception):
                member.actor.stop.remote()

    def release_gpus(self) -> None:
        """Let a step that is no measuring step have the GPUs."""
        self.ask_no_more()
        for member in [m for m in self.members if m.slot.gpus]:
            self.drop(member)

    def close(self) -> None:
        """Give every place back."""
        self.ask_no_more()
        for member in list(self.members):
            self.drop(member)
