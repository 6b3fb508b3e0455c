"""Contributions over a dataset: residual shares, and every layer's share of the score, as mean and spread over images.

An image whose score is 0 has no share: it is counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.linear.classifier import VIEWS, prefix, views
from stages.linear.spread import Spread
from stages.schema import column

_VALUES = ("share", "magnitude", "score", "probability")  # of each image; what else is told is made of layers
_IMAGES = 1 << 20  # for which state_bytes speaks


@dataclass(frozen=True)
class SharesConfig:
    """``attack``: whether the rows hold attacked images too."""

    attack: bool = False


@dataclass(frozen=True)
class State:
    """Of the rows seen so far. ``values``: by view and name, one number an image that has one."""

    rows: int = 0
    names: tuple[str, ...] = ()
    bytes: tuple[int, int, int] = (0, 0, 0)
    labelled: int = 0
    changed: int = 0
    values: dict[tuple[str, str], NDArray[np.float64]] = field(default_factory=dict)
    wrong: dict[str, int] = field(default_factory=dict)
    gap: dict[str, float] = field(default_factory=dict)  # the largest, relative to the size of the parts
    layers: dict[str, Spread] = field(default_factory=dict)  # shares of the score: input, then the layers


class Shares:
    """Reduction over the rows of `stages.linear.contributions_stage`; one block, one row for each number told."""

    version = 1
    aligned = False

    def __init__(self, config: SharesConfig) -> None:
        self.config = config
        self._views = views(config.attack)

    @property
    def columns(self) -> Sequence[str]:
        own = ("predicted", "input", "residual", "gap", "layers", *_VALUES)
        named = [prefix(view) + name for view in self._views for name in own]
        return ["label", "layer_names", "activation_bytes", "keep_bytes", "stream_bytes", *named]

    @property
    def schema(self) -> pa.Schema:
        number, count = pa.float64(), pa.int64()
        return pa.schema(
            [
                column("view", pa.string(), "clean or attacked"),
                column("kind", pa.string(), "value (of images); input and term (shares of the score); error, bytes"),
                column("name", pa.string(), "what the numbers are of"),
                column("n", count, "images that have the number"),
                column("without", count, "images whose score is 0, so that they have no share"),
                column("mean", number, "over images; of kind error the share of images, of bytes the bytes"),
                column("std", number, "over images (n - 1)"),
                column("se", number, "standard error of the mean"),
                column("median", number, "over images; kind value only"),
            ]
        )

    def blocks(self) -> list[Any]:
        return ["all"]

    def state_bytes(self, block: Any = "all") -> int:
        """For a million images: 8 bytes for each of the values that a median is told of."""
        return 8 * len(_VALUES) * len(self._views) * _IMAGES

    def start(self, block: Any = "all") -> State:
        """Nothing seen yet: the identity of :meth:`merge`."""
        return State()

    def add(self, state: State, table: pa.Table) -> State:
        """``state`` and the rows of ``table``. ValueError where rows are of another network."""
        return self.merge(state, self._of(table)) if table.num_rows else state

    def _of(self, table: pa.Table) -> State:
        names = list({tuple(n) for n in table["layer_names"].to_pylist()})
        if len(names) != 1:
            raise ValueError("rows of one network have the same layers: these are of several")
        activations, keep, stream = (table[f"{k}_bytes"][0].as_py() for k in ("activation", "keep", "stream"))
        found = State(table.num_rows, names[0], (activations, keep, stream))
        label = table["label"].to_pylist()
        predicted = {view: table[prefix(view) + "predicted"].to_pylist() for view in self._views}
        for view in self._views:
            numbers = {name: _floats(table, prefix(view) + name) for name in (*_VALUES, "input", "residual", "gap")}
            for name in _VALUES:
                found.values[view, name] = numbers[name][~np.isnan(numbers[name])]
            found.wrong[view] = sum(t is not None and t != p for t, p in zip(label, predicted[view], strict=True))
            size = np.abs(numbers["input"]) + np.abs(numbers["residual"])
            relative = np.abs(numbers["gap"]) / np.maximum(size, np.finfo(np.float64).tiny)
            found.gap[view] = float(relative.max())
            terms = table[prefix(view) + "layers"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            terms = terms.astype(np.float64).reshape(table.num_rows, len(names[0]))
            there = numbers["score"] != 0
            parts = np.column_stack([numbers["input"], terms])[there] / numbers["score"][there, None]
            found.layers[view] = Spread.of(parts)
        changed = sum(a != b for a, b in zip(predicted[VIEWS[0]], predicted[self._views[-1]], strict=True))
        return replace(found, labelled=sum(t is not None for t in label), changed=changed)

    def merge(self, left: State, right: State) -> State:
        if not left.rows or not right.rows:
            return left if left.rows else right
        if left.names != right.names:
            raise ValueError("rows of one network have the same layers: these are of several")
        return State(
            left.rows + right.rows,
            left.names,
            left.bytes,
            left.labelled + right.labelled,
            left.changed + right.changed,
            {k: np.concatenate([v, right.values[k]]) for k, v in left.values.items()},
            {k: v + right.wrong[k] for k, v in left.wrong.items()},
            {k: max(v, right.gap[k]) for k, v in left.gap.items()},
            {k: v + right.layers[k] for k, v in left.layers.items()},
        )

    def finish(self, block: Any, state: State) -> pa.Table:
        """See :attr:`schema`; nothing where no image was interpreted."""
        rows: list[dict[str, Any]] = []
        for view in self._views if state.rows else ():
            for name in _VALUES:
                values = state.values[view, name]
                spread = Spread.of(values.reshape(-1, 1))
                told = spread.told(0) | {"median": float(np.median(values)) if len(values) else None}
                rows.append({"view": view, "kind": "value", "name": name, "without": state.rows - len(values)} | told)
            layers = state.layers[view]
            for i, name in enumerate(("input", *state.names)):
                kind = "input" if i == 0 else "term"
                rows.append(
                    {"view": view, "kind": kind, "name": name, "without": state.rows - layers.n} | layers.told(i)
                )
            rows.append(_share(view, "class_error", state.wrong[view], state.labelled))
            rows.append({"view": view, "kind": "error", "name": "gap", "n": state.rows, "mean": state.gap[view]})
        if state.rows and self.config.attack:
            rows.append(_share(VIEWS[1], "changed", state.changed, state.rows))
        if state.rows:
            for name, size in zip(("activations", "keep", "stream"), state.bytes, strict=True):
                rows.append({"view": VIEWS[0], "kind": "bytes", "name": name, "n": 1, "mean": float(size)})
        return pa.Table.from_pylist(rows, schema=self.schema)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        return {"rows": table.to_pylist()}


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """NaN where it is null."""
    return np.array([math.nan if v is None else v for v in table[name].to_pylist()], dtype=np.float64)


def _share(view: str, name: str, count: int, of: int) -> dict[str, Any]:
    if not of:
        return {"view": view, "kind": "error", "name": name, "n": 0}
    share = count / of
    return {
        "view": view,
        "kind": "error",
        "name": name,
        "n": of,
        "mean": share,
        "se": math.sqrt(share * (1 - share) / of),
    }
