"""Asking a driver to stop: SIGTERM, SIGINT, or a lost lock."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

from pipeline.errors import RaylensError
from pipeline.leaving import ask_to_go, forget_requests, in_time
from pipeline.lock import RunLock


class RunStopped(RaylensError):  # noqa: N818 - what happened, not what went wrong
    """Asked to stop: everything committed is kept."""

    def __init__(
        self, what: str = "stopped on request", *, where: str = "", cure: str = "run the same command again to resume"
    ) -> None:
        super().__init__(what, where=where, cure=cure)


class Stop(threading.Event):
    """Set when the driver is asked to stop."""

    def __init__(self) -> None:
        super().__init__()
        self._breaks_off = False

    def check(self) -> None:
        """RunStopped when it is set."""
        if self.is_set():
            raise RunStopped

    @contextlib.contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Within the block a request ends what the main thread is doing at once: for work that cannot look here."""
        self.check()
        self._breaks_off = True
        try:
            yield
        finally:
            self._breaks_off = False

    def ask(self) -> None:
        """What a signal's handler does, in the main thread."""
        self.set()
        if self._breaks_off:
            self._breaks_off = False  # once: what is left of the block is its clearing up
            raise RunStopped


class StopOnSignals:
    """Holds the lock; SIGTERM and SIGINT, or its loss, ask the runner to wind down; the second SIGINT ends at once.

    Whatever the driver is doing (listing a bucket, say, or giving the lock back), it is gone 20 s after the first
    signal: what is committed is kept, and the lock of a dead process is broken at once. What comes after is ``leave``'s
    to do in the time that is left.
    """

    def __init__(self, lock: RunLock) -> None:
        self._lock, self._stop = lock, Stop()
        self._before: dict[int, Any] = {}
        self._deadline: threading.Timer | None = None

    def __enter__(self) -> Stop:
        self._lock.__enter__()
        forget_requests()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        threading.Thread(target=self._watch, name="raylens-lock-watch", daemon=True).start()
        return self._stop

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._stop.is_set():
            raise KeyboardInterrupt
        if self._deadline is None:
            ask_to_go()
            self._deadline = in_time(_leave)
        self._stop.ask()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            if self._lock.lost.is_set():
                self._stop.set()
                if self._before:  # the main thread may be busy with what cannot look: it is told as by a signal
                    _thread.interrupt_main(signal.SIGTERM)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        try:
            self._lock.__exit__(kind, error, trace)
        finally:
            if self._deadline is not None:
                self._deadline.cancel()
            for number, handler in self._before.items():
                signal.signal(number, handler)


def _leave() -> None:
    print("stopped; run the same command again to resume", file=sys.stderr, flush=True)
    os._exit(1)
