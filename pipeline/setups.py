"""Workers that could not be set up: another try, a place left alone, or the end of the run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import ray

from pipeline import cluster
from pipeline.cluster import Slot
from pipeline.errors import RaylensError
from pipeline.remote_errors import last_line, told
from pipeline.storage import UnreachableError

LIMIT = 3  # failures in a row before a place is given up, or the run where no worker is at work
_AWAY_S = 120.0  # for which the storage may be away before a step has its first worker
_AWAY_PAUSE_S = 5.0


class Setups:
    """How the setups of a step ended."""

    def __init__(self, tell: Callable[..., None], say: Callable[[str], None]) -> None:
        self._tell, self._say = tell, say
        self.begin("")

    def begin(self, step: str) -> None:
        """Another step: what failed for the last one may be well for this."""
        self._step, self._proven = step, False  # proven: some worker could be set up for it
        self._at, self._away_at = Counter[Slot](), Counter[Slot]()
        self._in_a_row = 0  # while no worker is at work
        self._away_since: float | None = None

    def failures(self, slot: Slot) -> int:
        """How often in a row none could be set up there."""
        return self._at[slot]

    def rank(self, slot: Slot) -> int:
        """How much better another place would be."""
        return self._at[slot] + self._away_at[slot]

    def worked(self, slot: Slot) -> None:
        self._at[slot] = self._away_at[slot] = self._in_a_row = 0
        self._proven, self._away_since = True, None

    def failed(
        self,
        slot: Slot,
        error: ray.exceptions.RayError,
        *,
        working: bool,
        pending: list[Slot],
        free: list[Slot],
    ) -> float:
        """Take in a failure; gives the seconds to wait before the next worker is started.

        A node that goes says nothing about the step, and takes all its workers along. It is on Ray's list for a while
        yet: until then its workers are not dead but unavailable.

        Args:
            working: whether a worker is at work on this step.
            pending, free: places where others are being set up now, and where one could be.

        Raises:
            RaylensError: it is the same wherever it could be tried, so the step cannot be worked on.
        """
        if isinstance(error, ray.exceptions.ActorUnavailableError) or getattr(error, "preempted", False):
            return 0.0
        if slot.node not in cluster.alive_nodes():
            return 0.0
        if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, UnreachableError):
            return self._away(slot, error, working or any(not self.rank(other) for other in pending))
        self._at[slot] += 1
        if working:
            if self._at[slot] == LIMIT:
                self._leave_alone(slot, error)
            return 0.0
        self._in_a_row += 1
        if self._is_over(error, pending, free):
            raise self._end(error) from error
        if self._at[slot] == 1:  # so that nobody wonders what is waited for
            node = cluster.node_name(slot.node)
            self._say(f"step '{self._step}': no worker could be set up on {node}: {_why(error, self._step)}")
        return 0.0

    def _away(self, slot: Slot, error: ray.exceptions.RayTaskError, others: bool) -> float:
        """The storage is away, as seen from there; ``others``: they work, or have yet to tell whether it is."""
        self._away_at[slot] += 1
        if self._away_at[slot] == 1:
            node = cluster.node_name(slot.node)
            self._say(f"step '{self._step}': tried again on {node}: {_why(error, self._step)}")
        if others:
            self._away_since = None
            return _AWAY_PAUSE_S
        self._away_since = time.monotonic() if self._away_since is None else self._away_since
        if time.monotonic() < self._away_since + _AWAY_S:
            return _AWAY_PAUSE_S
        raise told(error, self._step) from error

    def _is_over(self, error: Exception, pending: list[Slot], free: list[Slot]) -> bool:
        bad = {slot.node for slot, failures in self._at.items() if failures}
        if any(slot.node not in bad for slot in pending):
            return False  # they tell without being asked
        elsewhere = any(slot.node not in bad for slot in free)
        said = isinstance(error, ray.exceptions.RayTaskError) and not self._proven
        if said and not elsewhere and all(self._at[slot] for slot in pending):
            return True  # a mistake in the config is told at once
        return self._in_a_row >= LIMIT and (not elsewhere or len(bad) >= LIMIT)

    def _leave_alone(self, slot: Slot, error: ray.exceptions.RayError) -> None:
        why, node = _why(error, self._step), cluster.node_name(slot.node)
        self._tell("place given up", step=self._step, node=node, error=why)
        self._say(f"step '{self._step}': a place on {node} is left alone, no worker can be set up there: {why}")

    def _end(self, error: ray.exceptions.RayError) -> RaylensError:
        if isinstance(error, ray.exceptions.RayTaskError):
            return told(error, self._step)
        cure = "look at the memory of the nodes: the network may not fit"
        if getattr(error, "actor_init_failed", False):
            cure = "see that every node has the same Raylens and the same libraries as this one"
        return RaylensError(
            f"{self._in_a_row} workers in a row died while they were set up for step '{self._step}' "
            f"({_why(error, self._step)})",
            cure=cure,
        )


def _why(error: ray.exceptions.RayError, step: str) -> str:
    if isinstance(error, ray.exceptions.RayTaskError):
        return str(told(error, step)).splitlines()[0]
    return f"{type(error).__name__}: {last_line(error)}"
