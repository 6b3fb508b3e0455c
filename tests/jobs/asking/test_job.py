"""raylens asking end to end on one Ray session: drawn scenes, a tiny network, a kill, a corrupt checkpoint."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs import asking
from jobs.config import load_config
from jobs.demo.scenes import write_scenes
from pipeline.errors import UsageError
from pipeline.learnt import read_trained
from pipeline.options import Options, Resources
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.status import status
from pipeline.verify import verify
from stages.preprocess import Preprocess

ROOT = Path(__file__).resolve().parents[3]
# The command line, but that it dies as a lost machine would where the third epoch's checkpoint should be written.
DEADLY = """
import os, signal
from jobs.cli import main
from pipeline.checkpoints import CommittedCheckpoints

whole = CommittedCheckpoints.save

def save(self, epoch, files):
    if epoch == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    whole(self, epoch, files)

CommittedCheckpoints.save = save
main()
"""
CONFIG: dict[str, Any] = {
    "task": "ask",
    "data": {
        "train": {"kind": "folder", "root": "scenes/train"},
        "tune": {"kind": "folder", "root": "scenes/val", "share": [0, 0.3]},
        "ask": {"kind": "folder", "root": "scenes/val", "share": [0.3, 1]},
        "segmented": {"images": {"kind": "coco", "annotations": "scenes/instances_val.json", "images": "scenes/val"}},
    },
    "evaluate": {"moves": 2},
    "learn": {"size": [16, 12], "hints": 2},
    "network": {"width": 4, "depth": 2},
    "training": {"epochs": 4, "batch": 8, "samples": 2, "sample_every": 3},
    "ask": {"map_size": 4},
    "report": {"examples": 2},
}
BAD = "000003.png"


@pytest.fixture(scope="module", autouse=True)
def address(joined: Any) -> str:
    return joined.address


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes, of which one to learn from and one to ask about cannot be read, and a config beside them."""
    root = tmp_path_factory.mktemp("asking")
    write_scenes(root / "scenes", {"train": 26, "val": 30}, size=24)
    for split in ("train", "val"):
        (root / "scenes" / split / BAD).write_bytes(b"no image")
    (root / "asking.yaml").write_text(json.dumps(CONFIG))
    return root


def finish(project: Path, url: Path, *sets: str) -> tuple[Any, list[str]]:
    said: list[str] = []
    given = load_config(asking.AskingConfig, project / "asking.yaml", sets)
    options = Options(resources=Resources(shard_rows=8), allow_failed=0.2, say=said.append)
    return asking.run(given, str(url), options), said


def rows_of(url: Path, step: str = "ask", split: str = "ask") -> list[dict[str, Any]]:
    run = Run(str(url))
    mark = next(s["fingerprint"] for s in run.describe()["steps"] if s["name"] == step)
    shards = Shards(run.step_folder(step, split=split, fingerprint=mark), 0)
    return [row for table in shards.tables() for row in table.to_pylist()]


