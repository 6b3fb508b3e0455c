"""Stragglers: shards that take far longer than the others did, while workers have nothing to do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

_FACTOR = 2.0  # times the median of the shards that are done
_LEAST_S = 5.0  # a duplicate costs a worker its start: not for less
_KNOWN = 3  # shards that must be done before there is a median to speak of


class Late:
    """Knows how long shards take, and since when each attempt has had its worker to itself."""

    def __init__(
        self, *, factor: float = _FACTOR, least_s: float = _LEAST_S, clock: Callable[[], float] = time.monotonic
    ):
        self.factor, self.least_s, self._clock = factor, least_s, clock
        self._took: list[float] = []
        self._since: dict[object, float] = {}

    def begun(self, attempt: object) -> None:
        self._since[attempt] = self._clock()

    def done(self, attempt: object) -> None:
        since = self._since.pop(attempt, None)
        if since is not None:
            self._took.append(self._clock() - since)

    def gone(self, attempt: object) -> None:
        self._since.pop(attempt, None)

    def is_late(self, attempt: object) -> bool:
        since = self._since.get(attempt)
        if since is None or len(self._took) < _KNOWN:
            return False
        return self._clock() - since > max(self.least_s, self.factor * statistics.median(self._took))
