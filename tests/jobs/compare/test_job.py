"""The comparison as a user runs it: configs, masks beside images, a CHIP run's weights, the command line, the page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.cli import app
from jobs.compare import CompareJobConfig, papers
from jobs.compare.inputs import read_objects, resolved
from jobs.compare.masks import Masks, with_masks
from jobs.compare.report import compare_page
from jobs.compare.report_data import CompareReportData
from jobs.config import check, load_config
from jobs.demo.scenes import write_scenes
from jobs.gfi import GfiConfig
from jobs.sections import source
from pipeline import plan as plans
from pipeline.dataset import parse_source
from pipeline.errors import UsageError
from pipeline.run import Run
from pipeline.shards import Shards
from pipeline.sources.classes import read_classes
from stages.metrics.masks import coco_mask
from stages.metrics.truth import Frame
from stages.preprocess import Preprocess

ROOT = Path(__file__).resolve().parents[3]
METHODS = ["gradient", "grad_cam", "c_mwp", "lrp", "lime", "chip"]

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
FITTED = range(0, 13, 2)  # the classes that the CHIP run has weights for
COMPARE = f"""
model: {{name: "comparednet:tiny", seed: 0, preprocess: {{size: 32}}}}
data: {{eval: {{kind: coco, annotations: scenes/instances_eval.json, images: scenes/eval}}}}
methods: [{", ".join(METHODS)}]
parameters: {{lime: {{grid: 3, samples: 8}}}}
chip: CHIPRUN
measure: {{asks: present, inclusive: false, deletion_steps: 2, attack: 0.02, speed_images: 4, batch: 4}}
report: {{examples: 3, papers: [chip-table-2]}}
"""


def raylens(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "jobs.cli", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


def write_chip_run(root: Path) -> None:
    """A CHIP run as its solve leaves it, with weights of the last layer (12 channels) for some classes."""
    split = {"kind": "coco", "annotations": "instances_fit.json", "images": "fit"}
    model = {"name": "comparednet:tiny", "seed": 0, "preprocess": {"size": 32}}
    fields = {"of": "this test"}
    mark = plans.fingerprint(fields)
    run = Run(str(root))
    steps = [{"name": "solve", "kind": "reduce", "fingerprint": mark, "upstream": [], "splits": [], "keyed": True}]
    run.folder.write(
        "run.json",
        json.dumps({"job": "chip", "config": {"model": model, "data": {"fit": split}}, "steps": steps}).encode(),
    )
    folder = run.step_folder("solve", fingerprint=mark)
    plans.freeze(folder, plans.new_plan("solve", "", fields, 1, 1, plans.UNMEASURED, 1))
    weights = np.random.default_rng(0).normal(size=(13, 12))
    rows = [{"layer": "last_conv", "class_id": c, "w": weights[c].tolist(), "flag": ""} for c in FITTED]
    Shards(folder, 1).commit(0, pa.Table.from_pylist(rows))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_scenes(root / "scenes", {"eval": 16}, size=32)
    (root / "comparednet.py").write_text(NETWORK)
    (root / "compare.yaml").write_text(COMPARE.replace("CHIPRUN", str(root / "chip-run")))
    write_chip_run(root / "chip-run")
    return root


@pytest.fixture(scope="module")
def finished(project: Path, ray_session: Any) -> Path:
    words = ("--run", project / "run", "--address", ray_session.address)
    done = raylens("compare", project / "compare.yaml", *words, cwd=project)
    assert done.returncode == 0, done.stderr
    return project / "run"


def table(run: Path, step: str, split: str = "", fingerprint: str = "") -> pa.Table:
    folder = Run(str(run)).step_folder(step, split=split, fingerprint=fingerprint)
    return pa.concat_tables(list(Shards(folder, 0).tables()))


def test_from_images_to_one_table(finished: Path) -> None:
    steps = {s["name"]: s["fingerprint"][:8] for s in json.loads((finished / "run.json").read_text())["steps"]}
    assert list(steps) == ["compare", "metrics", "speed"]
    rows = table(finished, "compare", "eval")
    assert rows.num_rows == 16
    assert set(rows["status"].to_pylist()) == {"ok"}
    metrics = json.loads((finished / "metrics" / steps["metrics"] / "metrics.json").read_text())["rows"]
    for measure in ("chip_top1_error", "gfi_error", "pointing_15", "mask_iou", "f", "deletion", "insertion"):
        assert {r["method"] for r in metrics if r["measure"] == measure} >= set(METHODS), measure
    speed = table(finished, "speed", "speed")
    assert speed.num_rows == 4
    assert min(min(speed[f"seconds/{m}"].to_pylist()) for m in METHODS) > 0


def test_chip_answers_for_the_classes_of_its_own_run_and_for_no_other(finished: Path) -> None:
    rows = table(finished, "compare", "eval").to_pylist()
    fitted = [row["asked"][0] in FITTED for row in rows]
    assert any(fitted)
    assert not all(fitted)
    for row, known in zip(rows, fitted, strict=True):
        assert np.isnan(row["iou/chip"]).all() == (not known)
        assert len(row["box/chip"]) == (4 * len(row["iou/chip"]) if known else 0)


def test_the_page_holds_the_table_the_curves_and_the_maps(finished: Path) -> None:
    (page,) = (finished / "report").glob("*/index.html")
    text = page.read_text()
    for words in (
        "Methods by measures",
        "Threshold curves",
        "By class",
        "Beside the papers",
        "c-MWP",
        "Grad-CAM",
        "LRP",
    ):
        assert words in text
    assert text.count("data:image/jpeg") >= 3 * len(METHODS) - 6
    assert "://" not in text.replace("http://www.w3.org", "").split("<footer")[0].split("Resolved configuration")[0]
    again = raylens("report", finished, cwd=finished.parent)
    assert again.returncode == 0, again.stderr


def test_a_rerun_has_nothing_to_do_and_another_setting_is_refused_with_a_diff(finished: Path, project: Path) -> None:
    before = sorted(p.name for p in (finished / "compare").rglob("*.parquet"))
    again = raylens("compare", project / "compare.yaml", "--run", finished, cwd=project)
    assert again.returncode == 0, again.stderr
    assert sorted(p.name for p in (finished / "compare").rglob("*.parquet")) == before
    other = raylens("compare", project / "compare.yaml", "--run", finished, "--set", "measure.attack=0.1", cwd=project)
    assert other.returncode == 2
    assert "attack" in other.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["methods=[gradcam]"], "did you mean grad_cam"),
        (["methods=[chip]"], "chip: RUN"),
        (["methods=[lime]", "parameters.lime.sample=3"], "did you mean samples"),
        (["methods=[grad_cam:nowhere]"], "nowhere"),
    ],
)
def test_mistakes_are_told_without_a_traceback(project: Path, settings: list[str], words: str) -> None:
    (project / "plain.yaml").write_text(COMPARE.replace("chip: CHIPRUN", "").replace(", chip]", "]"))
    sets = [w for s in settings for w in ("--set", s)]
    done = CliRunner().invoke(app, ["compare", str(project / "plain.yaml"), "--run", str(project / "never"), *sets])
    assert done.exit_code == 2
    assert words in done.output
    assert "Traceback" not in done.output
    assert not (project / "never").exists()


def test_binary_and_index_masks_are_read_beside_the_images(tmp_path: Path) -> None:
    for folder in ("images", "binary", "index"):
        (tmp_path / folder).mkdir()
    grey = np.zeros((6, 8), np.uint8)
    grey[1:3, 2:5] = 255
    index = np.zeros((6, 8), np.uint8)
    index[0:2, 0:2], index[4:, 5:], index[3, 3] = 2, 3, 255
    for name in ("a", "b"):
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / f"images/{name}.jpg")
    Image.fromarray(grey).save(tmp_path / "binary/a.png")
    Image.fromarray(index).save(tmp_path / "index/a.png")
    split = source(parse_source({"kind": "folder", "root": str(tmp_path / "images"), "label_pattern": None}))
    with pytest.raises(UsageError, match=r"b\.png"):
        with_masks(split, Masks(root=str(tmp_path / "binary"))).list()
    found = with_masks(split, Masks(root=str(tmp_path / "binary"), missing="skip")).list().to_pylist()
    assert np.array_equal(coco_mask(found[0]["masks"][0], 8, 6), grey > 127)
    assert found[1]["masks"] == []
    masks = Masks(root=str(tmp_path / "index"), kind="index", classes=["wall", "bed", "lamp"], missing="skip")
    row = with_masks(split, masks).list().to_pylist()[0]
    assert row["box_labels"] == [1, 2]  # pixel 1 is class 0; 255 is none
    assert row["boxes"] == [[0, 0, 1, 1], [5, 4, 7, 5]]
    assert np.array_equal(coco_mask(row["masks"][1], 8, 6), index == 3)


def write_voc(root: Path) -> dict[str, Any]:
    """One image of two objects, one of them difficult, with its classes drawn: a cat, a dog, and what is neither."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/test.txt").write_text("000001\n")
    thing = "<object><name>{}</name><difficult>{}</difficult><bndbox>{}</bndbox></object>"
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>6</ymax>"
    things = thing.format("dog", 1, corners) + thing.format("cat", 0, corners)
    size = "<size><width>8</width><height>6</height><depth>3</depth></size>"
    (root / "Annotations/000001.xml").write_text(f"<annotation>{size}{things}</annotation>")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / "JPEGImages/000001.jpg")
    index = np.zeros((6, 8), np.uint8)
    index[0:2, 0:2], index[4:, 5:], index[3, 3] = 8, 12, 255  # cat and dog are 7 and 11 of twenty, from 0
    picture = Image.fromarray(index, mode="P")
    picture.putpalette([c for i in range(256) for c in (i, 0, 0)])
    picture.save(root / "SegmentationClass/000001.png")
    return {"kind": "voc", "root": str(root), "image_set": "test"}


