"""raylens semantic end to end on one Ray session: drawn scenes, a tiny network, kills, damage, unreadable images."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import coco, semantic
from jobs.config import check, load_config
from jobs.demo.scenes import write_scenes
from pipeline.learnt import read_trained
from pipeline.options import Options, Resources
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.verify import verify

ROOT = Path(__file__).resolve().parents[3]
NETWORK = """
import torch
from torch import nn


def tiny() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 7),
    )
"""
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
    "coco": "coco",
    "splits": {"tune_share": 0.2},
    "networks": [{"name": "tinysemantic:tiny", "seed": 0, "preprocess": {"size": 32}}],
    "losses": ["focal"],
    "training": {"epochs": 6, "batch": 8, "lr": 0.01},
    "evaluation": {"a": [1, 0.5], "draws": 50, "batch": 10},
    "resources": {"shard_rows": 16},
    "report": {"examples": 1},
}
VARIANTS = ("tiny_focal", "tiny_coarse")
BAD = "000003.png"  # of both splits: a file that is no image


@pytest.fixture(scope="module", autouse=True)
def address(joined: Any) -> str:
    (joined.modules / "tinysemantic.py").write_text(NETWORK)
    return joined.address


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes, filtered by ``raylens coco``, and a config beside them."""
    root = tmp_path_factory.mktemp("semantic")
    write_scenes(root / "scenes", {"train": 130, "val": 60}, size=32)
    splits = {
        name: {"annotations": str(root / f"scenes/instances_{name}.json"), "images": str(root / "scenes" / name)}
        for name in ("train", "val")
    }
    (root / "scenes.yaml").write_text("public: [person]\nsupercategories: " + json.dumps(
        {name: name for name in ("vehicle", "animal", "kitchen", "food", "furniture", "electronic")}
    ))  # fmt: skip
    given = check(coco.CocoConfig, {"splits": splits, "taxonomy": str(root / "scenes.yaml")}, where="test")
    assert coco.run(given, str(root / "coco"), Options(say=lambda _: None)).exit_code == 0
    (root / "semantic.yaml").write_text(json.dumps(CONFIG))
    return root


def finish(project: Path, url: Path, *sets: str) -> tuple[Any, list[str]]:
    said: list[str] = []
    given = load_config(semantic.SemanticConfig, project / "semantic.yaml", sets)
    options = Options(resources=Resources(shard_rows=16), say=said.append)
    return semantic.run(given, str(url), options), said


def rows_of(url: Path, variant: str, split: str) -> list[dict[str, Any]]:
    run = Run(str(url))
    mark = next(s["fingerprint"] for s in run.describe()["steps"] if s["name"] == f"rows_{variant}")
    shards = Shards(run.step_folder(f"rows_{variant}", split=split, fingerprint=mark), 0)
    return [row for table in shards.tables() for row in table.to_pylist()]


def said_of(row: dict[str, Any], rule: str, share: float = 0.5) -> set[int]:
    """The set a rule makes of a row's fine scores, class by class."""
    scores = row["fine_scores"]
    if rule == "oracle_k":
        return set(sorted(range(len(scores)), key=lambda f: (-scores[f], f))[: len(row["true"])])
    assert rule == "relative"
    return {f for f, score in enumerate(scores) if score >= share * max(scores)}


def summary_of(url: Path, variant: str) -> dict[str, Any]:
    (found,) = url.glob(f"indexes_{variant}/*/metrics.json")
    return json.loads(found.read_text())


