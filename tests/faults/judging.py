"""How a fuzzed input is judged: an answer or an error of ours, never another one, and never a hang."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from pipeline.errors import RaylensError

MANY = int(os.environ.get("RAYLENS_FUZZ", "0"))  # inputs of each kind; 0: a few, the same ones each time
LIMIT_S = 10.0
TRIED: dict[str, list[int]] = {}


def tries(few: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=MANY or few,
        derandomize=not MANY,
        database=None,
        deadline=None,  # by the clock of a busy machine it would mean nothing
        suppress_health_check=list(HealthCheck),
    )


class HungError(BaseException):
    """Not an Exception: what is tried must not be able to take it for its own."""


@contextlib.contextmanager
def judged(kind: str) -> Iterator[None]:
    """An error of ours is an answer; any other goes through, and so does a hang. Counts both."""

    def hung(number: int, frame: Any) -> None:
        raise HungError(f"more than {LIMIT_S:g} s of CPU time")

    count = TRIED.setdefault(kind, [0, 0])
    count[0] += 1
    before = signal.signal(signal.SIGVTALRM, hung)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT_S)
    try:
        yield
        count[1] += 1
    except RaylensError as error:
        if not error.what or "Traceback" in str(error):
            raise AssertionError("an error says what is wrong") from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def told() -> str:
    """A line for each kind of input: how many were tried."""
    lines = [f"fuzz: {kind}: {tried:,} inputs, {taken:,} taken" for kind, (tried, taken) in TRIED.items()]
    TRIED.clear()
    return "\n".join(["", *lines])


def put(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)
