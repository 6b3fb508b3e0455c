"""Clocks that jump by days and years, of driver, workers and files: nothing here goes by them."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from driving import rows_of
from toys import toy_job

from pipeline import events
from pipeline.engine import execute
from pipeline.errors import RaylensError
from pipeline.lock import NAME, Owner, RunLock
from pipeline.options import Options, Resources
from pipeline.status import status
from pipeline.storage import Folder
from pipeline.verify import verify

pytestmark = pytest.mark.timeout(900)  # starts Ray, which a busy machine may do only at the third try

QUIET = Options(resources=Resources(shard_rows=24), say=lambda _: None)
DAY = 86400.0
JUMPS = (DAY, -20 * 365 * DAY, 0.0, 40 * 365 * DAY, -3600.0)  # from the true time, one after another


def test_a_run_under_clocks_that_jump_has_the_rows_of_any_other(
    cluster: str, tmp_path: Path, undisturbed: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's clock jumps whenever it is read, each worker's with every slice."""
    run, true, jumps = tmp_path / "run", time.time, itertools.cycle(JUMPS)

    def jumping() -> float:
        return true() + next(jumps)

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime.fromtimestamp(jumping(), tz)

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(events, "datetime", Jumping)
    outcome = execute(toy_job(200, fault="clock"), str(run), QUIET)
    assert outcome.exit_code == 0
    assert 0 <= outcome.seconds < DAY
    assert rows_of(run).equals(undisturbed)
    lines = [json.loads(line) for file in (run / "events").glob("*.jsonl") for line in file.read_text().splitlines()]
    years = {line["at"][:4] for line in lines}
    assert len(years) >= 3, "the clock did not jump: this test shows nothing"
    seconds = [json.loads(file.read_text())["seconds"] for file in (run / "measure/all/receipts").iterdir()]
    assert all(0 <= took < DAY for took in seconds)

    # Files from the last century and from the next are the same files.
    monkeypatch.undo()
    for i, file in enumerate(sorted(path for path in run.rglob("*") if path.is_file())):
        at = time.time() + JUMPS[i % len(JUMPS)]
        os.utime(file, (at, at))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("part-*")}
    assert status(str(run)).complete
    assert verify(str(run)).ok
    assert execute(toy_job(200), str(run), QUIET).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("part-*")} == before, "nothing is made again"


@pytest.mark.parametrize("jump", [-30 * 365 * DAY, 30 * 365 * DAY], ids=["of long ago", "of the future"])
def test_a_lock_is_judged_by_its_counter_whatever_its_time(
    tmp_path: Path, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner is on another host, where another clock is: silent it goes after the patience, alive it stays."""
    folder, true = Folder(str(tmp_path)), time.time
    monkeypatch.setattr(time, "time", lambda: true() + jump)

    def write(counter: int) -> None:
        folder.write(NAME, Owner("elsewhere", "another boot", 7, "", "cafe", counter).to_json())
        os.utime(tmp_path / NAME, (true() - jump, true() - jump))

    write(1)
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(write, over))
    beating.start()
    try:
        with pytest.raises(RaylensError, match="another driver is working on this run: process 7 on elsewhere"):
            RunLock(folder, patience_s=60.0, say=lambda _: None).__enter__()
    finally:
        over.set()
        beating.join()
    with RunLock(folder, patience_s=0.5, say=lambda _: None) as lock:
        lock.check()
    assert not (tmp_path / NAME).exists()


def _beat(write: Callable[[int], None], over: threading.Event) -> None:
    counter = 1
    while not over.wait(0.1):
        counter += 1
        write(counter)