def test_masks_of_voc_are_objects_of_their_own_none_of_them_difficult(tmp_path: Path) -> None:
    split = source(parse_source(write_voc(tmp_path / "VOC2007")))
    (row,) = split.list().to_pylist()
    assert (row["box_labels"], row["difficult"]) == ([11, 7], [True, False])
    masks = Masks(root=str(tmp_path / "VOC2007/SegmentationClass"), kind="index")
    (row,) = with_masks(split, masks).list().to_pylist()
    assert (row["box_labels"], row["boxes"]) == ([7, 11], [[0, 0, 1, 1], [5, 4, 7, 5]])
    assert row["difficult"] is None
    frame = Frame(Preprocess(size=(6, 8)), in_input=False)
    assert frame.objects(row, {11}) == [1]
    assert frame.mask(row, [1], 8, 6).sum() == 6
    assert not frame.difficult(row, [0, 1]).any()


def test_one_binary_mask_beside_the_boxes_of_voc_is_the_images(tmp_path: Path) -> None:
    split = source(parse_source(write_voc(tmp_path / "VOC2007")))
    (tmp_path / "binary").mkdir()
    grey = np.zeros((6, 8), np.uint8)
    grey[1:3, 2:5] = 255
    Image.fromarray(grey).save(tmp_path / "binary/000001.png")
    (row,) = with_masks(split, Masks(root=str(tmp_path / "binary"))).list().to_pylist()
    assert (len(row["boxes"]), len(row["masks"]), row["difficult"]) == (2, 1, [True, False])
    frame = Frame(Preprocess(size=(6, 8)), in_input=False)
    for classes in ({7}, {11}, None):
        assert np.array_equal(frame.mask(row, frame.objects(row, classes), 8, 6), grey > 127)


