"""What a failure means for a shard: retried for free, counted against a slice, bisected, quarantined, given up.

Failures are classed by what is known afterwards. A lost node or a preemption says nothing about the data. A death on
a living node inside a slice may have been caused by a row of that slice: after three the slice is bisected, down to
the single key, which is quarantined only after it alone, in a fresh worker, has killed it three times.
"""

from __future__ import annotations

import dataclasses

from pipeline.tasks import Range, Task

DEATHS = 3  # at one slice before it is bisected; by one key alone before it is quarantined
FREE_RETRIES = 20  # of one shard, for reasons that are not its own
UNREACHED = 10  # attempts (minutes) after which a row that cannot be reached fails, where others of its split can
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 30.0


def backoff(nth: int) -> float:
    """Seconds to wait after so many losses in a row."""
    return min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** (nth - 1))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What to do with a shard whose attempt failed."""

    action: str  # "retry" or "give up"
    delay_s: float = 0.0
    quarantined: int | None = None  # a row position that is not to be run again
    note: str = ""


class ShardFate:
    """The history of one shard within one driver. Nothing here outlives it but the quarantine."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._deaths: dict[Range, int] = {}
        self._suspects: list[Range] = list(task.suspects)
        self._free = 0
        self.missed = 0  # how often its images could not be reached

    def acquit(self, completed: Range) -> None:
        """A completed run of a range clears what was counted against it."""
        self._deaths.pop(completed, None)

    def lost(self, why: str) -> Verdict:
        """The worker was lost through no fault of the data."""
        self._free += 1
        if self._free > FREE_RETRIES:
            return Verdict("give up", note=f"its worker was lost {self._free} times; the last time: {why}")
        return Verdict("retry", backoff(self._free), note=why)

    def unreached(self, why: str) -> Verdict:
        """A row's image could not be reached: it is gone, or the storage is away."""
        self.missed += 1
        if self.missed > FREE_RETRIES:
            return Verdict("give up", note=f"its images could not be reached {self.missed} times: {why}")
        return Verdict("retry", backoff(self.missed), note=why)

    def died(self, inside: Range) -> Verdict:
        """The worker died on a living node while it computed the rows ``inside``."""
        lo, hi = inside
        deaths = self._deaths[inside] = self._deaths.get(inside, 0) + 1
        if hi - lo == 1 and deaths >= DEATHS:
            self._suspects = [s for s in self._suspects if s != inside]
            return Verdict("retry", quarantined=lo, note=f"row {lo} alone killed its worker {deaths} times")
        if hi - lo > 1 and (deaths >= DEATHS or inside in self._suspects):
            # A half of a proven killer need not prove itself three times more.
            middle = (lo + hi) // 2
            rest = [s for s in self._suspects if s != inside]
            self._suspects = sorted([*rest, (lo, middle), (middle, hi)])
            return Verdict("retry", _FIRST_BACKOFF_S, note=f"rows {lo} to {hi - 1} are run in two halves")
        return Verdict("retry", _FIRST_BACKOFF_S, note=f"death {deaths} inside rows {lo} to {hi - 1}")

    def next_task(self, quarantined: dict[str, str]) -> Task:
        """The next attempt: suspects first and apart."""
        self._task = dataclasses.replace(
            self._task,
            attempt=self._task.attempt + 1,
            suspects=tuple(self._suspects),
            quarantined={**self._task.quarantined, **quarantined},
            forgiving=self.missed >= UNREACHED,
        )
        return self._task
