"""raylens coco end to end on one Ray session: real annotation files, kills and reruns, damage, bad entries."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coco_cases import ROOT, config, drawn, files_of, finish, kept_by_force, loaded, put

from jobs.coco import CocoConfig, run
from jobs.coco.kept import filter_rows
from jobs.config import load_config
from pipeline.errors import UsageError
from pipeline.options import Options
from pipeline.run import Run
from pipeline.verify import verify
from stages.coco.masks import mask

KEPT = {("tiny", "train"): (25, 80), ("tiny", "val"): (26, 80), ("mini", "train"): (30, 80), ("mini", "val"): (30, 79)}


pytestmark = pytest.mark.usefixtures("joined")


@pytest.mark.parametrize("subset", ["tiny", "mini"])
def test_real_coco_goes_through_and_again(real_data: Path, tmp_path: Path, subset: str) -> None:
    base = real_data / "coco" / subset
    annotations = {s: base / f"annotations/instances_{s}2017.json" for s in ("train", "val")}
    given = config({s: {"annotations": str(p), "images": str(base / f"{s}2017")} for s, p in annotations.items()})
    said = finish(given, tmp_path / "run", shard_rows=24)
    made = Run(str(tmp_path / "run"))
    summary = json.loads(next(tmp_path.glob("run/kept/*/summary.json")).read_text())
    for split, path in annotations.items():
        content = json.loads(path.read_text())
        kept, images = KEPT[(subset, split)]
        assert (summary[split]["kept"], summary[split]["images"]) == (kept, images)
        readings = [len(kept_by_force(content, c, p)) for c in (True, False) for p in (False, True)]
        assert list(summary[split]["readings"].values()) == readings
        truth = kept_by_force(content)
        rows = filter_rows(
            made, split, ["image_id", "kept", "coarse_name", "status", "error", "fine_names"]
        ).to_pylist()
        assert len(rows) == images
        assert {r["image_id"] for r in rows if r["kept"]} == set(truth)
        assert all((r["status"] == "ok") == r["kept"] == (r["error"] is None) for r in rows)
        oracle, before = loaded(next(tmp_path.glob(f"run/kept/*/instances_{split}.json"))), loaded(path)
        assert set(oracle.getImgIds()) == set(truth)
        categories = {c["id"]: c for c in oracle.loadCats(oracle.getCatIds())}
        assert len(categories) == 80
        for row in rows:
            if not row["kept"]:
                continue
            mine = oracle.loadAnns(oracle.getAnnIds(imgIds=[row["image_id"]]))
            assert mine == before.loadAnns(before.getAnnIds(imgIds=[row["image_id"]]))
            shown = [categories[a["category_id"]] for a in mine]
            assert {c["supercategory"] for c in shown if not c["public"]} == {row["coarse_name"]}
            assert {c["name"] for c in shown if not c["public"]} == set(row["fine_names"])
            for annotation in mine:
                image = oracle.imgs[row["image_id"]]
                ours = mask(annotation["segmentation"], image["height"], image["width"])
                assert np.array_equal(ours, oracle.annToMask(annotation).astype(bool))
    before_files = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.json") if p.parent.name != "events"}
    report = Path(said[-1].removeprefix("report "))
    text = report.read_text()
    for words in ("Readings of the rule", "crowds do not count, people-only kept", "Kept images of each coarse class"):
        assert words in text
    assert text.count("data:image/jpeg") >= 10, "the images are there: examples are shown"
    hashes = files_of(made)
    finish(given, tmp_path / "run", shard_rows=24)
    assert files_of(made) == hashes
    again = {p: p.stat().st_mtime_ns for p in before_files if p.name.startswith(("instances_", "0"))}
    assert again == {p: before_files[p] for p in again}, "what was there was written again"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A config file and the files of a run of it that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "x.json.gz").write_bytes(gzip.compress(json.dumps(drawn(2000, 5)).encode(), 1))
    values = {"splits": {"all": {"annotations": "x.json.gz"}}, "resources": {"shard_rows": 50}}
    (folder / "coco.yaml").write_text(json.dumps(values))
    finish(load_config(CocoConfig, folder / "coco.yaml"), folder / "run", shard_rows=50)
    return folder / "coco.yaml", files_of(Run(str(folder / "run")))


# The command line, but that it dies at a moment as a lost machine would: in place of what would come then.
DEADLY = {
    "listing": "jobs.coco.job.instances_table = die",
    "shards": """
