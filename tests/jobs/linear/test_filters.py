"""raylens linear on image-to-image networks, end to end on one Ray session and killed on the way."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from jobs.config import load_config
from jobs.demo.scenes import write_scenes
from jobs.linear import LinearConfig, run
from pipeline.models import load
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.verify import verify
from stages.linear.image_input import ImageInput
from stages.linear.scope import LinearScope
from stages.preprocess import Preprocess

ROOT = Path(__file__).resolve().parents[3]
# The command line, but that it dies as a lost machine would before the second network's rows are begun.
DEADLY = """
import os, signal
from jobs.cli import main
from pipeline.runner import Runner

whole = Runner.run
def run(self, work, todo, progress):
    if work.step.name == "filters_small":
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, work, todo, progress)

Runner.run = run
main()
"""
CONFIG: dict[str, Any] = {
    "task": "filters",
    "networks": {
        "bicubic": {"name": "stages.linear.networks.bicubic:bicubic", "arguments": {"scale": 2}, "seed": 0},
        "small": {"name": "stages.linear.networks.pixelshuffle:pixel_shuffle", "arguments": {"width": 4}, "seed": 1},
    },
    "data": {"images": {"kind": "coco", "annotations": "scenes/instances_eval.json", "images": "scenes/eval"}},
    "filters": {"size": 12, "frame": "squash"},
    "allow_failed": 0.25,
}
BAD = "000003.png"


@pytest.fixture(scope="module", autouse=True)
def address(joined: Any) -> str:
    return joined.address


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filters")
    write_scenes(root / "scenes", {"eval": 5}, size=32)
    (root / "scenes/eval" / BAD).write_bytes(b"no picture")
    (root / "linear.yaml").write_text(json.dumps(CONFIG))
    return root


@dataclass(frozen=True)
class Finished:
    """A run that was killed before its second network, and then run again."""

    url: Path
    killed: subprocess.CompletedProcess[str]
    committed: dict[Path, int]  # what the first driver left: file -> its time of change
    outcome: Any
    said: list[str]


@pytest.fixture(scope="module")
def finished(project: Path, address: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    url = tmp_path_factory.mktemp("elsewhere") / "run"
    arguments = ["linear", str(project / "linear.yaml"), "--run", str(url), "--address", address]
    killed = subprocess.run(
        [sys.executable, "-c", DEADLY, *arguments], cwd=project, capture_output=True, text=True, timeout=200
    )
    committed = {f: f.stat().st_mtime_ns for f in url.glob("filters_*/images/part-*.parquet")}
    said: list[str] = []
    config = load_config(LinearConfig, project / "linear.yaml")
    return Finished(url, killed, committed, run(config, str(url), config.options(say=said.append)), said)


def rows_of(url: Path, step: str) -> list[dict[str, Any]]:
    return pa.concat_tables(list(Shards(Run(str(url)).step_folder(step, split="images"), 0).tables())).to_pylist()


def array(row: dict[str, Any], name: str, *shape: int) -> np.ndarray:
    return np.array(row[name], np.float32).reshape(shape)


@pytest.mark.faults
def test_what_was_committed_before_the_kill_stands(finished: Finished) -> None:
    assert finished.killed.returncode == -signal.SIGKILL, finished.killed.stderr
    assert len(finished.committed) == 5  # an image a shard
    assert {f.parents[1].name for f in finished.committed} == {"filters_bicubic"}
    assert {f: f.stat().st_mtime_ns for f in finished.committed} == finished.committed
    assert verify(str(finished.url)).ok


def test_rows_and_columns_of_every_image(project: Path, finished: Finished) -> None:
    """Against the network itself in float64: what was run before the kill and after it."""
    assert finished.outcome.exit_code == 0  # one image of 5 cannot be read, and a quarter may fail
    config = load_config(LinearConfig, project / "linear.yaml")
    image = ImageInput(Preprocess(size=(12, 12), mean=(0, 0, 0), std=(1, 1, 1), frame="squash"))
    for name, field in (("bicubic", 5), ("small", 11)):
        network = load(config.networks[name], probe=False).module.double()
        rows = rows_of(finished.url, f"filters_{name}")
        assert [(row["key"], row["status"]) for row in rows if row["status"] != "ok"] == [(BAD, "failed")]
        assert len(rows) == 5
        for row in rows:
            if row["key"] == BAD:
                continue
            with Image.open(project / "scenes/eval" / row["key"]) as opened:
                pixels = image.pixels(np.asarray(opened.convert("RGB")))
            scope = LinearScope(network, image.tensor(torch.from_numpy(pixels)[None]))
            assert (row["input_shape"], row["output_shape"], row["bounded"]) == ([1, 12, 12], [1, 24, 24], True)
            np.testing.assert_allclose(array(row, "input", 1, 1, 12, 12), scope.x0, atol=1e-7)
            np.testing.assert_allclose(array(row, "output", 1, 1, 24, 24), scope.output, atol=1e-5)
            np.testing.assert_allclose(array(row, "residual", 1, 1, 24, 24), scope.residual(), atol=1e-5)
            assert row["row_patch_shape"] == [1, field, field]
            assert row["column_patch_shape"] == [
                1,
                2 * field - 1 + (name == "small"),
                2 * field - 1 + (name == "small"),
            ]
            for kind, place, single in (("row", (13, 10), scope.row), ("column", (6, 11), scope.column)):
                count = len(row[f"{kind}_places"]) // 3
                at = place[0] * (24 if kind == "row" else 12) + place[1]
                assert array(row, f"{kind}_places", count, 3)[at].tolist() == [0, *place]
                top, left = (int(n) + 24 for n in array(row, f"{kind}_corner", count, 2)[at])
                _, height, width = row[f"{kind}_patch_shape"]
                found = array(row, f"{kind}_values", count, 1, height, width)[at]
                whole = torch.nn.functional.pad(single((0, *place)), (24,) * 4).numpy()
                np.testing.assert_allclose(found, whole[:, top : top + height, left : left + width], atol=1e-5)
                assert np.abs(found).sum() == pytest.approx(np.abs(whole).sum(), rel=1e-5)


def test_what_it_will_write_is_said_first(finished: Finished) -> None:
    assert finished.said[0].endswith("probes  an image  5 images")
    assert " ".join(finished.said[1].split()) == "bicubic 576 1 x 5 x 5 144 1 x 9 x 9 106 124 kB 619 kB"
    row = rows_of(finished.url, "filters_bicubic")[0]
    held = sum(len(v) for name, v in row.items() if isinstance(v, list) and "shape" not in name)
    assert 4 * held == pytest.approx(123_840)


def test_the_page_opens_on_these_networks(finished: Finished) -> None:
    page = Path(finished.said[-1].removeprefix("report "))
    index = (page.parent / "data/index.js").read_text()
    assert all(name in index for name in ("bicubic", "small", "000001.png"))
    assert BAD in page.read_text()
