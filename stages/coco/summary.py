"""How many images each split keeps and filters: by reason, by class, and under each reading of the rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stages.coco.rule import READINGS, REASONS
from stages.schema import column

Counts = Counter[tuple[str, str, int, str, str]]  # (split, kind, index, name, images | kept)


@dataclass(frozen=True)
class CocoSummaryConfig:
    coarse: tuple[str, ...]  # names, by index


class CocoSummary:
    """Rows (split, kind, index, name, images, kept).

    Kinds: ``all``; ``reason`` (filtered images); ``reading`` (kept under it); ``coarse`` and ``fine`` (images that
    show the class, and kept ones); ``person`` (a public class beside whatever labels).
    """

    version = 1
    aligned = False
    statuses = ("ok", "filtered")  # what is filtered is counted, too
    columns: Sequence[str] = (
        "split", "fine", "fine_names", "coarse_present", "person", "kept", "reason", "readings"
    )  # fmt: skip

    def __init__(self, config: CocoSummaryConfig) -> None:
        self.config = config

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                column("split", pa.string(), "the split counted"),
                column("kind", pa.string(), "what is counted: all, reason, reading, coarse, fine or person"),
                column("index", pa.int32(), "of the class, reading or reason"),
                column("name", pa.string(), "of the class, reading or reason"),
                column("images", pa.int64(), "images concerned"),
                column("kept", pa.int64(), "of these, kept"),
            ]
        )

    def blocks(self) -> list[Any]:
        return ["all"]

    def start(self, block: Any = None) -> Counts:
        return Counter()

    def add(self, state: Counts, table: pa.Table) -> Counts:
        reasons = {name: i for i, name in enumerate(REASONS)}
        for row in table.select(list(self.columns)).to_pylist():
            split, kept = row["split"], row["kept"]
            seen = [("all", 0, "images")]
            seen += [("coarse", i, self.config.coarse[i]) for i in row["coarse_present"]]
            seen += [("fine", i, name) for i, name in zip(row["fine"], row["fine_names"], strict=True)]
            if row["person"]:
                seen.append(("person", 0, "person"))
            if row["reason"] is not None:
                seen.append(("reason", reasons[row["reason"]], row["reason"]))
            for place in seen:
                state[(split, *place, "images")] += 1
                state[(split, *place, "kept")] += kept
            for i, (reading, inside) in enumerate(zip(READINGS, row["readings"], strict=True)):
                state[(split, "reading", i, str(reading), "images")] += 1
                state[(split, "reading", i, str(reading), "kept")] += inside
        return state

    def merge(self, left: Counts, right: Counts) -> Counts:
        return left + right

    def finish(self, block: Any, state: Counts) -> pa.Table:
        """Raises ValueError where two splits number their classes differently: indexes would mean two things."""
        named: dict[int, str] = {}
        for _, kind, index, name, _ in sorted(state):
            if kind == "fine" and named.setdefault(index, name) != name:
                raise ValueError(
                    f"class {index} is {named[index]!r} in one split and {name!r} in another: "
                    "the splits' annotation files must list the same categories"
                )
        rows = [
            {"split": s, "kind": k, "index": i, "name": n, "images": state[(s, k, i, n, "images")],
             "kept": state[(s, k, i, n, "kept")]}
            for s, k, i, n, what in sorted(state) if what == "images"
        ]  # fmt: skip
        return pa.Table.from_pylist(rows, self.schema)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        """Per split: images, kept, filtered by reason, kept under each reading, images and kept by class."""
        found: dict[str, Any] = {}
        for row in table.to_pylist():
            split = found.setdefault(row["split"], {"images": 0, "kept": 0, "filtered": {}, "readings": {}})
            match row["kind"]:
                case "all":
                    split |= {"images": row["images"], "kept": row["kept"]}
                case "reason":
                    split["filtered"][row["name"]] = row["images"]
                case "reading":
                    split["readings"][row["name"]] = row["kept"]
                case kind:
                    counts = {"images": row["images"], "kept": row["kept"]}
                    split.setdefault(kind, {})[row["name"]] = counts
        return found

    def state_bytes(self, block: Any) -> int:
        return 4 << 20
