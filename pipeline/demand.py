"""Workers that a run could use and the cluster has no room for: what Ray's autoscaler is asked for.

Each is a placement group of one bundle. A pending one is demand that the autoscaler brings a node for; it is the
driver's, so Ray takes it back when the driver ends, however it ends.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

_MOST = 256  # asked for at a time


class Demand:
    """So many workers, each in need of one bundle of resources.

    ``hold``: room that came stays reserved, for workers that hold nothing themselves; else it is given to whoever takes
    it, which is the worker it was asked for.
    """

    def __init__(self) -> None:
        self._groups: list[Any] = []
        self._bundle: dict[str, float] = {}

    @property
    def asked(self) -> int:
        return len(self._groups)

    def reserved(self) -> Counter[str]:
        """How many of the rooms asked for are there and kept, by node."""
        if not self._groups:
            return Counter()
        entries = placement_group_table()
        found = [entry for g in self._groups if (entry := entries.get(g.id.hex())) and entry["state"] == "CREATED"]
        return Counter(node for entry in found for node in entry["bundles_to_node_id"].values())

    def ask(self, count: int, bundle: Mapping[str, float], *, hold: bool = False) -> None:
        """Ask for ``count`` in all; for fewer than before takes the others back."""
        count = min(count, _MOST)
        if dict(bundle) != self._bundle:
            self.withdraw()
            self._bundle = dict(bundle)
        if self._groups and (not hold or len(self._groups) > count):
            states = {name: entry["state"] for name, entry in placement_group_table().items()}
            waiting = [g for g in self._groups if states.get(g.id.hex()) != "CREATED"]
            there = [g for g in self._groups if g not in waiting]
            keep = (there + waiting)[:count] if hold else waiting[:count]
            for group in [g for g in self._groups if g not in keep]:
                _remove(group)
            self._groups = keep
        while len(self._groups) < count:
            self._groups.append(placement_group([self._bundle]))

    def withdraw(self) -> None:
        """Ask for nothing any more."""
        for group in self._groups:
            _remove(group)
        self._groups = []


def _remove(group: Any) -> None:
    with contextlib.suppress(Exception):  # Ray is gone, and it with Ray
        remove_placement_group(group)
