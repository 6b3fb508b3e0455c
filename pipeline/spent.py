"""Where a step's time went: decoding, moving, computing, writing; its slowest shards, and what it cost."""

from __future__ import annotations

import dataclasses
import heapq
from typing import Any

from pipeline.progress import duration
from pipeline.tasks import Done

_SLOWEST = 3


@dataclasses.dataclass
class Spent:
    """Sums over the shards that this driver saw committed; what earlier drivers did is in the receipts."""

    step: str
    waited_s: float = 0.0
    computed_s: float = 0.0
    wrote_s: float = 0.0
    moved_s: float = 0.0
    shards: int = 0
    rows: int = 0
    failed: int = 0
    retries: int = 0
    duplicates: int = 0
    held_s: float = 0.0  # of workers, whatever they did: what is paid for
    gpu_s: float = 0.0  # of GPUs, the same
    slowest: list[tuple[float, str]] = dataclasses.field(default_factory=list)

    def hold(self, workers: int, gpus: float, seconds: float) -> None:
        """So many workers with so many GPUs were there for that long."""
        self.held_s += workers * seconds
        self.gpu_s += gpus * seconds

    def add(self, shard: str, done: Done) -> None:
        """A shard's attempt that was committed."""
        took = done.waited_s + done.moved_s + done.computed_s + done.wrote_s
        self.waited_s += done.waited_s
        self.computed_s += done.computed_s
        self.wrote_s += done.wrote_s
        self.moved_s += done.moved_s
        self.shards += 1
        self.rows += sum(done.receipt.rows.values())
        self.failed += done.receipt.rows.get("failed", 0)
        self.slowest = heapq.nlargest(_SLOWEST, [*self.slowest, (took, shard)])

    @property
    def busy_s(self) -> float:
        return self.waited_s + self.moved_s + self.computed_s + self.wrote_s

    @property
    def parts(self) -> dict[str, float]:
        """Seconds in committed shards; transfer only where rows were decoded elsewhere."""
        moved = {"transfer": self.moved_s} if self.moved_s else {}
        return {"decode": self.waited_s, **moved, "compute": self.computed_s, "write": self.wrote_s}

    def to_dict(self, price_per_hour: float | None) -> dict[str, Any]:
        """The same as numbers, for events."""
        found = {
            "seconds": {name: round(seconds, 3) for name, seconds in self.parts.items()},
            "worker_hours": round(self.held_s / 3600, 5),
            "gpu_hours": round(self.gpu_s / 3600, 5),
            "slowest": {name: round(took, 3) for took, name in self.slowest},
            "retries": self.retries,
            "duplicates": self.duplicates,
        }
        if price_per_hour is not None:
            found["cost"] = round(self.held_s / 3600 * price_per_hour, 4)
        return found

    def lines(self, price_per_hour: float | None) -> list[str]:
        """In words, one thought a line; none where nothing was done. The price is of one worker for an hour."""
        if not self.shards or not self.busy_s:
            return []
        shares = ", ".join(f"{name} {100 * seconds / self.busy_s:.0f} %" for name, seconds in self.parts.items())
        held = f"{duration(self.held_s)} of workers"
        if self.held_s:
            held += f", {100 * min(1.0, self.busy_s / self.held_s):.0f} % of it in committed shards"
        if self.gpu_s:
            held += f", {self.gpu_s / 3600:.2f} GPU hours"
        if price_per_hour is not None:
            held += f", {self.held_s / 3600 * price_per_hour:.2f} at {price_per_hour:g} an hour"
        found = [f"time went to {shares}; {held}"]
        if self.shards > _SLOWEST:
            found.append("slowest shards " + ", ".join(f"{name} {duration(took)}" for took, name in self.slowest))
        if self.retries or self.duplicates:
            found.append(f"{self.retries} attempts repeated, {self.duplicates} late shards given to a second worker")
        return found
