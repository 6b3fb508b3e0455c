"""How the rows of a measuring step ended: what every page tells of its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.status import failed_rows
from pipeline.units import Unit

_FAILURES = 20  # told with their reasons


@dataclass(frozen=True)
class StepTotals:
    """One step on one split: rows of the plan by how they ended, and the first that failed as (key, reason)."""

    step: str
    split: str
    rows: int
    ok: int
    filtered: int = 0
    failed: int = 0
    seconds: float | None = None
    failures: Sequence[tuple[str, str]] = ()


def step_totals(unit: Unit) -> StepTotals:
    """From the receipts of a step that has a plan; its tables are opened for the reasons of failures only."""
    assert unit.plan is not None
    receipts = unit.shards.complete()[0]
    counts = {name: sum(r.rows.get(name, 0) for r in receipts.values()) for name in ("ok", "filtered", "failed")}
    failures = [(row.key, row.error) for row in failed_rows(unit, dict(receipts), _FAILURES)]
    seconds = sum(r.seconds for r in receipts.values())
    return StepTotals(unit.step, unit.split, unit.plan.keys, **counts, seconds=seconds, failures=failures)
