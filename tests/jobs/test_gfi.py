"""The GFI job as a user runs it: a network of their own, drawn images, the command line, real processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.scenes import write_scenes
from pipeline.run import Run
from pipeline.shards import Shards
from stages.gfi.reading import full_mask

NETWORK = """
import torch
from torch import nn


def tiny(classes: int = 13) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, classes),
    )
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
def finished(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    run = tmp_path_factory.mktemp("elsewhere") / "run"
    return run, raylens("gfi", project / "gfi.yaml", "--run", run, cwd=run.parent)


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
