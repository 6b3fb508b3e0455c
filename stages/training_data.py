"""The rows a training reads: by number, in memory or decoded on the way, without those that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

Batch = dict[str, Tensor]


class RowError(ValueError):
    """A row that cannot be read. ``key`` names it, ``reason`` says why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"row {key!r} cannot be read: {reason}; mend it, or leave it out of the training's rows")
        self.key, self.reason = key, reason

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str]]:
        return type(self), (self.key, self.reason)


class Data(Protocol):
    """Rows that can be asked for by number."""

    def __len__(self) -> int: ...

    def keys(self, rows: np.ndarray) -> Sequence[str]:
        """A stable name per row: what augmentation draws for a row depends on it."""
        ...

    def batch(self, rows: np.ndarray) -> Batch:
        """The rows as tensors with a leading batch axis, on the CPU; RowError where one cannot be read.

        Called from a background thread, one call at a time, unless the data has an attribute ``in_memory`` that is
        true. It draws nothing at random.
        """
        ...


def gains_from_ahead(data: Data, on_gpu: bool) -> bool:
    """Is there anything to gain from making batches ahead?

    Rows in memory are there at once; for the CPU a second thread that gathers them would only take the cores from the
    training step. For a GPU they are gathered and pinned while it works.
    """
    return on_gpu or not getattr(data, "in_memory", False)


class TensorData:
    """Rows held in memory: every tensor has the rows on its first axis."""

    in_memory = True

    def __init__(self, keys: Sequence[str], **tensors: Tensor) -> None:
        wrong = {name: len(tensor) for name, tensor in tensors.items() if len(tensor) != len(keys)}
        if wrong:
            raise ValueError(f"{len(keys)} keys, but {wrong} rows: give each tensor one row per key")
        self._keys, self.tensors = list(keys), tensors

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self, rows: np.ndarray) -> list[str]:
        return [self._keys[row] for row in rows.tolist()]

    def batch(self, rows: np.ndarray) -> Batch:
        at = torch.from_numpy(np.ascontiguousarray(rows))
        return {name: tensor[at] for name, tensor in self.tensors.items()}


class Subset:
    """Some rows of other data, in the order given."""

    def __init__(self, data: Data, rows: np.ndarray) -> None:
        self.data, self.rows = data, np.asarray(rows, dtype=np.int64)
        self.in_memory = bool(getattr(data, "in_memory", False))

    def __len__(self) -> int:
        return len(self.rows)

    def keys(self, rows: np.ndarray) -> Sequence[str]:
        return self.data.keys(self.rows[rows])

    def batch(self, rows: np.ndarray) -> Batch:
        return self.data.batch(self.rows[rows])


def without(data: Data, keys: Container[str]) -> Data:
    """The data without the rows of these keys; itself where it has none of them."""
    names = data.keys(np.arange(len(data)))
    rows = np.array([row for row, key in enumerate(names) if key not in keys], dtype=np.int64)
    return data if len(rows) == len(data) else Subset(data, rows)


def slices(rows: int, size: int) -> list[np.ndarray]:
    """The numbers of so many rows, in order, at most ``size`` together."""
    return [np.arange(start, min(start + size, rows)) for start in range(0, rows, size)]


def screen(data: Data, batch: int = 64) -> tuple[np.ndarray, dict[str, str]]:
    """Reads every row once: (numbers of the rows that can be read, {key: reason} of the others).

    A training that is to go on without its unreadable rows must know them before it starts: the order of an epoch
    depends on how many rows there are.
    """
    good: list[int] = []
    bad: dict[str, str] = {}
    for start in range(0, len(data), batch):
        rows = np.arange(start, min(start + batch, len(data)))
        try:
            data.batch(rows)
            good += rows.tolist()
        except RowError:
            for row in rows.tolist():
                try:
                    data.batch(np.array([row]))
                    good.append(row)
                except RowError as error:
                    bad[error.key] = error.reason
    return np.array(good, dtype=np.int64), bad


def readable(
    data: Mapping[str, Data],
    known: Mapping[str, Mapping[str, str]] | None,
    *,
    skip: bool,
    world: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Data], dict[str, dict[str, str]]]:
    """Splits without the rows that cannot be read, and {split: {key: reason}} of what was left out.

    Args:
        known: the rows that cannot be read, where that is known already.
        skip: read all rows to find out, where it is not; without it nothing else is left out.
        say: hears of each split that lost rows.

    Raises:
        ValueError: nothing is left of a split; or several workers (``world``) would each have to find out.
    """
    left_out: dict[str, dict[str, str]] = {split: dict((known or {}).get(split, {})) for split in data}
    if skip and known is None:
        if world > 1:
            raise ValueError("several workers leave out the same rows only if they are told which: give unreadable")
        left_out = {split: screen(rows)[1] for split, rows in data.items()}
    found: dict[str, Data] = {}
    for split, rows in data.items():
        bad = left_out[split]
        if bad:
            say(f"{len(bad)} of {len(rows)} images of {split} cannot be read: left out, first {next(iter(bad))}")
        found[split] = without(rows, bad)
        if not len(found[split]):  # a mean over nothing would pass for a loss of 0, the best of all
            first = next(
                (f"all {len(bad)} are left out, first {key}: {why}" for key, why in bad.items()), "it is empty"
            )
            raise ValueError(f"{split} has no image that can be read: {first}")
    return found, left_out
