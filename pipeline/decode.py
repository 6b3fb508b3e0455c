"""Rows of a key table -> the arrays a stage asked for, slice by slice and ahead of the device."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from pipeline import images
from pipeline.redaction import redact_urls
from pipeline.steps import Stage
from pipeline.storage import UnreachableError

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A slice ready for the device: arrays stacked over the rows that could be prepared, and why others could not."""

    arrays: Mapping[str, np.ndarray]  # [good rows, ...]
    good: tuple[int, ...]  # their positions in the slice
    errors: Mapping[int, str]  # position -> reason

    @property
    def bytes(self) -> int:
        return sum(a.nbytes for a in self.arrays.values())


def prepare_row(stage: Stage, row: Row, limits: images.Limits) -> dict[str, np.ndarray] | str:
    """One row's arrays, or the reason there are none. An unreadable image is a value here, never an exception."""
    try:
        if stage.wants == "records":
            return stage.prepare(None, row)
        data = images.read_bytes(row["uri"], limits)
        if isinstance(data, images.DecodeError):
            if data.kind == "unreachable":
                raise UnreachableError(data.reason, where=str(row["uri"]))
            return data.reason
        if stage.wants == "bytes":
            return stage.prepare(data, row)
        image = images.decode(data, limits, draft=getattr(stage, "draft", None))
        if isinstance(image, images.DecodeError):
            return image.reason
        return stage.prepare(image.pixels, {**row, "width": image.width, "height": image.height})
    except UnreachableError:
        raise  # the storage is away, which says nothing about the row: the shard is tried again
    except Exception as error:  # noqa: BLE001 - whatever a row does to its decoder is that row's result
        return redact_urls(f"{type(error).__name__}: {error}")


def stack(results: Sequence[dict[str, np.ndarray] | str]) -> Prepared:
    """Join rows into a slice. A row whose shapes differ from the first good one's is an error of that row."""
    arrays: dict[str, list[np.ndarray]] = {}
    good: list[int] = []
    errors: dict[int, str] = {}
    shapes: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] | None = None
    for position, result in enumerate(results):
        if isinstance(result, str):
            errors[position] = result
            continue
        found = {name: (np.asarray(a).shape, np.asarray(a).dtype) for name, a in result.items()}
        if shapes is None:
            shapes = found
        if found != shapes:
            errors[position] = f"prepared arrays have other shapes than their slice's: {found} instead of {shapes}"
            continue
        good.append(position)
        for name, array in result.items():
            arrays.setdefault(name, []).append(np.asarray(array))
    return Prepared({name: np.stack(parts) for name, parts in arrays.items()}, tuple(good), errors)


def prepare_slice(stage: Stage, rows: Sequence[Row], limits: images.Limits) -> Prepared:
    """A whole slice in this thread: what a decode task on another machine runs."""
    return stack([prepare_row(stage, row, limits) for row in rows])


def prepare_what_is_reached(
    stage: Stage, rows: Sequence[Row], limits: images.Limits, pool: ThreadPoolExecutor
) -> tuple[Prepared, int]:
    """A slice whose unreachable images are errors of their rows, and how many of its rows were reached."""
    futures = [pool.submit(prepare_row, stage, row, limits) for row in rows]  # a dead host answers after half a minute
    results: list[dict[str, np.ndarray] | str] = []
    reached = len(rows)
    for future in futures:
        try:
            results.append(future.result())
        except UnreachableError as error:
            results.append(f"cannot be reached: {error.what}")
            reached -= 1
    return stack(results), reached


class Feeder(Protocol):
    """Prepared slices in the order asked for."""

    def __iter__(self) -> Iterator[Prepared]: ...

    def close(self) -> None: ...


class ThreadFeeder:
    """Decodes in a thread pool beside the device, a bounded number of slices ahead."""

    def __init__(
        self, pool: ThreadPoolExecutor, stage: Stage, slices: Sequence[Sequence[Row]], limits: images.Limits, ahead: int
    ) -> None:
        self._pool, self._stage, self._limits, self._ahead = pool, stage, limits, max(1, ahead)
        self._todo = collections.deque(slices)
        self._ready: collections.deque[list[Future[dict[str, np.ndarray] | str]]] = collections.deque()
        self._fill()

    def _fill(self) -> None:
        while self._todo and len(self._ready) < self._ahead:
            rows = self._todo.popleft()
            self._ready.append([self._pool.submit(prepare_row, self._stage, r, self._limits) for r in rows])

    def __iter__(self) -> Iterator[Prepared]:
        while self._ready:
            futures = self._ready.popleft()
            self._fill()
            yield stack([future.result() for future in futures])

    def close(self) -> None:
        """Forget what was asked for and not yet used."""
        self._todo.clear()
        for futures in self._ready:
            for future in futures:
                future.cancel()
        self._ready.clear()


class ReachedFeeder:
    """Slices without the images that cannot be reached, none ahead; UnreachableError in the end where that is all."""

    def __init__(
        self, pool: ThreadPoolExecutor, stage: Stage, slices: Sequence[Sequence[Row]], limits: images.Limits
    ) -> None:
        self._pool, self._stage, self._slices, self._limits = pool, stage, slices, limits

    def __iter__(self) -> Iterator[Prepared]:
        total = 0
        for rows in self._slices:
            prepared, reached = prepare_what_is_reached(self._stage, rows, self._limits, self._pool)
            total += reached
            yield prepared
        if not total:
            raise UnreachableError(
                "no image that was looked at can be reached",
                where=str(self._slices[0][0].get("uri", "")),
                cure="see whether the address answers from the nodes, then run again",
            )

    def close(self) -> None: ...
