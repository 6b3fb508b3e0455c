"""Saying that something is waited for, instead of a silence."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

_FIRST_S, _EVERY_S = 10.0, 60.0


class Patience:
    """Call ``tick`` while waiting: after ten seconds, then every minute, what is waited for is said.

    ``tell`` is asked only when it is time to speak, so it may look at the cluster; "" keeps silent.
    """

    def __init__(
        self, say: Callable[[str], None], tell: Callable[[], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._tell, self._clock = say, tell, clock
        self.reset()

    def reset(self) -> None:
        """What was waited for is there."""
        self._next = self._clock() + _FIRST_S

    def tick(self) -> None:
        if self._clock() < self._next:
            return
        told = self._tell()
        self._next = self._clock() + (_EVERY_S if told else _FIRST_S)
        if told:
            self._say(told)


def is_free(wanted: Mapping[str, float]) -> bool:
    """Whether the cluster has these resources to spare now; on one node or on several."""
    import ray

    free = ray.available_resources()
    return all(free.get(name, 0.0) >= count for name, count in wanted.items())


def in_words(wanted: Mapping[str, float]) -> str:
    """``1 CPU and 0.5 GPU``"""
    return " and ".join(f"{count:g} {name}" for name, count in wanted.items())


def cluster_has() -> str:
    """What the cluster joined consists of, and what of it nobody holds."""
    import ray

    total, free = ray.cluster_resources(), ray.available_resources()
    parts = [f"{total.get(name, 0):g} {name} ({free.get(name, 0):g} free)" for name in ("CPU", "GPU")]
    nodes = sum(1 for node in ray.nodes() if node["Alive"])
    return f"the cluster has {nodes} node{'s' * (nodes != 1)} with {' and '.join(parts)}"
