"""Large files made of shards: the same rows in the same order, each byte vouched for, made again when shards change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import plan as plans
from pipeline.compact import compact
from pipeline.errors import RaylensError
from pipeline.estimate import Measured
from pipeline.lock import RunLock
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.steps import Source
from pipeline.storage import Folder
from pipeline.verify import verify

SHARDS = 6


def rows(shard: int, scale: float = 1.0) -> pa.Table:
    keys = [f"{i:03d}.jpg" for i in range(shard * 10, shard * 10 + 10)]
    values = [
        np.random.default_rng(i).random(100).astype(np.float32) * scale for i in range(shard * 10, shard * 10 + 10)
    ]
    columns = {"key": keys, "status": ["ok"] * 10, "error": pa.array([None] * 10, pa.string())}
    return pa.table({**columns, "vector": pa.array(values, pa.list_(pa.float32()))})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = Run(str(tmp_path / "run"))
    made.freeze_keys("all", Source({}, lambda: pa.table({"key": [f"{i:03d}.jpg" for i in range(10 * SHARDS)]})))
    fields = {"version": 1}
    measured = Measured(1, 1, 1, 1, 1, "cpu", 1)
    plan = plans.Plan("sweep", "all", plans.fingerprint(fields), fields, 10 * SHARDS, 10, 5, measured)
    plans.freeze(made.step_folder("sweep", split="all"), plan)
    for shard in range(SHARDS):
        shards(made).commit(shard, rows(shard))
    steps = [{"name": "sweep", "kind": "measure", "upstream": [], "splits": ["all"], "keyed": False}]
    made.folder.write("run.json", json.dumps({"job": "toy", "config": {}, "provenance": {}, "steps": steps}).encode())
    return made


def shards(run: Run) -> Shards:
    return Shards(run.step_folder("sweep", split="all"), SHARDS)


def test_rows_are_those_of_the_shards_in_their_order(run: Run) -> None:
    size = shards(run).receipt(0).files[0].bytes
    (found,) = compact(run.url, target_bytes=int(2.5 * size))
    assert (found.name, found.shards, found.files, found.rows, found.made) == ("sweep/all", SHARDS, 3, 60, True)
    folder = Path(run.url) / "compact/sweep/all"
    described = json.loads((folder / "manifest.json").read_text())
    files = [folder / file["name"] for file in described["files"]]
    assert pa.concat_tables(map(pq.read_table, files)).equals(pa.concat_tables(rows(i) for i in range(SHARDS)))
    assert [pq.ParquetFile(file).num_row_groups for file in files] == [2, 2, 2]
    assert described["rows"] == {"ok": 60, "filtered": 0, "failed": 0}
    assert len(described["sources"]) == SHARDS
    assert sorted(f.name for f in folder.iterdir()) == sorted([*(f.name for f in files), "manifest.json"])


def test_again_it_is_there_and_a_changed_shard_makes_it_anew(run: Run) -> None:
    compact(run.url)
    folder = Path(run.url) / "compact/sweep/all"
    (before,) = folder.glob("rows-*")
    assert not compact(run.url)[0].made
    shards(run).withdraw(3)
    with pytest.raises(RaylensError, match="no measuring step is complete"):
        compact(run.url)
    shards(run).commit(3, rows(3, scale=2.0))
    report = verify(run.url)
    assert [p.what for p in report.problems] == [
        "it was made of other shards than there are now: run 'raylens compact RUN' again"
    ]
    assert compact(run.url)[0].made
    (after,) = folder.glob("rows-*")
    assert after.name != before.name
    assert pq.read_table(after).slice(30, 10).equals(rows(3, scale=2.0))


def test_verify_reads_the_large_files_too(run: Run) -> None:
    compact(run.url)
    assert verify(run.url).ok
    (file,) = (Path(run.url) / "compact/sweep/all").glob("rows-*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    report = verify(run.url)
    assert not report.ok
    assert file.name in str(report.problems[0])
    assert verify(run.url, repair=True).ok
    assert compact(run.url)[0].made
    assert verify(run.url).ok
    file.with_name("manifest.json").write_text("no manifest")
    assert "this manifest cannot be read" in str(verify(run.url).problems[0])
    with pytest.raises(RaylensError, match="this manifest cannot be read"):
        compact(run.url)
    assert verify(run.url, repair=True).ok
    assert compact(run.url)[0].made


DAMAGE: dict[str, dict[str, Any]] = {
    "rows that are no number": {"rows": "x"},
    "a size that is no number": {"bytes": None},
    "the folder itself": {"name": "."},
    "a file elsewhere": {"name": "../../../run.json"},
    "a name that is none": {"name": ["a"]},
    "no sources": {},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_manifest_that_vouches_for_no_files_of_its_folder_is_damaged(run: Run, damage: dict[str, Any]) -> None:
    compact(run.url)
    manifest = Path(run.url) / "compact/sweep/all/manifest.json"
    described = json.loads(manifest.read_text())
    described["files"][0] |= damage
    if not damage:
        del described["sources"]
    manifest.write_text(json.dumps(described))
    report = verify(run.url)
    assert [problem.where for problem in report.problems] == [str(manifest.parent)]
    assert "this manifest cannot be read" in report.problems[0].what
    with pytest.raises(RaylensError, match="this manifest cannot be read"):
        compact(run.url)
    assert verify(run.url, repair=True).ok
    assert compact(run.url)[0].made
    assert verify(run.url).ok


def test_verify_takes_a_manifest_back_while_it_holds_the_lock(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    compact(run.url)
    (Path(run.url) / "compact/sweep/all/manifest.json").write_text("no manifest")
    remove, locked = Folder.remove, []

    def seen(folder: Folder, name: str) -> None:
        if name == "manifest.json":
            locked.append((Path(run.url) / "lock.json").exists())
        remove(folder, name)

    monkeypatch.setattr(Folder, "remove", seen)
    assert verify(run.url, repair=True).ok
    assert locked == [True]


def test_while_a_driver_works_on_the_run_it_is_refused(run: Run) -> None:
    with RunLock(run.folder), pytest.raises(RaylensError, match="another driver is working on this run"):
        compact(run.url)


def test_a_damaged_shard_is_not_passed_on(run: Run) -> None:
    file = Path(run.url) / "sweep/all" / shards(run).receipt(2).files[0].name
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(RaylensError, match="does not have the content its receipt vouches for"):
        compact(run.url)
    assert not (Path(run.url) / "compact/sweep/all/manifest.json").exists()
