"""Room on the cluster for the workers of a training: there, on its way, or never to come."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pipeline.cluster import alive_nodes
from pipeline.errors import UsageError
from pipeline.growth import BROUGHT_S, Growth
from pipeline.waiting import cluster_has, in_words

_LOOK_S = 5.0


class Room:
    """So many bundles of resources. What others hold counts as room: they give it back some time."""

    def __init__(self, count: int, bundle: Mapping[str, float], cluster: str | None) -> None:
        """``cluster``: the one joined; None for a Ray of our own, to which nothing comes."""
        self._count, self._bundle, self._cluster = count, bundle, cluster
        self._growth = Growth(joined=cluster is not None)
        self._next, self._was_there = 0.0, False

    @property
    def wanted(self) -> str:
        return f"{self._count} training worker{'s' * (self._count != 1)} of {in_words(self._bundle)}"

    def check(self) -> None:
        """UsageError when the room was never there and cannot come. Made to be called often: it looks now and then."""
        if self._was_there or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _LOOK_S
        nodes = alive_nodes()
        found = sum(
            int(min(node.get(name, 0.0) / each for name, each in self._bundle.items()) + 1e-9)
            for node in nodes.values()
        )
        self._was_there = found >= self._count
        self._growth.look(nodes, missed=not self._was_there)
        if not self._was_there and self._growth.over:
            self._refuse(found)

    def _refuse(self, found: int) -> None:
        why = f"no node came for {BROUGHT_S / 60:g} minutes" if self._growth.doubted else "nothing brings more nodes"
        if found:
            cure = f"set resources.train_workers to {found} or less"
        elif "GPU" in self._bundle:
            cure = "set resources.gpus to 0 to train without GPUs"
        else:
            cure = "set resources.train_workers to 0 to train in the driver's process"
        raise UsageError(
            f"no room for {self.wanted}: {cluster_has()}, which is enough for {found or 'none'}, and {why}",
            where=self._cluster or "this machine",
            cure=cure + (", or add nodes ('ray status' shows them)" if self._cluster else ""),
        )
