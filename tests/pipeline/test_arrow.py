"""pyarrow without pandas: in processes of their own, where nothing has imported either before."""

from __future__ import annotations

import subprocess
import sys

import pytest

OURS = """
import importlib.util
import sys
import pipeline.host
import pyarrow as pa
table = pa.table({"a": [1, 2]})
assert importlib.util.find_spec("pandas").name == "pandas"  # who only asks whether it is there
assert "pandas" not in sys.modules
"""
SERIES = """
import pandas as pd
assert pa.array(pd.Series([1.0, float("nan")])).null_count == 1
assert pa.array(pd.Series([1, pd.NA], dtype="Int64")).to_pylist() == [1, None]
assert pa.array(pd.Series([pd.Timestamp("2026-01-01"), pd.NaT])).null_count == 1
assert pa.array(pd.Series(["a", None])).to_pylist() == ["a", None]
assert pa.table({"a": pd.Series([1, pd.NA], dtype="Int64")}).column("a").null_count == 1
print("done")
"""
FRAMES = """
frame = table.to_pandas()
assert frame.a.tolist() == [1, 2]
assert pa.Table.from_pandas(frame).equals(table)
print("done")
"""


@pytest.mark.parametrize("code", [SERIES, FRAMES + SERIES], ids=["imported by name", "imported by pyarrow"])
def test_a_worker_makes_arrays_without_pandas_and_with_it_as_ever_once_it_is_imported(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", OURS + code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_what_is_hidden_makes_a_difference() -> None:
    """When this fails, pyarrow no longer imports pandas by itself, and pipeline/arrow.py can go."""
    code = "import sys\nimport pyarrow as pa\npa.array([1])\nassert 'pandas' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
