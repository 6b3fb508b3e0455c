"""Receipts: what a committed shard consists of, and all of a step's in one file for stores where each read is slow."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.errors import RaylensError
from pipeline.storage import Folder

STATUSES = ("ok", "filtered", "failed")
SUMMARY = "receipts.json"  # beside the plan
READERS = 16  # threads: receipts are small, so latency is what counts
PLAIN_NAME = re.compile(r"[^/\\\x00.][^/\\\x00]*")  # stays in its folder, and a listing shows it


@dataclasses.dataclass(frozen=True)
class DataFile:
    """A file a receipt vouches for."""

    name: str
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Receipt:
    """What a committed shard consists of. Times, attempts and devices are told here and nowhere else."""

    shard: int
    files: tuple[DataFile, ...]  # the Parquet file first, then blobs
    rows: Mapping[str, int]  # by status
    seconds: float = 0.0
    attempt: int = 1
    device: str = ""
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(self.rows.values())

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    @classmethod
    def from_json(cls, data: bytes, where: str = "") -> Receipt:
        try:
            return cls.from_fields(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise RaylensError(
                f"this receipt cannot be read ({type(error).__name__}: {error})",
                where=where,
                cure="'raylens verify --repair RUN' drops it, and the next run makes its shard again",
            ) from error

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Receipt:
        """Of a receipt's JSON; any of several errors where it is none."""
        files = tuple(DataFile(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in fields.pop("files"))
        notes = tuple(str(n) for n in fields.pop("notes", ()))
        rows = {status: int(fields["rows"].get(status, 0)) for status in STATUSES}
        if not files or not all(PLAIN_NAME.fullmatch(f.name.removeprefix("blobs/")) for f in files):
            raise ValueError("a file name leaves the shard folder")
        seconds = float(fields.get("seconds", 0.0))
        if not math.isfinite(seconds) or min(*rows.values(), *(f.bytes for f in files)) < 0:
            raise ValueError("a count is out of range")
        return cls(
            shard=int(fields["shard"]),
            files=files,
            rows=rows,
            seconds=seconds,
            attempt=int(fields.get("attempt", 1)),
            device=str(fields.get("device", "")),
            notes=notes,
        )


def summarize(folder: Folder, receipts: Folder) -> None:
    """Write the receipts there are into one file, each with its own file's stamp.

    What counts is what is read there, between two looks at the stamps: where the last writer wins, a receipt may be
    another one by now than its maker was told.
    """
    before = {name: stamp for name, stamp in receipts.stamps().items() if stamp}
    if not before:  # a store without stamps: nothing written here would be believed
        return

    def read(name: str) -> Receipt | None:
        try:
            found = Receipt.from_json(receipts.read(name))
        except (FileNotFoundError, RaylensError):  # gone, or damaged: who reads the receipt itself is told
            return None
        return found if receipt_name(found.shard) == name else None

    with ThreadPoolExecutor(READERS) as pool:
        found = dict(zip(before, pool.map(read, before), strict=True))
    after = receipts.stamps()
    entries = [
        [name, stamp, dataclasses.asdict(receipt)]
        for name, stamp in sorted(before.items())
        if (receipt := found[name]) is not None and after.get(name) == stamp
    ]
    body = json.dumps(entries, separators=(",", ":")).encode()
    folder.write(SUMMARY, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def summarized(folder: Folder) -> dict[str, tuple[str, Receipt]]:
    """name -> (stamp, receipt) of that file; nothing where it is missing or not as it was written.

    An entry counts only while the receipt's own file has its stamp: the receipts stay the commit.
    """
    try:
        digest, _, body = folder.read(SUMMARY).partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            return {}
        return {name: (stamp, Receipt.from_fields(fields)) for name, stamp, fields in json.loads(body) if stamp}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def receipt_name(shard: int) -> str:
    return f"{shard:05d}.json"
