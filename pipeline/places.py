"""Where workers of a run can go, on the cluster as it is now and as it may become.

Where an autoscaler brings nodes, others may work on them, too: there a worker goes only where room is free or was
brought for it, and waits for neither. A cluster of fixed size is taken as it is: what is free is worked on first, and
what others hold is waited for.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from pipeline import cluster
from pipeline.cluster import Slot
from pipeline.errors import UsageError
from pipeline.estimate import Measured
from pipeline.growth import BROUGHT_S, Growth
from pipeline.options import Resources


class Places:
    """``slots``: one for each worker, whoever holds it; none while all that is wanted is still to come."""

    def __init__(self, resources: Resources) -> None:
        self._resources = self._kept = resources
        self._growth = Growth(joined=cluster.joined() is not None)
        self._seen = ""  # "cpu" where there were places for workers, "cuda" where some were on GPUs
        self._measured_on_gpus = False
        self._shares = False  # CPUs with others
        self._empty_since: float | None = None  # when GPUs were asked for, as there was nothing
        self._room: dict[str, float] | None = None
        self.slots: list[Slot] = []

    @property
    def grows(self) -> bool:
        """Whether an autoscaler brings more."""
        return self._growth.grows

    @property
    def bundle(self) -> dict[str, float]:
        """What one more worker needs of a node."""
        return cluster.bundle(self._kept, self.slots)

    def begin(self, measured: Sequence[Measured]) -> None:
        """A step begins; ``measured``: its micro-runs, if it had some before."""
        self._growth.begin()
        self._kept, self._empty_since = self._resources, None
        self._measured_on_gpus = self._measured_on_gpus or any(one.device == "cuda" for one in measured)

    def look(self) -> None:
        """See what is there now. UsageError when there is no place and none can come."""
        self._growth.look(cluster.alive_nodes(), missed=not self._seen)
        try:
            self.slots = cluster.slots(self._kept)
        except UsageError:
            if not self._seen and self._growth.over:
                raise
            self.slots = []  # every node is gone for the moment, or has not come yet: wait for others
        if not self.slots and self._empty_since is None:
            self._empty_since = time.monotonic()
        if self.slots and not self.slots[0].gpus:
            self._await_gpus()
        if self.slots and self._seen != "cuda":
            self._seen = self.slots[0].device
        if self._growth.grows and self._seen == "cpu" and not self._wants_gpus:
            # GPUs that come now come for somebody else; the next step looks anew.
            self._kept = dataclasses.replace(self._resources, gpus=0)

    @property
    def _wants_gpus(self) -> bool:
        if self._resources.gpus is not None:
            return self._resources.gpus > 0
        return self._seen == "cuda" or self._measured_on_gpus

    def _await_gpus(self) -> None:
        """CPUs that are there are not worked on where GPUs can come that are wanted, were there or were asked for."""
        if self._wants_gpus and self._growth.doubted:
            raise UsageError(
                f"wants GPUs, but the cluster has none and no node came for {BROUGHT_S / 60:g} minutes",
                where=cluster.joined() or "this machine",
                cure="look at its nodes ('ray status'), or set resources.gpus to 0 for a run on its CPUs",
            )
        if self._growth.grows and (self._wants_gpus or self._expects_gpus):
            self.slots = []

    @property
    def _expects_gpus(self) -> bool:
        """Whether GPUs were asked for a while ago: CPUs that come meanwhile came for others."""
        lately = self._empty_since is not None and time.monotonic() - self._empty_since < BROUGHT_S
        return lately and self._kept.gpus != 0

    def count_room(
        self, asked: int, reserved: Counter[str], working: Counter[str], waiting: Counter[str], *, spread: bool = False
    ) -> None:
        """See for how many more workers each node has room that nobody else holds.

        ``asked``: for so many. By node: ``reserved``, those of them that are there; ``working``, workers of ours;
        ``waiting``, those of them that have no process yet. ``spread``: decode tasks of our own may hold the CPUs.
        """
        self._shares = self._shares or (asked > reserved.total() and self._growth.quiet)
        free = cluster.free_of_nodes()
        if free is None:
            self._room = None
            return
        self._room = {}
        for slot in self.slots:
            there = free.get(slot.node, {})
            if slot.gpus:
                more = int(there.get("GPU", 0.0) / slot.gpus + 1e-9)
                self._room[slot.node] = reserved[slot.node] + more - waiting[slot.node]
            elif spread or self._shares or not self.grows:
                self._room[slot.node] = math.inf
            else:  # workers on CPUs hold none
                more = math.ceil(there.get("CPU", 0.0) / slot.threads - 1e-9)
                self._room[slot.node] = reserved[slot.node] + more - working[slot.node]

    def open(self, members: Iterable[Slot]) -> list[tuple[Slot, bool]]:
        """Where one more worker each may start now, and whether it waits for nobody there, as far as Ray tells.

        ``members``: where there is one.
        """
        taken = set(members)
        nth, found = Counter[str](), list[tuple[Slot, bool]]()
        for slot in self.slots:
            if slot not in taken:
                nth[slot.node] += 1
                free = self.grows if self._room is None else nth[slot.node] <= self._room[slot.node]
                if free or not self.grows:
                    found.append((slot, free))
        return found

    def take(self, slot: Slot) -> None:
        """A worker starts there."""
        if self._room is not None:
            self._room[slot.node] -= 1
