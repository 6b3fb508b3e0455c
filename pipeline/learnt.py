"""What a training leaves in its folder: whose settings it is of, and what was learnt, committed like a shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.checkpoints import RECEIPT, CommittedCheckpoints, commit, read_committed
from pipeline.errors import RaylensError, UsageError, cure_of_change
from pipeline.storage import Folder


@dataclass(frozen=True)
class Learnt:
    """What a training returns: files to keep (weights) and JSON-able facts (history, metrics).

    Both are in the digest that rows made with the network stand on, so no time or place belongs in them.
    """

    files: dict[str, bytes]
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A finished training, read back from its folder; ``digest`` names its contents for what is built on it."""

    files: dict[str, bytes]
    facts: dict[str, Any]
    digest: str


def refuse_other(folder: Folder, fingerprint: Mapping[str, Any]) -> None:
    """UsageError, naming the fields, when this folder holds something that was trained with other settings."""
    try:
        then = json.loads(folder.read("training.json"))
    except FileNotFoundError:
        return
    except ValueError as error:
        raise RaylensError(
            f"cannot be read ({error})", where=folder.path("training.json"), cure="restore it, or remove this folder"
        ) from error
    now = json.loads(json.dumps(fingerprint))
    changed = [f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in {**then, **now} if then.get(k) != now.get(k)]
    if changed and (
        CommittedCheckpoints(folder.child("checkpoints")).newest() or folder.child("result").exists(RECEIPT)
    ):
        raise UsageError(
            "this training was begun with other settings: " + "; ".join(changed),
            where=folder.url,
            cure=cure_of_change(then, now, "train into another run folder"),
        )


def claim(folder: Folder, fingerprint: Mapping[str, Any]) -> None:
    """Say whose the folder is. UsageError when it holds what was trained with other settings."""
    text = json.dumps(fingerprint, indent=1, sort_keys=True).encode()
    if not folder.create("training.json", text):
        refuse_other(folder, fingerprint)
        folder.write("training.json", text)  # the same, or of a training that got nowhere


def keep(folder: Folder, learnt: Learnt) -> None:
    """Commit what was learnt, for ``read_trained``."""
    commit(folder, {**learnt.files, "facts.json": json.dumps(learnt.facts, sort_keys=True).encode()})


def read_trained(folder: Folder) -> Trained | None:
    """The finished training of this folder, verified; None where it is not finished.

    Raises:
        DamagedError: a file of the result is missing or not what its receipt says.
    """
    found = read_committed(folder.child("result"))
    if found is None:
        return None
    facts = json.loads(found.files.pop("facts.json"))
    return Trained(found.files, facts, found.digest)
