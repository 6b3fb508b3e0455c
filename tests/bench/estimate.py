"""What a plan promises beside what the run then takes: the demo's CHIP job on this machine.

    python tests/bench/estimate.py [--quick]

The sweep is estimated as `raylens plan` does it, from a micro-run in this process, then run on Ray; so is localize,
from the micro-runs that the run itself makes (it stands on the solve, so no plan can measure it before). A step takes
from its first shard given out to its last commit; the set-up of its workers, which the estimate holds, is taken out of
it. Ray's start and the run's own micro-runs are in neither. The network has random weights: it is as fast as a trained
one. The last line is JSON; estimated_s, taken_s and ratio are the sweep's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def demo_job(root: Path, counts: dict[str, int]) -> Any:
    """The demo's job on a network that is not trained, and on fewer scenes."""
    import safetensors.torch
    import torch

    from jobs import chip
    from jobs.demo.network import SIZE, small_vgg
    from jobs.demo.run import chip_config
    from jobs.demo.scenes import write_scenes

    torch.manual_seed(0)
    write_scenes(root / "scenes", counts, size=SIZE, workers=2)
    (root / "backbone").mkdir()
    (root / "backbone/network.safetensors").write_bytes(safetensors.torch.save(small_vgg().state_dict()))
    return chip.build(chip_config(root, full=True))


def taken(run: Path, step: str) -> float:
    """Seconds from the first shard given out to the last commit."""
    lines = [line for file in (run / "events").iterdir() for line in file.read_text().splitlines()]
    events = [event for event in map(json.loads, lines) if event.get("step") == step]
    at = {kind: [datetime.fromisoformat(e["at"]) for e in events if e["kind"] == kind] for kind in ("start", "commit")}
    return (max(at["commit"]) - min(at["start"])).total_seconds()


def planned(run: Path, step: str) -> float:
    """What the run's own micro-runs say of all its splits, without the set-up."""
    from pipeline.estimate import estimate
    from pipeline.plan import Plan

    plans = [Plan.from_json(path.read_bytes(), str(path)) for path in (run / step).rglob("plan.json")]
    return sum(3600 * estimate(p.measured, p.keys, p.shards).hours - p.measured.setup_s for p in plans)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="300 scenes instead of 1,000")
    args = parser.parse_args()
    from pipeline.cluster import connect
    from pipeline.engine import execute
    from pipeline.options import Options
    from pipeline.preview import preview

    counts = {"train": 300, "tune": 50, "val": 100} if args.quick else {"train": 1000, "tune": 150, "val": 250}
    with tempfile.TemporaryDirectory(prefix="raylens-bench-") as folder:
        root, run = Path(folder), Path(folder, "run")
        job, options = demo_job(root, counts), Options()
        before = preview(job, str(run), options)[0]
        said = 3600 * before.estimate.hours - before.plan.measured.setup_s
        connect(options.resources)
        execute(job, str(run), options)
        steps = {step: (planned(run, step), taken(run, step)) for step in ("sweep", "localize")}
    took = steps["sweep"][1]
    print(f"sweep     plan {said:15.1f} s  took {took:6.1f} s  ratio {said / took:.2f}")
    for name, (estimated, seconds) in steps.items():
        ratio = estimated / seconds
        print(f"{name:9s} own micro-run {estimated:6.1f} s  took {seconds:6.1f} s  ratio {ratio:.2f}")
    result = {"bench": "estimate", "estimated_s": round(said, 2), "taken_s": round(took, 2)}
    own = {name: round(estimated / seconds, 3) for name, (estimated, seconds) in steps.items()}
    print(json.dumps({**result, "ratio": round(said / took, 3), "own_ratios": own, "load_average": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
