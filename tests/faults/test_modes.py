"""A driver that starts its own cluster, of one CPU: the same rows, and no word of Ray's."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from driving import rows_of, start, told

pytestmark = pytest.mark.timeout(900)  # starts Ray, which a busy machine may do only at the third try


def test_one_cpu_of_a_cluster_that_the_driver_starts_itself(tmp_path: Path, undisturbed: pa.Table) -> None:
    driver = start(tmp_path / "run", {"keys": 200}, {"cpus": 1, "mode": "inline"})
    out, err = driver.communicate(timeout=600)
    assert driver.returncode == 0, err
    assert told(out)["totals"]["measure"] == {"ok": 200, "filtered": 0, "failed": 0}
    assert rows_of(tmp_path / "run").equals(undisturbed)
    assert "(raylet)" not in out + err, "Ray speaks in between"
