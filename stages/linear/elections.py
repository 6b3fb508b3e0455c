"""Votes over a dataset: how many pixels speak for the predicted class, and how often it has the most of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from stages.linear.classifier import prefix, views
from stages.linear.spread import Spread
from stages.schema import column

_SHARES = ("predicted_share", "label_share", "first_share", "voted", "unsteady")
_EVENTS = ("first_is_predicted", "first_is_label", "class_error", "changed")
State = dict[tuple[str, str], Spread]


@dataclass(frozen=True)
class ElectionsConfig:
    """``attack``: whether the rows hold attacked images too."""

    attack: bool = False


class Elections:
    """Reduction over the rows of `stages.linear.votes_stage`; one block, one row for each number told."""

    version = 2
    aligned = False

    def __init__(self, config: ElectionsConfig) -> None:
        self.config = config
        self._views = views(config.attack)

    @property
    def columns(self) -> Sequence[str]:
        own = ("predicted", "voted", "top", "top_share", "predicted_share", "label_share", "unsteady")
        return ["label", *(start + name for view in self._views for start in [prefix(view)] for name in own)]

    @property
    def schema(self) -> pa.Schema:
        number = pa.float64()
        return pa.schema(
            [
                column("view", pa.string(), "clean or attacked"),
                column("name", pa.string(), "what is told: a share of pixels, a count, or a share of images"),
                column("n", pa.int64(), "images that have the number"),
                column("mean", number, "over images"),
                column("std", number, "over images (n - 1)"),
                column("se", number, "standard error of the mean"),
            ]
        )

    def blocks(self) -> list[Any]:
        return ["all"]

    def state_bytes(self, block: Any = "all") -> int:
        return len(self._views) * len((*_SHARES, *_EVENTS)) * 200

    def start(self, block: Any = "all") -> State:
        """Nothing counted yet: the identity of :meth:`merge`."""
        none = Spread.of(np.zeros((0, 1)))
        return {(view, name): none for view in self._views for name in (*_SHARES, *_EVENTS)}

    def add(self, state: State, table: pa.Table) -> State:
        """``state`` and the rows of ``table``; rows that failed are not of it."""
        numbers: dict[tuple[str, str], list[float]] = {place: [] for place in state}
        for row in table.select(list(self.columns)).to_pylist():
            for view in self._views:
                for name, value in _numbers(row, view).items():
                    numbers[view, name] += [] if value is None or math.isnan(value) else [value]
        found = {place: Spread.of(np.array(values, float).reshape(-1, 1)) for place, values in numbers.items()}
        return self.merge(state, found)

    def merge(self, left: State, right: State) -> State:
        return {place: left[place] + right[place] for place in left}

    def finish(self, block: Any, state: State) -> pa.Table:
        """See :attr:`schema`."""
        rows = [{"view": view, "name": name} | spread.told(0) for (view, name), spread in state.items() if spread.n]
        return pa.Table.from_pylist(rows, schema=self.schema)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        return {"rows": table.to_pylist()}


def _numbers(row: dict[str, Any], view: str) -> dict[str, float | None]:
    start, label = prefix(view), row["label"]
    predicted, first = row[f"{start}predicted"], row[f"{start}top"][0]
    return {
        "predicted_share": row[f"{start}predicted_share"],
        "label_share": row[f"{start}label_share"],
        "first_share": row[f"{start}top_share"][0],
        "voted": float(row[f"{start}voted"]),
        "unsteady": row[f"{start}unsteady"],
        "first_is_predicted": float(first == predicted),
        "first_is_label": None if label is None else float(first == label),
        "class_error": None if label is None else float(predicted != label),
        "changed": float(predicted != row["predicted"]) if start else None,
    }
