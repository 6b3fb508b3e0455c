"""What lies in a run folder: each step on each split, with all its settings side by side, found by its plan.

Status and verify both start here. Nothing is taken from memory of an earlier driver: the folder is the truth.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from pipeline import plan as plans
from pipeline import shards
from pipeline.errors import RaylensError
from pipeline.run import Run
from pipeline.shards import Receipt, Shards
from pipeline.storage import Folder

_NO_STEPS = {"keys", "events", "report", "compact"}
_UPSTREAM = "upstream."


@dataclasses.dataclass(frozen=True)
class Unit:
    """One planned folder: a measuring step on a split, or a reduction; one of many settings where those stand."""

    step: str
    kind: str  # measure, reduce; "" when run.json does not know the step
    setting: str  # fingerprint8 where the folder carries it, else ""
    split: str  # "" for a reduction
    folder: Folder
    plan: plans.Plan | None
    problem: str = ""  # why there is no plan

    @property
    def name(self) -> str:
        return "/".join(part for part in (self.step, self.setting, self.split) if part)

    @property
    def shards(self) -> Shards:
        return Shards(self.folder, self.plan.shards if self.plan else 0)


def units(run: Run, described: Mapping[str, Any]) -> list[Unit]:
    """Every planned folder: steps in the job's order, then those that run.json does not know."""
    steps = {str(step["name"]): step for step in described["steps"]}
    order = list(steps)
    learnt = {name for name, step in steps.items() if step.get("kind") == "train"}  # of another kind: see trainings.py
    here = [name for name in run.folder.folders() if name not in _NO_STEPS | learnt]
    found = []
    for name in sorted(here, key=lambda n: (order.index(n) if n in steps else len(order), n)):
        step = steps.get(name, {})
        found += _below(name, str(step.get("kind", "")), run.folder.child(name), ())
    return found


def beside_steps(run: Run, described: Mapping[str, Any]) -> list[str]:
    """Folders of a run that are no step's: what a job writes when its steps are done."""
    steps = {str(step["name"]) for step in described["steps"]}
    return [name for name in run.folder.folders() if name not in _NO_STEPS | steps]


def _below(step: str, kind: str, folder: Folder, path: tuple[str, ...]) -> list[Unit]:
    below = folder.folders()
    if "plan.json" in folder.list() or "receipts" in below:
        return [_unit(step, kind, folder, path)] if path else []
    if len(path) == 2:
        return []
    return [unit for name in below for unit in _below(step, kind, folder.child(name), (*path, name))]


def _unit(step: str, kind: str, folder: Folder, path: tuple[str, ...]) -> Unit:
    plan, problem = None, ""
    try:
        plan = plans.load(folder)
        if plan is None:
            problem = f"{folder.path('plan.json')}: is missing"
        elif plans.fingerprint(plan.fields) != plan.fingerprint:
            plan, problem = None, f"{folder.path('plan.json')}: its fields are not those of its fingerprint"
    except RaylensError as error:
        problem = f"{error.where}: {error.what}"
    # step/split, reduction/setting, step/setting/split
    if len(path) == 2:
        setting, split = path
    elif plan is not None:
        setting, split = ("", path[0]) if plan.split else (path[0], "")
    else:
        setting, split = (path[0], "") if kind == "reduce" else ("", path[0])
    return Unit(step, kind, setting, split, folder, plan, problem)


def stale(
    unit: Unit,
    everything: Sequence[Unit],
    receipts: Mapping[str, Mapping[int, Receipt]],
    learnt: Mapping[str, str] | None = None,
) -> bool:
    """Whether the rows this unit was made from are no longer there: its upstream was changed, or withdrawn in part.

    ``receipts`` are the complete shards of every unit by its name. A plan keeps the digest of its upstream; it is up to
    date when some setting of that step has it today, on all of its splits or on the chosen ones. ``learnt`` gives the
    digest that each training has today, "" where it is not finished.
    """
    if unit.plan is None:
        return False
    for field, digest in unit.plan.fields.items():
        step = field.removeprefix(_UPSTREAM)
        if step == field:
            continue
        now = {learnt[step]} if learnt and step in learnt else _digests(step, everything, receipts)
        if digest not in now:
            return True
    return False


def _digests(step: str, everything: Sequence[Unit], receipts: Mapping[str, Mapping[int, Receipt]]) -> set[str]:
    settings: dict[str, list[Unit]] = {}
    for unit in everything:
        if unit.step == step:
            settings.setdefault(unit.setting, []).append(unit)
    found = set()
    for group in settings.values():
        for size in range(1, len(group) + 1):
            for chosen in combinations(group, size):
                pairs = [(u.split, receipt) for u in chosen for receipt in receipts[u.name].values()]
                found.add(shards.digest(pairs))
    return found
