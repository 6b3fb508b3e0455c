"""Three nodes on one machine, one lost every few seconds and another one added: the rows of an undisturbed run."""

from __future__ import annotations

import json
import random
import statistics
import threading
from pathlib import Path

import pytest
from chaos import ground, psutil
from driving import receipts, rows_of, start, undisturbed, wait_for
from toys import toy_job

from pipeline.status import status
from pipeline.verify import verify

pytestmark = [pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(900)]
SHARDS, EVERY_S = 60, 2.0  # after which another node goes, once the last one is replaced
FLAT_MB = 16  # between a third of a run and its end; 1.2 was seen


class Memory:
    """The resident memory of a process in MB, seen a few times a second, with the shards committed by then."""

    def __init__(self, pid: int, run: Path) -> None:
        self._process, self._run = psutil.Process(pid), run
        self._done = threading.Event()
        self.seen: list[tuple[int, float]] = []
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._done.wait(0.3):
            try:
                self.seen.append((receipts(self._run), self._process.memory_info().rss / 2**20))
            except psutil.NoSuchProcess:
                return

    def stop(self) -> list[tuple[int, float]]:
        self._done.set()
        self._thread.join()
        return self.seen


def test_nodes_that_go_and_come_change_no_row_and_the_driver_does_not_grow(tmp_path: Path) -> None:
    keys = {"keys": 24 * SHARDS}
    quiet = undisturbed(tmp_path / "quiet", toy_job(**keys))
    run, which, removed = tmp_path / "run", random.Random(1), 0
    with ground(nodes=3) as place, (tmp_path / "log").open("w") as log:
        driver = start(run, {**keys, "pause_s": 0.25}, {"address": place.address}, log)
        memory = Memory(driver.pid, run)
        try:
            wait_for(lambda: receipts(run) >= 1 or driver.poll() is not None)
            stopped = threading.Event()
            while driver.poll() is None:
                stopped.wait(EVERY_S)
                if driver.poll() is None and receipts(run) < SHARDS - 6:
                    place.remove(which)
                    place.add()
                    removed += 1
        finally:
            driver.kill()
            driver.wait()
            seen = memory.stop()
    said = (tmp_path / "log").read_text()
    assert driver.returncode == 0, said
    assert rows_of(run).equals(quiet)
    assert verify(str(run)).ok
    assert status(str(run)).complete
    assert removed >= 2, "hardly a node was lost: this test shows nothing"
    deaths = [event for event in events(run) if event["kind"] == "death"]
    assert deaths, "nothing ran on the nodes that went"
    grown = _grown(seen)
    assert grown is not None, "the driver was not seen often enough: this test shows nothing"
    print(f"{removed} nodes lost, {len(deaths)} workers with them; the driver grew by {grown:.1f} MB")
    assert grown < FLAT_MB


def _grown(seen: list[tuple[int, float]]) -> float | None:
    """Between the second quarter of the shards and the last; None where it was not seen in both."""
    then = [mb for shards, mb in seen if SHARDS // 4 <= shards < SHARDS // 2]
    late = [mb for shards, mb in seen if 3 * SHARDS // 4 <= shards < SHARDS]
    return statistics.median(late) - statistics.median(then) if then and late else None


def events(run: Path) -> list[dict]:
    return [json.loads(line) for file in (run / "events").glob("*.jsonl") for line in file.read_text().splitlines()]
