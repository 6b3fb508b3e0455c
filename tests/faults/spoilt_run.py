"""A small finished run, made with the real plans, shards, keys and checkpoints, without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from pipeline import plan as plans
from pipeline.checkpoints import CommittedCheckpoints, commit
from pipeline.compact import compact
from pipeline.estimate import Measured
from pipeline.quarantine import write_quarantine
from pipeline.run import Run
from pipeline.shards import Shards, digest
from pipeline.steps import Source

MEASURED = Measured(10.0, 0.01, 0.09, 40.0, 1.0, "cpu", 1)


def made_run(path: Path) -> tuple[Path, dict[Path, bytes]]:
    """The run's folder, and what its files hold."""
    run = Run(str(path))
    keys = [f"{i:03d}.jpg" for i in range(25)]
    run.freeze_keys("fit", Source({"kind": "list"}, lambda: pa.table({"key": keys})))
    fields = {"version": 1}
    plan = plans.Plan("sweep", "fit", plans.fingerprint(fields), fields, 25, 10, 4, MEASURED)
    folder = run.step_folder("sweep", split="fit")
    plans.freeze(folder, plan)
    shards = Shards(folder, 3)
    for shard in range(3):
        lo, hi = plan.range(shard)
        failed = [name == "003.jpg" for name in keys[lo:hi]]
        rows = {
            "key": keys[lo:hi],
            "status": ["failed" if bad else "ok" for bad in failed],
            "error": ["killed its worker" if bad else None for bad in failed],
            "f": [float(i) for i in range(lo, hi)],
        }
        shards.commit(shard, pa.table(rows), blobs={"map.bin": b"blob"} if shard == 1 else None)
    write_quarantine(folder.child("quarantine"), 0, {"003.jpg": "killed its worker"})
    solved = {"upstream.sweep": digest(("fit", receipt) for receipt in shards.committed().values())}
    mark = plans.fingerprint(solved)
    place = run.step_folder("solve", fingerprint=mark)
    plans.freeze(place, plans.Plan("solve", "", mark, solved, 1, 1, 1, MEASURED))
    Shards(place, 1).commit(0, pa.table({"class_id": [0], "w": [0.5]}))
    place.write("label.json", b'{"label": "today"}')
    learnt = {"trainer": "T", "config.epochs": 2}
    checkpoints = CommittedCheckpoints(run.step_folder("learn").child("checkpoints"))
    run.step_folder("learn").write("training.json", json.dumps(learnt).encode())
    commit(run.step_folder("learn").child("result"), {"model": b"learnt"})
    for epoch in (1, 2):
        checkpoints.save(epoch, {"model": b"weights" * epoch, "state": b"{}"})
    steps = [
        {"name": "sweep", "kind": "measure", "upstream": [], "splits": ["fit"], "keyed": False},
        {"name": "solve", "kind": "reduce", "upstream": ["sweep"], "splits": ["fit"], "keyed": True},
        {"name": "learn", "kind": "train", "upstream": [], "splits": [], "keyed": False},
    ]
    for step, fingerprint in zip(steps, (plan.fingerprint, mark, plans.fingerprint(learnt)), strict=True):
        step |= {"fingerprint": fingerprint, "label": ""}
    run.folder.write("run.json", json.dumps({"job": "chip", "config": {}, "steps": steps, "provenance": {}}).encode())
    compact(str(path))
    return path, {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
