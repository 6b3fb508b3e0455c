"""The interpretability indexes of a split, with everything they are read beside: accuracies, confusion, classes.

An image counts where both its labels are known. States hold counts, and per image its case under each rule beside a
hash of its key: batches for the mean over batches are taken in the order of the hashes, so they depend on neither
shards nor merge order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.schema import column
from stages.semantic.indexes_summary import rows_of, summarise
from stages.semantic.rules import CASES, check_rules


@dataclass(frozen=True)
class SemanticIndexesConfig:
    """``rules`` are those of the evaluate step (none for a coarse-only network); the names are in the order of the
    class ids. ``a`` and ``literal`` choose IF_a. ``batch`` images make a batch for the mean over batches; 0: none.
    Intervals hold ``confidence`` of ``resamples`` bootstrap draws."""

    rules: tuple[str, ...]
    fine_names: tuple[str, ...]
    coarse_names: tuple[str, ...]
    a: tuple[float, ...] = (1.0,)
    literal: bool = False
    batch: int = 32
    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        check_rules(self.rules)
        if not self.a or min(self.a) <= 0 or self.batch < 0 or self.resamples < 1 or not 0 < self.confidence < 1:
            raise ValueError(
                f"a {self.a} above 0, batch {self.batch} at least 0, resamples {self.resamples} at least 1 and "
                f"confidence {self.confidence} between 0 and 1: one of them is not"
            )


@dataclass
class Counts:
    """What one split's images came to; R rules, C coarse and F fine classes."""

    unlabelled: int
    confusion: NDArray[np.int64]  # [C, C]: true, predicted
    fine: NDArray[np.int64]  # [R, 3, F]: images that show the class, that are said to, both
    keys: NDArray[np.uint64]  # [n]: hashes
    cases: NDArray[np.int8]  # [n, R]: index into CASES

    @classmethod
    def none(cls, config: SemanticIndexesConfig) -> Counts:
        rules, coarse, fine = len(config.rules), len(config.coarse_names), len(config.fine_names)
        return cls(
            0,
            np.zeros((coarse, coarse), np.int64),
            np.zeros((rules, 3, fine), np.int64),
            np.zeros(0, np.uint64),
            np.zeros((0, rules), np.int8),
        )

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.unlabelled + other.unlabelled,
            self.confusion + other.confusion,
            self.fine + other.fine,
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.cases, other.cases]),
        )

    def case_counts(self, rule: int) -> NDArray[np.int64]:
        """[4]"""
        return np.bincount(self.cases[:, rule], minlength=len(CASES)).astype(np.int64)

    def batch_counts(self, rule: int, size: int) -> NDArray[np.int64]:
        """[batches, 4]; the last batch is what is left."""
        cases = self.cases[np.argsort(self.keys, kind="stable"), rule]
        out = np.zeros((-(-len(cases) // size), len(CASES)), np.int64)
        np.add.at(out, (np.arange(len(cases)) // size, cases), 1)
        return out


State = dict[str, Counts]


class SemanticIndexes:
    """Reduction over evaluate rows to one row per split, rule and aggregate ("set": all images, "batches": the mean
    over batches)."""

    version = 1
    aligned = False

    def __init__(self, config: SemanticIndexesConfig) -> None:
        self.config = config

    @property
    def columns(self) -> Sequence[str]:
        of_rules = [f"{name}/{rule}" for rule in self.config.rules for name in ("predicted", "case")]
        return ["key", "split", "true", "coarse_true", "coarse", *of_rules]

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    def blocks(self) -> list[Any]:
        return ["all"]

    def start(self, block: Any = "all") -> State:
        return {}

    def add(self, state: State, table: pa.Table) -> State:
        """ValueError where a class id has no name: the names are those of another dataset."""
        out = dict(state)
        for split in dict.fromkeys(table["split"].to_pylist()):
            rows = table.filter(pc.equal(table["split"], split))
            out[split] = out.get(split, Counts.none(self.config)) + self._counts(rows)
        return out

    def merge(self, left: State, right: State) -> State:
        splits = list(dict.fromkeys([*left, *right]))
        none = Counts.none(self.config)
        return {split: left.get(split, none) + right.get(split, none) for split in splits}

    def finish(self, block: Any, state: State) -> pa.Table:
        rows = [row for split in sorted(state) for row in rows_of(split, state[split], self.config)]
        return pa.Table.from_pylist(rows, schema=self.schema)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        """Per split: coarse accuracy, confusion, and under "rules" cases and indexes with their intervals."""
        return summarise(table, self.config)

    def state_bytes(self, block: Any = "all") -> int:
        """Without the 8 + R bytes of each image."""
        none = Counts.none(self.config)
        return none.confusion.nbytes + none.fine.nbytes + (16 << 20)

    def _counts(self, table: pa.Table) -> Counts:
        out = Counts.none(self.config)
        keys: list[int] = []
        cases: list[list[int]] = []
        rules = self.config.rules
        for row in table.select(list(self.columns)).to_pylist():
            if row["coarse_true"] is None or (rules and row["true"] is None):
                out.unlabelled += 1
                continue
            self._known(row["coarse_true"], len(out.confusion), "coarse")
            self._known(row["coarse"], len(out.confusion), "coarse")
            out.confusion[row["coarse_true"], row["coarse"]] += 1
            for r, rule in enumerate(rules):
                true, said = row["true"], row[f"predicted/{rule}"]
                self._known(max([*true, *said], default=0), out.fine.shape[2], "fine")
                out.fine[r, 0, true] += 1
                out.fine[r, 1, said] += 1
                out.fine[r, 2, sorted(set(true) & set(said))] += 1
            keys.append(_hash(row["key"]))
            cases.append([CASES.index(row[f"case/{rule}"]) for rule in rules])
        out.keys = np.array(keys, dtype=np.uint64)
        out.cases = np.array(cases, dtype=np.int8).reshape(len(keys), len(rules))
        return out

    def _known(self, index: int, count: int, level: str) -> None:
        if index >= count:
            raise ValueError(f"a row has the {level} class {index}, and {count} are named: give all {level}_names")


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


_NUMBER, _COUNTS = pa.float64(), pa.list_(pa.int64())
_INTERVAL = pa.struct([("value", _NUMBER), ("low", _NUMBER), ("high", _NUMBER)])
_IF = pa.list_(pa.struct([("a", _NUMBER), ("value", _NUMBER), ("low", _NUMBER), ("high", _NUMBER)]))
_UNDEFINED = pa.list_(pa.struct([("index", pa.string()), ("batches", pa.int64())]))
SCHEMA = pa.schema(
    [
        column("split", pa.string(), "the split judged"),
        column("rule", pa.string(), "how fine scores became sets; null for a coarse-only network"),
        column("oracle", pa.bool_(), "the rule looks at the true labels"),
        column("aggregate", pa.string(), "set: over all images; batches: mean over batches"),
        column("images", pa.int64(), "images judged"),
        column("unlabelled", pa.int64(), "images without a label of one level: not judged"),
        column("cases", _COUNTS, "images per case", shape=f"[{' '.join(CASES)}]"),
        column("ia", _INTERVAL, "interpretation accuracy, with its bootstrap interval; null where 0/0"),
        column("ir", _INTERVAL, "interpretation recall"),
        column("ip", _INTERVAL, "interpretation precision"),
        column("f", _IF, "interpretation F for each a", shape="[a]"),
        column("batches", pa.int64(), "batches of the mean; null for the whole set"),
        column("undefined", _UNDEFINED, "batches in which an index is 0/0, and so not in its mean"),
        column("fine_exact", _INTERVAL, "share of images whose fine set is exactly right"),
        column("coarse_accuracy", _INTERVAL, "share of images whose coarse class is right"),
        column("confusion", _COUNTS, "images by coarse class", shape="[true, predicted]"),
        column("fine_images", _COUNTS, "images that show the class", shape="[fine]"),
        column("fine_predicted", _COUNTS, "images that are said to show it", shape="[fine]"),
        column("fine_hits", _COUNTS, "both", shape="[fine]"),
    ]
)