@pytest.fixture(scope="module")
def finished(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    url = tmp_path_factory.mktemp("undisturbed") / "run"
    outcome, _ = finish(project, url)
    assert outcome.exit_code == 0
    return url


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kept_image_has_a_row_and_the_indexes_are_those_of_the_rows(
    project: Path, finished: Path, variant: str
) -> None:
    kept = json.loads(next(project.glob("coco/kept/*/instances_val.json")).read_text())
    coarse = {image["file_name"]: image["coarse_index"] for image in kept["images"]}
    public = {c["id"] for c in kept["categories"] if c["public"]}
    index = {c["id"]: c["fine_index"] for c in kept["categories"]}
    name = {image["id"]: image["file_name"] for image in kept["images"]}
    fine: dict[str, set[int]] = {key: set() for key in coarse}
    for annotation in kept["annotations"]:
        if annotation["category_id"] not in public:
            fine[name[annotation["image_id"]]].add(index[annotation["category_id"]])
    rows = rows_of(finished, variant, "eval")
    assert [row["key"] for row in rows] == sorted(coarse)
    assert {row["key"]: (set(row["true"]), row["coarse_true"]) for row in rows} == {
        key: (fine[key], coarse[key]) for key in coarse
    }
    found = summary_of(finished, variant)["eval"]
    right = [row["coarse"] == row["coarse_true"] for row in rows]
    assert found["coarse_accuracy"]["value"] == pytest.approx(np.mean(right))
    for rule, told in found["rules"].items():
        exact = [said_of(row, rule) == set(row["true"]) for row in rows]
        both = sum(e and r for e, r in zip(exact, right, strict=True))
        assert told["cases"]["FTCT"] == both
        assert told["set"]["IA"]["value"] == pytest.approx(both / len(rows))
        for index_name, whole in (("IP", sum(exact)), ("IR", sum(right))):
            expected = None if not whole else pytest.approx(both / whole)
            assert told["set"][index_name]["value"] == expected
    assert set(found["rules"]) == ({"oracle_k", "relative"} if variant == "tiny_focal" else set())


def test_tune_is_a_share_of_train_by_key_and_no_image_is_in_two_splits(project: Path, finished: Path) -> None:
    keys = {s: set(Run(str(finished)).key_table(s).table().column("key").to_pylist()) for s in ("train", "tune")}
    kept = json.loads(next(project.glob("coco/kept/*/instances_train.json")).read_text())
    assert keys["train"] | keys["tune"] == {image["file_name"] for image in kept["images"]}
    assert not keys["train"] & keys["tune"]
    assert 0.05 < len(keys["tune"]) / len(kept["images"]) < 0.4
    facts = read_trained(Run(str(finished)).step_folder("train_tiny_focal")).facts  # type: ignore[union-attr]
    assert facts["rows"] == {split: len(found) for split, found in keys.items()}


def test_each_epoch_is_an_event_and_screening_is_made_once(finished: Path) -> None:
    lines = [line for p in sorted(finished.glob("events/*.jsonl")) for line in p.read_text().splitlines()]
    told = [event for event in map(json.loads, lines) if event["kind"] == "epoch"]
    for variant in VARIANTS:
        mine = [event for event in told if event["step"] == f"train_{variant}"]
        assert [(event["epoch"], event["epochs"]) for event in mine] == [(n, 6) for n in range(1, 7)]
        assert {"loss", "coarse_accuracy"} <= mine[0]["metrics"].keys()
        (screened,) = finished.glob(f"train_{variant}/unreadable-*.json")
        assert json.loads(screened.read_text()) == {"train": {}, "tune": {}}


def test_the_page_has_the_tables_the_curves_and_the_paths(finished: Path) -> None:
    text = next(finished.glob("report/*/index.html")).read_text()
    for words in (
        "Table 2. Accuracy of the coarse class", "Table 3. Interpretability indexes, focal loss",
        "Learning curves of tiny", "Confusion matrix",
        "Decision paths", "mean over batches of 10", "IF0.5", "0.5 × the best one",
    ):  # fmt: skip
        assert words in text, words
    shown = [case for case in ("FTCT", "FTCF", "FFCT", "FFCF") if f"{case}: " in text]
    assert shown, "no decision path is drawn"


def test_run_again_it_answers_from_what_is_there(project: Path, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file() and p.suffix != ".jsonl"}
    outcome, _ = finish(project, finished)
    assert outcome.exit_code == 0
    rewritten = {"run.json", "index.html", "lock.json"}
    again = {p: p.stat().st_mtime_ns for p in before if p.exists() and p.name not in rewritten}
    assert again == {p: m for p, m in before.items() if p.name not in rewritten}


def test_another_threshold_only_reduces_again_and_stands_beside_the_first(
    project: Path, finished: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    shutil.copytree(finished, url)
    spoken = {"run.json", "lock.json", "events"}
    kept = [p for p in url.rglob("*") if p.is_file() and p.relative_to(url).parts[0] not in spoken]
    before = {p: p.stat().st_mtime_ns for p in kept}
    (first,) = url.glob("indexes_tiny_focal/*/metrics.json")
    outcome, _ = finish(project, url, "evaluation.relative=0.9")
    assert outcome.exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before, "nothing that was there is touched"
    steps = {p.relative_to(url).parts[0] for p in url.rglob("*") if p.is_file() and p not in before} - spoken
    assert steps == {"indexes_tiny_focal", "report"}
    (second,) = set(url.glob("indexes_tiny_focal/*/metrics.json")) - {first}
    found = json.loads(second.read_text())["eval"]["rules"]
    cases = [
        ("FT" if said_of(row, "relative", 0.9) == set(row["true"]) else "FF")
        + ("CT" if row["coarse"] == row["coarse_true"] else "CF")
        for row in rows_of(url, "tiny_focal", "eval")
    ]
    assert found["relative"]["cases"] == {c: cases.count(c) for c in ("FTCT", "FTCF", "FFCT", "FFCF")}
    then, now = (
        sum(of["predicted"] for of in rules["relative"]["fine_classes"].values())
        for rules in (json.loads(first.read_text())["eval"]["rules"], found)
    )
    assert now == sum(len(said_of(row, "relative", 0.9)) for row in rows_of(url, "tiny_focal", "eval"))
    assert now < then, "a higher share says fewer classes"


def test_a_page_is_written_while_the_rows_behind_its_pictures_are_away(finished: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(finished, url)
    for receipt in url.glob("rows_tiny_focal/*/eval/receipts/*"):
        receipt.unlink()
    for weights in url.glob("train_*/result/network-*"):
        weights.unlink()  # a page is made from facts alone
    text = Path(semantic.write_report(str(url))).read_text()
    assert "No evaluated image with a fine and a coarse label can be shown" in text
    assert "Learning curves of tiny" in text
    assert "is damaged" not in text


@pytest.mark.faults
def test_killed_while_training_it_resumes_to_the_same_network(
    project: Path, finished: Path, address: str, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    arguments = ["semantic", str(project / "semantic.yaml"), "--run", str(url), "--address", address]
    killed = subprocess.run(
        [sys.executable, "-c", DEADLY, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (url / "train_tiny_focal/checkpoints/0002/receipt.json").exists()
    assert not (url / "train_tiny_focal/checkpoints/0003").exists(), "epoch 3 is computed and lost"
    outcome, said = finish(project, url)
    assert outcome.exit_code == 0
    for variant in VARIANTS:
        ours, whole = (read_trained(Run(str(u)).step_folder(f"train_{variant}")) for u in (url, finished))
        assert ours is not None
        assert whole is not None
        for mine, other in zip(ours.facts["history"], whole.facts["history"], strict=True):
            assert mine == pytest.approx(other, abs=1e-6)
        assert json.dumps(summary_of(url, variant)) == json.dumps(summary_of(finished, variant))
    assert any("report" in line for line in said)


def test_damage_is_found_withdrawn_and_made_again(project: Path, finished: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    shutil.copytree(finished, url)
    digest = read_trained(Run(str(url)).step_folder("train_tiny_coarse")).digest  # type: ignore[union-attr]
    weights = next(url.glob("train_tiny_coarse/result/network-*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    shutil.rmtree(url / "train_tiny_coarse/checkpoints")
    found = verify(str(url))
    assert [problem.where for problem in found.problems] == ["train_tiny_coarse result"]
    assert verify(str(url), repair=True).problems[0].mended
    outcome, _ = finish(project, url)
    assert outcome.exit_code == 0
    assert read_trained(Run(str(url)).step_folder("train_tiny_coarse")).digest == digest  # type: ignore[union-attr]
    assert verify(str(url)).ok


def test_images_that_cannot_be_read_are_rows_with_a_reason_and_are_not_learnt_from(
    project: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        (project / "scenes" / split / BAD).rename(project / "scenes" / split / f"{BAD}.away")
        (project / "scenes" / split / BAD).write_bytes(b"no image")
    try:
        outcome, _ = finish(project, tmp_path / "run", "losses=[bce]", "baseline=false", "training.epochs=1")
    finally:
        for split in ("train", "val"):
            (project / "scenes" / split / f"{BAD}.away").rename(project / "scenes" / split / BAD)
    assert outcome.exit_code == 3, "rows failed, and none may"
    failed = [row for row in rows_of(tmp_path / "run", "tiny_bce", "eval") if row["status"] == "failed"]
    assert [row["key"] for row in failed] == [BAD]
    assert "not an image" in failed[0]["error"]
    facts = read_trained(Run(str(tmp_path / "run")).step_folder("train_tiny_bce")).facts  # type: ignore[union-attr]
    unreadable = facts["unreadable"]["train"] | facts["unreadable"]["tune"]
    assert list(unreadable) == [BAD]
    keys = sum(len(Run(str(tmp_path / "run")).key_table(split)) for split in ("train", "tune"))
    assert sum(facts["rows"].values()) == keys - 1
    text = next((tmp_path / "run").glob("report/*/index.html")).read_text()
    assert "Left out because they cannot be read" in text
    assert "Table 4. Interpretability indexes, sigmoid and BCE" in text
    assert "score &gt; 0.7" in text
