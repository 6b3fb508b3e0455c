"""Workers that do not answer: what became of one that Ray calls unavailable, and how long one slice may take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import ray

from pipeline import cluster
from pipeline.signals import Stop
from pipeline.tasks import Work

_TOLD_S = 30.0  # in which Ray finds out whether a worker or its node is gone
_ASK_S = 2.0
_BETWEEN_S = 30.0
_LEAST_S = 1800.0  # a slice may take as long on any worker,
_FACTOR = 20.0  # and so many times as long as in the micro-run: another device may be far slower


def what_became(actor: Any, node: str, error: Exception, stop: Stop) -> Exception:
    """The error that tells what became of a worker; ActorUnavailableError where it lives, or nobody knows.

    Ray calls a worker unavailable while it knows no more: it may have died, or its whole node is going.
    """
    until = time.monotonic() + _TOLD_S
    while isinstance(error, ray.exceptions.ActorUnavailableError) and node in cluster.alive_nodes():
        if stop.is_set() or time.monotonic() >= until:
            break
        try:
            ray.get(actor.placed.remote(), timeout=_ASK_S)
            break  # the connection was lost, not the worker
        except ray.exceptions.GetTimeoutError:
            continue
        except ray.exceptions.RayError as found:
            error = found
        time.sleep(0.5)
    return error


class Silence:
    """Knows how long a worker may be in one slice, and asks the ledger now and then whose time is over."""

    def __init__(self, work: Work, ledger: Any) -> None:
        # A slice that fails is repeated row by row, each at the full shape.
        usual = [
            (_FACTOR + plan.micro_batch) * plan.micro_batch / max(plan.measured.rows_per_s, 1e-9)
            for plan in work.plans.values()
        ]
        self.longest_s = max([_LEAST_S, *usual])
        self._ledger, self._asked = ledger, time.monotonic()

    def hung(self, attempts: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
        """Those of the attempts whose worker will never come out of its slice."""
        if time.monotonic() < self._asked + _BETWEEN_S:
            return []
        self._asked = time.monotonic()
        try:
            found: list[tuple[str, int]] = ray.get(self._ledger.silent.remote(attempts, self.longest_s), timeout=5)
        except ray.exceptions.RayError:
            return []
        return found
