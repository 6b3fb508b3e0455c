"""The GFI job as a user runs it: a network of their own, drawn images, the command line, real processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.demo.scenes import write_scenes
from pipeline.run import Run
from pipeline.shards import Shards
from stages.gfi.reading import full_mask

NETWORK = """
import time

import torch
from torch import nn


def tiny(classes: int = 13) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, classes),
    )


def pause(x: torch.Tensor) -> torch.Tensor:
    time.sleep(0.05)
    return x


torch.fx.wrap("pause")


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = tiny()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pause(self.network(x))
"""

CONFIG = """
seed: 3
model: {name: "tinynet:tiny", seed: 0, preprocess: {size: 32}}
data:
  tune: {kind: coco, annotations: scenes/instances_tune.json, images: scenes/tune}
  eval: {kind: coco, annotations: scenes/instances_eval.json, images: scenes/eval}
gfi: {targets: [predicted, label], inversion_steps: 2, class_steps: 3, background: noise, inclusive: false, batch: 4}
report: {examples: 2, paper: true}
"""


def raylens(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jobs.cli", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_scenes(root / "scenes", {"tune": 8, "eval": 14}, size=32)
    (root / "tinynet.py").write_text(NETWORK)
    (root / "gfi.yaml").write_text(CONFIG)
    (root / "scenes/eval/000003.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def finished(
    project: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: Any
) -> tuple[Path, subprocess.CompletedProcess]:
    run = tmp_path_factory.mktemp("elsewhere") / "run"
    return run, raylens("gfi", project / "gfi.yaml", "--run", run, "--address", ray_session.address, cwd=run.parent)


def test_from_images_to_report(finished):
    run, done = finished
    assert done.returncode == 3, done.stderr  # one image cannot be read: told by the exit status, and by its row
    assert "Traceback" not in done.stderr
    rows = pa.concat_tables(list(Shards(Run(str(run)).step_folder("gfi", split="eval"), 0).tables())).to_pylist()
    assert [row["key"] for row in rows if row["status"] == "failed"] == ["000003.png"]
    assert len(rows) == 14
    assert full_mask(rows[0], 1).shape == (32, 32)
    steps = {s["name"]: s["fingerprint"][:8] for s in json.loads((run / "run.json").read_text())["steps"]}
    assert list(steps) == ["gfi", "metrics"]
    told = json.loads((run / "metrics" / steps["metrics"] / "metrics.json").read_text())["rows"]
    located = [r for r in told if r["kind"] == "localization" and r["rule"] == "tuned" and r["box"] == "mean"]
    assert {r["name"] for r in located} == {"gfi", "unoptimised", "center"}
    own = next(r for r in located if r["name"] == "gfi")
    whole = next(r for r in told if r["name"] == "whole_image" and r["rule"] == "fixed")
    assert own["curve"][0] == whole["value"]  # alpha = 0 is the whole image
    assert {r["asked"] for r in told if r["name"] == "kept_after"} == {"predicted", "label"}
    page = (run / "report" / steps["metrics"] / "index.html").read_text()
    for word in ("Kept part, GFI", "Localization error", "Table 1", "000003.png", "Pointing game"):
        assert word in page


def test_the_same_command_again_answers_and_changes_nothing(finished, project):
    run, _ = finished
    before = {f: f.stat().st_mtime_ns for f in run.rglob("part-*.parquet")}
    again = raylens("gfi", project / "gfi.yaml", "--run", run, "--only", "metrics", cwd=project)
    assert again.returncode == 3, again.stderr
    assert {f: f.stat().st_mtime_ns for f in run.rglob("part-*.parquet")} == before
    other = raylens("gfi", project / "gfi.yaml", "--run", run, "--set", "gfi.preset=authors", cwd=project)
    assert other.returncode == 2
    assert 'config.preset: "paper" -> "authors"' in other.stderr


def descendants(root: int) -> dict[int, str]:
    """Process ids below ``root``, each with its command line."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    found, grown = {root}, True
    while grown:
        more = {int(pid) for pid, parent, *_ in rows if int(parent) in found} - found
        found, grown = found | more, bool(more)
    return {int(pid): " ".join(args) for pid, _, *args in rows if int(pid) in found - {root}}


def test_a_killed_worker_and_a_killed_driver_lose_and_double_nothing(finished, project, tmp_path):
    """The network is the same but for a pause in every pass, so that there is time to kill."""
    run, slow = tmp_path / "run", ("--set", "model.name=tinynet:Slow", "--set", "resources.shard_rows=4")
    command = [sys.executable, "-m", "jobs.cli", "gfi", project / "gfi.yaml", "--run", run, *slow]
    driver = subprocess.Popen(list(map(str, command)), cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def receipts() -> set[Path]:
        return set(run.glob("gfi/*/receipts/*.json"))

    def wait_for(count: int) -> None:
        end = time.monotonic() + 300
        while len(receipts()) < count:
            assert driver.poll() is None, driver.communicate()[1].decode()
            assert time.monotonic() < end
            time.sleep(0.02)

    try:
        wait_for(1)
        workers = [pid for pid, command in descendants(driver.pid).items() if "ray::Host" in command]
        assert workers
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(len(receipts()) + 1)
    finally:
        driver.send_signal(signal.SIGSTOP)  # nothing is started or committed while it is looked for what to kill
        left = descendants(driver.pid)
        driver.kill()
        told = driver.communicate()[1].decode()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    before = {path: path.stat().st_mtime_ns for path in receipts()}
    assert 2 <= len(before) < 6, "it was not killed on the way: this test shows nothing"
    again = raylens("gfi", project / "gfi.yaml", "--run", run, *slow, cwd=project)
    assert again.returncode == 3, again.stderr  # the image that cannot be read
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "a worker was lost in shard" in told, "no worker was killed at its work: this test shows less"
    for split in ("tune", "eval"):
        assert _rows(run, split).equals(_rows(finished[0], split))


def _rows(run: Path, split: str) -> pa.Table:
    return pa.concat_tables(list(Shards(Run(str(run)).step_folder("gfi", split=split), 0).tables())).combine_chunks()
