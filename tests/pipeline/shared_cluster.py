"""A cluster that grows and is shared: others hold GPUs and CPUs, and nodes come for them, too. It only pretends."""

from __future__ import annotations

import itertools
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import cluster, demand, growth, places, pool
from pipeline.cluster import Slot
from pipeline.options import Resources

HEAD = "head:6379"
WORK = SimpleNamespace(step=SimpleNamespace(name="sweep"), plans={})
CPU_NODE, GPU_NODE = {"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}


class Shared:
    """Nodes, what others hold of them, our groups and workers, and an autoscaler with nodes of one kind.

    Whoever waits gets what is free in order of ``first``: a group of ours, or a worker that waits at its node.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.nodes: dict[str, dict[str, float]] = {}
        self.theirs: dict[str, dict[str, float]] = {}
        self.groups: list[Any] = []
        self.hosts: list[Any] = []  # workers of ours that live
        self.kind: dict[str, float] = {}
        self.left = 0  # nodes that can still be brought
        self.names, self.numbers = iter("efghijkl"), itertools.count()
        monkeypatch.setattr(cluster, "joined", lambda: HEAD)
        monkeypatch.setattr(cluster, "alive_nodes", lambda: self.nodes)
        monkeypatch.setattr(cluster, "free_of_nodes", lambda: {node: self.free(node) for node in self.nodes})
        monkeypatch.setattr(pool, "start_host", self.start)
        monkeypatch.setattr(demand, "placement_group", self.ask)
        monkeypatch.setattr(demand, "remove_placement_group", self.groups.remove)
        monkeypatch.setattr(demand, "placement_group_table", lambda: {g.id.hex(): self.entry(g) for g in self.groups})
        monkeypatch.setattr(growth, "autoscaled", lambda: True)
        for module in (pool, growth, places):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        ready = SimpleNamespace(put=lambda work: work, kill=self.kill, wait=self.wait)
        monkeypatch.setattr(pool, "ray", ready)

    def add(self, node: str, kind: dict[str, float], theirs: bool = False) -> None:
        self.nodes[node] = dict(kind)
        if theirs:
            self.theirs[node] = dict(kind)

    def free(self, node: str) -> dict[str, float]:
        left = Counter(self.nodes[node])
        left.subtract(Counter(self.theirs.get(node, {})))
        for group in self.groups:
            left.subtract(Counter(group.bundle) if group.node == node else {})
        left["GPU"] -= sum(host.slot.gpus for host in self.hosts if host.there and host.slot.node == node)
        return dict(left)

    def ask(self, bundles: list[dict[str, float]]) -> Any:
        name = f"{next(self.numbers):04x}"
        self.groups.append(SimpleNamespace(id=SimpleNamespace(hex=lambda: name), bundle=bundles[0], node=""))
        return self.groups[-1]

    @staticmethod
    def entry(group: Any) -> dict[str, Any]:
        return {"state": "CREATED" if group.node else "PENDING", "bundles_to_node_id": {0: group.node}}

    def start(self, slot: Slot, ledger: Any) -> Any:
        host = SimpleNamespace(slot=slot, there=False, setup=SimpleNamespace(remote=lambda *_: next(self.numbers)))
        host.placed = SimpleNamespace(remote=lambda: host)
        self.hosts.append(host)
        return host

    def kill(self, host: Any) -> None:
        self.hosts.remove(host)

    @staticmethod
    def wait(references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return [r for r in references if r.there], [r for r in references if not r.there]

    def schedule(self) -> None:
        for host in self.hosts:
            host.there = host.there or self.free(host.slot.node)["GPU"] >= host.slot.gpus
        for group in self.groups:
            fits = (n for n in self.nodes if all(self.free(n).get(k, 0.0) >= v for k, v in group.bundle.items()))
            group.node = group.node or next(fits, "")

    def pass_by(self, workers: pool.Pool, wanted: int, seconds: float = 6.0) -> None:
        """Time in which the pool looks every six seconds, and the autoscaler brings what is waited for."""
        end = self.now + seconds
        while self.now < end:
            self.schedule()
            for group in [g for g in self.groups if not g.node and self.left]:
                if all(self.kind.get(name, 0.0) >= count for name, count in group.bundle.items()):
                    self.left -= 1
                    self.add(next(self.names), self.kind)
                    self.schedule()
            self.now += 6.0
            workers.refresh(wanted)
        self.schedule()

    def begun(self, resources: Resources, wanted: int) -> pool.Pool:
        found = pool.Pool(resources, None)
        found.begin(WORK, wanted)
        self.schedule()
        return found

    def next_step(self, workers: pool.Pool, wanted: int) -> None:
        workers.ask_no_more()
        workers.begin(WORK, wanted)
        self.schedule()

    @property
    def at(self) -> str:
        """The nodes of our workers."""
        return "".join(sorted(host.slot.node for host in self.hosts))

    @property
    def asked(self) -> list[dict[str, float]]:
        """What waits for a node."""
        return [group.bundle for group in self.groups if not group.node]
