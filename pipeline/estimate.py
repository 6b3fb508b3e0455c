"""What a step will take, from a measured micro-run: time, bytes, forward passes, money."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one worker did in a micro-run of a few slices.

    ``costs``: the method's own counts, where it gives them: forwards_per_row, networks_per_row, flops_per_row.
    """

    rows_per_s: float  # of one worker, decoding and computing overlapped
    decode_s: float  # per row, one thread
    compute_s: float  # per row
    bytes_per_row: float
    setup_s: float
    device: str
    threads: int
    costs: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A step on a number of workers of one kind."""

    rows: int
    shards: int
    workers: int
    hours: float
    worker_hours: float
    output_bytes: float
    cost: float | None  # in the currency of the configured price, None without one
    rows_per_s: float
    networks: float
    networks_per_s: float
    forwards: float  # whole forward passes' worth of operations
    flops: float


def estimate(
    measured: Measured, rows: int, shards: int, *, workers: int = 1, price_per_hour: float | None = None
) -> Estimate:
    """Scale a micro-run to a whole split. Workers work on whole shards, so the last wave counts in full."""
    workers = max(1, workers)
    busy = max(1, min(workers, shards))
    rows_per_shard = rows / max(1, shards)
    waves = -(-shards // busy)
    seconds = measured.setup_s + waves * rows_per_shard / measured.rows_per_s if rows else 0.0
    if shards > 20 * busy:  # many waves: workers do not wait for each other
        seconds = measured.setup_s + rows / (measured.rows_per_s * busy)
    hours = seconds / 3600
    networks = measured.costs.get("networks_per_row", 0.0)
    return Estimate(
        rows=rows,
        shards=shards,
        workers=busy,
        hours=hours,
        worker_hours=hours * busy,
        output_bytes=measured.bytes_per_row * rows,
        cost=None if price_per_hour is None else hours * busy * price_per_hour,
        rows_per_s=measured.rows_per_s * busy,
        networks=networks * rows,
        networks_per_s=networks * measured.rows_per_s * busy,
        forwards=measured.costs.get("forwards_per_row", 0.0) * rows,
        flops=measured.costs.get("flops_per_row", 0.0) * rows,
    )
