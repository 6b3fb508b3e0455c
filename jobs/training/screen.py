"""Which images a training leaves out because they cannot be read: found once, the same for all its workers and starts.

How an epoch is ordered depends on how many rows there are, so workers that disagreed would wait for each other for
ever, and a training that went on with other rows would be another one. Rank 0 reads each image once and commits what
it found beside the checkpoints; the others, and every later start, read that.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping

import numpy as np

from pipeline.errors import RaylensError
from pipeline.storage import Folder
from pipeline.train import Worker
from stages.training_data import Data, Subset, screen

Unreadable = dict[str, dict[str, str]]  # split -> key -> reason

_PART = 1024  # images between two looks at the clock
_TOLD_S = 30.0
_POLL_S = 0.5
_PATIENCE_S = 6 * 3600.0  # what rank 0 may take; where it dies, the training is torn down long before


def unreadable(worker: Worker, data: Mapping[str, Data], patience: float = _PATIENCE_S) -> Unreadable:
    """The keys of ``data`` that cannot be read, with the reasons.

    Raises:
        RaylensError: rank 0 did not commit its list within ``patience`` seconds.
        UnreachableError: the storage is away.
    """
    folder = _training(worker.checkpoints.folder)
    name = f"unreadable-{_mark(worker)}.json"
    if worker.rank == 0 and not folder.exists(name):
        found = {split: _screened(split, rows, worker.log) for split, rows in data.items()}
        folder.create(name, json.dumps(found, indent=1, sort_keys=True).encode())
    until = time.monotonic() + patience
    while not folder.exists(name):
        if time.monotonic() > until:
            raise RaylensError(
                f"the first worker did not say within {patience:g} s which images can be read",
                where=folder.path(name),
                cure="look at its log; run again to go on",
            )
        time.sleep(_POLL_S)
    return dict(json.loads(folder.read(name)))


def _screened(split: str, data: Data, say: Callable[[str], None]) -> dict[str, str]:
    total, told = len(data), time.monotonic()
    say(f"reading the {total:,} images of {split} once: those that cannot be read are left out")
    bad: dict[str, str] = {}
    for start in range(0, total, _PART):
        rows = np.arange(start, min(start + _PART, total))
        bad |= screen(Subset(data, rows))[1]
        if time.monotonic() - told > _TOLD_S:
            told = time.monotonic()
            say(f"{start + len(rows):,} of {total:,} images of {split} read, {len(bad):,} cannot be")
    return bad


def _mark(worker: Worker) -> str:
    """Of the keys and of what decides which images are read: a folder may be given to other settings before an epoch
    is done in it."""
    keys = {split: keys.digest for split, keys in worker.keys.items()}
    text = json.dumps([keys, worker.limits.model_dump(mode="json")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _training(checkpoints: Folder) -> Folder:
    return Folder(checkpoints.url.rpartition("/")[0])
