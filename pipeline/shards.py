"""Shards and receipts: how rows become durable, and how they are found again.

A data file is named by its content and written whole; then its receipt is created exclusively. The receipt is the
commit: the first one wins, a loser removes its own files, and readers only ever go through receipts. Two attempts may
race and a zombie may finish late; nothing breaks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RaylensError
from pipeline.storage import Folder

STATUSES = ("ok", "filtered", "failed")
_PLAIN_NAME = re.compile(r"[^/\\\x00.][^/\\\x00]*")  # stays in its folder, and a listing shows it
_READERS = 16  # threads: receipts are small, so latency is what counts


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
            fields = json.loads(data)
            files = tuple(DataFile(str(f["name"]), int(f["bytes"]), str(f["sha256"])) for f in fields.pop("files"))
            notes = tuple(str(n) for n in fields.pop("notes", ()))
            rows = {status: int(fields["rows"].get(status, 0)) for status in STATUSES}
            if not files or not all(_PLAIN_NAME.fullmatch(f.name.removeprefix("blobs/")) for f in files):
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
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise RaylensError(
                f"this receipt cannot be read ({type(error).__name__}: {error})",
                where=where,
                cure="'raylens verify --repair RUN' drops it, and the next run makes its shard again",
            ) from error


class Shards:
    """The shards of one plan: ``part-*.parquet``, ``blobs/`` and ``receipts/`` in one folder."""

    def __init__(self, folder: Folder, count: int) -> None:
        self.folder, self.count = folder, count
        self._receipts = folder.child("receipts")

    def commit(
        self,
        shard: int,
        table: pa.Table,
        *,
        blobs: Mapping[str, bytes] | None = None,
        seconds: float = 0.0,
        attempt: int = 1,
        device: str = "",
        notes: Sequence[str] = (),
    ) -> tuple[Receipt, bool]:
        """Make a shard durable. Returns its receipt and whether this attempt won; a loser gets the winner's."""
        data = parquet(table)
        digest = hashlib.sha256(data).hexdigest()
        files = [DataFile(f"part-{shard:05d}-of-{self.count:05d}-{digest[:8]}.parquet", len(data), digest)]
        self.folder.write(files[0].name, data)
        for name, blob in (blobs or {}).items():
            digest = hashlib.sha256(blob).hexdigest()
            file = DataFile(f"blobs/{shard:05d}-{name}-{digest[:8]}", len(blob), digest)
            self.folder.write(file.name, blob)
            files.append(file)
        receipt = Receipt(shard, tuple(files), count_rows(table), seconds, attempt, device, tuple(notes))
        if self._receipts.create(_receipt_name(shard), receipt.to_json()):
            return receipt, True
        winner = self.receipt(shard)
        if winner is None:  # withdrawn in between (verify --repair): ours stands for nothing, the next run decides
            raise RaylensError(
                "its receipt vanished while it was being committed", where=self.folder.path(files[0].name)
            )
        kept = {file.name for file in winner.files}
        for file in files:
            if file.name not in kept:
                self.folder.remove(file.name)
        return winner, False

    def receipt(self, shard: int) -> Receipt | None:
        name = _receipt_name(shard)
        try:
            receipt = Receipt.from_json(self._receipts.read(name), self._receipts.path(name))
        except FileNotFoundError:
            return None
        if receipt.shard != shard:  # copied under another number: its rows would count twice
            raise RaylensError(
                f"this receipt is of shard {receipt.shard}",
                where=self._receipts.path(name),
                cure="'raylens verify --repair RUN' drops it, and the next run makes its shard again",
            )
        return receipt

    def committed(self) -> dict[int, Receipt]:
        """Every receipt by shard number: one listing, then parallel reads."""
        numbers = sorted(int(n[:-5]) for n in self._receipts.list() if n.endswith(".json") and n[:-5].isdigit())
        with ThreadPoolExecutor(_READERS) as pool:
            found = pool.map(self.receipt, numbers)
            return {n: receipt for n, receipt in zip(numbers, found, strict=True) if receipt is not None}

    def complete(self) -> tuple[dict[int, Receipt], dict[int, str]]:
        """Receipts whose files are all there with the right size, and why the others do not count."""
        sizes = self.folder.list()
        blobs: dict[str, int] | None = None
        good: dict[int, Receipt] = {}
        bad: dict[int, str] = {}
        for shard, receipt in self._read_each(bad):
            for file in receipt.files:
                if file.name.startswith("blobs/"):
                    if blobs is None:
                        blobs = self.folder.child("blobs").list()
                    size = blobs.get(file.name.removeprefix("blobs/"))
                else:
                    size = sizes.get(file.name)
                if size != file.bytes:
                    said = "is missing" if size is None else f"has {size} bytes instead of {file.bytes}"
                    bad[shard] = f"{self.folder.path(file.name)} {said}"
            if shard not in bad:
                good[shard] = receipt
        return good, bad

    def damaged(self) -> dict[int, str]:
        """Like ``complete`` but reads every byte: shards whose files are not what their receipts vouch for."""
        good, bad = self.complete()

        def check(item: tuple[int, Receipt]) -> tuple[int, str | None]:
            shard, receipt = item
            for file in receipt.files:
                if hashlib.sha256(self.folder.read(file.name)).hexdigest() != file.sha256:
                    return shard, f"{self.folder.path(file.name)} does not have the content its receipt vouches for"
            return shard, None

        with ThreadPoolExecutor(_READERS) as pool:
            for shard, reason in pool.map(check, good.items()):
                if reason:
                    bad[shard] = reason
        return bad

    def withdraw(self, shard: int) -> None:
        """Take a receipt back and then its files, so that the next run makes the shard again."""
        try:
            receipt = self.receipt(shard)
        except RaylensError:
            receipt = None
        self._receipts.remove(_receipt_name(shard))
        for file in receipt.files if receipt else ():
            self.folder.remove(file.name)

    def orphans(self) -> list[str]:
        """Data files that no receipt names: left by attempts that died or lost (none is told of a damaged receipt)."""
        bad: dict[int, str] = {}
        named = {file.name for _, receipt in self._read_each(bad) for file in receipt.files}
        here = [n for n in self.folder.list() if n.startswith("part-")]
        blobs = [f"blobs/{n}" for n in self.folder.child("blobs").list()]
        unsure = tuple(f"{start}{shard:05d}-" for shard in bad for start in ("part-", "blobs/"))
        return sorted(n for n in here + blobs if n not in named and not n.startswith(unsure))

    def table(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """A committed shard's rows."""
        receipt = self.receipt(shard)
        if receipt is None:
            raise RaylensError(f"shard {shard} is not committed", where=self.folder.url, cure="run the job again")
        return self.open(receipt, columns)

    def open(self, receipt: Receipt, columns: Sequence[str] | None = None) -> pa.Table:
        """The rows of the Parquet file a receipt names."""
        name = receipt.files[0].name
        try:
            if columns is None:
                return pq.read_table(pa.BufferReader(self.folder.read(name)))
            with self.folder.open(name) as file:  # reads the asked columns' ranges only
                return pq.ParquetFile(file).read(columns=list(columns))
        except FileNotFoundError as error:
            raise RaylensError("is missing", where=self.folder.path(name), cure="run the job again") from error
        except pa.ArrowInvalid as error:
            raise RaylensError(
                f"cannot be read ({error})",
                where=self.folder.path(name),
                cure="'raylens verify --repair RUN' and run the job again",
            ) from error

    def columns(self, receipt: Receipt) -> list[str]:
        """The names of the columns a receipt's file has."""
        with self.folder.open(receipt.files[0].name) as file:
            return list(pq.ParquetFile(file).schema_arrow.names)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """All committed rows, shard by shard."""
        for _, receipt in sorted(self.committed().items()):
            yield self.open(receipt, columns)

    def _read_each(self, bad: dict[int, str]) -> Iterator[tuple[int, Receipt]]:
        numbers = sorted(int(n[:-5]) for n in self._receipts.list() if n.endswith(".json") and n[:-5].isdigit())

        def read(shard: int) -> tuple[int, Receipt | str | None]:
            try:
                return shard, self.receipt(shard)
            except RaylensError as error:
                return shard, str(error).splitlines()[0]

        with ThreadPoolExecutor(_READERS) as pool:
            for shard, found in pool.map(read, numbers):
                if isinstance(found, str):
                    bad[shard] = found
                elif found is not None:
                    yield shard, found


def count_rows(table: pa.Table) -> dict[str, int]:
    """Rows by status; a table without a status column (a reduction's) is all ok."""
    counts = dict.fromkeys(STATUSES, 0)
    if "status" not in table.column_names:
        counts["ok"] = table.num_rows
        return counts
    for entry in table.column("status").value_counts().to_pylist():
        counts[entry["values"]] += entry["counts"]
    return counts


def digest(receipts: Iterable[tuple[str, Receipt]]) -> str:
    """What upstream rows are, as a fingerprint field: shard, rows and sha256 of each, never times or attempts."""
    lines = sorted(
        f"{split}/{r.shard}:{json.dumps(dict(r.rows), sort_keys=True)}:{','.join(f.sha256 for f in r.files)}"
        for split, r in receipts
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _receipt_name(shard: int) -> str:
    return f"{shard:05d}.json"


def parquet(table: pa.Table) -> bytes:
    """The bytes of a shard: the same rows give the same bytes with one version of pyarrow."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", version="2.6")
    return sink.getvalue()
