"""Many receipts in one file: read instead of each, as long as each is the one that stands there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline import shards as module
from pipeline.receipts import SUMMARY, summarized
from pipeline.shards import Receipt, Shards
from pipeline.storage import Folder, StorageError

COUNT = 7
DEEP = hashlib.sha256(b"[" * 10**6).hexdigest().encode() + b"\n" + b"[" * 10**6  # as it was written, says its digest


@pytest.fixture(params=["local", "memory"])
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shards:
    """A committed step; "memory" is a store whose listing has no stamps."""
    monkeypatch.setattr(module, "_SUMMARY_FROM", 3)
    url = str(tmp_path / "step") if request.param == "local" else f"memory://receipts{tmp_path}"
    shards = Shards(Folder(url), COUNT)
    for shard in range(COUNT):
        shards.commit(shard, pa.table({"x": [shard]}))
    return shards


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    names: list[str] = []
    read: Callable[[Folder, str], bytes] = Folder.read

    def counted(folder: Folder, name: str) -> bytes:
        names.append(name)
        return read(folder, name)

    monkeypatch.setattr(Folder, "read", counted)
    return names


def test_one_file_stands_for_receipts_that_are_as_they_were(made: Shards, reads: list[str]) -> None:
    before = made.committed()
    made.summarize(COUNT)
    reads.clear()
    assert made.committed() == before
    assert made.complete() == (before, {})
    assert made.orphans() == []
    each = 0 if made.folder.local else COUNT  # without stamps nothing is believed
    assert len([name for name in reads if name != SUMMARY]) == 3 * each
    reads.clear()
    assert made.complete(each=True) == (before, {})
    assert sorted(reads) == [f"{shard:05d}.json" for shard in range(COUNT)], "verify believes no summary"


def test_the_receipts_stay_the_commit(made: Shards) -> None:
    """Withdrawn, made again, damaged, copied: what stands there counts, not what was written down of it."""
    made.summarize(COUNT)
    made.withdraw(2)
    assert sorted(made.committed()) == [0, 1, 3, 4, 5, 6]
    made.commit(2, pa.table({"x": [22]}))
    assert made.table(2).column("x").to_pylist() == [22]
    assert made.committed()[2].files[0].sha256 == made.receipt(2).files[0].sha256
    receipts = made.folder.child("receipts")
    receipts.write("00003.json", b"{")
    receipts.write("00004.json", receipts.read("00005.json"))
    good, bad = made.complete()
    assert sorted(good) == [0, 1, 2, 5, 6]
    assert "cannot be read" in bad[3]
    assert "is of shard 5" in bad[4]


def test_a_receipt_that_is_replaced_while_it_is_read_is_not_vouched_for(
    made: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two attempts do where the last writer wins; nor does what an attempt was told of its own count."""
    receipts = made.folder.child("receipts")
    other = dataclasses.replace(made.receipt(2), attempt=7)
    read: Callable[[Folder, str], bytes] = Folder.read

    def raced(folder: Folder, name: str) -> bytes:
        data = read(folder, name)
        if name == "00002.json":
            receipts.write(name, other.to_json())
        return data

    with monkeypatch.context() as racing:
        racing.setattr(Folder, "read", raced)
        made.summarize(COUNT)
    if made.folder.local:
        assert set(summarized(made.folder)) == {f"{shard:05d}.json" for shard in range(COUNT) if shard != 2}
        assert made.committed()[2] == other
    else:
        assert SUMMARY not in made.folder.list(), "without stamps nothing is read for it"


def test_a_summary_that_the_store_refuses_fails_nothing(made: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise StorageError("this folder may not be written")

    before = made.committed()
    monkeypatch.setattr(Folder, "write", refuse)
    made.summarize(COUNT)
    assert made.committed() == before


def test_a_store_that_refuses_a_read_makes_no_receipt_a_damaged_one(
    made: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard whose receipt is taken for damaged would be made again."""
    read: Callable[[Folder, str], bytes] = Folder.read

    def refuse(folder: Folder, name: str) -> bytes:
        if name == "00002.json":
            raise StorageError("may not be read")
        return read(folder, name)

    monkeypatch.setattr(Folder, "read", refuse)
    with pytest.raises(StorageError, match="may not be read"):
        made.complete()


@pytest.mark.parametrize("damage", [b"", b"{}", b"\n[]", DEEP, None], ids=["empty", "other", "none", "deep", "changed"])
def test_a_damaged_summary_is_no_summary(made: Shards, damage: bytes | None) -> None:
    before = made.committed()
    made.summarize(COUNT)
    if not made.folder.local:
        assert SUMMARY not in made.folder.list(), "without stamps it would be of no use"
        return
    data = made.folder.read(SUMMARY)
    changed = data.replace(b'"ok":1', b'"ok":9', 1)
    assert changed != data
    made.folder.write(SUMMARY, changed if damage is None else damage)
    assert made.committed() == before


def test_receipts_come_back_as_they_were_written(made: Shards) -> None:
    for receipt in made.committed().values():
        assert Receipt.from_json(receipt.to_json()) == receipt
        assert Receipt.from_fields(json.loads(json.dumps(dataclasses.asdict(receipt)))) == receipt
