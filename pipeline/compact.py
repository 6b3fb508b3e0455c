"""A run's many small shards as a few large Parquet files, for those who read it: RUN/compact/<step>/<split>/.

The shards stay: they are the run. A manifest says what each file is made of and vouches for every byte.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RaylensError
from pipeline.lock import RunLock
from pipeline.receipts import PLAIN_NAME
from pipeline.run import Run
from pipeline.shards import STATUSES, Receipt
from pipeline.storage import Folder
from pipeline.units import Unit, units

TARGET_BYTES = 256 * 2**20  # of a file; a shard larger than that is a file of its own
MANIFEST = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Compacted:
    """What became of one step's rows on one split."""

    name: str
    url: str
    shards: int
    files: int
    rows: int
    bytes: int
    made: bool  # False: it was there already, made of the same shards


def compact(
    url: str, *, target_bytes: int = TARGET_BYTES, say: Callable[[str], None] = lambda _: None
) -> list[Compacted]:
    """Compact every complete measuring step of a run; files in the order of keys, one row group a shard.

    RaylensError: a shard whose bytes are not what its receipt vouches for; no complete step; a driver at work.
    """
    run = Run(url)
    found = []
    with RunLock(run.folder, say=say):  # while a driver works on the run, its shards may change
        for unit in units(run, run.describe()):
            if unit.kind != "measure" or unit.plan is None:
                continue
            receipts, _ = unit.shards.complete()
            if len(receipts) < unit.plan.shards:
                say(f"{unit.name}: {len(receipts)} of {unit.plan.shards} shards are there; it is left out")
                continue
            found.append(_compact(unit, compacted(run, unit), receipts, target_bytes))
    if not found:
        raise RaylensError("no measuring step is complete", where=url, cure="run its command again to its end")
    return found


def compacted(run: Run, unit: Unit) -> Folder:
    """Where a step's large files lie."""
    return run.folder.child("compact", *unit.name.split("/"))


def manifest(folder: Folder) -> dict[str, Any] | None:
    """What a compacted folder vouches for; None where there is none. RaylensError: it cannot be read."""
    try:
        found = json.loads(folder.read(MANIFEST))
        if not (isinstance(found["sources"], list) and all(map(_is_file, found["files"]))):
            raise ValueError("a file lacks its name, size, sum or rows, or a name leaves the folder")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RaylensError(
            f"this manifest cannot be read ({type(error).__name__}: {error})",
            where=folder.path(MANIFEST),
            cure="remove it and run 'raylens compact RUN' again",
        ) from error
    return dict(found)


def _is_file(entry: dict[str, Any]) -> bool:
    texts = all(isinstance(entry[name], str) for name in ("name", "sha256"))
    counts = all(type(entry[name]) is int and entry[name] >= 0 for name in ("bytes", "rows"))
    return texts and counts and PLAIN_NAME.fullmatch(entry["name"]) is not None


def check(unit: Unit, folder: Folder) -> tuple[list[str], int]:
    """What is wrong with a compacted folder, a line each, and the bytes that were read.

    A file that is missing or has other bytes than the manifest says; shards that are others than it was made of.
    """
    try:
        described = manifest(folder)
    except RaylensError as error:
        return [error.what], 0
    if described is None:
        return [], 0
    found, read, here = [], 0, folder.list()
    for file in described["files"]:
        try:
            data = folder.read(file["name"]) if file["name"] in here else None
        except FileNotFoundError:
            data = None
        if data is None:
            found.append(f"{folder.path(file['name'])} is missing")
            continue
        read += len(data)
        if hashlib.sha256(data).hexdigest() != file["sha256"]:
            found.append(f"{folder.path(file['name'])} does not have the content its manifest vouches for")
    if described["sources"] != _sources(unit.shards.complete()[0]):
        found.append("it was made of other shards than there are now: run 'raylens compact RUN' again")
    return found, read


def _sources(receipts: Mapping[int, Receipt]) -> list[dict[str, str]]:
    return [{"name": r.files[0].name, "sha256": r.files[0].sha256} for _, r in sorted(receipts.items())]


def _compact(unit: Unit, folder: Folder, receipts: Mapping[int, Receipt], target_bytes: int) -> Compacted:
    sources = _sources(receipts)
    before = manifest(folder)
    sizes = folder.list()
    same = before is not None and before["sources"] == sources
    if same and before is not None and all(sizes.get(file["name"]) == file["bytes"] for file in before["files"]):
        return _told(unit, folder, before, made=False)
    folder.remove(MANIFEST)  # from here on the folder vouches for nothing, until it is whole
    files = [_written(folder, number, tables) for number, tables in enumerate(_groups(unit, receipts, target_bytes))]
    assert unit.plan is not None
    described = {
        "step": unit.step,
        "split": unit.split,
        "fingerprint": unit.plan.fingerprint,
        "rows": {status: sum(r.rows.get(status, 0) for r in receipts.values()) for status in STATUSES},
        "files": files,
        "sources": sources,
    }
    folder.write(MANIFEST, json.dumps(described, indent=1).encode())
    named = {file["name"] for file in files} | {MANIFEST}
    for name in folder.list():
        if name not in named:
            folder.remove(name)
    return _told(unit, folder, described, made=True)


def _groups(unit: Unit, receipts: Mapping[int, Receipt], target_bytes: int) -> Iterator[list[pa.Table]]:
    """Shards in order, so many at a time as give about a file."""
    group: list[pa.Table] = []
    size = 0
    for _, receipt in sorted(receipts.items()):
        file = receipt.files[0]
        data = unit.folder.read(file.name)
        if hashlib.sha256(data).hexdigest() != file.sha256:
            raise RaylensError(
                "does not have the content its receipt vouches for",
                where=unit.folder.path(file.name),
                cure="'raylens verify --repair RUN', and run the job again",
            )
        if group and size + file.bytes > target_bytes:
            yield group
            group, size = [], 0
        group.append(pq.read_table(pa.BufferReader(data)))
        size += file.bytes
    if group:
        yield group


def _written(folder: Folder, number: int, tables: list[pa.Table]) -> dict[str, Any]:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, tables[0].schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table.cast(tables[0].schema), row_group_size=max(1, table.num_rows))
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    name = f"rows-{number:05d}-{digest[:8]}.parquet"
    folder.write(name, data)
    return {"name": name, "bytes": len(data), "sha256": digest, "rows": sum(t.num_rows for t in tables)}


def _told(unit: Unit, folder: Folder, described: Mapping[str, Any], *, made: bool) -> Compacted:
    files = described["files"]
    rows, size = sum(file["rows"] for file in files), sum(file["bytes"] for file in files)
    return Compacted(unit.name, folder.url, len(described["sources"]), len(files), rows, size, made)
