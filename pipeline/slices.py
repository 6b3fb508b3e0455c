"""One slice through a stage at its fixed, padded shape; a row that fails is found and fails alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.decode import Prepared
from pipeline.redaction import redact_urls
from pipeline.shards import STATUSES
from pipeline.steps import Stage
from pipeline.torch_in_use import empty_cache, torch_in_use

Row = dict[str, Any]


class StageError(Exception):
    """A stage broke its contract (wrong number of rows, an unknown column): the method's fault, not a row's."""


class DeviceLostError(Exception):
    """The device answers nothing any more in this process: every later row would fail for no fault of its own."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device (or the CPU allocator) had no room: then half the micro-batch may pass."""
    words = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    torch = torch_in_use()
    kinds = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(w in str(error) for w in words)


def is_device_lost(error: BaseException) -> bool:
    """Whether a CUDA context is spoilt (an assertion or a bad address in a kernel): only a new process gets another."""
    return isinstance(error, RuntimeError) and not is_out_of_memory(error) and "CUDA error" in str(error)


def reason(error: BaseException) -> str:
    """An exception as one line for a row."""
    text = " ".join(str(error).split())
    return redact_urls(f"{type(error).__name__}: {text[:500]}")


def run_slice(
    stage: Stage, split: str, rows: Sequence[Row], prepared: Prepared, shape: int, offset: int = 0
) -> list[Row]:
    """Result rows for ``rows``, in order, each with key, status and error.

    ``rows`` take the places from ``offset`` on in a batch of ``shape``: a part of a slice keeps the places it has in
    the whole, so its numbers are the same whether it runs whole, halved in search of a killer, or row by row.

    Out-of-memory is raised to the caller, who halves the shape, and DeviceLostError, which ends the process. Any other
    exception repeats the slice row by row, each at its own place in the same padded shape, so that the innocent rows
    get the numbers they would have had anyway.
    """
    results: dict[int, Row] = {i: _failed(rows[i], why) for i, why in prepared.errors.items()}
    if prepared.good:
        try:
            found = _call(stage, split, rows, prepared, prepared.good, shape, offset)
        except Exception as error:  # noqa: BLE001 - whatever a row does to its stage is that row's result
            _raise_unless_a_rows(error)
            found = {}
            for position in prepared.good:
                found.update(_alone(stage, split, rows, prepared, position, shape, offset))
        results.update(found)
    return [results[i] for i in range(len(rows))]


def _raise_unless_a_rows(error: Exception) -> None:
    if is_device_lost(error):
        raise DeviceLostError(reason(error)) from error
    if is_out_of_memory(error) or isinstance(error, StageError):
        raise error


def _alone(
    stage: Stage, split: str, rows: Sequence[Row], prepared: Prepared, position: int, shape: int, offset: int
) -> dict[int, Row]:
    try:
        return _call(stage, split, rows, prepared, (position,), shape, offset)
    except Exception as error:  # noqa: BLE001
        _raise_unless_a_rows(error)
        return {position: _failed(rows[position], reason(error))}


def _call(
    stage: Stage, split: str, rows: Sequence[Row], prepared: Prepared, positions: Sequence[int], shape: int, offset: int
) -> dict[int, Row]:
    places = [offset + position for position in positions]
    valid = np.zeros(shape, dtype=bool)
    valid[places] = True
    at: list[Row | None] = [None] * shape
    for place, position in zip(places, positions, strict=True):
        at[place] = rows[position]
    keys = ["" if row is None else row["key"] for row in at]
    batch: dict[str, Any] = {"key": keys, "rows": at, "split": split, "valid": valid}
    chosen = [prepared.good.index(i) for i in positions]
    for name, array in prepared.arrays.items():
        padded = np.zeros((shape, *array.shape[1:]), dtype=array.dtype)
        padded[places] = array[chosen]
        batch[name] = padded
    returned = stage(batch)
    if len(returned) != len(positions):
        raise StageError(f"{type(stage).__name__} returned {len(returned)} rows for {len(positions)}")
    found = {}
    for position, row in zip(positions, returned, strict=True):
        status = row.get("status", "ok")
        if status not in STATUSES:
            raise StageError(f"{type(stage).__name__} returned status {status!r}; it is one of {', '.join(STATUSES)}")
        found[position] = {**row, "key": rows[position]["key"], "status": status, "error": row.get("error")}
    return found


def run_where_there_is_room(
    run: Callable[[int, int, int], list[Row]], rows: Sequence[Row], shape: int, notes: list[str]
) -> tuple[list[Row], int]:
    """Result rows of a slice, and the shape that had room for it: out-of-memory halves it, which ``notes`` tell.

    ``run(lo, hi, shape)`` gives those of ``rows[lo:hi]``, at most ``shape`` of them. A row for which there is no room
    alone fails alone.
    """
    found: list[Row] = []
    while len(found) < len(rows):
        lo = len(found)
        try:
            found += run(lo, min(lo + shape, len(rows)), shape)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if shape == 1:
                found.append(_failed(rows[lo], reason(error)))
            else:
                shape //= 2
                notes.append(f"out of memory: micro-batch halved to {shape}")
            empty_cache()
    return found, shape


def _failed(row: Row, why: str) -> Row:
    return {"key": row["key"], "status": "failed", "error": why}


def to_table(rows: Sequence[Row], schema: pa.Schema, where: str) -> pa.Table:
    """Result rows as an Arrow table of exactly ``schema``; what a failed row lacks is null.

    Raises StageError when a row has a column the schema lacks, or a value that does not fit its type.
    """
    known = set(schema.names)
    for row in rows:
        unknown = set(row) - known
        if unknown:
            raise StageError(f"{where} returned column(s) {sorted(unknown)} that its schema does not have")
    columns = []
    for field in schema:
        values = [_arrow_value(row.get(field.name)) for row in rows]
        try:
            columns.append(pa.array(values, type=field.type))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise StageError(f"{where}: column {field.name!r} does not hold {field.type}: {error}") from error
    return pa.table(columns, schema=schema)


def _arrow_value(value: Any) -> Any:
    torch = torch_in_use()
    if torch is not None and isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return np.ascontiguousarray(value).reshape(-1)
    if isinstance(value, np.generic):
        return value.item()
    return value


def ranges(lo: int, hi: int, step: int) -> list[tuple[int, int]]:
    """[lo, hi) in pieces of ``step``."""
    return [(start, min(start + step, hi)) for start in range(lo, hi, step)]


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Rows by status."""
    found = dict.fromkeys(STATUSES, 0)
    for row in rows:
        found[row["status"]] += 1
    return found
