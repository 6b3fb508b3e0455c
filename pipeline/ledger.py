"""What the driver remembers of attempts under way, in an actor that workers and driver talk to."""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.tasks import Mark, Range


class Ledger:
    """Remembers which slice each attempt is in, so that a death inside a slice can be told from any other.

    Only the question that decides a verdict is asked again when this process dies: the driver ends it when the last
    notes may still be on their way, and Ray would say of each that it will be tried again.
    """

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], Range | None] = {}
        self._since: dict[tuple[str, int], float] = {}
        self._completed: dict[tuple[str, int], list[Range]] = collections.defaultdict(list)
        self._rows: dict[tuple[str, int], collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def mark(self, mark: Mark) -> None:
        attempt = (mark.task, mark.attempt)
        self._open[attempt] = mark.range if mark.begin else None
        self._since[attempt] = math.inf if mark.decoding else time.monotonic()
        if not mark.begin:
            self._completed[attempt].append(mark.range)
            self._rows[attempt].update(mark.rows)

    @ray.method(max_task_retries=-1)
    def history(self, task: str, attempt: int) -> tuple[Range | None, list[Range]]:
        """The slice an attempt is in, if any, and those it completed."""
        return self._open.get((task, attempt)), list(self._completed.get((task, attempt), ()))

    def begun(self, attempts: Sequence[tuple[str, int]]) -> bool:
        """Whether any of these attempts has come to a slice: the rows of its first are decoded."""
        return any(attempt in self._open for attempt in attempts)

    def silent(self, attempts: Sequence[tuple[str, int]], seconds: float) -> list[tuple[str, int]]:
        """Those of the attempts that have computed one slice for longer."""
        until = time.monotonic() - seconds
        return [a for a in attempts if self._open.get(a) is not None and self._since[a] < until]

    def rows(self, attempts: Sequence[tuple[str, int]]) -> dict[str, int]:
        """Rows by status that these attempts have done so far."""
        total: collections.Counter[str] = collections.Counter()
        for attempt in attempts:
            total.update(self._rows.get(attempt, {}))
        return dict(total)

    def forget(self, track: str) -> None:
        """All attempts kept under a track, or under each that begins with a step's work."""
        for store in (self._open, self._since, self._completed, self._rows):
            for attempt in [a for a in store if a[0] == track or a[0].startswith(f"{track} ")]:
                del store[attempt]


def start_ledger() -> Any:
    """The ledger, beside the driver."""
    here = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(here, soft=True)
    # It comes back empty if its process dies: what it knew only ever sharpens a verdict.
    return ray.remote(Ledger).options(num_cpus=0, scheduling_strategy=strategy, max_restarts=-1).remote()
