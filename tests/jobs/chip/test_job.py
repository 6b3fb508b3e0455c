"""The CHIP job as a user runs it: a network of their own, drawn images, the command line, real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.demo.scenes import CLASS_NAMES, write_scenes
from pipeline.run import Run
from pipeline.shards import Shards

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
  fit: {kind: coco, annotations: scenes/instances_fit.json, images: scenes/fit}
  eval: {kind: coco, annotations: scenes/instances_eval.json, images: scenes/eval}
layers: [first_conv, last_conv]
sweep: {gates: 20, classes: all, batch: 4}
solve: {path: 5}
localize: {methods: [chip, refined_chip, grad_cam, gradient], inclusive: false}
"""


def raylens(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jobs.cli", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a config, a module of their own beside it, images; the commands run from another folder."""
    root = tmp_path_factory.mktemp("project")
    write_scenes(root / "scenes", {"fit": 40, "eval": 24}, size=32)
    (root / "tinynet.py").write_text(NETWORK)
    (root / "chip.yaml").write_text(CONFIG)
    return root


@pytest.fixture(scope="module")
def finished(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    run = tmp_path_factory.mktemp("elsewhere") / "run"
    return run, raylens("chip", project / "chip.yaml", "--run", run, cwd=run.parent)


def table(run: Path, step: str, split: str = "", fingerprint: str = "") -> pa.Table:
    folder = Run(str(run)).step_folder(step, split=split, fingerprint=fingerprint)
    return pa.concat_tables(list(Shards(folder, 0).tables()))


def test_from_images_to_report(finished):
    run, done = finished
    assert done.returncode == 0, done.stderr
    steps = {s["name"]: s["fingerprint"][:8] for s in json.loads((run / "run.json").read_text())["steps"]}
    assert list(steps) == ["sweep", "statistics", "solve", "localize", "metrics"]
    assert table(run, "sweep", "fit").num_rows == 40
    solved = table(run, "solve", fingerprint=steps["solve"])
    assert solved.num_rows == 2 * len(CLASS_NAMES)
    assert max(solved.column("kkt").to_pylist()) <= 1e-8
    metrics = json.loads((run / "metrics" / steps["metrics"] / "metrics.json").read_text())["rows"]
    assert {"chip", "refined_chip", "grad_cam", "gradient", "center", "whole_image"} <= {r["method"] for r in metrics}
    page = (run / "report" / steps["metrics"] / "index.html").read_text()
    for word in ("CHIP", "Grad-CAM", "first_conv", "last_conv", "Centred box"):
        assert word in page
    assert "Traceback" not in done.stderr


def test_the_same_command_again_answers_and_changes_nothing(finished, project):
    run, _ = finished
    before = {f: f.stat().st_mtime_ns for f in run.rglob("part-*.parquet")}
    again = raylens("chip", project / "chip.yaml", "--run", run, cwd=project)
    assert again.returncode == 0, again.stderr
    assert {f: f.stat().st_mtime_ns for f in run.rglob("part-*.parquet")} == before


def test_labels_that_the_network_does_not_have_are_refused_before_any_work(project, tmp_path):
    run, fewer = tmp_path / "run", ("--set", "model.arguments.classes=3")
    done = raylens("chip", project / "chip.yaml", *fewer, "--run", run, cwd=project)
    assert done.returncode == 2
    assert "data.fit: " in done.stderr
    assert "of 40 labels are none of the network's 3 classes (0 to 2)" in done.stderr
    assert "-> use a network trained on these classes" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (run / "sweep").exists()
    assert not (run / "keys").exists(), "nothing is frozen: the same folder serves once the config is right"


def test_another_lambda_stands_beside_the_first_without_a_new_sweep(finished, project, ray_session):
    run, _ = finished
    sweep = {f: f.stat().st_mtime_ns for f in run.glob("sweep/fit/part-*")}
    words = ("--only", "solve", "--set", "solve.lambda_rel=0.3", "--label", "sparser", "--run", run)
    done = raylens("chip", project / "chip.yaml", *words, "--address", ray_session.address, cwd=project)
    assert done.returncode == 0, done.stderr
    assert {f: f.stat().st_mtime_ns for f in run.glob("sweep/fit/part-*")} == sweep
    assert len(list(run.glob("solve/*"))) == 2
    assert len(list(run.glob("statistics/*"))) == 1, "the sums do not depend on lambda"
    status = raylens("status", run, cwd=project)
    assert "sparser" in status.stdout
    report = raylens("report", run, cwd=run.parent)
    assert report.returncode == 0, report.stderr
    assert "sparser" in Path(report.stdout.strip()).read_text()


def test_another_seed_is_refused_with_the_fields_that_differ(finished, project):
    run, _ = finished
    done = raylens("chip", project / "chip.yaml", "--run", run, "--set", "seed=4", cwd=project)
    assert done.returncode == 2
    assert "config.seed: 3 -> 4" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unreadable_image_is_a_row_and_exit_status_3(project, tmp_path, ray_session):
    shutil.copytree(project, tmp_path / "project")
    (tmp_path / "project/scenes/fit/000007.png").write_bytes(b"no picture")
    words = ("--run", tmp_path / "run", "--only", "solve", "--address", ray_session.address)
    done = raylens("chip", tmp_path / "project/chip.yaml", *words, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    rows = table(tmp_path / "run", "sweep", "fit").select(["key", "status", "error"]).to_pylist()
    failed = [row for row in rows if row["status"] != "ok"]
    assert [row["key"] for row in failed] == ["000007.png"]
    assert failed[0]["error"]
    assert len(rows) == 40


def test_mistakes_are_told_before_anything_runs(project, tmp_path):
    for words, told in {
        ("--set", "solve.lamda_rel=0.1"): "lambda_rel",
        ("--set", "layers=[first_conf]"): "first_conv",
        ("--set", "localize.methods=[grad_camm]"): "grad_cam",
        ("--set", "data.fit.images=scenes/nowhere"): "nowhere",
    }.items():
        done = raylens("chip", project / "chip.yaml", "--run", tmp_path / "run", *words, cwd=project)
        assert done.returncode == 2, (words, done.stderr)
        assert told in done.stderr, (words, done.stderr)
        assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("sweep/*/part-*"))
