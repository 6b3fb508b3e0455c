"""The run folder: what it is, how its keys are frozen and read, and what run.json tells of a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import RaylensError, UsageError
from pipeline.run import Run
from pipeline.steps import Source


def table(count: int = 10, **metadata: str) -> pa.Table:
    keys = [f"{i:03d}" for i in range(count)]
    found = pa.table({"key": keys, "label": pa.array(range(count), pa.int32())})
    return found.replace_schema_metadata(metadata or None)


def source(listed: pa.Table | None = None, **description: Any) -> Source:
    return Source(description or {"kind": "list"}, lambda: table() if listed is None else listed)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


def test_opening_writes_nothing(run: Run) -> None:
    assert run.splits() == []
    assert not Path(run.url).exists()


@pytest.mark.parametrize(
    ("text", "error", "what"),
    [
        (None, UsageError, "is not a run folder"),
        (b"{", RaylensError, "run.json cannot be read"),
        (b"[]", RaylensError, "does not describe a run"),
        (b'{"steps": 3}', RaylensError, "does not describe a run"),
    ],
)
def test_what_is_no_run_is_told(run: Run, text: bytes | None, error: type[RaylensError], what: str) -> None:
    if text is not None:
        run.folder.write("run.json", text)
    with pytest.raises(error, match=what) as told:
        run.describe()
    assert told.type is error


def test_folders_of_steps_splits_and_settings(run: Run) -> None:
    assert run.step_folder("sweep", split="fit").url == f"{run.url}/sweep/fit"
    assert run.step_folder("solve", fingerprint="0123456789abcdef").url == f"{run.url}/solve/01234567"
    both = run.step_folder("localize", split="eval", fingerprint="0123456789abcdef")
    assert both.url == f"{run.url}/localize/01234567/eval"


def test_a_split_is_listed_once(run: Run) -> None:
    frozen = run.freeze_keys("fit", source())
    again = run.freeze_keys("fit", Source({"kind": "list"}, lambda: pytest.fail("listed twice")))
    assert again.digest == frozen.digest
    assert len(again) == 10
    assert again.table().column("key").to_pylist() == table().column("key").to_pylist()
    assert run.splits() == ["fit"]


def test_a_listing_that_died_before_its_commit_is_made_again(run: Run) -> None:
    run.freeze_keys("fit", source())
    run.keys.remove("fit.json")
    assert len(run.freeze_keys("fit", source(table(7)))) == 7


def test_a_source_described_otherwise_is_refused_with_the_fields(run: Run) -> None:
    run.freeze_keys("fit", source(root="a", limit=10))
    with pytest.raises(UsageError, match=r"limit: 10 -> 20\n.*\n?") as told:
        run.freeze_keys("fit", source(root="a", limit=20))
    assert "split 'fit' was listed from another source" in str(told.value)
    assert "root" not in told.value.what


def test_a_source_without_an_image_is_refused_and_freezes_nothing(run: Run) -> None:
    with pytest.raises(UsageError, match="no image was found"):
        run.freeze_keys("fit", source(table(0)))
    assert run.splits() == []


def test_an_unknown_split_is_told(run: Run) -> None:
    with pytest.raises(UsageError, match="split 'tune' is not part of this run"):
        len(run.key_table("tune"))


def test_rows_are_read_across_row_groups(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.key_table._ROW_GROUP", 4)
    keys = run.freeze_keys("fit", source())
    whole = table().to_pylist()
    for lo, hi in [(0, 10), (0, 4), (3, 5), (4, 8), (9, 10), (5, 5), (2, 9), (0, 1)]:
        assert keys.rows(lo, hi) == whole[lo:hi]
        assert keys.names(lo, hi) == [row["key"] for row in whole[lo:hi]]


def test_class_names_come_with_the_keys(run: Run) -> None:
    assert run.freeze_keys("named", source(table(3, classes='["ant", "bee"]'))).classes == ["ant", "bee"]
    assert run.freeze_keys("unnamed", source(table(3))).classes == []


def test_run_json_tells_steps_edges_and_settings(run: Run) -> None:
    from pipeline.steps import Job, Measure, Reduce, Train

    steps = (
        Train("learn", trainer=None, splits=("fit",)),  # type: ignore[arg-type]
        Measure("score", stage=None, splits=("fit",), trained={"network": "learn"}),  # type: ignore[arg-type]
        Reduce("total", reduction=None, of="score", label="today"),  # type: ignore[arg-type]
        Measure("sweep", stage=None, splits=("fit",)),  # type: ignore[arg-type]
    )
    run.write_description(Job("toy", {"a": 1}, {}, steps), {"python": "3"}, {"score": "f" * 64})
    told = run.describe()
    assert (told["job"], told["config"], told["provenance"]) == ("toy", {"a": 1}, {"python": "3"})
    found = [(s["name"], s["kind"], s["upstream"], s["keyed"], s["fingerprint"][:1], s["label"]) for s in told["steps"]]
    assert found == [
        ("learn", "train", [], False, "", ""),
        ("score", "measure", ["learn"], True, "f", ""),
        ("total", "reduce", ["score"], True, "", "today"),
        ("sweep", "measure", [], False, "", ""),
    ]
    json.dumps(told)


def test_addresses_that_differ_in_a_version_are_different_sources(tmp_path: Path) -> None:
    """What signs an address is not written down and may be new each time; all else is compared."""

    def source(query: str) -> Source:
        return Source({"kind": "list", "path": f"https://h/list.csv?{query}"}, lambda: pa.table({"key": ["a"]}))

    run = Run(str(tmp_path / "run"))
    run.freeze_keys("fit", source("v=1&sig=old"))
    run.freeze_keys("fit", source("v=1&sig=new"))
    with pytest.raises(UsageError, match="listed from another source"):
        run.freeze_keys("fit", source("v=2&sig=old"))
