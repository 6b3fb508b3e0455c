"""What lies in a run's training folders: how far each is, what is damaged, and what was learnt."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from pipeline import checkpoints
from pipeline.checkpoints import CommittedCheckpoints, DamagedError
from pipeline.errors import RaylensError
from pipeline.learnt import Trained, read_trained
from pipeline.run import Run
from pipeline.storage import Folder


@dataclasses.dataclass(frozen=True)
class Training:
    """One training folder as it is."""

    name: str
    folder: Folder
    fields: Mapping[str, Any]  # what its fingerprint is made of
    checkpoints: tuple[int, ...]  # committed epochs, newest first
    digest: str  # of the result, "" while there is none
    problem: str = ""  # why the result or training.json is not to be believed

    @property
    def complete(self) -> bool:
        return bool(self.digest)

    @property
    def reached(self) -> int:
        """The epoch of the newest checkpoint."""
        return self.checkpoints[0] if self.checkpoints else 0

    @property
    def places(self) -> list[tuple[str, Folder]]:
        """Everything that is committed by a receipt, by a name for messages."""
        under = self.folder.child("checkpoints")
        found = [(f"{self.name} checkpoint {name}", under.child(name)) for name in under.folders() if name.isdigit()]
        return [*found, (f"{self.name} result", self.folder.child("result"))]


def epochs_wanted(fields: Mapping[str, Any]) -> int | None:
    """The number that the trainer's config calls so, of a training's fingerprint fields; None where it has none."""
    return _number("epochs", fields)


def batch_wanted(fields: Mapping[str, Any]) -> int | None:
    """What the trainer's config calls ``batch``: the rows of one step, over all workers together."""
    return _number("batch", fields)


def _number(called: str, fields: Mapping[str, Any]) -> int | None:
    for name, value in fields.items():
        if name.startswith("config.") and name.rpartition(".")[2] == called and isinstance(value, int):
            return value
    return None


def training(name: str, folder: Folder) -> Training:
    """The state of one folder, from one listing each; hashes are ``verify``'s business."""
    fields, digest, problem = {}, "", ""
    try:
        fields = json.loads(folder.read("training.json"))
    except FileNotFoundError:
        pass
    except ValueError as error:
        problem = f"training.json cannot be read ({error})"
    try:
        digest = checkpoints.digest_of(folder.child("result")) or ""
    except DamagedError as error:
        problem = f"{error.where}: {error.what}"
    epochs = CommittedCheckpoints(folder.child("checkpoints")).epochs()
    return Training(name, folder, fields if isinstance(fields, dict) else {}, tuple(epochs), digest, problem)


def trainings(run: Run, described: Mapping[str, Any]) -> list[Training]:
    """Every training begun: in the job's order, then those that run.json does not know."""
    known = [str(step["name"]) for step in described["steps"] if step.get("kind") == "train"]
    others = [name for name in run.folder.folders() if name not in {str(s["name"]) for s in described["steps"]}]
    found = [training(name, run.folder.child(name)) for name in [*known, *others]]
    return [one for one in found if one.fields or one.problem or one.checkpoints or one.digest]


def refused(found: Training) -> tuple[str, ...]:
    """Checkpoints that are seen at a glance to be incomplete, newest first, with the reason."""
    damaged = []
    for epoch in found.checkpoints:
        try:
            checkpoints.digest_of(found.folder.child("checkpoints", f"{epoch:04d}"))
        except DamagedError as error:
            damaged.append(f"checkpoint {epoch} is refused: {error.what} ({error.where})")
    return tuple(damaged)


def finished(folder: Folder, digest: str) -> Trained:
    """What was learnt, verified, for a step that was planned on this very result."""
    with contextlib.suppress(FileNotFoundError):
        found = read_trained(folder)
        if found is not None and found.digest == digest:
            return found
    raise RaylensError(
        "the training's result was changed while steps that stand on it ran", where=folder.url, cure="run again"
    )
