"""Memory of CHIP's statistics reduction at full width: 1,000 classes of K = 512, through the engine's tree on Ray.

    python tests/bench/reduction.py [--quick] [--gpu]

The upstream is made up: shards of rows as the sweep writes them in coverage mode (a label and fifteen other classes,
100 gates), 330 shards of 64 images (``--quick``: 40 of 8), so that blocks have several branches whose states travel
through the object store, as those of a long run do. The reduction is the product's own, with its default blocks; two
tasks run at a time. Memory is each worker's peak, pages shared with the object store counted with it (VmHWM), and its
own pages apart. The states do not grow with the number of images, so a longer run takes no more.

With a GPU also its time for such rows, projected to the 1.28 M images of ILSVRC train (``--gpu``: that alone, without
Ray), in default blocks, each of which reads every row, and in one block. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402

CLASSES, CHANNELS, GATES, LISTED = 1000, 512, 100, 16
ILSVRC_TRAIN = 1_281_167


def rows(shard: int, count: int) -> pa.Table:
    """One shard of the sweep's columns that the statistics read."""
    from stages.chip.gates import checksums, draw_gates, gate_seeds

    rng = np.random.default_rng(shard)
    keys = [f"{shard:05d}/{i:03d}" for i in range(count)]
    gates = draw_gates(gate_seeds(0, "fit", keys, "last_conv"), GATES, CHANNELS)
    listed = [np.sort(rng.choice(CLASSES, LISTED, replace=False)).astype(np.int32) for _ in keys]
    f = rng.dirichlet(np.full(LISTED, 0.3), count).astype(np.float32)
    return pa.table(
        {
            "key": keys,
            "status": ["ok"] * count,
            "classes": pa.array(listed, pa.list_(pa.int32())),
            "f": pa.array(list(f), pa.list_(pa.float32())),
            "a/last_conv": pa.array(list(rng.gamma(0.5, size=(count, CHANNELS))), pa.list_(pa.float32())),
            "g/last_conv": pa.array(list(rng.random((count, GATES * LISTED))), pa.list_(pa.float32())),
            "gates/last_conv": checksums(gates),
        }
    )


class Peaks:
    """The largest memory of any Ray task's process, in MB: with shared pages, and of its own."""

    def __init__(self) -> None:
        self.whole = self.own = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.25):
            for entry in Path("/proc").iterdir():
                try:
                    if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::"):
                        said = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
                        self.whole = max(self.whole, float(said["VmHWM"].split()[0]) / 1024)
                        self.own = max(self.own, float(said["RssAnon"].split()[0]) / 1024)
                except (OSError, KeyError):
                    continue  # it ended meanwhile

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def on_device(device: Any, shards: int, images: int, block_mb: float) -> dict[str, Any]:
    """The reduction fed by hand on a device: seconds of the rows of ``shards`` shards, of all blocks together."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from stages.chip.statistics import ChipStatistics, StatisticsConfig

    reduction = ChipStatistics(StatisticsConfig(("last_conv",), (CHANNELS,), CLASSES, block_mb=block_mb))
    tables = [t.append_column("split", [["fit"] * len(t)]) for t in (rows(shard, images) for shard in range(shards))]
    seconds = 0.0
    for block in reduction.blocks():
        state = reduction.start(block)
        assert state.b.device.type == device.type
        state = reduction.add(state, tables[0])  # libraries load
        began = _now(device)
        for table in tables:
            state = reduction.add(state, table)
        seconds += _now(device) - began
    clock = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[clock]) as found:
        reduction.add(state, tables[0])
        _now(device)
    by = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(f"where the time of a shard of the last block goes, blocks of {block_mb:.0f} MB at most:")
    print(found.key_averages().table(sort_by=by, row_limit=8, max_name_column_width=60))
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "blocks": len(reduction.blocks()),
        "images": shards * images,
        "seconds": seconds,
        "ilsvrc_train_minutes": seconds / (shards * images) * ILSVRC_TRAIN / 60,
        "memory_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }


def _now(device: Any) -> float:
    """The clock, when the device has done what it was given."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def on_gpu(quick: bool) -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        print("no GPU: minutes of the statistics of 1.28 M images in coverage mode, and their profile, not measured")
        return []
    found = []
    for block_mb in (512.0, 8192.0):
        torch.cuda.reset_peak_memory_stats()
        found.append(on_device(torch.device("cuda"), *((2, 256) if quick else (8, 1024)), block_mb))
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found[-1].items()))
    return found


def through_ray(quick: bool) -> dict[str, Any]:
    """The whole reduction as a run does it."""
    from pipeline.cluster import connect
    from pipeline.options import Resources
    from pipeline.progress import Progress
    from pipeline.reduce import Part, Reducing, reduce_on_ray
    from pipeline.shards import Shards
    from pipeline.storage import Folder
    from stages.chip.statistics import ChipStatistics, StatisticsConfig

    shards, images = (40, 8) if quick else (330, 64)
    with tempfile.TemporaryDirectory(prefix="raylens-bench-") as folder:
        upstream = Shards(Folder(f"{folder}/sweep/fit"), shards)
        receipts = [upstream.commit(shard, rows(shard, images))[0] for shard in range(shards)]
        parts = tuple(Part(upstream.folder.url, "fit", receipt) for receipt in receipts)
        reduction = ChipStatistics(StatisticsConfig(("last_conv",), (CHANNELS,), CLASSES))
        reducing = Reducing("statistics", reduction, f"{folder}/statistics", parts)
        blocks = reduction.blocks()
        connect(Resources(cpus=2))
        peaks, began = Peaks(), time.perf_counter()
        with Progress("statistics", len(blocks), shards=len(blocks), done=0, shards_done=0, unit="blocks") as progress:
            reduce_on_ray(reducing, range(len(blocks)), threading.Event(), progress)
        seconds = time.perf_counter() - began
        peaks.stop()
        done = len(Shards(Folder(reducing.folder), len(blocks)).committed())
    assert done == len(blocks)
    return {
        "images": shards * images,
        "blocks": len(blocks),
        "state_mb": max(reduction.state_bytes(b) for b in blocks) / 2**20,
        "seconds": seconds,
        "worker_peak_mb": peaks.whole,
        "worker_own_mb": peaks.own,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 shards of 8 images instead of 330 of 64")
    parser.add_argument("--gpu", action="store_true", help="the GPU's part alone, without Ray")
    args = parser.parse_args()
    measured = {} if args.gpu else through_ray(args.quick)
    result: dict[str, Any] = {
        "bench": "reduction",
        "classes": CLASSES,
        "channels": CHANNELS,
        **{k: round(v, 1) if isinstance(v, float) else v for k, v in measured.items()},
        "load_average": round(os.getloadavg()[0], 1),
    }
    gpu = on_gpu(args.quick)
    print(json.dumps(result | ({"gpu": gpu} if gpu else {})))


if __name__ == "__main__":
    main()
