"""Drivers really killed, stopped and doubled: nothing is lost, a rerun goes on, only one drives."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults
TOYS = Path(__file__).parent / "toys.py"


def start(run: Path, config: dict, address: str) -> subprocess.Popen:
    resources = {"address": address, "shard_rows": 24}
    command = [sys.executable, str(TOYS), str(run), json.dumps({"keys": 200, **config}), json.dumps(resources)]
    environment = {**os.environ, "PYTHONPATH": str(TOYS.parent)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(driver: subprocess.Popen) -> tuple[int, str, str]:
    out, err = driver.communicate(timeout=120)
    return driver.returncode, out, err


def wait_for(what, seconds=90):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def committed(run: Path) -> int:
    return len(list((run / "measure/all/receipts").glob("*.json")))


@pytest.mark.parametrize("seed", [1])
def test_a_killed_driver_is_resumed_to_the_same_rows(cluster, tmp_path, rows_of, undisturbed, seed):
    run = tmp_path / "run"
    driver = start(run, {"pause_s": 0.1}, cluster)
    wait_for(lambda: committed(run) >= 1 or driver.poll() is not None)
    time.sleep(random.Random(seed).uniform(0, 0.8))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {f.name: f.stat().st_mtime_ns for f in (run / "measure/all/receipts").glob("*.json")}
    assert 1 <= len(before) < 9, "the driver was not killed on the way: this test shows nothing"
    code, out, err = finish(start(run, {}, cluster))
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["totals"]["measure"] == {"ok": 200, "filtered": 0, "failed": 0}
    assert rows_of(run).equals(undisturbed)
    after = {f.name: f.stat().st_mtime_ns for f in (run / "measure/all/receipts").glob("*.json")}
    assert {name: after[name] for name in before} == before, "committed shards were made again"


def test_sigterm_finishes_the_slice_in_hand_and_leaves_in_time(cluster, tmp_path, rows_of, undisturbed):
    run = tmp_path / "run"
    driver = start(run, {"pause_s": 0.3}, cluster)
    wait_for(lambda: committed(run) >= 1 or driver.poll() is not None)
    asked = time.monotonic()
    driver.send_signal(signal.SIGTERM)
    code, _, err = finish(driver)
    assert time.monotonic() - asked < 20
    assert code == 1
    assert "run the same command again to resume" in err
    assert 1 <= committed(run) < 9
    assert not (run / "lock.json").exists()
    assert finish(start(run, {}, cluster))[0] == 0
    assert rows_of(run).equals(undisturbed)


def test_a_second_driver_on_a_run_is_refused_and_the_first_goes_on(cluster, tmp_path, rows_of, undisturbed):
    run = tmp_path / "run"
    first = start(run, {"pause_s": 0.2}, cluster)
    wait_for(lambda: committed(run) >= 1 or first.poll() is not None)
    code, _, err = finish(start(run, {}, cluster))
    assert code == 1
    assert f"pid {first.pid}" in err or str(first.pid) in err
    assert "Traceback" not in err
    assert finish(first)[0] == 0
    assert rows_of(run).equals(undisturbed)


def test_a_finished_run_answers_without_joining_a_cluster(cluster, tmp_path):
    run = tmp_path / "run"
    assert finish(start(run, {}, cluster))[0] == 0
    before = {f: f.stat().st_mtime_ns for f in run.rglob("part-*.parquet")}
    code, _, err = finish(start(run, {}, "203.0.113.1:1"))  # nobody answers there, and nobody is asked
    assert code == 0, err
    assert {f: f.stat().st_mtime_ns for f in run.rglob("part-*.parquet")} == before
