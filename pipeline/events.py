"""What a driver saw: one JSON object a line in ``RUN/events/<driver>-<n>.jsonl``.

Object stores cannot append, so lines are buffered and rolled into a new whole file every half a minute. Events help a
person understand a run; nothing reads them back to decide anything, so a full disk costs events, never the run.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from pipeline.errors import RaylensError
from pipeline.redaction import redact_urls
from pipeline.storage import Folder

_KEPT = 50_000  # lines held in memory while the storage refuses; older ones are dropped


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


class Events:
    """Say what happens: ``events.say("commit", step="sweep", shard=3)``. Safe from any thread; never raises.

    ``folder`` is the run folder. ``driver`` should be unique to this driver; where it is not, numbers go on.
    """

    def __init__(
        self,
        folder: Folder,
        driver: str,
        *,
        roll_s: float = 30.0,
        roll_lines: int = 1000,
        warn: Callable[[str], None] = _warn,
    ) -> None:
        self.folder, self.driver = folder.child("events"), driver
        self.roll_s, self.roll_lines, self.warn = roll_s, roll_lines, warn
        self.dropped = 0
        self._lines: list[bytes] = []
        self._next = 0
        self._warned = False
        self._lock = threading.Lock()  # guards the lines
        self._writing = threading.Lock()  # one file at a time, so that numbers follow time
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._roll, name="raylens-events", daemon=True)
        self._thread.start()

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def say(self, kind: str, **fields: Any) -> None:
        """Note an event; ``at`` (UTC) and ``kind`` come first, and fields that JSON does not know become text."""
        event = {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": kind, **fields}
        try:
            line = json.dumps(_plain(event), default=str).encode()
        except (TypeError, ValueError, RecursionError) as error:  # an object whose own str() fails, a circle
            line = json.dumps({"at": event["at"], "kind": str(kind), "unreadable": type(error).__name__}).encode()
        with self._lock:
            self._lines.append(line)
            if len(self._lines) > _KEPT:
                self.dropped += len(self._lines) - _KEPT
                del self._lines[:-_KEPT]
            full = len(self._lines) >= self.roll_lines
        if full:
            self._wake.set()

    def flush(self) -> None:
        """Write what is buffered as the next file."""
        with self._writing:
            with self._lock:
                lines, self._lines = self._lines, []
            if not lines:
                return
            data = b"\n".join(lines) + b"\n"
            try:
                while not self.folder.create(f"{self.driver}-{self._next}.jsonl", data):
                    self._next += 1  # a driver of this name was here before
                self._next += 1
            except (OSError, RaylensError) as error:
                with self._lock:
                    self._lines[:0] = lines
                if not self._warned:
                    self._warned = True
                    self.warn(f"events cannot be written, the run goes on: {str(error).splitlines()[0]}")

    def close(self) -> None:
        """Write what is left; further calls do nothing."""
        if not self._closed.is_set():
            self._closed.set()
            self._wake.set()
            self._thread.join(timeout=60)
            self.flush()

    def _roll(self) -> None:
        while not self._closed.is_set():
            self._wake.wait(self.roll_s)
            self._wake.clear()
            if not self._closed.is_set():
                self.flush()
                if self._warned:  # do not spin on a storage that refuses a buffer that stays full
                    self._closed.wait(min(self.roll_s, 5.0))


def _plain(value: Any) -> Any:
    """NaN and infinities as text: JSON has none. URLs without what may be secret in them."""
    if isinstance(value, str):
        return redact_urls(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value
