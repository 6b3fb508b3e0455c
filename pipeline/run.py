"""A run is a folder you can ls: where everything of it lies, and its frozen key tables.

RUN/run.json                        config, provenance, steps and their edges
RUN/keys/<split>.parquet, .json     frozen key table and the source it was listed from
RUN/<step>/<split>/                 a measuring step: plan.json, part-*, receipts/, quarantine/
RUN/<step>/<fingerprint8>/<split>/  the same for one that stands on a reduction or a training
RUN/<reduction>/<fingerprint8>/     plan.json, part-*, receipts/, metrics.json
RUN/<training>/                     training.json, checkpoints/<epoch>/, result/: files and a receipt in each
RUN/events/  RUN/report/
"""

from __future__ import annotations

import contextlib
import io
import json
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import plan as plans
from pipeline.errors import RaylensError, UsageError
from pipeline.redaction import redact_values
from pipeline.steps import Job, Source
from pipeline.storage import Folder

_ROW_GROUP = 4096  # rows a worker reads at once: the largest shard


class Run:
    """The folder of one run. Opening reads and writes nothing."""

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)
        self.keys = self.folder.child("keys")

    @property
    def url(self) -> str:
        return self.folder.url

    def describe(self) -> dict[str, Any]:
        """run.json; UsageError when this folder is no run."""
        try:
            described = json.loads(self.folder.read("run.json"))
        except FileNotFoundError as error:
            raise UsageError(
                "is not a run folder (it has no run.json)", where=self.url, cure="check the path"
            ) from error
        except ValueError as error:
            raise RaylensError(f"run.json cannot be read: {error}", where=self.url, cure="run the job again") from error
        if not isinstance(described, dict) or not _are_steps(described.get("steps")):
            raise RaylensError("run.json does not describe a run", where=self.url, cure="run the job again")
        return described

    def step_folder(self, step: str, *, split: str = "", fingerprint: str = "") -> Folder:
        """Where a step's plan, shards and receipts lie."""
        return self.folder.child(*[name for name in (step, fingerprint[:8], split) if name])

    def freeze_keys(self, split: str, source: Source) -> KeyTable:
        """List a split once and for all; a later call finds it and refuses a source that was described otherwise."""
        description = redact_values(plans.flatten(json.loads(json.dumps(source.description))))
        try:
            frozen = _frozen(self.keys, split)
        except FileNotFoundError:
            table = source.list()
            if table.num_rows == 0:
                raise UsageError(
                    "no image was found", where=f"split '{split}'", cure=f"check its source: {source.description}"
                ) from None
            sink = io.BytesIO()
            pq.write_table(table, sink, compression="zstd", row_group_size=_ROW_GROUP)
            self.keys.write(f"{split}.parquet", sink.getvalue())
            # Parquet names the items of lists anew: what will be read is what the digest vouches for.
            written = pq.read_table(pa.BufferReader(sink.getvalue()))
            frozen = {"source": description, "rows": table.num_rows, "digest": plans.table_digest(written)}
            self.keys.write(f"{split}.json", json.dumps(frozen, indent=1).encode())  # written last: the commit
        lines = plans.difference(frozen["source"], description)
        if lines:
            raise UsageError(
                f"split '{split}' was listed from another source:\n    " + "\n    ".join(lines),
                where=self.keys.path(f"{split}.json"),
                cure="set these fields back, or give another run folder with --run",
            )
        return self.key_table(split)

    def key_table(self, split: str) -> KeyTable:
        return KeyTable(self.keys, split)

    def splits(self) -> list[str]:
        return sorted(name[:-5] for name in self.keys.list() if name.endswith(".json"))

    def write_description(self, job: Job, provenance: dict[str, Any], fingerprints: dict[str, str]) -> None:
        """run.json, rewritten by each driver: what the run is now. Frozen things stand in plans and keys."""
        steps = [
            {
                "name": step.name,
                "kind": type(step).__name__.lower(),
                "upstream": list(step.upstream),
                "splits": list(step.splits),
                "keyed": job.keyed(step.name),
                "fingerprint": fingerprints.get(step.name, ""),
                "label": getattr(step, "label", ""),
            }
            for step in job.steps
        ]
        config = redact_values(job.config)
        described = {"job": job.name, "config": config, "steps": steps, "provenance": provenance}
        self.folder.write("run.json", json.dumps(described, indent=1).encode())


