"""Means over images with their standard errors: what the tables of networks that ask share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.metrics.moments import mean_and_error
from stages.schema import column

Config = TypeVar("Config")


class Means(ABC, Generic[Config]):
    """A reduction in one block whose state is an array of whole numbers, so that any order adds up alike."""

    aligned = False

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    @abstractmethod
    def schema(self) -> pa.Schema: ...

    @abstractmethod
    def start(self, block: Any = "all") -> NDArray[np.int64]: ...

    @abstractmethod
    def counted(self, table: pa.Table) -> NDArray[np.int64]:
        """What these rows add to a state. ValueError where they are of another number of questions."""

    @abstractmethod
    def rows(self, state: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """Of the table; one of no image (``n`` is 0, and none is told to be ``left_out``) is left out of it."""

    def blocks(self) -> list[Any]:
        return ["all"]

    def state_bytes(self, block: Any = "all") -> int:
        return self.start().nbytes

    def add(self, state: NDArray[np.int64], table: pa.Table) -> NDArray[np.int64]:
        return state + self.counted(table) if table.num_rows else state

    def merge(self, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
        return left + right

    def finish(self, block: Any, state: NDArray[np.int64]) -> pa.Table:
        return pa.Table.from_pylist(
            [row for row in self.rows(state) if row["n"] or row.get("left_out")], schema=self.schema
        )

    def summary(self, table: pa.Table) -> dict[str, Any]:
        return {"rows": table.to_pylist()}


def mean_columns(name: str, meaning: str, unit: str = "", *, differences: bool = False) -> list[pa.Field]:
    """A mean and its standard error."""
    error = "its standard error, of the images' differences" if differences else "its standard error"
    error += "; null where there is one image"
    number = pa.float64()
    return [column(name, number, meaning, unit=unit), column(f"{name}_se", number, error, unit=unit)]


def means(scale: float = 1.0, **parts: NDArray[np.int64]) -> dict[str, float]:
    """Values of these columns from moments [3] of values in units of ``scale``.

    There is none where nothing was counted, and no standard error of one image: null in a table and in JSON.
    """
    row: dict[str, float] = {}
    for name, part in parts.items():
        n, mean, error = mean_and_error(part)
        if n:
            row[name] = scale * mean
        if n > 1:
            row[f"{name}_se"] = scale * error
    return row
