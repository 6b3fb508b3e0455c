"""Status and verify on a run folder made with the real plans, shards and key tables."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import plan as plans
from pipeline.errors import RaylensError, UsageError
from pipeline.estimate import Measured
from pipeline.lock import RunLock
from pipeline.run import Run
from pipeline.shards import Receipt, Shards, digest
from pipeline.status import status
from pipeline.steps import Source
from pipeline.verify import verify

MEASURED = Measured(10.0, 0.01, 0.09, 40.0, 1.0, "cpu", 1)
KEYS, ROWS = 25, 10  # 25 keys in shards of 10: the last one is short


@dataclasses.dataclass
class Made:
    """A run of a sweep over two splits, two solves on it, and metrics of the second solve."""

    run: Run
    sweep: dict[str, Shards]
    solves: dict[str, Shards]

    @property
    def url(self) -> str:
        return self.run.url

    @property
    def path(self) -> Path:
        return Path(self.url)


def keys(split: str) -> list[str]:
    return [f"{split}/{i:03d}.jpg" for i in range(KEYS)]


def rows(names: Sequence[str], value: float = 1.0) -> pa.Table:
    bad = [name.endswith("003.jpg") for name in names]
    return pa.table(
        {
            "key": list(names),
            "status": ["failed" if b else "ok" for b in bad],
            "error": ["cannot be decoded" if b else None for b in bad],
            "f": [value] * len(names),
        }
    )


def plan(run: Run, step: str, split: str, fields: dict[str, object], count: int, size: int, *, keyed: bool) -> Shards:
    frozen = plans.Plan(step, split, plans.fingerprint(fields), fields, count, size, 4, MEASURED)
    folder = run.step_folder(step, split=split, fingerprint=frozen.fingerprint if keyed else "")
    plans.freeze(folder, frozen)
    return Shards(folder, frozen.shards)


def received(shards: dict[str, Shards]) -> list[tuple[str, Receipt]]:
    return [(split, receipt) for split, part in shards.items() for receipt in part.committed().values()]


def solve(run: Run, sweep: dict[str, Shards], value: float) -> Shards:
    fields = {"config.lambda": value, "upstream.sweep": digest(received(sweep))}
    made = plan(run, "solve", "", fields, 2, 1, keyed=True)
    for block in range(2):
        made.commit(block, pa.table({"class_id": [block], "w": [value]}))
    return made


def describe(run: Run, current: Shards) -> None:
    fingerprint = json.loads(current.folder.read("plan.json"))["fingerprint"]
    steps = [
        {"name": "sweep", "kind": "measure", "upstream": [], "splits": ["fit", "val"], "keyed": False},
        {"name": "solve", "kind": "reduce", "upstream": ["sweep"], "splits": ["fit", "val"], "keyed": True},
        {"name": "metrics", "kind": "reduce", "upstream": ["solve"], "splits": [], "keyed": True},
    ]
    steps[1] |= {"fingerprint": fingerprint, "label": "today"}
    run.folder.write("run.json", json.dumps({"job": "chip", "config": {}, "steps": steps, "provenance": {}}).encode())


@pytest.fixture
def made(tmp_path: Path) -> Made:
    run = Run(str(tmp_path / "run"))
    sweep = {}
    for split in ("fit", "val"):
        run.freeze_keys(split, Source({"kind": "list"}, lambda s=split: pa.table({"key": keys(s)})))
        sweep[split] = plan(run, "sweep", split, {"version": 1, "split": split}, KEYS, ROWS, keyed=False)
        for shard in range(3):
            sweep[split].commit(shard, rows(keys(split)[shard * ROWS : (shard + 1) * ROWS]))
    solves = {name: solve(run, sweep, value) for name, value in (("old", 0.1), ("new", 0.2))}
    describe(run, solves["new"])
    return Made(run, sweep, solves)


def test_status_of_a_whole_run(made: Made) -> None:
    found = status(made.url)
    assert [(s.step, s.split, s.committed, s.shards) for s in found.steps] == [
        ("sweep", "fit", 3, 3),
        ("sweep", "val", 3, 3),
        ("solve", "", 2, 2),
        ("solve", "", 2, 2),
    ]
    assert found.steps[0].rows == {"ok": 24, "filtered": 0, "failed": 1}
    assert found.steps[0].keys == KEYS
    assert [(r.key, r.error) for r in found.steps[0].failed] == [("fit/003.jpg", "cannot be decoded")]
    assert found.failed == 2
    assert found.waiting == ("metrics",)
    assert not found.complete
    assert found.driver == ""
    json.dumps(found.to_dict())


def test_solves_stand_side_by_side_and_one_is_todays(made: Made) -> None:
    made.solves["old"].folder.write("label.json", b'{"label": "weak"}')
    solves = {s.label: s for s in status(made.url).steps if s.step == "solve"}
    assert {label: (s.current, s.stale) for label, s in solves.items()} == {
        "weak": (False, False),
        "today": (True, False),
    }
    assert solves["weak"].fingerprint != solves["today"].fingerprint


def test_changed_upstream_makes_its_reductions_stale(made: Made) -> None:
    made.sweep["fit"].withdraw(1)
    assert [s.stale for s in status(made.url).steps if s.step == "solve"] == [True, True]
    made.sweep["fit"].commit(1, rows(keys("fit")[10:20], value=2.0))  # other rows
    assert [s.stale for s in status(made.url).steps if s.step == "solve"] == [True, True]
    made.sweep["fit"].withdraw(1)
    made.sweep["fit"].commit(1, rows(keys("fit")[10:20]), attempt=7, device="cuda")  # the same rows, made otherwise
    assert [s.stale for s in status(made.url).steps if s.step == "solve"] == [False, False]


def test_reduction_of_one_split_is_not_stale_when_another_changes(made: Made) -> None:
    fields = {"upstream.sweep": digest(received({"fit": made.sweep["fit"]}))}
    plan(made.run, "solve", "", fields, 1, 1, keyed=True).commit(0, pa.table({"w": [1.0]}))
    made.sweep["val"].withdraw(0)
    stale = [s.stale for s in status(made.url).steps if s.step == "solve" and s.shards == 1]
    assert stale == [False]


def test_unfinished_and_broken_shards_are_counted_apart(made: Made) -> None:
    made.sweep["fit"].withdraw(0)
    name = made.sweep["fit"].committed()[2].files[0].name
    made.sweep["fit"].folder.write(name, b"half")
    step = status(made.url).steps[0]
    assert (step.committed, step.shards) == (1, 3)
    assert len(step.broken) == 1
    assert name in step.broken[0]
    assert not step.complete


def test_quarantined_keys_and_the_driver_are_told(made: Made) -> None:
    quarantine = made.sweep["fit"].folder.child("quarantine")
    quarantine.write("00001.json", json.dumps({"fit/011.jpg": "it killed its worker 3 times"}).encode())
    with RunLock(made.run.folder):
        found = status(made.url)
    assert found.steps[0].quarantined == 1
    assert "process" in found.driver


@pytest.mark.parametrize("act", [status, verify])
def test_folder_that_is_no_run_is_a_usage_error(act: object, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a run folder"):
        act(str(tmp_path / "nothing"))  # type: ignore[operator]


def test_damaged_run_json_is_a_clear_error(made: Made) -> None:
    for data in (b"{", b"[]", b'{"steps": 3}', b"\xff"):
        made.run.folder.write("run.json", data)
        with pytest.raises(RaylensError, match=r"run\.json"):
            status(made.url)


def test_verify_of_a_whole_run_reads_every_byte(made: Made) -> None:
    found = verify(made.url)
    assert found.ok
    assert (found.problems, found.missing, found.orphans) == ((), (), ())
    assert (found.shards, found.rows) == (10, 2 * KEYS + 4)
    assert found.bytes == sum(p.stat().st_size for p in made.path.rglob("part-*.parquet"))


@pytest.mark.parametrize("how", ["deleted", "truncated", "flipped", "replaced"])
def test_bad_shard_is_named_withdrawn_and_can_be_made_again(made: Made, how: str) -> None:
    receipt = made.sweep["val"].committed()[1]
    file = Path(made.sweep["val"].folder.url) / receipt.files[0].name
    data = bytearray(file.read_bytes())
    data[40] ^= 1
    {
        "deleted": file.unlink,
        "truncated": lambda: file.write_bytes(data[:-1]),
        "flipped": lambda: file.write_bytes(data),
        "replaced": lambda: file.write_bytes(bytes(len(data))),
    }[how]()
    found = verify(made.url)
    assert not found.ok
    assert [p.where for p in found.problems] == ["sweep/val shard 1"]
    assert file.name in found.problems[0].what
    assert made.sweep["val"].receipt(1) is not None  # looking changes nothing

    repaired = verify(made.url, repair=True)
    assert repaired.ok
    assert [p.mended for p in repaired.problems] == [True]
    assert made.sweep["val"].receipt(1) is None
    assert set(made.sweep["val"].committed()) == {0, 2}

    assert verify(made.url).missing == ("sweep/val shard 1 is not committed",)
    made.sweep["val"].commit(1, rows(keys("val")[10:20]))
    assert verify(made.url).ok


def test_damaged_receipt_is_named_and_dropped(made: Made) -> None:
    receipts = made.sweep["fit"].folder.child("receipts")
    receipts.write("00002.json", b'{"shard": 2')
    found = verify(made.url)
    assert [p.where for p in found.problems] == ["sweep/fit shard 2"]
    assert "receipt" in found.problems[0].what
    assert verify(made.url, repair=True, clean=True).ok
    assert "00002.json" not in receipts.list()
    assert verify(made.url).orphans == ()


@pytest.mark.parametrize("data", [None, b"{", b"{}"])
def test_damaged_plan_is_named_and_its_shards_are_left_alone(made: Made, data: bytes | None) -> None:
    folder = made.sweep["fit"].folder
    if data is None:
        folder.remove("plan.json")
    else:
        folder.write("plan.json", data)
    found = verify(made.url, repair=True, clean=True)
    assert not found.ok
    assert any("plan.json" in str(p) for p in found.problems)
    assert len(made.sweep["fit"].committed()) == 3
    assert any("plan.json" in text for s in status(made.url).steps for text in s.broken)


def test_plan_whose_fields_were_edited_is_named(made: Made) -> None:
    folder = made.solves["new"].folder
    edited = json.loads(folder.read("plan.json"))
    edited["fields"]["config.lambda"] = 0.3
    folder.write("plan.json", json.dumps(edited).encode())
    assert any("fingerprint" in p.what for p in verify(made.url).problems)


def test_shard_with_other_rows_than_planned_is_bad(made: Made) -> None:
    for wrong, why in ((rows(keys("fit")[10:19]), "9 rows"), (rows(keys("fit")[11:21]), "keys")):
        made.sweep["fit"].withdraw(1)
        made.sweep["fit"].commit(1, wrong)
        problems = verify(made.url).problems
        assert [p.where for p in problems] == ["sweep/fit shard 1"]
        assert why in problems[0].what


def test_receipt_that_counts_wrongly_is_bad(made: Made) -> None:
    receipts = made.sweep["fit"].folder.child("receipts")
    told = json.loads(receipts.read("00000.json"))
    told["rows"] = {"ok": 10, "filtered": 0, "failed": 0}  # hides the failed row
    receipts.write("00000.json", json.dumps(told).encode())
    assert "other rows than its receipt" in verify(made.url).problems[0].what


def test_shard_beyond_the_plan_is_bad(made: Made) -> None:
    made.sweep["fit"].commit(3, rows(keys("fit")[:5]))
    assert [p.where for p in verify(made.url).problems] == ["sweep/fit shard 3"]


@pytest.mark.parametrize("how", ["rows", "bytes", "gone"])
def test_changed_key_table_is_bad(made: Made, how: str) -> None:
    file = made.path / "keys" / "fit.parquet"
    if how == "rows":
        other = Run(str(made.path.parent / "other"))
        other.freeze_keys("fit", Source({}, lambda: pa.table({"key": keys("val")})))
        file.write_bytes((made.path.parent / "other" / "keys" / "fit.parquet").read_bytes())
    elif how == "bytes":
        file.write_bytes(file.read_bytes()[:-20])
    else:
        file.unlink()
    assert [p.where for p in verify(made.url, repair=True).problems] == [str(file)]
    assert len(made.sweep["fit"].committed()) == 3  # no shard is judged by a key table that is not the frozen one


def test_orphans_are_listed_and_removed_only_on_request(made: Made) -> None:
    folder = made.sweep["fit"].folder
    folder.write("part-00001-of-00003-deadbeef.parquet", b"an attempt that died")
    folder.child("blobs").write("00001-map-deadbeef", b"too")
    (Path(folder.url) / "receipts" / ".00001.json.0123456789ab.tmp").write_bytes(b"its writer was killed")
    found = verify(made.url)
    assert found.ok  # nothing reads them
    assert {Path(name).name for name in found.orphans} == {
        "00001-map-deadbeef",
        "part-00001-of-00003-deadbeef.parquet",
        ".00001.json.0123456789ab.tmp",
    }
    assert not found.removed
    assert verify(made.url, clean=True).removed
    assert verify(made.url).orphans == ()
    assert len(made.sweep["fit"].committed()) == 3


def test_abandoned_setting_may_stay_half_done_but_not_damaged(made: Made) -> None:
    made.solves["old"].withdraw(0)
    assert verify(made.url).ok
    file = Path(made.solves["old"].folder.url) / made.solves["old"].committed()[1].files[0].name
    file.write_bytes(b"")
    assert not verify(made.url).ok


@pytest.mark.parametrize("wish", ["repair", "clean"])
def test_repair_and_clean_stay_away_from_a_driver_at_work(made: Made, wish: str) -> None:
    made.sweep["fit"].folder.write("part-00001-of-00003-deadbeef.parquet", b"being committed right now")
    with RunLock(made.run.folder):
        assert verify(made.url).ok  # looking is free
        with pytest.raises(RaylensError, match="another driver is working on this run"):
            verify(made.url, **{wish: True})  # type: ignore[arg-type]
    assert len(verify(made.url).orphans) == 1