def page_data(**more: Any) -> CompareReportData:
    plain: dict[str, Any] = {
        "run": "runs/x", "config": {}, "provenance": {}, "methods": ["gradient"], "network": "vgg16",
        "preprocess": Preprocess(), "totals": [], "metrics": [], "seconds": {}, "device": "", "shown": [],
        "load": None, "names": [], "truth_names": [],
    }  # fmt: skip
    return CompareReportData(**plain | more)


def value(measure: str, method: str, share: float, rule: str = "") -> dict[str, Any]:
    return {
        "measure": measure, "method": method, "rule": rule, "class_id": None, "n": 40, "value": share, "se": 0.01,
        "low": share - 0.02, "high": share + 0.02, "thresholds": [], "grid": [], "curve": [],
    }  # fmt: skip


def test_the_papers_tables_name_both_networks_and_frames() -> None:
    page = compare_page(page_data(papers=["gfi-table-1", "chip-table-2"])).html()
    assert "The paper: VGG-19, short side 224, centre crop" in page
    assert page.count("Ours: vgg16, the whole image squashed to 224×224.") == 2


def test_the_middle_of_the_image_stands_where_the_paper_has_its_centre() -> None:
    metrics = [value("pointing_0", "gradient", 0.5), value("pointing_0", "center", 0.4875)]
    (section,) = papers.sections(page_data(papers=["gfi-pointing"], metrics=metrics))
    (table,) = section.blocks
    rows = {row[0]: row[2] for group in table.groups for row in group.rows}
    assert rows["Center"].value == pytest.approx(48.75)
    assert rows["GFI"].value is None


