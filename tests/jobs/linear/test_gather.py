"""What a page of the linear job reads of a run, and where it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from jobs.linear import gather
from pipeline.run import Run

LIGHT = ["key", "status"]


class Opened:
    """Shards of three images each that remember what was opened; image 4 has no answer."""

    def __init__(self, count: int) -> None:
        self.log: list[tuple[int, Sequence[str] | None]] = []
        self.count = count

    def complete(self) -> tuple[dict[int, int], dict[int, str]]:
        return {i: i for i in range(self.count)}, {}

    def open(self, receipt: int, columns: Sequence[str] | None = None) -> pa.Table:
        self.log.append((receipt, columns))
        numbers = range(3 * receipt, 3 * receipt + 3)
        states = ["failed" if n == 4 else "ok" for n in numbers]
        table = pa.table({"key": [f"{n:02d}" for n in numbers], "status": states, "votes": [[n] * 9 for n in numbers]})
        return table if columns is None else table.select(list(columns))


def examples(shards: Opened, count: int) -> list[tuple[Any, Any]]:
    listed = pa.table({"key": [f"{n:02d}" for n in range(3 * shards.count)]})
    run = SimpleNamespace(key_table=lambda split: SimpleNamespace(table=lambda: listed))
    return gather._examples(run, SimpleNamespace(shards=shards), count)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "keys", "shards"),
    [
        (2, ["00", "20"], [0, 6]),
        (3, ["00", "11", "20"], [0, 3, 6]),
        (1, ["00"], [0]),
    ],
)
def test_maps_are_read_of_the_shards_that_are_shown_only(count: int, keys: list[str], shards: list[int]) -> None:
    opened = Opened(7)
    found = examples(opened, count)
    assert [(row["key"], row["votes"]) for row, _ in found] == [(key, [int(key)] * 9) for key in keys]
    assert [truth["key"] for _, truth in found] == keys
    assert [receipt for receipt, columns in opened.log if columns is None] == shards
    assert [columns for _, columns in opened.log if columns is not None] == [LIGHT] * 7


def test_images_without_an_answer_are_no_examples() -> None:
    opened = Opened(2)
    assert [row["key"] for row, _ in examples(opened, 9)] == ["00", "01", "02", "03", "05"]


def test_another_second_network_is_another_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "gather", lambda run, described: None)
    monkeypatch.setattr(gather, "linear_page", lambda data: SimpleNamespace(bytes=lambda: b"page"))

    def where(*marks: str) -> str:
        steps = [{"name": f"summary_{i}", "fingerprint": mark * 16} for i, mark in enumerate(marks)]
        return gather.write_report(Run(str(tmp_path)), {"steps": steps})

    assert where("aaaa", "bbbb") == where("aaaa", "bbbb")
    assert len({where("aaaa", "bbbb"), where("aaaa", "cccc"), where("dddd", "bbbb")}) == 3
