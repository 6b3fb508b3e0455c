"""Drivers really killed, stopped and doubled: nothing is lost, a rerun goes on, only one drives."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pytest
from driving import receipts, rows_of, start, told, wait_for
from toys import toy_job

from pipeline.engine import execute
from pipeline.errors import RaylensError
from pipeline.options import Options, Resources

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
QUIET = Options(resources=Resources(shard_rows=24), say=lambda _: None)


def begin(run: Path, address: str, **config: float | str) -> subprocess.Popen[str]:
    """A driver that has committed a shard and is in the midst of the others."""
    driver = start(run, {"keys": 200, **config}, {"address": address})
    wait_for(lambda: receipts(run) >= 1 or driver.poll() is not None)
    assert driver.poll() is None, driver.communicate()[1]
    return driver


def written(run: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (run / "measure/all/receipts").glob("*.json")}


def test_a_second_driver_is_refused_and_after_the_first_was_killed_it_goes_on(
    cluster: str, tmp_path: Path, undisturbed: pa.Table
) -> None:
    run = tmp_path / "run"
    driver = begin(run, cluster, pause_s=1.0)
    with pytest.raises(RaylensError, match=f"another driver is working on this run: process {driver.pid} on "):
        execute(toy_job(200), str(run), QUIET)
    time.sleep(random.Random(1).uniform(0, 2.0))
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    before = written(run)
    assert 1 <= len(before) < 9, "the driver was not killed on the way: this test shows nothing"
    outcome = execute(toy_job(200), str(run), QUIET)
    assert outcome.exit_code == 0
    assert outcome.totals["measure"] == {"ok": 200, "filtered": 0, "failed": 0}
    assert rows_of(run).equals(undisturbed)
    after = written(run)
    assert {name: after[name] for name in before} == before, "committed shards were made again"

    # A finished run answers without joining a cluster: nobody is at this address, and nobody is asked.
    again = start(run, {"keys": 200}, {"address": "203.0.113.1:1"})
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert told(out)["totals"]["measure"] == {"ok": 200, "filtered": 0, "failed": 0}
    assert written(run) == after


def test_sigterm_finishes_the_slice_in_hand_and_leaves_in_time(
    cluster: str, tmp_path: Path, undisturbed: pa.Table
) -> None:
    run = tmp_path / "run"
    seen = tmp_path / "seen"
    seen.mkdir()
    driver = begin(run, cluster, pause_s=1.0, fault="seen", markers=str(seen))
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=200)
    assert driver.returncode == 1
    assert "stopped on request" in err, "by its own clock it was late: then it leaves without these words"
    assert "run the same command again to resume" in err
    assert "Traceback" not in err
    assert 1 <= receipts(run) < 9
    slices = {kind: {file.name.partition("-")[2] for file in seen.glob(f"{kind}-*")} for kind in ("began", "ended")}
    assert slices["began"] == slices["ended"] != set()
    assert not (run / "lock.json").exists()
    assert execute(toy_job(200), str(run), QUIET).exit_code == 0
    assert rows_of(run).equals(undisturbed)
