"""What the engine costs: planning 1.3 million keys, 1,300 shards of nothing, resuming, and the demo's sweep through it.

    python tests/bench/engine.py [--quick]

Every part runs in a process of its own. `plan`: a CSV list of 1.3 million images is written, then read, sorted, frozen
and planned (micro-run here, no Ray); seconds and the process's peak memory. `shards`: those keys through a stage that
does nothing, 1,300 shards, on Ray on this machine; the driver's time for each shard is the CPU time of its process
(all threads, Ray's among them; workers are other processes) while the step runs, and its wall time is told beside.
Memory is that of driver, ledger and workers (their sum) at about 300, 800 and 1,300 shards. `resume`: the finished
run, asked again. `sweep`: the demo's scenes and network with random weights; the bare loop decodes, computes and makes
the Parquet bytes in one process with as many threads. Through the engine it is timed from the first shard given out to
the last commit. Both are medians of six, in turns; `sweep_outside_stage` is the share of the engine's time in which
its worker was not in the stage, which a busy machine does not blur. The last line is JSON.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

from scaling import Sleep, SleepConfig, peak_mb, report, times

SHARDS = 1300
THREADS = 1  # of the sweep, in both of its ways


def noop_job(keys: int) -> Any:
    """A job over the CSV list of so many images that lies (or is made to lie) in the current folder."""
    from pipeline.dataset import key_table, parse_source
    from pipeline.steps import Job, Measure, Source

    path = Path(f"list-{keys}.csv").resolve()
    if not path.exists():
        lines = (f"n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG,{i % 1000}\n" for i in range(keys))
        with path.open("w") as file:
            file.write("uri,label\n")
            file.writelines(lines)
    # The list stands without images: none of 1.3 million is looked for.
    names = [str(i) for i in range(1000)]
    listed = parse_source({"kind": "list", "path": str(path), "classes": names, "images": False})
    source = Source(listed.model_dump(mode="json"), lambda: key_table(listed))
    stage = Sleep(SleepConfig(batch=max(1, keys // SHARDS), row_s=0))
    return Job("noop", {"keys": keys}, {"all": source}, (Measure("noop", stage, ("all",)),))


def plan(keys: int) -> dict[str, Any]:
    """List, freeze and plan, as the engine does, with the micro-run in this process."""
    from pipeline import plan as plans
    from pipeline.run import Run
    from pipeline.tasks import Work
    from pipeline.worker import Worker

    began, job = time.perf_counter(), noop_job(keys)
    written, step, run = time.perf_counter(), job.steps[0], Run("plan")
    table = run.freeze_keys("all", job.sources["all"])
    folder = run.step_folder("noop", split="all")
    worker = Worker(Work("noop", step, run.keys.url, {}, {}, {}, job.limits), "cpu", 1)
    size = worker.stage.micro_batch(worker.device)
    fields = plans.measure_fields(step, job.limits, {"all": table.digest}, {})
    new = plans.new_plan("noop", "all", fields, len(table), size, worker.measure("all", size), None)
    plans.freeze(folder, new)
    worker.close()
    seconds = time.perf_counter() - written
    print(f"the list took {written - began:.1f} s to write; {new.shards:,} shards of {new.shard_rows:,} rows planned")
    return {"plan_seconds": seconds, "plan_rss_mb": peak_mb()}


def options(cpus: int, shard_rows: int | None = None, **more: Any) -> Any:
    """``cpus`` workers of one thread each on Ray on this machine."""
    from pipeline.options import Options, Resources

    return Options(Resources(cpus=cpus, cpus_per_actor=THREADS, shard_rows=shard_rows), **more)


def shards(keys: int) -> dict[str, Any]:
    from pipeline.engine import execute

    job = noop_job(keys)
    watch = Watch(Path("run/noop/all/receipts"))
    outcome = execute(job, "run", options(2, keys // SHARDS))
    memory = watch.stop()
    assert sum(outcome.totals["noop"].values()) == keys
    cpu, wall = watch.cost()
    count = len(list(Path("run/noop/all/receipts").iterdir()))
    print(f"{count:,} shards: {cpu:.1f} s of the driver's CPU time, {wall:.1f} s of wall time; memory in MB {memory}")
    return {
        "shards": count,
        "overhead_ms_per_shard": 1e3 * cpu / count,
        "wall_ms_per_shard": 1e3 * wall / count,
        "memory_mb": memory,
    }


class Watch:
    """Follows a run from beside it: CPU and wall time from the first receipt on, memory as receipts come in."""

    def __init__(self, receipts: Path) -> None:
        self._receipts, self._done = receipts, threading.Event()
        self._memory: dict[str, dict[str, float]] = {}
        self._first: tuple[float, float] | None = None
        self._last = (0.0, 0.0)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        seen = 0
        while True:
            ended = self._done.wait(0.2)
            count = sum(1 for name in os.listdir(self._receipts) if name[0] != ".") if self._receipts.is_dir() else 0
            now = (time.process_time(), time.perf_counter())
            if count > seen:
                self._first = self._first or now
                self._last = now
            for mark in (300, 800, SHARDS - 30):  # at the very end workers are gone
                if seen < mark <= count:
                    self._memory[str(count)] = memory_mb()
            seen = count
            if ended or count >= SHARDS:
                return

    def stop(self) -> dict[str, dict[str, float]]:
        self._done.set()
        self._thread.join()
        return self._memory

    def cost(self) -> tuple[float, float]:
        """(CPU seconds of this process, wall seconds) between the first and the last receipt."""
        assert self._first is not None
        return self._last[0] - self._first[0], self._last[1] - self._first[1]


def memory_mb() -> dict[str, float]:
    """Resident memory of this process, and of the actors below it by name."""
    parents, names, pages = {}, {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(stat[1])
                pages[int(entry.name)] = int((entry / "statm").read_text().split()[1])
                names[int(entry.name)] = (entry / "cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            except (OSError, IndexError):
                continue  # it ended meanwhile
    found: dict[str, float] = {}
    for pid in pages:
        above, mine = pid, False
        while above in parents and not mine:
            mine, above = above == os.getpid(), parents[above]
        name = "driver" if pid == os.getpid() else names.get(pid, "").removeprefix("ray::").partition(".")[0]
        if mine and name in ("driver", "Host", "Ledger"):
            found[name] = round(found.get(name, 0.0) + pages[pid] * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
    return found


def resume(keys: int) -> dict[str, Any]:
    from pipeline.engine import execute

    job, began = noop_job(keys), time.perf_counter()
    execute(job, "run", options(2, keys // SHARDS))
    return {"resume_seconds": time.perf_counter() - began, "resume_rss_mb": peak_mb()}


def sweep(scenes: int) -> dict[str, Any]:
    """The demo's sweep: bare and through the engine, in turns."""
    import safetensors.torch
    import torch

    from jobs import chip
    from jobs.demo.network import SIZE, small_vgg
    from jobs.demo.run import chip_config
    from jobs.demo.scenes import write_scenes
    from pipeline.cluster import connect

    torch.manual_seed(0)
    root = Path("demo").resolve()
    if not (root / "scenes").exists():
        write_scenes(root / "scenes", dict.fromkeys(("train", "tune", "val"), scenes), size=SIZE, workers=2)
        (root / "backbone").mkdir()
        (root / "backbone/network.safetensors").write_bytes(safetensors.torch.save(small_vgg().state_dict()))
    job = chip.build(chip_config(root, full=True))
    connect(options(1).resources)
    bare, engine, whole, outside = [], [], [], []
    for turn in range(6):
        if turn % 2 == 0:
            bare.append(bare_sweep(job, scenes))
        through, all_of_it, computed = engine_sweep(job, f"sweep-{turn}")
        if turn % 2:
            bare.append(bare_sweep(job, scenes))
        engine.append(through)
        whole.append(all_of_it)
        outside.append(1 - computed / through)
        print(f"sweep of {scenes} scenes: bare {bare[-1]:.2f} s, engine {through:.2f} s, with plan {all_of_it:.2f} s")
    return {
        "sweep_overhead": median(engine) / median(bare) - 1,
        "sweep_bare_s": median(bare),
        "sweep_engine_s": median(engine),
        "sweep_whole_s": median(whole),
        "sweep_outside_stage": median(outside),
    }