def test_methods_without_an_answer_have_a_column_of_their_own() -> None:
    metrics = [value("pointing_0", "gradient", 0.5)]
    assert "No answer" not in compare_page(page_data(metrics=metrics)).html()
    assert "No answer" in compare_page(page_data(metrics=[*metrics, value("unanswered", "gradient", 0.1)])).html()


def test_what_a_papers_table_asks_of_a_config_is_among_its_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ILSVRC", "VOC"):
        monkeypatch.setenv(name, "/data")
    never = {"cam", "real_time_saliency", "center"}  # VGG16 has no global pooling; not reproduced; always measured
    for file in ("compare-ilsvrc", "compare-voc07"):
        config = load_config(CompareJobConfig, ROOT / f"jobs/configs/{file}.yaml")
        asked = {method for name in config.report.papers for _, method, _ in papers.PAPERS[name][2]}
        assert asked
        assert asked - never <= set(config.methods)


def test_objects_are_found_by_name_or_number(tmp_path: Path) -> None:
    (tmp_path / "objects.yaml").write_text("bedroom: [bed, lamp]\n2: bed\n")
    given = read_objects(str(tmp_path / "objects.yaml"))
    truth = read_classes(["wall", "bed", "lamp"])
    assert resolved(given, ["kitchen", "bedroom", "attic"], truth) == ((1, (1, 2)), (2, (1,)))
    with pytest.raises(UsageError, match="did you mean 'bedroom'"):
        resolved({"bedrom": ["bed"]}, ["kitchen", "bedroom"], truth)
    with pytest.raises(UsageError, match="no names to find"):
        resolved({"bedroom": ["bed"]}, None, truth)


def test_every_ready_made_config_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ILSVRC", "DATA", "ADE20K", "PLACES", "VOC", "MSRA"):
        monkeypatch.setenv(name, "/data")
    names = [
        *sorted((ROOT / "jobs/configs").glob("compare-*.yaml")),
        *(ROOT / f"jobs/configs/chip-{n}.yaml" for n in ("figures", "ade20k")),
    ]
    assert len(names) >= 3
    for path in names:
        config = load_config(CompareJobConfig, path)
        assert config.methods
        if isinstance(config.objects, str):
            assert read_objects(config.objects), "beside the config that names it, wherever the command is typed"


def test_coco_crowds_are_no_objects_unless_they_are_asked_for() -> None:
    split = {"kind": "coco", "annotations": "/a.json", "images": "/images"}
    for crowds in (None, True):
        data = {"eval": split if crowds is None else split | {"crowds": crowds}}
        for cls in (CompareJobConfig, GfiConfig):
            found = check(cls, {"model": {"name": "squeezenet1_0", "seed": 0}, "data": data}, where="test")
            assert found.data.eval.crowds is bool(crowds)
            assert cls.model_validate(found.model_dump(mode="json")) == found
