"""The interpretability indexes of a split, with everything they are read beside: accuracies, confusion, classes.

Which fine scores make a predicted set is decided here, so another threshold asks for no network. An image counts where
both its labels are known. States hold counts, and per image its case under each rule beside a
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
from stages.semantic.rules import CASES, RELATIVE, THRESHOLD, check_rules, judge


@dataclass(frozen=True)
class SemanticIndexesConfig:
    """``rules`` make sets of fine scores (`stages.semantic.rules`; none for a coarse-only network), those that have one
    with ``threshold`` or ``relative``; the names are in the order of the class ids. ``a`` and ``literal`` choose IF_a.
    ``batch`` images make a batch for the mean over batches; 0: none. Intervals hold ``confidence`` of ``resamples``
    bootstrap draws."""

    rules: tuple[str, ...]
    fine_names: tuple[str, ...]
    coarse_names: tuple[str, ...]
    a: tuple[float, ...] = (1.0,)
    literal: bool = False
    batch: int = 32
    resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0
    threshold: float = THRESHOLD
    relative: float = RELATIVE

    def __post_init__(self) -> None:
        check_rules(self.rules)
        if not self.a or min(self.a) <= 0 or self.batch < 0 or self.resamples < 1 or not 0 < self.confidence < 1:
            raise ValueError(
                f"a {self.a} above 0, batch {self.batch} at least 0, resamples {self.resamples} at least 1 and "
                f"confidence {self.confidence} between 0 and 1: one of them is not"
            )
        if not 0 <= self.threshold <= 1 or not 0 < self.relative <= 1:
            raise ValueError(f"threshold {self.threshold} is in 0..1, and relative {self.relative} above 0 and up to 1")


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

    version = 2
    aligned = False

    def __init__(self, config: SemanticIndexesConfig) -> None:
        self.config = config

    @property
    def columns(self) -> Sequence[str]:
        return ["key", "split", "true", "coarse_true", "coarse", *(["fine_scores"] if self.config.rules else [])]

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
        rules, config = self.config.rules, self.config
        scores = self._scores(table) if rules else np.zeros((len(table), 0), np.float32)
        labels = table.select([name for name in self.columns if name != "fine_scores"])
        for row, mine in zip(labels.to_pylist(), scores, strict=True):
            if row["coarse_true"] is None or (rules and row["true"] is None):
                out.unlabelled += 1
                continue
            self._known(row["coarse_true"], len(out.confusion), "coarse")
            self._known(row["coarse"], len(out.confusion), "coarse")
            out.confusion[row["coarse_true"], row["coarse"]] += 1
            found = []
            for r, rule in enumerate(rules):
                true = row["true"]
                self._known(max(true, default=0), out.fine.shape[2], "fine")
                said, case = judge(
                    rule, mine, true, row["coarse"] == row["coarse_true"], config.threshold, config.relative
                )
                out.fine[r, 0, true] += 1
                out.fine[r, 1, said] += 1
                out.fine[r, 2, sorted(set(true) & set(said))] += 1
                found.append(CASES.index(case))
            keys.append(_hash(row["key"]))
            cases.append(found)
        out.keys = np.array(keys, dtype=np.uint64)
        out.cases = np.array(cases, dtype=np.int8).reshape(len(keys), len(rules))
        return out

    def _scores(self, table: pa.Table) -> NDArray[np.float32]:
        """[rows, F]; ValueError where they are of another number of classes than is named."""
        column, named = table["fine_scores"].combine_chunks(), len(self.config.fine_names)
        for count in pc.unique(pc.list_value_length(column)).to_pylist():
            if count != named:
                raise ValueError(f"a row has {count} fine scores, and {named} classes are named: give all fine_names")
        return np.asarray(column.flatten(), dtype=np.float32).reshape(len(table), named)

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