def bare_sweep(job: Any, scenes: int) -> float:
    """Decode, compute, make Parquet of it: what anyone's loop over the stage would do."""
    import torch

    from pipeline.decode import prepare_slice
    from pipeline.shards import parquet
    from pipeline.slices import run_slice, to_table
    from pipeline.steps import row_schema

    torch.set_num_threads(THREADS)
    step = job.steps[0]
    rows = job.sources["fit"].list().to_pylist()
    stage = step.stage
    stage.setup(torch.device("cpu"), {"network": step.inputs["network"].load(torch.device("cpu"))})
    size, found = stage.micro_batch(torch.device("cpu")), []
    first = rows[:size]  # warms kernels up, as the engine's micro-run does
    run_slice(stage, "fit", first, prepare_slice(stage, first, job.limits), size)
    began = time.perf_counter()
    for lo in range(0, scenes, size):
        part = rows[lo : lo + size]
        found += run_slice(stage, "fit", part, prepare_slice(stage, part, job.limits), size)
    parquet(to_table(found, row_schema(stage), "bench"))
    return time.perf_counter() - began


def engine_sweep(job: Any, url: str) -> tuple[float, float, float]:
    """Seconds from the first shard given out to the last commit, of the whole (Ray runs already), and in the stage."""
    from pipeline.engine import execute

    began = time.perf_counter()
    execute(job, url, options(1, only=("sweep",), say=lambda text: None))
    whole = time.perf_counter() - began
    given_out, committed, computed = times(url)
    return committed - given_out, whole, computed


PARTS = {"plan": plan, "shards": shards, "resume": resume, "sweep": sweep}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1,300 shards of 16 rows, 100 scenes")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of plan,shards,resume,sweep")
    args = parser.parse_args()
    counts = {
        "plan": 1_300_000,
        "shards": 16 * SHARDS if args.quick else 1_300_000,
        "sweep": 100 if args.quick else 200,
    }
    report("engine", args.parts, counts | {"resume": counts["shards"]})


if __name__ == "__main__":
    main()
