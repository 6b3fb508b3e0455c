"""The end of a process: with the status it means, and in time where it was asked to go."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

_PATIENCE_S = 19.0  # from the first request on, for all that is left to do: who asked may kill after 20
_by: float | None = None  # when this process is to be gone, by the monotonic clock; None: nobody asked it to go


def ask_to_go() -> None:
    """Somebody asks this process to; the first request counts."""
    global _by
    if _by is None:
        _by = time.monotonic() + _PATIENCE_S


def forget_requests() -> None:
    """Another piece of work begins in this process."""
    global _by
    _by = None


def in_time(end: Callable[[], object]) -> threading.Timer | None:
    """A timer that calls ``end`` when this process is to be gone; None where nobody asked it to go."""
    if _by is None:
        return None
    timer = threading.Timer(max(0.0, _by - time.monotonic()), end)
    timer.daemon = True
    timer.start()
    return timer


def leave(code: int) -> NoReturn:
    """Run exit handlers and end the process without tearing the interpreter down.

    Libraries whose threads still stand then (Arrow's) abort it now and then, and the status would be theirs. Ray's
    handlers may take long: where a signal asked the process to go, it does not wait for their end.
    """
    _flush()
    in_time(lambda: os._exit(code))
    atexit._run_exitfuncs()
    _flush()
    os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
