"""What the asking job's page tells of an evaluation, from the shards of its reductions."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

from jobs.asking import evaluate as steps
from jobs.asking.config import TRAIN
from jobs.asking.report_evaluate import Evaluated
from pipeline.checkpoints import DamagedError, read_one
from pipeline.run import Run
from pipeline.units import Unit

_NAMES = {
    TRAIN: "asks, noise on answers",
    steps.EXACT: "asks, no noise",
    steps.RANDOM: "told at random points",
    steps.NONE: "told nothing",
}
_QUIET = "asks, learn.noise 0"


def evaluated(
    run: Run, steps_of_run: Container[str], held: Mapping[str, Unit], noisy: bool, notes: list[str]
) -> Evaluated:
    """What there is of the run as it is now; a training that cannot be read is told in ``notes``."""
    networks: dict[str, Mapping[str, Any]] = {}
    for name, shown in ((name, shown) for name, shown in _NAMES.items() if name in steps_of_run):
        try:
            told = read_one(run.step_folder(name).child("result"), "facts.json")
        except DamagedError as error:
            notes.append(f"The training {name} is damaged: {error}")
            continue
        if told is not None:
            networks[_QUIET if name == TRAIN and not noisy else shown] = json.loads(told)
    order = held.get(steps.ORDER)
    limit = 1.0 if order is None or order.plan is None else float(order.plan.fields["config.limit"])
    rows = {name: _rows(held.get(name)) for name in (steps.TABLE, steps.ORDER, steps.CLASSES)}
    return Evaluated(rows[steps.TABLE], rows[steps.ORDER], limit, rows[steps.CLASSES], noisy, networks)


def _rows(unit: Unit | None) -> list[dict[str, Any]]:
    return [] if unit is None else [row for table in unit.shards.tables() for row in table.to_pylist()]
