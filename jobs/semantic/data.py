"""What a finished ``raylens coco`` run gives to the two-level classifier: kept images, both labels, class names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import plan as plans
from pipeline.errors import UsageError
from pipeline.plan import Plan
from pipeline.run import Run
from pipeline.shards import Shards, digest
from pipeline.sources.selection import key_shares
from stages.coco.taxonomy import Taxonomy

_STEP = "filter"
_CURE = "run 'raylens coco' to its end first"
_COLUMNS = ("key", "fine", "coarse", "kept")

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # the file name as a relative posix path; unique, sorted
        pa.field("uri", pa.string(), nullable=False),
        pa.field("fine", pa.list_(pa.int32())),  # indexes of the fine classes that label the image, rising
        pa.field("coarse", pa.int32()),  # index of its coarse class; null: people only
    ]
)


class CocoRun:
    """The filtered and relabelled splits of a run; UsageError where it is not there, not finished or of another job."""

    def __init__(self, url: str) -> None:
        self.run = Run(url)
        try:
            self._described = self.run.describe()
        except UsageError as error:
            raise UsageError(f"coco: {error.what}", where=error.where, cure=_CURE) from None
        job = self._described.get("job")
        if job != "coco":
            raise UsageError(f"coco: this is a run of the job '{job}', not of 'coco'", where=self.run.url, cure=_CURE)

    @property
    def splits(self) -> list[str]:
        return list(self._described["config"]["splits"])

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """As the rows were made with it, whatever has become of its file."""
        fields = self.plan(self.splits[0]).fields
        pairs = {name: fields[f"config.taxonomy.{name}"] for name in ("coarse", "supercategories", "rename")}
        return Taxonomy(
            coarse=tuple((name, tuple(members)) for name, members in pairs["coarse"]),
            public=tuple(fields["config.taxonomy.public"]),
            supercategories=tuple((above, name) for above, name in pairs["supercategories"]),
            rename=tuple((fine, name) for fine, name in pairs["rename"]),
        )

    @property
    def coarse_names(self) -> tuple[str, ...]:
        return self.taxonomy.coarse_names

    def fine_names(self, splits: list[str]) -> tuple[str, ...]:
        """By index, renamed; UsageError where the splits number their classes differently."""
        found = {split: self.run.key_table(self._known(split)).classes for split in splits}
        first = found[splits[0]]
        for split, names in found.items():
            if names != first:
                odd = next((pair for pair in zip(first, names, strict=False) if pair[0] != pair[1]), None)
                told = f"{odd[0]!r} against {odd[1]!r}" if odd else f"{len(first)} against {len(names)}"
                raise UsageError(
                    f"coco: the splits '{splits[0]}' and '{split}' have other classes ({told})",
                    where=self.run.url,
                    cure="filter splits whose annotation files list the same categories",
                )
        return tuple(self.taxonomy.name(name) for name in first)

    def plan(self, split: str) -> Plan:
        plan = plans.load(self.run.step_folder(_STEP, split=self._known(split)))
        if plan is None:
            raise UsageError(f"coco: the split '{split}' is not filtered yet", where=self.run.url, cure=_CURE)
        return plan

    def identity(self, split: str) -> str:
        """What the split's rows are, whatever folder they lie in."""
        receipts = self._shards(split).committed().values()
        whole = [self.run.key_table(split).digest, digest([(split, receipt) for receipt in receipts])]
        return hashlib.sha256(" ".join(whole).encode()).hexdigest()

    def kept(self, split: str) -> pa.Table:
        """The kept images (``SCHEMA``), sorted by key; metadata ``coco`` has the counts of the whole split."""
        columns = [shard.select(list(_COLUMNS)) for shard in self._shards(split).tables(list(_COLUMNS))]
        rows = pa.concat_tables(columns).combine_chunks()
        keys = self.run.key_table(split)
        if self._described["config"]["splits"][split]["images"] is None:
            raise UsageError(
                f"coco: the split '{split}' names no image folder",
                where=self.run.url,
                cure="name it in the config of 'raylens coco' (images) and run that into a new folder",
            )
        table = keys.table().select(["key", "uri"]).combine_chunks()
        if not table.column("key").equals(rows.column("key")):
            raise UsageError(
                f"coco: the rows of split '{split}' are not those of its keys",
                where=self.run.url,
                cure="'raylens verify --repair' on that run, then run 'raylens coco' again",
            )
        inside = rows.column("kept")
        found = pa.Table.from_arrays(
            [
                table.column("key").filter(inside).combine_chunks(),
                table.column("uri").filter(inside).combine_chunks(),
                rows.column("fine").filter(inside).combine_chunks().cast(pa.list_(pa.int32())),
                rows.column("coarse").filter(inside).combine_chunks(),
            ],
            schema=SCHEMA,
        )
        counts = {"split": split, "images": len(rows), "kept": len(found)}
        return found.replace_schema_metadata({"coco": json.dumps(counts), "classes": json.dumps(keys.classes)})

    def _known(self, split: str) -> str:
        if split not in self.splits:
            raise UsageError(
                f"coco: there is no split '{split}'",
                where=self.run.url,
                cure=f"its splits are {', '.join(self.splits)}",
            )
        return split

    def _shards(self, split: str) -> Shards:
        plan = self.plan(split)
        shards = Shards(self.run.step_folder(_STEP, split=split), plan.shards)
        good, bad = shards.complete()
        if len(good) < plan.shards:
            why = f": {next(iter(bad.values()))}" if bad else ""
            raise UsageError(
                f"coco: {len(good)} of {plan.shards} shards of split '{split}' are there{why}",
                where=self.run.url,
                cure=_CURE,
            )
        return shards


def share(table: pa.Table, lo: float, hi: float, seed: int) -> pa.Table:
    """The rows whose key hashes into [lo, hi): the same ones whatever else the table holds."""
    shares = key_shares(table.column("key").combine_chunks(), f"tune {seed}")
    return table.filter(pa.array((shares >= lo) & (shares < hi)))


def require_rows(table: pa.Table, least: int, what: str, coarse: int, where: str) -> None:
    """UsageError where there are too few rows to work on, or only people to tell apart."""
    if len(table) < least:
        raise UsageError(
            f"{len(table):,} kept images {what}, and {least:,} are needed",
            where=where,
            cure="lower training.batch or splits.tune_share, or filter more images"
            if least > 1
            else "filter more images, or raise splits.tune_share",
        )
    labels = table.column("coarse").drop_null()
    if len(labels) == 0:
        raise UsageError(f"no kept image {what} has a coarse class", where=where, cure="filter other images")
    if (highest := pc.max(labels).as_py()) >= coarse:
        raise UsageError(
            f"a kept image {what} has the coarse class {highest}, and the taxonomy has {coarse}",
            where=where,
            cure=_CURE,
        )


def counts_of(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """The ``coco`` note of a frozen key table."""
    return dict(json.loads((metadata or {}).get(b"coco", b"{}")))
