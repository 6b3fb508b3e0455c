"""Frozen key tables: which rows a split has, in an order that never changes."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RaylensError, UsageError
from pipeline.storage import Folder

_ROW_GROUP = 4096  # rows a worker reads at once: the largest shard


class KeyTable:
    """A frozen key table, read by ranges of rows. Safe from any thread: a shard is run while the next is prefetched."""

    def __init__(self, folder: Folder, split: str) -> None:
        self.folder, self.split = folder, split
        self._lock = threading.Lock()
        self._groups: tuple[tuple[int, int], pa.Table] = ((-1, -1), None)

    @cached_property
    def _frozen(self) -> dict[str, Any]:
        try:
            return frozen_of(self.folder, self.split)
        except FileNotFoundError as error:
            raise UsageError(f"split '{self.split}' is not part of this run", where=self.folder.url) from error

    @property
    def digest(self) -> str:
        return str(self._frozen["digest"])

    def __len__(self) -> int:
        return int(self._frozen["rows"])

    @cached_property
    def _file(self) -> pq.ParquetFile:
        data = self.folder.read(f"{self.split}.parquet")
        with self._readable():
            return pq.ParquetFile(pa.BufferReader(data))

    def table(self) -> pa.Table:
        """All rows."""
        file = self._file
        with self._readable():
            return file.read()

    @property
    def classes(self) -> list[str]:
        """Class names by index; empty where the source has none."""
        file = self._file
        with self._readable():
            return list(json.loads((file.schema_arrow.metadata or {}).get(b"classes", b"[]")))

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """What Arrow and JSON say of a damaged file, in words of ours."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, TypeError, IndexError) as error:
            raise _damaged(self.folder.path(f"{self.split}.parquet"), error) from error

    def rows(self, lo: int, hi: int) -> list[dict[str, Any]]:
        """Rows [lo, hi) as dicts, from the row groups that hold them."""
        rows: list[dict[str, Any]] = self._slice(lo, hi).to_pylist()
        return rows

    def names(self, lo: int, hi: int) -> list[str]:
        """The keys of rows [lo, hi)."""
        return list(self._slice(lo, hi).column("key").to_pylist())

    def _slice(self, lo: int, hi: int) -> pa.Table:
        with self._lock:
            first, last = lo // _ROW_GROUP, min(-(-hi // _ROW_GROUP), self._file.num_row_groups)
            if self._groups[0] != (first, last):  # a worker asks for the slices of one shard after another
                file = self._file
                with self._readable():
                    self._groups = ((first, last), file.read_row_groups(list(range(first, last))))
            return self._groups[1].slice(lo - first * _ROW_GROUP, hi - lo)


def in_groups(table: pa.Table) -> bytes:
    """A key table as the Parquet file that ``KeyTable`` reads."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP)
    return sink.getvalue()


def frozen_of(keys: Folder, split: str) -> dict[str, Any]:
    """What is known of a frozen key table beside its rows; FileNotFoundError where there is none."""
    name = f"{split}.json"
    try:
        found = json.loads(keys.read(name))
        if not isinstance(found["source"], dict) or not isinstance(found["rows"], int) or found["rows"] < 1:
            raise ValueError("the source is no mapping, or there are no rows")
        return {**found, "digest": str(found["digest"])}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(keys.path(name), error) from error


def _damaged(where: str, error: Exception) -> RaylensError:
    text = (str(error).splitlines() or [""])[0]
    return RaylensError(
        f"the frozen list of keys cannot be read ({type(error).__name__}: {text})",
        where=where,
        cure="restore the file, or start a new run folder",
    )