def learnt(url: Path, step: str = "train") -> Any:
    found = read_trained(Run(str(url)).step_folder(step))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def finished(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed: the training first, then with the same folder what stands on it."""
    url = tmp_path_factory.mktemp("undisturbed") / "run"
    assert finish(project, url, "task=train")[0].exit_code == 0
    assert "The training is not finished" not in next(url.glob("report/*/index.html")).read_text()
    digest = learnt(url).digest
    outcome, _ = finish(project, url, "task=evaluate")
    assert outcome.exit_code == 0
    assert learnt(url).digest == digest, "what was trained is not trained again"
    return url


def test_every_image_has_a_row_and_psnr_is_that_of_the_pictures_kept(project: Path, finished: Path) -> None:
    rows = rows_of(finished)
    listed = Run(str(finished)).key_table("ask").table().to_pylist()
    assert [row["key"] for row in rows] == [row["key"] for row in listed]
    failed = [row for row in rows if row["status"] == "failed"]
    assert {row["key"] for row in failed} == {BAD}
    frame = Preprocess((16, 12), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for row, given in zip(rows, listed, strict=True):
        if row["status"] != "ok":
            continue
        truth = frame.pixels(np.asarray(Image.open(given["uri"]))).transpose(1, 2, 0).astype(float)
        shown = [np.asarray(Image.open(io.BytesIO(data))).astype(float) for data in row["pictures"]]
        assert len(shown) == 3
        errors = [((picture - truth) ** 2).mean() for picture in shown]
        assert row["psnr"] == pytest.approx([10 * np.log10(255**2 / error) for error in errors], rel=1e-5)
        assert len(row["questions"]) == 2 * 4 * 4
        assert len(row["answer_rgb"]) == 6
    (metrics,) = finished.glob("answered/*/metrics.json")
    told = json.loads(metrics.read_text())["rows"]
    good = np.array([row["psnr"] for row in rows if row["status"] == "ok"])
    assert [entry["n"] for entry in told] == [len(good)] * 3
    assert [entry["psnr"] for entry in told] == pytest.approx(good.mean(0).tolist(), abs=1e-4)


def test_what_cannot_be_read_is_not_learnt_from(finished: Path) -> None:
    facts = learnt(finished).facts
    assert list(facts["unreadable"]["train"]) == [BAD]
    assert facts["rows"]["train"] == 25
    assert len(facts["history"]) == 4
    assert {"loss", "tune_loss", "psnr_0", "psnr_2"} <= facts["metrics"].keys()


def test_sample_sheets_are_written_while_it_trains(finished: Path) -> None:
    names = sorted(path.name for path in (finished / "train" / "samples").iterdir())
    assert names == ["epoch-0003.png", "epoch-0004.png"]
    height, width, _ = np.asarray(Image.open(finished / "train" / "samples" / names[0])).shape
    assert height == 2 * (3 + 4 + 16 + 4 + 16) + 4
    assert width == 5 * 12 + 4 * 4
    assert verify(str(finished)).ok
    assert status(str(finished)).complete


def test_the_page_has_the_table_the_sheets_and_the_curves(finished: Path) -> None:
    text = max(finished.glob("report/*/index.html"), key=lambda path: path.stat().st_mtime_ns).read_text()
    for words in ("PSNR after 0, 1, ... answers", "Questions and answers of ", "Learning curves", BAD):
        assert words in text, words
    assert text.count("Questions and answers of ") == 2


def test_the_evaluation_is_of_all_networks_on_the_same_images(finished: Path) -> None:
    assert {step: learnt(finished, step).facts["hints"] for step in ("train", "train_random", "train_none")} == {
        "train": "asked", "train_random": "random", "train_none": "none",
    }  # fmt: skip
    exact = learnt(finished, "train_exact").facts
    assert (exact["hints"], exact["lesson"]["noise"]) == ("asked", 0)
    rows = [row for row in rows_of(finished, "contest") if row["status"] == "ok"]
    asked = {row["key"]: row["psnr"] for row in rows_of(finished) if row["status"] == "ok"}
    assert {row["key"]: row["psnr/asked"] for row in rows} == {
        key: pytest.approx(told, rel=1e-4) for key, told in asked.items()
    }
    (path,) = finished.glob("psnr/*/metrics.json")
    table = {(r["method"], r["answers"]): r for r in json.loads(path.read_text())["rows"]}
    assert len(table) == 3 * 8 + 1, "eight that are told something, and one that is not"
    for (method, answers), row in table.items():
        own = np.array([r[f"psnr/{method}"][answers] for r in rows])
        assert (row["n"], row["psnr"]) == (len(rows), pytest.approx(own.mean(), abs=1e-3))
    (path,) = finished.glob("order/*/metrics.json")
    order = json.loads(path.read_text())["rows"]
    assert order[0]["error"] == pytest.approx(np.mean([r["mean_error"] for r in rows]), abs=1e-5)
    (path,) = finished.glob("classes/*/metrics.json")
    classes = json.loads(path.read_text())["rows"]
    drawn = [r for r in rows_of(finished, "precision", "segmented") if r["status"] == "ok"]
    assert [(r["network"], r["question"]) for r in classes] == [(n, q) for n in ("asked", "exact") for q in range(3)]
    assert classes[1]["precision"] == pytest.approx(np.mean([r["precision/asked"][0] for r in drawn]), abs=1e-5)


def test_the_page_of_an_evaluation_has_its_tables_beside_the_paper_s(finished: Path) -> None:
    text = max(finished.glob("report/*/index.html"), key=lambda path: path.stat().st_mtime_ns).read_text()
    for words in (
        "What these networks have learnt from",
        "told at random points: 4 epochs of 25 images",
        "PSNR after 0, 1, ... hints",
        "Bilateral solver, maximum error",
        "28.16",
        "is not reproduced",
        "Error under each question",
        "Distribution of the error under each question",
        "Class precision of each question",
        "86.7",
    ):
        assert words in text, words


@pytest.mark.faults
@pytest.mark.long
def test_killed_while_training_it_resumes_to_the_same_agent_and_rows(
    project: Path, finished: Path, address: str, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    arguments = ["asking", str(project / "asking.yaml"), "--run", str(url), "--address", address]
    killed = subprocess.run(
        [sys.executable, "-c", DEADLY, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (url / "train/checkpoints/0002/receipt.json").exists()
    assert not (url / "train/checkpoints/0003").exists(), "epoch 3 is computed and lost"
    # And the newest one is corrupt: it is refused by name, and the one before it is used.
    state = next((url / "train/checkpoints/0002").glob("state-*.safetensors"))
    data = bytearray(state.read_bytes())
    data[-3] ^= 1
    state.write_bytes(data)
    again = subprocess.run(
        [sys.executable, "-c", "from jobs.cli import main; main()", *arguments, "--allow-failed", "0.2"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert again.returncode == 0, again.stderr
    spoken = again.stdout + again.stderr
    assert "checkpoint 2 refused" in spoken
    assert "going on from checkpoint 1" in spoken
    ours, whole = learnt(url), learnt(finished)
    for mine, other in zip(ours.facts["history"], whole.facts["history"], strict=True):
        assert mine == pytest.approx(other, abs=1e-6)
    for row, other in zip(rows_of(url), rows_of(finished), strict=True):
        assert row["key"] == other["key"]
        if row["status"] == "ok":
            assert row["psnr"] == pytest.approx(other["psnr"], abs=1e-3)


def test_run_again_it_answers_from_what_is_there_and_other_settings_are_refused(
    project: Path, finished: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    shutil.copytree(finished, url)
    before = {p: p.stat().st_mtime_ns for p in url.glob("*/**/part-*")} | {
        p: p.stat().st_mtime_ns for p in url.glob("train/**/*") if p.is_file()
    }
    assert finish(project, url)[0].exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before
    with pytest.raises(UsageError, match=r"lesson\.noise: 0\.02 then, 0\.2 now"):
        finish(project, url, "learn.noise=0.2")


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["data.ask=null"], "task ask needs data.ask"),
        (["task=evaluate", "learn.problem=inpaint"], "evaluate is of colours"),
        (["learn.told=random"], "of a network that asks"),
        (["data.tune=null", "training.monitor=tune_loss"], "needs data.tune"),
        (["data.tune={kind: folder, root: scenes/train}"], "three splits"),
        (["learn.back=1"], "back"),
        (["learn.problem=sing"], "natural"),
        (["network.most=2"], "most"),
        (["training.patience=3"], "patience needs training.monitor"),
    ],
)
def test_mistakes_are_told_before_any_work(project: Path, sets: list[str], words: str) -> None:
    if "data.tune={kind" in sets[0]:
        sets = ["data.tune.root=" + str(project / "scenes/train"), "data.train.root=" + str(project / "scenes/train")]
        sets += ["data.tune.share=null"]
    with pytest.raises(UsageError, match=words):
        load_config(asking.AskingConfig, project / "asking.yaml", sets)


@pytest.mark.parametrize(("problem", "hints"), [("natural", 4), ("drawing", 6), ("inpaint", 4)])
def test_every_problem_makes_its_job(project: Path, problem: str, hints: int) -> None:
    given = load_config(
        asking.AskingConfig,
        project / "asking.yaml",
        [f"learn.problem={problem}", "learn.hints=null", "learn.hole=0.25"],
    )
    job = asking.build(given)
    assert [step.name for step in job.steps] == ["train", "ask", "answered"]
    assert job.step("train").trainer.config.task.hints == hints  # type: ignore[union-attr]
    assert job.step("answered").reduction.config.hints == hints  # type: ignore[union-attr]


def test_without_classes_or_a_second_network_an_evaluation_has_fewer_steps(project: Path) -> None:
    sets = ["task=evaluate", "data.segmented=null", "evaluate.exact=false", "evaluate.classical=false"]
    job = asking.build(load_config(asking.AskingConfig, project / "asking.yaml", sets))
    names = ["train", "train_random", "train_none", "contest", "psnr", "order", "ask", "answered"]
    assert [step.name for step in job.steps] == names
    assert job.step("psnr").reduction.config.methods == (  # type: ignore[union-attr]
        "asked", "points_random", "points_max_error", "none",
    )  # fmt: skip


def test_the_shipped_configs_are_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DATA", str(tmp_path))
    given = load_config(asking.AskingConfig, ROOT / "jobs/configs/asking-sample.yaml")
    assert [step.name for step in asking.build(given).steps] == ["train", "ask", "answered"]
    given = load_config(asking.AskingConfig, ROOT / "jobs/configs/asking-evaluate.yaml")
    names = ["train", "train_random", "train_none", "train_exact", "contest", "psnr", "order", "precision", "classes"]
    assert [step.name for step in asking.build(given).steps] == [*names, "ask", "answered"]
