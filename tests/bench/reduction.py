"""Memory of CHIP's statistics reduction at full width: 1,000 classes of K = 512, through the engine's tree on Ray.

    python tests/bench/reduction.py [--quick]

The upstream is made up: shards of rows as the sweep writes them in coverage mode (a label and fifteen other classes,
100 gates), 330 shards of 64 images (``--quick``: 40 of 8), so that blocks have several branches whose states travel
through the object store, as those of a long run do. The reduction is the product's own, with its default blocks; two
tasks run at a time. Memory is each worker's peak, pages shared with the object store counted with it (VmHWM), and its
own pages apart. The states do not grow with the number of images, so a longer run takes no more. The last line is JSON.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 shards of 8 images instead of 330 of 64")
    args = parser.parse_args()
    shards, images = (40, 8) if args.quick else (330, 64)

    from pipeline.cluster import connect
    from pipeline.options import Resources
    from pipeline.progress import Progress
    from pipeline.reduce import Part, Reducing, reduce_on_ray
    from pipeline.shards import Shards
    from pipeline.storage import Folder
    from stages.chip.statistics import ChipStatistics, StatisticsConfig

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
    result: dict[str, Any] = {
        "bench": "reduction",
        "classes": CLASSES,
        "channels": CHANNELS,
        "images": shards * images,
        "blocks": len(blocks),
        "state_mb": max(reduction.state_bytes(b) for b in blocks) / 2**20,
        "seconds": seconds,
        "worker_peak_mb": peaks.whole,
        "worker_own_mb": peaks.own,
        "load_average": os.getloadavg()[0],
    }
    print(json.dumps({k: round(v, 1) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