class KeyTable:
    """A frozen key table, read by ranges of rows. Safe from any thread: a shard is run while the next is prefetched."""

    def __init__(self, folder: Folder, split: str) -> None:
        self.folder, self.split = folder, split
        self._lock = threading.Lock()
        self._groups: tuple[tuple[int, int], pa.Table] = ((-1, -1), None)

    @cached_property
    def _frozen(self) -> dict[str, Any]:
        try:
            return _frozen(self.folder, self.split)
        except FileNotFoundError as error:
            raise UsageError(f"split '{self.split}' is not part of this run", where=self.folder.url) from error

    @property
    def digest(self) -> str:
        return str(self._frozen["digest"])

    def __len__(self) -> int:
        return int(self._frozen["rows"])

    @cached_property
    def _file(self) -> pq.ParquetFile:
        data = self.folder.read(f"{self.split}.parquet")
        with self._readable():
            return pq.ParquetFile(pa.BufferReader(data))

    def table(self) -> pa.Table:
        """All rows."""
        file = self._file
        with self._readable():
            return file.read()

    @property
    def classes(self) -> list[str]:
        """Class names by index; empty where the source has none."""
        file = self._file
        with self._readable():
            return list(json.loads((file.schema_arrow.metadata or {}).get(b"classes", b"[]")))

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """What Arrow and JSON say of a damaged file, in words of ours."""
        try:
            yield
        except (pa.ArrowException, OSError, ValueError, TypeError, IndexError) as error:
            raise _damaged(self.folder.path(f"{self.split}.parquet"), error) from error

    def rows(self, lo: int, hi: int) -> list[dict[str, Any]]:
        """Rows [lo, hi) as dicts, from the row groups that hold them."""
        rows: list[dict[str, Any]] = self._slice(lo, hi).to_pylist()
        return rows

    def names(self, lo: int, hi: int) -> list[str]:
        """The keys of rows [lo, hi)."""
        return list(self._slice(lo, hi).column("key").to_pylist())

    def _slice(self, lo: int, hi: int) -> pa.Table:
        with self._lock:
            first, last = lo // _ROW_GROUP, min(-(-hi // _ROW_GROUP), self._file.num_row_groups)
            if self._groups[0] != (first, last):  # a worker asks for the slices of one shard after another
                file = self._file
                with self._readable():
                    self._groups = ((first, last), file.read_row_groups(list(range(first, last))))
            return self._groups[1].slice(lo - first * _ROW_GROUP, hi - lo)


def _frozen(keys: Folder, split: str) -> dict[str, Any]:
    """What is known of a frozen key table beside its rows; FileNotFoundError where there is none."""
    name = f"{split}.json"
    try:
        found = json.loads(keys.read(name))
        if not isinstance(found["source"], dict) or not isinstance(found["rows"], int) or found["rows"] < 1:
            raise ValueError("the source is no mapping, or there are no rows")
        return {**found, "digest": str(found["digest"])}
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(keys.path(name), error) from error


def _are_steps(found: Any) -> bool:
    return isinstance(found, list) and all(
        isinstance(step, dict) and isinstance(step.get("name"), str) for step in found
    )


def _damaged(where: str, error: Exception) -> RaylensError:
    text = (str(error).splitlines() or [""])[0]
    return RaylensError(
        f"the frozen list of keys cannot be read ({type(error).__name__}: {text})",
        where=where,
        cure="restore the file, or start a new run folder",
    )
