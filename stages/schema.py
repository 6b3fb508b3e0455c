"""Columns that say what they hold."""

from __future__ import annotations

import pyarrow as pa


def column(name: str, type: pa.DataType, meaning: str, *, shape: str = "", unit: str = "") -> pa.Field:
    """A column whose meaning, shape and unit travel in the Parquet file, for whoever opens it in a year.

    ``shape`` names the axes of a flattened list column in row-major order, e.g. ``"[gates, classes]"``.
    """
    notes = {"meaning": meaning, "shape": shape, "unit": unit}
    return pa.field(name, type, metadata={k: v for k, v in notes.items() if v})
