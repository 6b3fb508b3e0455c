"""How a run grows: 100,000 keys in 1,000 shards on two workers, and one to sixteen workers that only sleep.

    python tests/bench/scaling.py [--quick]

`keys`: a stage that takes 2 ms a row, by sleeping. `overhead_ms_per_shard` is what a shard costs its worker beyond its
200 ms, from the first shard given out to the last commit; the driver's own CPU time for each (all threads, Ray's among
them) and its peak memory stand beside. `actors`: shards of four slices that sleep 250 ms each, eight for each worker.
Workers hold no CPU (`num_cpus=0`), so sixteen of them fit on two cores; the clock starts when all are up, which they
wait for, and ends with the last commit. Efficiency is the eight seconds it should take over what it took. `--quick`: a
tenth of the keys, half the shards. The last line is JSON. Stage, processes and figures serve engine.py too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROW_S, SHARD_ROWS = 0.002, 100
SLICES, SLICE_S = 4, 0.25
ACTORS = (1, 2, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class SleepConfig:
    batch: int
    row_s: float
    together: int = 0  # workers that wait for each other before their first row
    folder: str = ""  # of the run, where they do


class Sleep:
    """A stage that does nothing, slowly."""

    version = 1
    wants = "records"

    def __init__(self, config: SleepConfig) -> None:
        self.config = config

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field("zero", pa.int8())])

    def micro_batch(self, device: Any) -> int:
        return self.config.batch

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {}

    def setup(self, device: Any, inputs: Mapping[str, Any]) -> None:
        self.waited = False

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        rows = int(batch["valid"].sum())
        if self.config.together and not self.waited and Path(self.config.folder, "sleep/all/plan.json").exists():
            self._wait()
        time.sleep(rows * self.config.row_s)
        return [{"zero": 0}] * rows

    def _wait(self) -> None:
        """Until all workers are here; none is while a micro-run measures the step."""
        here = Path(self.config.folder, "up")
        here.mkdir(exist_ok=True)
        (here / str(os.getpid())).touch()
        while len(list(here.iterdir())) < self.config.together:
            time.sleep(0.01)
        self.waited = True


def job(keys: int, config: SleepConfig) -> Any:
    from pipeline.steps import Job, Measure, Source

    def table() -> pa.Table:
        names = [f"{i:06d}" for i in range(keys)]
        return pa.table({"key": names, "uri": names, "label": pa.array([0] * keys, pa.int32())})

    return Job(
        "sleep", {"keys": keys}, {"all": Source({"keys": keys}, table)}, (Measure("sleep", Sleep(config), ("all",)),)
    )


def run(asked: Any, folder: str, shard_rows: int, workers: int) -> tuple[float, float]:
    """(time of the first shard given out, of the last commit)."""
    from pipeline.engine import execute
    from pipeline.options import Options, Resources

    resources = Resources(cpus=max(ACTORS), cpus_per_actor=1, max_workers=workers, shard_rows=shard_rows)
    outcome = execute(asked, folder, Options(resources, say=lambda text: None))
    assert outcome.exit_code == 0
    return times(folder)[:2]


def times(folder: str) -> tuple[float, float, float]:
    """(time of the first shard given out, of the last commit, seconds in the stage), as a run's own events tell."""
    events = [json.loads(line) for file in Path(folder, "events").iterdir() for line in file.read_text().splitlines()]
    given, done = ([event for event in events if event["kind"] == kind] for kind in ("start", "commit"))
    began, ended = ([datetime.fromisoformat(event["at"]).timestamp() for event in of] for of in (given, done))
    return min(began), max(ended), sum(event["computed_s"] for event in done)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def keys(count: int) -> dict[str, Any]:
    cpu = time.process_time()
    began, ended = run(job(count, SleepConfig(SHARD_ROWS, ROW_S)), "keys", SHARD_ROWS, 2)
    cpu = time.process_time() - cpu
    shards = count // SHARD_ROWS
    return {
        "shards": shards,
        "wall_s": ended - began,
        "overhead_ms_per_shard": 1e3 * (2 * (ended - began) / shards - SHARD_ROWS * ROW_S),
        "driver_cpu_ms_per_shard": 1e3 * cpu / shards,
        "driver_rss_mb": peak_mb(),
    }


def actors(each: int) -> dict[str, Any]:
    found = {}
    for count in ACTORS:
        folder = Path(f"actors-{count}").resolve()
        config = SleepConfig(8, SLICE_S / 8, count, str(folder))
        _, ended = run(job(count * each * SLICES * 8, config), str(folder), SLICES * 8, count)
        began = max(path.stat().st_mtime for path in (folder / "up").iterdir())
        ideal = each * SLICES * SLICE_S
        found[f"efficiency_{count}"] = ideal / (ended - began)
        print(f"{count} workers, {count * each} shards: {ended - began:.2f} s for {ideal:.0f} s of sleep")
    return found


PARTS = {"keys": keys, "actors": actors}


def part(bench: str, name: str, count: int, folder: str) -> dict[str, Any]:
    """One part in a process of its own; workers import the bench as a module."""
    path = os.pathsep.join([str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    code = f"import {bench}, json; print({name + ':'!r}, json.dumps({bench}.PARTS[{name!r}]({count})))"
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = done.stdout.strip().splitlines()
    print("\n".join(lines), flush=True)
    return dict(json.loads(next(line for line in lines if line.startswith(f"{name}: ")).removeprefix(f"{name}: ")))


def report(bench: str, parts: str, counts: Mapping[str, int]) -> None:
    """Parts of a bench one after the other, and their figures as a line of JSON."""
    result: dict[str, Any] = {"bench": bench, "load_average": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory(prefix="raylens-bench-") as folder:
        for name in parts.split(","):
            result |= part(bench, name, counts[name], folder)
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in result.items()}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 keys, four shards a worker")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of keys,actors")
    args = parser.parse_args()
    report("scaling", args.parts, {"keys": 10_000 if args.quick else 100_000, "actors": 4 if args.quick else 8})


if __name__ == "__main__":
    main()
