"""The receipt is the commit: DESIGN.md, "Commit"."""

from __future__ import annotations

import errno
import json
import multiprocessing as mp
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import RaylensError
from pipeline.shards import DataFile, Receipt, Shards, count_rows, digest
from pipeline.storage import Folder, StorageError

SPAWN = mp.get_context("spawn")


def table(lo: int, hi: int, value: float = 1.0) -> pa.Table:
    status = ["failed" if i % 7 == 3 else "ok" for i in range(lo, hi)]
    return pa.table(
        {"key": [f"{i:04d}" for i in range(lo, hi)], "status": status, "x": [value * i for i in range(lo, hi)]}
    )


@pytest.fixture(params=["disk", "memory"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> Shards:
    url = str(tmp_path / "step") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/step"
    return Shards(Folder(url), 3)


def test_committed_rows_come_back_through_the_receipt(shards: Shards) -> None:
    receipt, won = shards.commit(1, table(0, 10), seconds=2.5, attempt=2, device="cpu", notes=["halved"])
    assert won
    assert receipt.rows == {"ok": 9, "filtered": 0, "failed": 1}
    assert receipt.total == 10
    assert shards.receipt(1) == receipt
    assert shards.committed() == {1: receipt}
    assert shards.table(1).equals(table(0, 10))
    assert shards.table(1, ["x"]).column_names == ["x"]
    name = receipt.files[0].name
    assert name.startswith("part-00001-of-00003-")
    assert name.endswith(f"{receipt.files[0].sha256[:8]}.parquet")
    assert shards.complete() == ({1: receipt}, {})
    assert shards.damaged() == {}


def test_rows_are_read_in_shard_order_whatever_the_order_of_commits(shards: Shards) -> None:
    for shard in (2, 0, 1):
        shards.commit(shard, table(shard * 10, shard * 10 + 10))
    keys = [k for part in shards.tables(["key"]) for k in part.column("key").to_pylist()]
    assert keys == [f"{i:04d}" for i in range(30)]


@pytest.mark.parametrize("moment", range(1, 5), ids=["rows written", "rows named", "receipt written", "receipt named"])
def test_a_late_writer_whose_temporary_files_are_removed_commits_nothing_by_halves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    shards = Shards(Folder(str(tmp_path)), 3)
    synced = 0

    def swept(number: int) -> None:
        nonlocal synced
        synced += 1
        if synced == moment:
            Shards(Folder(str(tmp_path)), 3).sweep()

    monkeypatch.setattr("pipeline.storage.os.fsync", swept)
    if moment in (1, 3):
        with pytest.raises(FileNotFoundError):
            shards.commit(1, table(0, 10), attempt=1)
    else:
        shards.commit(1, table(0, 10), attempt=1)
    assert shards.complete() == (shards.committed(), {})
    receipt, won = shards.commit(1, table(0, 10), attempt=2)
    assert won is (moment in (1, 3))
    assert (shards.committed(), shards.damaged()) == ({1: receipt}, {})
    assert (shards.orphans(), shards.leftovers()) == ([], [])


def test_what_cannot_be_swept_away_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = Shards(Folder(str(tmp_path)), 3)
    receipt, _ = shards.commit(0, table(0, 10))
    (tmp_path / ".x.0123456789ab.tmp").mkdir()  # no file: it cannot be removed
    shards.sweep()
    assert shards.leftovers() == [".x.0123456789ab.tmp"]

    def refuse(_: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pipeline.storage.os.scandir", refuse)
    shards.sweep()
    with pytest.raises(StorageError, match="permission denied"):
        shards.leftovers()
    monkeypatch.undo()
    assert shards.complete() == ({0: receipt}, {})


def test_times_attempts_and_devices_are_in_no_data_file_and_no_digest(shards: Shards, tmp_path: Path) -> None:
    first, _ = shards.commit(0, table(0, 10), seconds=1.0, attempt=1, device="cpu")
    second, _ = Shards(Folder(str(tmp_path / "other")), 3).commit(
        0, table(0, 10), seconds=9.0, attempt=4, device="cuda"
    )
    assert first.files == second.files
    assert digest([("train", first)]) == digest([("train", second)])


def test_uncommitted_shard_is_an_error_that_names_it(shards: Shards) -> None:
    with pytest.raises(RaylensError, match="shard 2 is not committed"):
        shards.table(2)


def test_loser_gets_the_winners_receipt_and_removes_its_own_file(shards: Shards) -> None:
    first, _ = shards.commit(0, table(0, 10))
    second, won = shards.commit(0, table(0, 10, value=2.0), blobs={"map.bin": b"2"})
    assert not won
    assert second == first
    assert shards.table(0).equals(table(0, 10))
    assert list(shards.folder.list()) == [first.files[0].name]
    assert shards.folder.child("blobs").list() == {}


def test_loser_with_the_same_rows_leaves_the_winners_file(shards: Shards) -> None:
    shards.commit(0, table(0, 10), blobs={"map.bin": b"1"}, attempt=1)
    receipt, won = shards.commit(0, table(0, 10), blobs={"map.bin": b"1"}, attempt=2)
    assert not won
    assert receipt.attempt == 1
    assert shards.damaged() == {}
    assert len(shards.folder.child("blobs").list()) == 1


def _commit(url: str, together: Any, queue: Any, number: int) -> None:
    shards = Shards(Folder(url), 8)
    for shard in range(8):
        together.wait(60)
        receipt, won = shards.commit(shard, table(0, 20, value=float(number)), attempt=number)
        queue.put((shard, number, won, receipt.attempt))


def test_attempts_that_race_agree_on_one_winner_and_leave_only_its_files(tmp_path: Path) -> None:
    together, queue = SPAWN.Barrier(3), SPAWN.Queue()
    racers = [SPAWN.Process(target=_commit, args=(str(tmp_path), together, queue, n)) for n in (1, 2, 3)]
    for racer in racers:
        racer.start()
    told = [queue.get(timeout=120) for _ in range(3 * 8)]
    for racer in racers:
        racer.join()
    shards = Shards(Folder(str(tmp_path)), 8)
    for shard in range(8):
        winners = [number for s, number, won, _ in told if s == shard and won]
        assert len(winners) == 1
        assert {attempt for s, _, _, attempt in told if s == shard} == set(winners)
        assert shards.table(shard).equals(table(0, 20, value=float(winners[0])))
    assert shards.orphans() == []
    assert shards.damaged() == {}


def test_data_without_a_receipt_is_an_orphan_and_not_a_shard(shards: Shards) -> None:
    shards.commit(0, table(0, 10), blobs={"map.bin": b"1"})
    shards.folder.write("part-00001-of-00003-deadbeef.parquet", b"an attempt that died")
    shards.folder.child("blobs").write("00001-map.bin-deadbeef", b"too")
    assert set(shards.committed()) == {0}
    assert shards.orphans() == ["blobs/00001-map.bin-deadbeef", "part-00001-of-00003-deadbeef.parquet"]


@pytest.mark.parametrize("look", ["list", "stamps"])
def test_a_shard_committed_between_two_looks_at_the_folder_is_neither_broken_nor_an_orphan(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    shards.commit(0, table(0, 10))
    looks = getattr(Folder, look)
    others: list[int] = []

    def then_a_commit(folder: Folder) -> Any:
        seen = looks(folder)
        if others:
            shards.commit(others.pop(), table(10, 20), blobs={"m": b"1"})
        return seen

    monkeypatch.setattr(Folder, look, then_a_commit)
    others.append(1)
    assert shards.complete()[1] == {}
    assert others == []
    others.append(2)
    assert shards.orphans() == []
    assert others == []
    assert set(shards.complete()[0]) == {0, 1, 2}


@pytest.mark.parametrize("size", [0, 10, -1])
def test_truncated_file_is_seen_by_its_size(shards: Shards, size: int) -> None:
    receipt, _ = shards.commit(0, table(0, 10))
    shards.commit(1, table(10, 20))
    name = receipt.files[0].name
    shards.folder.write(name, shards.folder.read(name)[:size])
    good, bad = shards.complete()
    assert set(good) == {1}
    assert name in bad[0]
    assert f"instead of {receipt.files[0].bytes}" in bad[0]


def test_missing_file_and_missing_blob_are_seen_in_a_listing(shards: Shards) -> None:
    part, _ = shards.commit(0, table(0, 10))
    blob, _ = shards.commit(1, table(10, 20), blobs={"m": b"1"})
    shards.folder.remove(part.files[0].name)
    shards.folder.remove(blob.files[1].name)
    good, bad = shards.complete()
    assert good == {}
    assert "is missing" in bad[0]
    assert "blobs/00001-m-" in bad[1]
    with pytest.raises(RaylensError, match="is missing"):
        shards.table(0)


@pytest.mark.parametrize("which", [0, 1])
def test_flipped_bit_is_seen_by_its_hash(shards: Shards, which: int) -> None:
    receipt, _ = shards.commit(0, table(0, 10), blobs={"m": b"12345"})
    name = receipt.files[which].name
    data = bytearray(shards.folder.read(name))
    data[len(data) // 2] ^= 1
    shards.folder.write(name, bytes(data))
    assert set(shards.complete()[0]) == {0}
    assert name in shards.damaged()[0]


def test_withdrawn_shard_can_be_committed_again(shards: Shards) -> None:
    shards.commit(0, table(0, 10), blobs={"m": b"1"})
    shards.withdraw(0)
    assert shards.committed() == {}
    assert shards.orphans() == []
    assert shards.commit(0, table(0, 10, value=2.0))[1]
    shards.withdraw(2)  # one that is not there: nothing happens


def test_damaged_receipt_is_bad_and_can_be_withdrawn(shards: Shards) -> None:
    shards.commit(0, table(0, 10))
    shards.commit(1, table(10, 20))
    shards.folder.child("receipts").write("00000.json", b"{")
    good, bad = shards.complete()
    assert set(good) == {1}
    assert "this receipt cannot be read" in bad[0]
    assert shards.orphans() == []  # what a damaged receipt named is not known
    shards.withdraw(0)
    assert len(shards.orphans()) == 1


def test_receipt_of_another_shard_is_bad(shards: Shards) -> None:
    """A receipt copied under another number would let a shard's rows count twice."""
    shards.commit(0, table(0, 10))
    receipts = shards.folder.child("receipts")
    receipts.write("00001.json", receipts.read("00000.json"))
    good, bad = shards.complete()
    assert set(good) == {0}
    assert "shard 0" in bad[1]


def test_digest_is_of_rows_and_content_in_any_order() -> None:
    receipts = [
        ("train", Receipt(n, (DataFile(f"part-{n}", 10, f"{n:064d}"),), {"ok": n, "filtered": 0, "failed": 0}))
        for n in range(3)
    ]
    assert digest(receipts) == digest(receipts[::-1])
    assert digest(receipts) != digest(receipts[:2])
    assert digest([("val", r) for _, r in receipts]) != digest(receipts)
    other = [("train", Receipt(0, (DataFile("part-0", 10, "f" * 64),), receipts[0][1].rows)), *receipts[1:]]
    assert digest(other) != digest(receipts)


def test_rows_are_counted_by_status() -> None:
    assert count_rows(table(0, 7)) == {"ok": 6, "filtered": 0, "failed": 1}
    assert count_rows(pa.table({"w": [1.0, 2.0]})) == {"ok": 2, "filtered": 0, "failed": 0}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "shard": JSON,
        "files": JSON | st.lists(st.fixed_dictionaries({"name": JSON, "bytes": JSON, "sha256": JSON}), max_size=2),
        "rows": JSON | st.dictionaries(st.sampled_from(["ok", "filtered", "failed"]), JSON),
        "seconds": JSON,
        "attempt": JSON,
        "device": JSON,
        "notes": JSON,
    },
)


@given(data=st.binary(max_size=60) | FIELDS.map(lambda fields: json.dumps(fields).encode()))
@example(data=b"[]")
@example(data=b'{"shard": 1e400, "files": [{"name": "a", "bytes": 1, "sha256": ""}], "rows": {}}')
@example(data=b'{"shard": 0, "files": [{"name": "../../etc/passwd", "bytes": 1, "sha256": ""}], "rows": {}}')
@example(data=b'{"shard": 0, "files": [{"name": "blobs/..", "bytes": 1, "sha256": ""}], "rows": {}}')
@example(data=b"[" * 100_000)
def test_receipt_of_any_bytes_is_a_receipt_or_a_clear_error(data: bytes) -> None:
    try:
        receipt = Receipt.from_json(data, "RUN/receipts/00000.json")
    except RaylensError as error:
        told = str(error)
    else:
        told = ""
        _check_plain(receipt)
    assert not told or ("RUN/receipts/00000.json" in told and "verify --repair" in told)


def _check_plain(receipt: Receipt) -> None:
    assert receipt.files
    for file in receipt.files:
        place = Path("/run/step") / file.name
        assert Path("/run/step") in place.parents
        assert ".." not in place.parts
    assert Receipt.from_json(receipt.to_json()) == receipt
