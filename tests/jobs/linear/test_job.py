"""raylens linear on classifiers, end to end on one Ray session: drawn scenes, two tiny networks, a kill, bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from jobs.config import load_config
from jobs.demo.scenes import write_scenes
from jobs.linear import LinearConfig, run, write_report
from pipeline.errors import UsageError
from pipeline.options import Options, Resources
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.verify import verify

ROOT = Path(__file__).resolve().parents[3]
NETWORK = """
import torch
from torch import nn


def tiny(act: str = "ReLU", classes: int = 13) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), getattr(nn, act)(), nn.MaxPool2d(4),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, classes),
    )
"""
# The command line, but that it dies as a lost machine would once the first network's rows are there.
DEADLY = """
import os, signal
import pipeline.reduce
from jobs.cli import main

pipeline.reduce.reduce_on_ray = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
main()
"""
CONFIG: dict[str, Any] = {
    "task": "layers",
    "networks": {
        "plain": {"name": "tinylinear:tiny", "seed": 0, "preprocess": {"size": 32}},
        "capped": {"name": "tinylinear:tiny", "arguments": {"act": "ReLU6"}, "seed": 0, "preprocess": {"size": 32}},
    },
    "data": {"images": {"kind": "coco", "annotations": "scenes/instances_eval.json", "images": "scenes/eval"}},
    "classify": {"attack": 8, "classes": 4, "batch": 4},
    "report": {"examples": 2, "paper": True},
    "allow_failed": 0.1,
}
BAD = "000003.png"


@pytest.fixture(scope="module", autouse=True)
def address(joined: Any) -> str:
    (joined.modules / "tinylinear.py").write_text(NETWORK)
    return joined.address


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("linear")
    write_scenes(root / "scenes", {"eval": 14}, size=32)
    (root / "scenes/eval" / BAD).write_bytes(b"no picture")
    (root / "linear.yaml").write_text(json.dumps(CONFIG))
    return root


def finish(project: Path, url: Path, *sets: str) -> tuple[Any, str]:
    said: list[str] = []
    given = load_config(LinearConfig, project / "linear.yaml", sets)
    options = Options(resources=Resources(shard_rows=4, micro_batch=4), allow_failed=0.1, say=said.append)
    outcome = run(given, str(url), options)
    return outcome, Path(said[-1].removeprefix("report ")).read_text()


@pytest.fixture(scope="module")
def finished(project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    url = tmp_path_factory.mktemp("elsewhere") / "run"
    return url, *finish(project, url)


def rows_of(url: Path, step: str) -> list[dict[str, Any]]:
    return pa.concat_tables(list(Shards(Run(str(url)).step_folder(step, split="images"), 0).tables())).to_pylist()


def summary_of(url: Path, name: str) -> list[dict[str, Any]]:
    return json.loads(next(url.glob(f"summary_{name}/*/metrics.json")).read_text())["rows"]


def test_from_images_to_the_page_of_layers(finished: tuple[Path, Any, str]) -> None:
    url, outcome, text = finished
    assert outcome.exit_code == 0  # one image of 14 cannot be read, and a tenth may fail
    for name, names in (("plain", ["0", "4", "8"]), ("capped", ["0", "2", "4", "8"])):
        rows = rows_of(url, f"layers_{name}")
        assert [row["key"] for row in rows if row["status"] == "failed"] == [BAD]
        good = [row for row in rows if row["status"] == "ok"]
        assert len(good) == 13
        for row in good:
            assert row["layer_names"] == names
            for start in ("", "attacked_"):
                assert row[f"{start}input"] + sum(row[f"{start}layers"]) == pytest.approx(
                    row[f"{start}score"], rel=1e-4
                )
        told = {(r["view"], r["name"]): r for r in summary_of(url, name)}
        shares = np.array([row["share"] for row in good])
        assert told["clean", "share"]["mean"] == pytest.approx(shares.mean())
        assert told["clean", "share"]["std"] == pytest.approx(shares.std(ddof=1))
        assert told["attacked", "share"]["n"] == 13
    for words in ("Residual shares", "Contributions of layers", "FGSM, 8 grey levels", BAD, "What freezing takes"):
        assert words in text
    assert "no answer yet" not in text


def test_votes_of_the_same_images_have_a_page_of_pictures(project: Path, tmp_path: Path) -> None:
    only = json.dumps({"plain": CONFIG["networks"]["plain"]})
    outcome, text = finish(project, tmp_path / "run", "task=votes", "data.images.limit=6", f"networks={only}")
    assert outcome.exit_code == 3  # one of 6 is more than a tenth
    good = [row for row in rows_of(tmp_path / "run", "votes_plain") if row["status"] == "ok"]
    for row in good:
        votes = np.array(row["votes"]).reshape(row["size"])
        assert votes.shape == (32, 32)
        assert len(set(votes.ravel().tolist())) == row["voted"] <= 4
        assert (votes == row["top"][0]).mean() == pytest.approx(row["top_share"][0])
    told = {(r["view"], r["name"]): r for r in summary_of(tmp_path / "run", "plain")}
    assert told["clean", "predicted_share"]["mean"] == pytest.approx(np.mean([r["predicted_share"] for r in good]))
    assert text.count("data:image/jpeg") >= 2 * 2 * 3  # two images, two views, three pictures at least
    assert "Images and their votes" in text


@pytest.mark.faults
def test_killed_between_two_networks_it_resumes_to_the_same_rows(
    project: Path, finished: tuple[Path, Any, str], address: str, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    arguments = ["linear", str(project / "linear.yaml"), "--run", str(url), "--address", address]
    arguments += ["--set", "resources.shard_rows=4", "--set", "resources.micro_batch=4"]
    killed = subprocess.run(
        [sys.executable, "-c", DEADLY, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = {f: f.stat().st_mtime_ns for f in url.glob("layers_plain/images/part-*.parquet")}
    assert len(done) == 4
    assert not list(url.glob("summary_plain/*/metrics.json"))
    outcome, _ = finish(project, url)
    assert outcome.exit_code == 0
    assert {f: f.stat().st_mtime_ns for f in done} == done, "what was committed was made again"
    for name in ("plain", "capped"):
        assert [repr(r) for r in rows_of(url, f"layers_{name}")] == [
            repr(r) for r in rows_of(finished[0], f"layers_{name}")
        ]
        assert summary_of(url, name) == summary_of(finished[0], name)
    assert verify(str(url)).ok


def test_another_setting_is_refused_and_the_page_needs_no_network(
    project: Path, finished: tuple[Path, Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _, text = finished
    with pytest.raises(UsageError, match=r"config.view.attack: 8.0 -> 4.0"):
        finish(project, url, "classify.attack=4")
    monkeypatch.setattr("pipeline.models.load", None)
    assert Path(write_report(str(url))).read_text() == text