committed = ShardLoop._committed

def third(loop, *given):
    committed(loop, *given)
    if len(loop._receipts) == 3:
        die()

ShardLoop._committed = third
""",
    "kept": "jobs.coco.job.write_kept = die",
}
DYING = """
import os, signal
import jobs.coco.job
from jobs.cli import main
from pipeline.loop import ShardLoop

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults
@pytest.mark.parametrize("moment", DEADLY)
def test_killed_midway_and_run_again_gives_identical_output(
    tmp_path: Path, undisturbed: tuple[Path, dict[str, str]], moment: str
) -> None:
    import ray

    given, whole = undisturbed
    url = tmp_path / "run"
    command = [sys.executable, "-c", f"{DYING}\n{DEADLY[moment]}\nmain()", "coco", str(given), "--run", str(url)]
    command += ["--address", ray.get_runtime_context().gcs_address]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    there = len(list(url.glob("filter/all/receipts/*.json")))
    assert {"listing": there == 0, "shards": 3 <= there < 40, "kept": there == 40}[moment]
    assert (url / "lock.json").exists()
    assert not list(url.glob("kept/*/*.json"))
    finish(load_config(CocoConfig, given), url, shard_rows=50)
    assert files_of(Run(str(url))) == whole


def test_bad_entries_are_counted_in_the_summary_and_on_the_page(tmp_path: Path) -> None:
    content = drawn(20, 1)
    content["annotations"][0]["category_id"] = 999
    content["images"][1]["file_name"] = "../up.jpg"
    path = put(tmp_path / "x.json", content)
    with pytest.raises(UsageError, match="bad: reject"):
        run(config({"all": {"annotations": str(path)}}), str(tmp_path / "refused"), Options(say=lambda _: None))
    said = finish(config({"all": {"annotations": str(path), "bad": "reject"}}), tmp_path / "run")
    summary = json.loads(next(tmp_path.glob("run/kept/*/summary.json")).read_text())["all"]
    assert summary["images"] == 19
    assert summary["kept"] + sum(summary["filtered"].values()) == 19
    assert summary["rejected"]["annotation of an unknown category"]["count"] == 1
    assert summary["rejected"]["file name outside the image folder"]["count"] == 1
    assert summary["filtered"]["bad_annotation"] == 1
    text = Path(said[-1].removeprefix("report ")).read_text()
    assert "annotation of an unknown category" in text
    assert "no category has the id 999" in text


def test_damage_of_what_is_kept_is_found_withdrawn_and_made_again(tmp_path: Path) -> None:
    given = config({"all": {"annotations": str(put(tmp_path / "x.json", drawn(40, 6)))}})
    finish(given, tmp_path / "run", shard_rows=10)
    whole = files_of(Run(str(tmp_path / "run")))
    found = verify(str(tmp_path / "run"))
    assert found.problems == ()
    assert found.ok
    kept = next(tmp_path.glob("run/kept/*/instances_all.json"))
    data = bytearray(kept.read_bytes())
    data[len(data) // 2] ^= 1
    kept.write_bytes(data)
    found = verify(str(tmp_path / "run"))
    assert [p.where for p in found.problems] == [str(kept)]
    assert not found.ok
    assert verify(str(tmp_path / "run"), repair=True).problems[0].mended
    assert not kept.exists()
    finish(given, tmp_path / "run", shard_rows=10)
    assert files_of(Run(str(tmp_path / "run"))) == whole
    assert verify(str(tmp_path / "run")).ok
