"""SIGKILLs at random over workers, drivers and nodes, rerun after rerun, until the run is complete: then what it holds.

``make chaos`` runs the long version of it and prints its figures; ``test_chaos.py`` a short one. What is killed when
comes from a seed; what the killed process was doing at that moment comes from the machine.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import driving
import ray  # noqa: F401 - brings psutil
from toys import toy_job

from pipeline.errors import RaylensError
from pipeline.status import status
from pipeline.verify import verify

import psutil  # isort: skip

QUICK_DEATHS = {  # a killed node is missed within seconds; one that answers late, on a busy machine, is not given up
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 3,
    "health_check_timeout_ms": 20_000,
}
_NODES_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")  # a raylet goes when an agent of it does
_IN_A_ROW = 5  # kills without a new shard in between: however slowly processes start, not only starting ones are met
_RERUNS = 100  # of one run: more would mean that it comes to no end


class Ground:
    """A head without CPUs, where drivers join, and nodes of one CPU each, which may be killed."""

    def __init__(self, nodes: int = 2) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK_DEATHS}
        self._cluster = driving.patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
        self.address: str = self._cluster.address
        try:
            for _ in range(nodes):
                self.add()
        except BaseException:
            self.close()
            raise

    def add(self) -> None:
        driving.patiently(lambda: self._cluster.add_node(wait=False, num_cpus=1), only="timed out during startup")

    def remove(self, which: random.Random) -> None:
        """Kill a node, ungracefully, with all that runs on it."""
        node = which.choice(sorted(self._cluster.worker_nodes, key=lambda node: node.unique_id))
        self._cluster.remove_node(node, allow_graceful=False)

    def workers(self) -> list[psutil.Process]:
        """Ray's processes that do the run's work: actors and tasks, on any node."""
        found = []
        for node in self._cluster.list_all_nodes():
            for raylet in node.all_processes.get("raylet", ()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    for child in psutil.Process(raylet.process.pid).children():
                        with contextlib.suppress(psutil.NoSuchProcess):
                            title = " ".join(child.cmdline())
                            if title.startswith("ray::") and not title.startswith(_NODES_OWN):
                                found.append(child)
        return found

    def close(self) -> None:
        for node in list(self._cluster.worker_nodes):
            self._cluster.remove_node(node, allow_graceful=False)
        self._cluster.shutdown()


@contextlib.contextmanager
def ground(nodes: int = 2) -> Iterator[Ground]:
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = driving.PATH  # of the nodes' workers
    place = None
    try:
        place = Ground(nodes)
        yield place
    finally:
        if place is not None:
            place.close()
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


@dataclasses.dataclass
class Figures:
    """What was killed, and what became of the drivers."""

    kills: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    victims: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    ends: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    runs: int = 0
    rows: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return self.kills.total()


class Chaos:
    """Kills over as many runs as it takes until all ``kills`` are made, each run driven again until it is complete."""

    def __init__(
        self,
        place: Ground,
        folder: Path,
        *,
        seed: int,
        kills: Mapping[str, int],
        config: Mapping[str, Any],
        gap_s: tuple[float, float] = (0.3, 2.5),
        seconds: float = 3600.0,
    ) -> None:
        self.place, self.folder, self.config, self.gap_s = place, folder, dict(config), gap_s
        self.random, self._end = random.Random(seed), time.monotonic() + seconds
        self.strikes = [kind for kind, count in kills.items() for _ in range(count)]
        self.random.shuffle(self.strikes)
        self.figures = Figures()
        self._shards, self._in_a_row = -1, 0
        self.quiet = folder / "undisturbed"
        driving.undisturbed(self.quiet, toy_job(**{**self.config, "pause_s": 0.0}))

    @property
    def over(self) -> bool:
        """All kills are made, or the time for them is up."""
        return not self.strikes or time.monotonic() > self._end

    def run(self) -> None:
        """One run, killed at until it is complete; AssertionError where it is not what an undisturbed run is."""
        run = self.folder / f"run-{self.figures.runs}"
        log = run.with_suffix(".log")
        started = time.monotonic()
        for _ in range(_RERUNS):
            with log.open("a") as output:
                driver = driving.start(run, self.config, {"address": self.place.address}, output)
            try:
                if self._kill_until_it_ends(driver, run):
                    break
            finally:
                with contextlib.suppress(ProcessLookupError):
                    driver.kill()
                driver.wait()
        else:
            raise AssertionError(f"not complete after {_RERUNS} drivers:\n{log.read_text()[-3000:]}")
        self.figures.runs += 1
        self.figures.seconds += time.monotonic() - started
        self._check(run, log)

    def _kill_until_it_ends(self, driver: subprocess.Popen[str], run: Path) -> bool:
        """Whether this driver came to its end by itself, and well."""
        due = time.monotonic() + self.random.uniform(*self.gap_s)
        while (code := driver.poll()) is None:
            if (shards := driving.receipts(run)) != self._shards:
                self._shards, self._in_a_row = shards, 0
            if time.monotonic() >= due and not self.over and self._in_a_row < _IN_A_ROW:
                if self._strike(self.strikes[-1], driver):
                    self.figures.kills[self.strikes.pop()] += 1
                    self._in_a_row += 1
                due = time.monotonic() + self.random.uniform(*self.gap_s)
            time.sleep(0.05)
        self.figures.ends["killed" if code == -signal.SIGKILL else str(code)] += 1
        assert code in (0, 1, -signal.SIGKILL), f"a driver ended with {code}"
        return code == 0

    def _strike(self, kind: str, driver: subprocess.Popen[str]) -> bool:
        """Whether there was anything of the kind to kill."""
        if kind == "node":
            self.place.remove(self.random)
            self.place.add()
        elif kind == "driver":
            driver.send_signal(signal.SIGKILL)
        else:
            workers = sorted(self.place.workers(), key=lambda process: process.pid)
            try:
                victim = self.random.choice(workers)
                title = victim.cmdline()[0]
                victim.kill()
            except (IndexError, psutil.NoSuchProcess):  # none has been started yet, or it has just ended
                return False
            self.figures.victims[title.removeprefix("ray::").split("(")[0].split(".")[0]] += 1
        return True

    def _check(self, run: Path, log: Path) -> None:
        """Nothing lost, nothing double, every byte that of the undisturbed run."""
        rows, quiet = driving.rows_of(run), driving.rows_of(self.quiet)
        keys = rows.column("key").to_pylist()
        assert keys == [f"{i:06d}" for i in range(self.config["keys"])], "a row is lost, double or out of place"
        assert set(rows.column("status").to_pylist()) == {"ok"}
        assert rows.equals(quiet)
        assert driving.files_of(run) == driving.files_of(self.quiet), "the files are others, byte for byte"
        found = verify(str(run), clean=True)
        assert found.ok, found.problems
        assert not [name for name in found.orphans if not name.endswith(".tmp")], "what no receipt names is left"
        assert status(str(run)).complete
        assert not (run / "lock.json").exists()
        said = log.read_text()
        assert "Traceback" not in said, said[said.index("Traceback") - 500 :][:3000]
        self.figures.rows += len(keys)


def main() -> int:
    """``python tests/faults/chaos.py --kills 200``: as many runs as that takes, then the figures as one JSON line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keys", type=int, default=24 * 60)
    parser.add_argument("--minutes", type=float, default=15.0, help="nothing is killed after; the run is completed")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="raylens-chaos-"))
    kills = {"driver": given.kills * 15 // 100, "node": given.kills * 11 // 100}
    kills["worker"] = given.kills - sum(kills.values())
    config = {"keys": given.keys, "pause_s": 0.15, "net": True}
    began = time.monotonic()
    with ground() as place:
        chaos = Chaos(place, folder, seed=given.seed, kills=kills, config=config, seconds=60 * given.minutes)
        while not chaos.over:
            try:
                chaos.run()
            except (AssertionError, RaylensError) as error:
                print(f"run {chaos.figures.runs} in {folder}: {error}", file=sys.stderr)
                return 1
            figures = chaos.figures
            print(f"run {figures.runs}: {figures.total} kills, {figures.rows:,} rows as they should be", flush=True)
    figures = chaos.figures
    shutil.rmtree(folder)
    done = {**vars(figures), "lost": 0, "double": 0, "minutes": round((time.monotonic() - began) / 60, 1)}
    print(json.dumps({"bench": "chaos", "seed": given.seed, "total": figures.total, **done}))
    return int(bool(chaos.strikes))


if __name__ == "__main__":
    sys.exit(main())
