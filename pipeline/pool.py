"""The workers of a run: one actor at each place the cluster has, replaced when it dies, kept from step to step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any

import ray

from pipeline import cluster
from pipeline.cluster import Slot
from pipeline.errors import RaylensError, UsageError
from pipeline.options import Resources
from pipeline.remote_errors import told
from pipeline.worker import Work

SETUP_FAILURES = 3  # in a row and without a success in between, before the run gives up
_REFRESH_S = 5.0
_RESTART_S = 0.5


@dataclasses.dataclass(eq=False)
class Member:
    """One actor and what it is doing."""

    slot: Slot
    actor: Any
    ready: bool = False
    tasks: int = 0


class Pool:
    """Actors on the cluster as it is now: nodes may come and go."""

    def __init__(self, resources: Resources, ledger: Any) -> None:
        self._resources, self._ledger = resources, ledger
        self.members: list[Member] = []
        self.mode = ""
        self._setups: dict[Any, Member] = {}
        self._work: Work | None = None
        self._work_ref: Any = None
        self._failures = 0
        self._refreshed, self._not_before = -_REFRESH_S, 0.0
        self._slots: list[Slot] = []

    def begin(self, work: Work, wanted: int) -> None:
        """Set the actors up for a step; ``wanted`` is how many can be used."""
        self._work, self._work_ref = work, ray.put(work)
        self._failures = 0
        self._refreshed = -_REFRESH_S
        for member in self.members:
            member.ready, member.tasks = False, 0
            self._setups[member.actor.setup.remote(self._work_ref)] = member
        self.refresh(wanted)

    def refresh(self, wanted: int) -> None:
        """Start actors at free places, at most ``wanted`` in all."""
        now = time.monotonic()
        if now < self._not_before:
            return
        if now - self._refreshed > _REFRESH_S:
            had = bool(self.mode)
            try:
                self.mode, self._slots = cluster.slots(self._resources)
            except UsageError:
                if not had:
                    raise
                self._slots = []  # every node is gone for the moment: wait for others
            self._refreshed = now
        taken = {(m.slot.node, m.slot.index) for m in self.members}
        for slot in self._slots:
            if len(self.members) >= wanted:
                break
            if (slot.node, slot.index) not in taken:
                actor = cluster.start_host(slot, self._ledger, self.mode == "spread")
                member = Member(slot, actor)
                self.members.append(member)
                self._setups[actor.setup.remote(self._work_ref)] = member

    @property
    def pending(self) -> list[Any]:
        """References of setups under way: to be waited for beside the work."""
        return list(self._setups)

    @property
    def wanted(self) -> str:
        """What a worker needs, in words."""
        gpus = max((slot.gpus for slot in self._slots), default=0.0)
        return f"a worker with {gpus:g} GPU" if gpus else "a worker"

    def settle(self, reference: Any) -> bool:
        """Take in a finished setup. False when this reference is none of ours."""
        member = self._setups.pop(reference, None)
        if member is None:
            return False
        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise told(error, self._name) from error
        except ray.exceptions.RayError as error:
            self.drop(member)
            if member.slot.node not in cluster.alive_nodes():  # a node that goes says nothing about the step
                return True
            self._failures += 1
            if self._failures >= SETUP_FAILURES:
                raise RaylensError(
                    f"{self._failures} workers in a row died while they were set up for step '{self._name}' "
                    f"({type(error).__name__})",
                    cure="look at the memory of the nodes: the network may not fit",
                ) from error
            return True
        self._failures = 0
        member.ready = True
        return True

    @property
    def _name(self) -> str:
        return self._work.step.name if self._work else ""

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
        for member in [m for m in self.members if m.slot.gpus]:
            self.drop(member)

    def close(self) -> None:
        """Give every place back."""
        for member in list(self.members):
            self.drop(member)
