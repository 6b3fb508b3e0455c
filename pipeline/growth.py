"""Whether nodes may still come to a cluster, and for how long that is believed."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

COMING_S = 60.0  # for which a cluster may just have started: nodes join one by one, its autoscaler tells of itself late
# Without a new node for so long, nobody is taken to bring the first place: where Kubernetes runs Ray, a cluster of
# fixed size looks like one that grows. A cloud takes two to eight minutes for a machine and its image.
BROUGHT_S = 600.0
_STATUS = b"__autoscaling_status"  # what the monitor of Ray's head writes every few seconds
_MIRRORED = re.compile(r"node_[0-9a-f]{40,}")  # the kind of a node that nothing can bring or remove


def autoscaled() -> bool:
    """Whether something brings nodes to the cluster and takes them away; False where Ray does not tell (yet), too."""
    from ray.experimental.internal_kv import _internal_kv_get

    with contextlib.suppress(Exception):
        told = json.loads(_internal_kv_get(_STATUS) or b"{}").get("autoscaler_report") or {}
        if _kinds_of(told):
            return True
    with contextlib.suppress(Exception):  # its second version, Kubernetes' too, names the kind of every node
        from ray._private.worker import global_worker
        from ray.autoscaler.v2.sdk import get_cluster_resource_state

        states = get_cluster_resource_state(global_worker.gcs_client).node_states
        return any(state.ray_node_type_name for state in states)
    return False


def _kinds_of(report: Mapping[str, Any]) -> set[str]:
    """Kinds of nodes that an autoscaler knows: without one, Ray's monitor makes up a kind for each node."""
    return {name for name in report.get("active_nodes") or {} if not _MIRRORED.fullmatch(name)}


class Growth:
    """What may be expected of the cluster while something that it does not have is waited for.

    ``grows``: an autoscaler brings nodes. ``doubted``: one was believed in, and nothing came.
    """

    def __init__(self, joined: bool) -> None:
        """``joined``: the cluster is not a Ray of our own, to which nothing comes."""
        self.grows, self.doubted = False, False
        self._joined = joined
        self._nodes: frozenset[str] = frozenset()
        self._newest = time.monotonic()  # when a node came last
        self._missed: float | None = None  # since when

    def begin(self) -> None:
        """Something else is waited for from now on."""
        self._newest = time.monotonic()

    def look(self, nodes: Iterable[str], *, missed: bool) -> None:
        """``nodes``: ids of those that live; ``missed``: nothing of what is wanted has been there so far."""
        now, there = time.monotonic(), frozenset(nodes)
        if there - self._nodes:
            self._newest = now
        self._nodes = there
        if self._joined and not self.grows and not self.doubted:
            self.grows = autoscaled()
        if missed:
            self._missed = now if self._missed is None else self._missed
            if self.grows and self.quiet:
                self.grows, self.doubted = False, True

    @property
    def quiet(self) -> bool:
        """Whether no node has come for long."""
        return time.monotonic() - self._newest > BROUGHT_S

    @property
    def over(self) -> bool:
        """Whether what is missed cannot come: nothing brings nodes, and they had time to join."""
        return not self.grows and not self._young

    @property
    def _young(self) -> bool:
        """Whether the cluster may have started just now, and nodes be on their way to it."""
        return self._joined and self._missed is not None and time.monotonic() - self._missed < COMING_S
