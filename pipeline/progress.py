"""Rate and time left of a step: a live line on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

_TAU = 60.0  # seconds over which the rate forgets
_REFRESH_S = 0.5  # on a terminal
_SILENT = 120.0  # seconds without a row after which the line says so


class Progress:
    """Progress of one step: committed rows, and those that workers have in hand.

    ``done`` rows (in ``shards_done`` shards) were committed by earlier drivers: they count as progress, not as speed.
    On a terminal one line is kept up to date; elsewhere a line is printed after 2 s, then at most every 10 s, and one
    at the end. ``forgets_s``: seconds over which the rate forgets. Close it, or use it as a context manager. Safe from
    any thread.
    """

    def __init__(
        self,
        step: str,
        total: int,
        *,
        shards: int = 0,
        done: int = 0,
        shards_done: int = 0,
        workers: int = 0,
        unit: str = "rows",
        stream: TextIO | None = None,
        first_s: float = 2.0,
        every_s: float = 10.0,
        forgets_s: float = _TAU,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.step, self.total, self.shards, self.unit = step, total, shards, unit
        self.committed, self.shards_done, self.workers = done, shards_done, workers
        self.stream = sys.stderr if stream is None else stream
        self.every_s, self.forgets_s, self.clock = every_s, forgets_s, clock
        self._failed = 0
        self._in_hand: dict[str, float] = {}
        self._resumed = done
        self._high: float = done
        self._began = self._last = self._seen = self._updated = clock()
        self._weighted, self._weight = 0.0, 0.0
        self._next = self._began + first_s
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._live: Live | None = None
        if self.stream.isatty():
            console = Console(file=self.stream)
            self._live = Live(console=console, get_renderable=self._text, refresh_per_second=4, transient=True)
            self._live.start()
        else:  # lines go on while the caller waits for something
            self._thread = threading.Thread(target=self._tick, name="raylens-progress", daemon=True)
            self._thread.start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def shard_done(self, rows: Mapping[str, int]) -> None:
        """A shard was committed with these rows by status."""
        with self._lock:
            self.committed += sum(rows.values())
            self._failed += rows.get("failed", 0)
            self.shards_done += 1
            # Its rows were in hand until now, as far as the last update saw them.
            self._in_hand = {name: max(0, n - rows.get(name, 0)) for name, n in self._in_hand.items()}
            self._moved()

    def update(self, in_hand: Mapping[str, float], *, workers: int | None = None) -> None:
        """Rows by status of the shards that are not committed yet (all of them, not an increment), and live workers.

        A training's rows are epochs, of which one may be in hand in part.
        """
        with self._lock:
            self._in_hand = dict(in_hand)
            self._updated = self.clock()
            if workers is not None:
                self.workers = workers
            self._moved()

    def due(self) -> bool:
        """Whether an ``update`` now would be seen: asking workers for their counts has a price."""
        with self._lock:
            if self._live is not None:
                return self.clock() - self._updated >= _REFRESH_S
            return self.clock() >= self._next

    def say(self, text: str) -> None:
        """A line above the live line."""
        with self._lock:
            if self._live is not None:
                self._live.console.print(Text(f"{self.step}  {text}"))
            else:
                self._print(f"{self.step}  {text}")

    def close(self) -> None:
        """Stop, and print the closing line."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._live is not None:
            self._live.stop()
        else:
            self._thread.join(timeout=10)
        self._print(self.closing())

    @property
    def rows(self) -> float:
        """Rows that are done: committed or in hand; whole but for a training's epochs."""
        return min(self.total, self.committed + sum(self._in_hand.values()))

    @property
    def failed(self) -> float:
        return self._failed + self._in_hand.get("failed", 0)

    def _moved(self) -> None:
        """Take new rows into the rate; a lost worker's rows are counted once, when they are made again."""
        now = self.clock()
        gained = self.rows - self._high
        # Rows come in bursts: they count as spread over the time since the rows before them.
        if gained > 0 and now > self._last:
            fade = math.exp(-(now - self._last) / self.forgets_s)
            self._weighted = self._weighted * fade + gained / (now - self._last) * (1 - fade)
            self._weight = self._weight * fade + (1 - fade)
            self._high, self._last, self._seen = self.rows, now, now
        self._show(now >= self._next)

    def _show(self, wanted: bool) -> None:
        if wanted and self._live is None and not self._closed.is_set():
            self._next = self.clock() + self.every_s
            self._print(self.line())

    @property
    def rate(self) -> float:
        """Rows a second, lately; 0 while unknown."""
        return self._weighted / self._weight if self._weight else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left, None while unknown."""
        return (self.total - self.rows) / self.rate if self.rate > 0 else None

    def line(self) -> str:
        """``sweep  1,240/10,000 rows  12.4 %  84.1 rows/s  ETA 1 min 44 s  shards 3/24  failed 2  workers 2``"""
        with self._lock:
            share = f"{100 * self.rows / self.total:.1f} %" if self.total else "100.0 %"
            parts = [self.step, f"{_count(self.rows)}/{self.total:,} {self.unit}", share]
            if self.rate:
                parts.append(f"{_figure(self.rate)} {self.unit}/s")
            if self.eta_s is not None:
                parts.append(f"ETA {duration(self.eta_s)}")
            parts += self._counts()
            silent = self.clock() - self._seen
            if silent >= _SILENT and self.rows < self.total:
                parts.append(f"nothing new for {duration(silent)}")
            return "  ".join(parts)

    def closing(self) -> str:
        """The last line: what was done in what time, without a promise."""
        with self._lock:
            elapsed = self.clock() - self._began
            parts = [self.step, f"{self.committed:,}/{self.total:,} {self.unit}", f"in {duration(elapsed)}"]
            made = self.committed - self._resumed
            if made and elapsed > 0:
                parts.append(f"{_figure(made / elapsed)} {self.unit}/s")
            if self._resumed:
                parts.append(f"{self._resumed:,} were there already")
            return "  ".join(parts + self._counts(closing=True))

    def _counts(self, closing: bool = False) -> list[str]:
        parts = [f"shards {self.shards_done:,}/{self.shards:,}"] if self.shards else []
        if self.failed:
            parts.append(f"failed {self.failed:,}")
        if self.workers and not closing:
            parts.append(f"workers {self.workers:,}")
        return parts

    def _text(self) -> Text:
        return Text(self.line(), no_wrap=True, overflow="ellipsis")

    def _print(self, text: str) -> None:
        try:
            print(text, file=self.stream, flush=True)
        except (OSError, ValueError):  # a closed pipe: nobody reads it
            self._next = math.inf

    def _tick(self) -> None:
        while not self._closed.wait(0.25):
            with self._lock:
                self._show(self.clock() >= self._next + 1.0)


def duration(seconds: float) -> str:
    """``8 s``, ``1 min 44 s``, ``2 h 05 min``, ``3 d 04 h``; below ten seconds with one decimal."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def _count(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"
