"""The frozen key table as workers read it: by ranges, from the thread that computes and the one that prefetches."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.key_table import KeyTable
from pipeline.run import Run
from pipeline.steps import Source

KEYS = 40_000  # ten row groups


@pytest.fixture
def table(tmp_path: Path) -> KeyTable:
    names = [f"{i:06d}" for i in range(KEYS)]
    source = Source({"keys": KEYS}, lambda: pa.table({"key": names, "label": pa.array(range(KEYS), pa.int32())}))
    return Run(str(tmp_path)).freeze_keys("all", source)


@pytest.mark.parametrize(("lo", "hi"), [(0, 1), (4095, 4097), (100, 100), (0, KEYS), (KEYS - 1, KEYS)])
def test_a_range_gives_exactly_its_rows_wherever_row_groups_end(table: KeyTable, lo: int, hi: int) -> None:
    assert table.names(lo, hi) == [f"{i:06d}" for i in range(lo, hi)]
    assert [row["label"] for row in table.rows(lo, hi)] == list(range(lo, hi))


class OneAtATime:
    """The real Parquet file, which is not made for two threads at once, with time for a second one to come in."""

    def __init__(self, file: Any) -> None:
        self.file, self.busy, self.clashes = file, False, 0
        self.num_row_groups = file.num_row_groups

    def read_row_groups(self, groups: list[int]) -> pa.Table:
        self.clashes += self.busy
        self.busy = True
        time.sleep(0.002)
        table = self.file.read_row_groups(groups) if not self.clashes else None
        self.busy = False
        return table


def test_threads_that_read_different_shards_take_turns_and_get_their_own_rows(table: KeyTable) -> None:
    table.__dict__["_file"] = file = OneAtATime(table._file)

    def read(number: int) -> bool:
        lo = (number * 7919) % (KEYS - 50)
        return file.clashes == 0 and table.names(lo, lo + 50) == [f"{i:06d}" for i in range(lo, lo + 50)]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(100)))
    assert file.clashes == 0
