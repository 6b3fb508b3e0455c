"""Shards and receipts: how rows become durable, and how they are found again.

A data file is named by its content and written whole; then its receipt is created exclusively. The receipt is the
commit: the first one wins, a loser removes its own files, and readers only ever go through receipts. Two attempts may
race and a zombie may finish late; nothing breaks.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import arrow  # noqa: F401 - before anything makes an array
from pipeline.errors import RaylensError
from pipeline.receipts import READERS, STATUSES, DataFile, Receipt, receipt_name, summarize, summarized
from pipeline.storage import Folder, StorageError

_SUMMARY_FROM = 1000  # receipts


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
        if self._receipts.create(receipt_name(shard), receipt.to_json()):
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
        name = receipt_name(shard)
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
        """Every receipt by shard number."""
        found = dict(self._read_each(True))
        for receipt in found.values():
            if isinstance(receipt, RaylensError):
                raise receipt
        return {shard: receipt for shard, receipt in sorted(found.items()) if isinstance(receipt, Receipt)}

    def summarize(self, known: int) -> None:
        """Receipts in one file, where there are so many (``known``) that reading each takes long.

        A convenience: where the storage refuses it, the receipts themselves are read as ever.
        """
        if known >= _SUMMARY_FROM:
            with contextlib.suppress(StorageError, OSError):
                summarize(self.folder, self._receipts)

    def complete(self, *, each: bool = False) -> tuple[dict[int, Receipt], dict[int, str]]:
        """Receipts whose files are all there with the right size, and why the others do not count.

        ``each``: every receipt's own file is read, however many there are.
        """
        bad: dict[int, str] = {}
        found = list(self._good(bad, each))
        sizes = self.folder.list()  # after the receipts: the files of one that comes in between are there before it
        blobs: dict[str, int] | None = None
        good: dict[int, Receipt] = {}
        for shard, receipt in found:
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
        return dict(sorted(good.items())), bad

    def damaged(self) -> dict[int, str]:
        """Like ``complete`` but reads every byte: shards whose files are not what their receipts vouch for."""
        good, bad = self.complete()

        def check(item: tuple[int, Receipt]) -> tuple[int, str | None]:
            shard, receipt = item
            for file in receipt.files:
                if hashlib.sha256(self.folder.read(file.name)).hexdigest() != file.sha256:
                    return shard, f"{self.folder.path(file.name)} does not have the content its receipt vouches for"
            return shard, None

        with ThreadPoolExecutor(READERS) as pool:
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
        self._receipts.remove(receipt_name(shard))
        for file in receipt.files if receipt else ():
            self.folder.remove(file.name)

    def orphans(self) -> list[str]:
        """Data files that no receipt names: left by attempts that died or lost (none is told of a damaged receipt)."""
        here = [n for n in self.folder.list() if n.startswith("part-")]
        blobs = [f"blobs/{n}" for n in self.folder.child("blobs").list()]
        bad: dict[int, str] = {}  # receipts last: the files of one that comes in between are no orphans
        named = {file.name for _, receipt in self._good(bad) for file in receipt.files}
        unsure = tuple(f"{start}{shard:05d}-" for shard in bad for start in ("part-", "blobs/"))
        return sorted(n for n in here + blobs if n not in named and not n.startswith(unsure))

    def leftovers(self) -> list[str]:
        """Temporary files of writers that were killed, or of one that is late.

        Whoever holds the run's lock may remove them. A file comes to its name only from its temporary one, which has a
        name of its own: a late writer that finds it gone fails before it commits, and its shard is made again anyway.
        """
        folders = {"": self.folder, "receipts/": self._receipts, "blobs/": self.folder.child("blobs")}
        return [f"{start}{name}" for start, folder in folders.items() for name in folder.leftovers()]

    def sweep(self, *, orphans: bool = False) -> None:
        """Remove the leftovers; one that the storage keeps does no harm.

        ``orphans``: those too. Only when every shard is committed: until its receipt is there, a writer's file is one.
        """
        with contextlib.suppress(StorageError, OSError):
            for left in [*(self.orphans() if orphans else ()), *self.leftovers()]:
                self.folder.remove(left)

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
                data = self.folder.read(name)
                with _damage_told():
                    return pq.read_table(pa.BufferReader(data))
            with self.folder.open(name) as file, _damage_told():  # reads the asked columns' ranges only
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

    def _good(self, bad: dict[int, str], each: bool = False) -> Iterator[tuple[int, Receipt]]:
        for shard, found in self._read_each(not each):
            if isinstance(found, RaylensError):
                bad[shard] = str(found).splitlines()[0]
            elif found is not None:
                yield shard, found

    def _read_each(self, trusting: bool) -> Iterator[tuple[int, Receipt | RaylensError | None]]:
        """Receipts by shard, or why one cannot be read: one listing, the summary, parallel reads of what it lacks."""
        stamps = self._receipts.stamps()
        numbers = sorted(int(name[:-5]) for name in stamps if name.endswith(".json") and name[:-5].isdigit())
        known = summarized(self.folder) if trusting and len(numbers) >= _SUMMARY_FROM else {}

        def read(shard: int) -> tuple[int, Receipt | RaylensError | None]:
            try:
                return shard, self.receipt(shard)
            except StorageError:  # says nothing of the receipt, which must not be withdrawn for it
                raise
            except RaylensError as error:
                return shard, error

        unknown = []
        for shard in numbers:
            stamp, receipt = known.get(receipt_name(shard), ("", None))
            if receipt is not None and stamp == stamps.get(receipt_name(shard)) and receipt.shard == shard:
                yield shard, receipt
            else:
                unknown.append(shard)
        with ThreadPoolExecutor(READERS) as pool:
            yield from pool.map(read, unknown)


@contextlib.contextmanager
def _damage_told() -> Iterator[None]:
    """What Arrow says of damaged pages, which looks like an error of the storage, as what it says of a damaged file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise pa.ArrowInvalid(str(error)) from error


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


def parquet(table: pa.Table) -> bytes:
    """The bytes of a shard: the same rows give the same bytes with one version of pyarrow."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", version="2.6")
    return sink.getvalue()
