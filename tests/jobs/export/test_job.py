"""Exports read back by pycocotools, an XML parser and plain readers: the run's rows; names that never climb."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from typer.testing import CliRunner

from jobs.cli import _EXPORTS as EXPORTS
from jobs.cli import app
from jobs.export import Asked, Detection, Exported, export
from jobs.export.formats import FORMATS, write
from jobs.export.names import safe_name
from pipeline import plan as plans
from pipeline.errors import UsageError
from pipeline.run import Run
from pipeline.shards import Shards
from stages.metrics.localization import half_of

GRID = (0.2, 0.5)
NAMES = ["cat", "dog & <friends>", "é"]
KEYS = ["a/0.jpg", "a/1.jpg", "../../b.jpg", "c d.png"]


def heat() -> np.ndarray:
    """[2, 6, 8]: a plateau of 1 in the middle, a wider one of 0.4, and nothing."""
    found = np.zeros((6, 8), np.float32)
    found[1:5, 1:7] = 0.4
    found[2:4, 2:5] = 1
    return found


def compare_row(key: str, class_id: int = 1, score: float = 0.75, status: str = "ok") -> dict[str, Any]:
    found = heat()
    row = {
        "key": key, "status": status, "error": None, "width": 8, "height": 6, "asked": [class_id],
        "asked_scores": [score], "box/m": [1, 1, 6, 4, 2, 2, 4, 3], "map/m": found.ravel().tolist(),
        "map_shape/m": [1, 6, 8],
    }  # fmt: skip
    return row if status == "ok" else row | {"asked": None, "asked_scores": None, "box/m": None, "map/m": None}


def held(root: Path, job: str, step: str, rows: list[dict[str, Any]], fields: dict[str, Any]) -> Path:
    """A run folder with one finished step, as the engine leaves it."""
    config = {"model": {"name": "x:y", "seed": 0, "classes": NAMES}}
    shared = {"config.preprocess.size": [6, 8], "config.preprocess.frame": "squash", "config.methods": ["m"]}
    flat = {"config.thresholds": list(GRID), **shared, **fields}
    mark = plans.fingerprint(flat)
    run = Run(str(root))
    steps = [{"name": step, "kind": "measure", "splits": ["eval"], "fingerprint": mark, "upstream": [], "keyed": False}]
    steps.append({"name": "metrics", "kind": "reduce", "splits": [], "fingerprint": "ab" * 32, "upstream": [step]})
    run.folder.write("run.json", json.dumps({"job": job, "config": config, "steps": steps}).encode())
    halves = {"method": "m", "rule": "halves", "measure": "chip_top1_error", "thresholds": [0.2, 0.5]}
    run.folder.child("metrics", "abababab").write("metrics.json", json.dumps({"rows": [halves]}).encode())
    folder = run.step_folder(step, split="eval")
    plans.freeze(folder, plans.new_plan(step, "eval", flat, len(rows), 4, plans.UNMEASURED, len(rows)))
    Shards(folder, 1).commit(0, pa.Table.from_pylist(rows))
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [
        compare_row(KEYS[0]),
        compare_row(KEYS[1], 2, 0.1),
        compare_row(KEYS[2]),
        compare_row(KEYS[3], status="failed"),
    ]
    return held(tmp_path / "run", "compare", "compare", rows, {})


def chosen(key: str) -> int:
    return half_of(key)  # the fixture's halves choose the first and the second threshold


def box_of(key: str) -> tuple[int, int, int, int]:
    """As edges: the rows name the last pixel."""
    x0, y0, x1, y1 = ([1, 1, 6, 4], [2, 2, 4, 3])[chosen(key)]
    return x0, y0, x1 + 1, y1 + 1


def test_coco_results_are_read_by_pycocotools_and_equal_the_rows(run: Path, tmp_path: Path) -> None:
    totals = export(str(run), tmp_path / "out", Asked("coco-results"))
    assert totals == {"images": 4, "detections": 3, "files": 2}
    truth = COCO(str(tmp_path / "out/images.json"))
    results = truth.loadRes(str(tmp_path / "out/results.json"))
    assert [truth.imgs[i]["file_name"] for i in sorted(truth.imgs)] == KEYS
    for number, key in enumerate(KEYS[:3], 1):
        (found,) = results.loadAnns(results.getAnnIds(imgIds=[number]))
        x0, y0, x1, y1 = box_of(key)
        assert found["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert np.array_equal(results.annToMask(found), heat() >= GRID[chosen(key)])
        assert found["category_id"] == (3 if number == 2 else 2)
        assert found["score"] == pytest.approx(0.1 if number == 2 else 0.75)
    assert results.getAnnIds(imgIds=[4]) == []


def test_a_coco_dataset_is_read_by_pycocotools(run: Path, tmp_path: Path) -> None:
    export(str(run), tmp_path / "out", Asked("coco"))
    found = COCO(str(tmp_path / "out/annotations/instances_default.json"))
    assert {c["id"]: c["name"] for c in found.cats.values()} == {1: "cat", 2: "dog & <friends>", 3: "é"}
    assert sorted(found.anns) == [1, 2, 3]
    for annotation in found.anns.values():
        mask = found.annToMask(annotation)
        assert mask.sum() == annotation["area"] == coco.area(annotation["segmentation"])
        assert coco.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
        assert annotation["iscrowd"] == 0


def test_voc_yolo_csv_and_png_say_the_same(run: Path, tmp_path: Path) -> None:
    for name in ("voc", "yolo", "csv", "png"):
        export(str(run), tmp_path / name, Asked(name))
    rows = {r["key"]: r for r in csv.DictReader((tmp_path / "csv/boxes.csv").open(encoding="utf-8"))}
    assert list(rows) == KEYS[:3]
    described = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text(encoding="utf-8"))
    assert "path" not in described, "a relative one would be of the folder that training is started in"
    assert (described["train"], described["val"]) == ("images", "images")
    names = described["names"]
    assert names == dict(enumerate(NAMES))
    assert (tmp_path / "yolo/classes.txt").read_text(encoding="utf-8").splitlines() == NAMES
    taken: set[str] = set()
    listed = (tmp_path / "voc/ImageSets/Main/default.txt").read_text(encoding="utf-8").splitlines()
    assert listed == [safe_name(key, taken) for key in KEYS]
    labels = (tmp_path / "voc/labelmap.txt").read_text(encoding="utf-8").splitlines()
    assert [line.partition(":")[0] for line in labels[1:]] == ["background", *NAMES]
    taken.clear()
    for key in KEYS:
        file = safe_name(key, taken)
        tree = ElementTree.parse(tmp_path / f"voc/Annotations/{file}.xml").getroot()
        lines = (tmp_path / f"yolo/labels/{file}.txt").read_text().splitlines()
        assert [int(tree.findtext(f"size/{tag}") or 0) for tag in ("width", "height")] == [8, 6]
        if key == KEYS[3]:
            assert tree.find("object") is None
            assert lines == []
            continue
        x0, y0, x1, y1 = box_of(key)
        corners = [int(tree.findtext(f"object/bndbox/{tag}") or 0) for tag in ("xmin", "ymin", "xmax", "ymax")]
        assert corners == [x0 + 1, y0 + 1, x1, y1]  # counted from 1, the last pixel included
        class_id = 2 if key == KEYS[1] else 1
        assert tree.findtext("object/name") == NAMES[class_id]
        number, x, y, w, h = (float(v) for v in lines[0].split())
        assert number == class_id
        assert [x - w / 2, y - h / 2, x + w / 2, y + h / 2] == pytest.approx([x0 / 8, y0 / 6, x1 / 8, y1 / 6], abs=1e-6)
        assert [float(rows[key][c]) for c in ("x0", "y0", "x1", "y1")] == [x0, y0, x1, y1]
        mask = np.asarray(Image.open(tmp_path / f"png/masks/{file}/{class_id}.png")) > 0
        assert np.array_equal(mask, heat() >= GRID[chosen(key)])


def test_a_folder_called_images_is_left_out_of_yolos_paths(tmp_path: Path) -> None:
    rows = [compare_row("images/a/images/0.jpg"), compare_row("images/1.jpg")]
    export(str(held(tmp_path / "run", "compare", "compare", rows, {})), tmp_path / "out", Asked("yolo"))
    found = sorted(
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("labels/**/*.txt")
    )
    assert found == ["labels/1.txt", "labels/a/0.txt"]


def test_label_studio_tasks_hold_the_boxes_in_percent_and_its_labels(run: Path, tmp_path: Path) -> None:
    export(str(run), tmp_path / "out", Asked("label-studio"))
    tasks = json.loads((tmp_path / "out/tasks.json").read_text(encoding="utf-8"))
    assert [task["data"]["image"].partition("?d=")[2] for task in tasks] == [quote(key) for key in KEYS]
    for key, task in zip(KEYS[:3], tasks, strict=False):
        (found,) = task["predictions"][0]["result"]
        value, (x0, y0, x1, y1) = found["value"], box_of(key)
        edges = [value["x"], value["y"], value["x"] + value["width"], value["y"] + value["height"]]
        assert edges == pytest.approx([100 * x0 / 8, 100 * y0 / 6, 100 * x1 / 8, 100 * y1 / 6], abs=1e-3)
        assert value["rectanglelabels"] == [NAMES[2 if key == KEYS[1] else 1]]
    assert tasks[3]["predictions"] == []
    labels = ElementTree.parse(tmp_path / "out/label_config.xml").getroot().iter("Label")
    assert [label.get("value") for label in labels] == NAMES


def test_scores_and_areas_leave_out_detections_but_no_image(run: Path, tmp_path: Path) -> None:
    kept = export(str(run), tmp_path / "score", Asked("coco", score=0.5))
    assert (kept["images"], kept["detections"]) == (4, 2)
    small = sum(chosen(key) == 1 for key in KEYS[:3])
    kept = export(str(run), tmp_path / "area", Asked("coco", min_area=7))  # the masks have 24 and 6 pixels
    assert kept["detections"] == 3 - small
    assert export(str(run), tmp_path / "named", Asked("csv", threshold=0.5, min_area=7))["detections"] == 0


def test_boxes_of_a_crop_return_to_the_images_own_pixels(tmp_path: Path) -> None:
    row = compare_row("a.png") | {"width": 40, "height": 20}
    fields = {"config.preprocess.frame": "crop", "config.preprocess.size": [10, 10], "config.preprocess.resize": 10}
    run = held(tmp_path / "run", "compare", "compare", [row], fields)
    export(str(run), tmp_path / "out", Asked("csv", threshold=0.2))
    (found,) = csv.DictReader((tmp_path / "out/boxes.csv").open())
    # 40 x 20 becomes 20 x 10, of which columns 5 to 15 are seen: pixel x of the input is 2 (x + 5) of the image.
    assert [float(found[c]) for c in ("x0", "y0", "x1", "y1")] == [12, 2, 24, 10]


def test_a_mask_is_the_largest_part_within_its_box(tmp_path: Path) -> None:
    found = np.zeros((6, 8), np.float32)
    found[1:5, 1:4] = 1  # what was boxed
    found[0:6, 5:8] = 0.9  # larger in the map that is kept, and outside the box
    found[1, 3], found[2, 3] = 0, 0
    found[0, 0] = 1
    row = compare_row("a.png") | {"map/m": found.ravel().tolist(), "box/m": [1, 1, 3, 4] * 2}
    chip = row | {"classes": [1], "scores": [0.6], "map_shape/m": [6, 8]}
    for job, step, one in (("compare", "compare", row), ("chip", "localize", chip)):
        held(tmp_path / job, job, step, [one], {})
        export(str(tmp_path / job), tmp_path / f"{job}-out", Asked("coco"))
        coco_file = COCO(str(tmp_path / f"{job}-out/annotations/instances_default.json"))
        (annotation,) = coco_file.anns.values()
        assert annotation["bbox"] == [1, 1, 3, 4] == coco.toBbox(annotation["segmentation"]).tolist()
        assert annotation["area"] == 10
    far = row | {"box/m": [4, 0, 4, 5] * 2}  # nothing of the small map lies within
    held(tmp_path / "far", "compare", "compare", [far], {})
    export(str(tmp_path / "far"), tmp_path / "far-out", Asked("coco"))
    (annotation,) = COCO(str(tmp_path / "far-out/annotations/instances_default.json")).anns.values()
    assert (annotation["segmentation"], annotation["area"]) == ([], 6)


def gfi_run(root: Path, row: dict[str, Any], metrics: list[dict[str, Any]] | None = None) -> Path:
    """A GFI run of one image; ``metrics`` are its localization rows."""
    plain = {
        "key": "a.png", "status": "ok", "error": None, "width": 8, "height": 6, "targets": [2], "score": [0.5],
        "mask": heat().ravel().tolist(), "mask_shape": [6, 8], "input_shape": [6, 8], "upsampling": "scaled",
        "box/mean": [0, 0, 7, 5, 1, 1, 6, 4, 2, 2, 4, 3],
    }  # fmt: skip
    held(root, "gfi", "gfi", [plain | row], {"config.alphas": [0.0, 1.5, 4.0]})
    rows = {"rows": [{"kind": "localization", "name": "gfi", "box": "mean"} | m for m in metrics or []]}
    Run(str(root)).folder.child("metrics", "abababab").write("metrics.json", json.dumps(rows).encode())
    return root


def boxes(run: Path, out: Path, **asked: Any) -> list[list[float]]:
    export(str(run), out, Asked("csv", **asked))
    with (out / "boxes.csv").open(encoding="utf-8") as file:
        return [[float(r[c]) for c in ("x0", "y0", "x1", "y1")] for r in csv.DictReader(file)]


def test_gfis_box_is_the_one_at_the_alpha_the_run_chose(tmp_path: Path) -> None:
    all_of_it, wide, narrow = [0, 0, 8, 6], [1, 1, 7, 5], [2, 2, 5, 4]
    oracle = {"rule": "oracle", "thresholds": [0.0], "n": 9}
    for number, (rows, expected) in enumerate(
        [
            ([oracle, {"rule": "tuned", "thresholds": [4.0], "n": 9}], narrow),
            ([oracle, {"rule": "halves", "thresholds": [4.0, 0.0], "n": 9}], (narrow, all_of_it)[half_of("a.png")]),
            ([oracle | {"n": 0}, {"rule": "halves", "thresholds": [], "n": 0}], wide),  # no boxes to choose by: 1.5
            ([], wide),
        ]
    ):
        run = gfi_run(tmp_path / f"run{number}", {}, rows)
        assert boxes(run, tmp_path / f"out{number}") == [expected]
    assert boxes(run, tmp_path / "asked", threshold=4.0) == [narrow]


def test_a_threshold_that_no_box_was_made_for_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no boxes at 0\.3") as told:
        export(str(run), tmp_path / "out", Asked("csv", threshold=0.3))
    assert "0.2, 0.5" in str(told.value)
    with pytest.raises(UsageError, match=r"no boxes at 1"):
        export(str(gfi_run(tmp_path / "gfi", {})), tmp_path / "out", Asked("csv", threshold=1.0))
    assert not (tmp_path / "out").exists()


def test_a_flat_gfi_mask_leaves_its_box_without_a_segmentation(tmp_path: Path) -> None:
    run = gfi_run(tmp_path / "run", {"mask": [0.0] * 48, "box/mean": [0, 0, 7, 5] * 3})
    assert export(str(run), tmp_path / "out", Asked("coco"))["detections"] == 1
    (annotation,) = COCO(str(tmp_path / "out/annotations/instances_default.json")).anns.values()
    assert (annotation["bbox"], annotation["area"], annotation["segmentation"]) == ([0, 0, 8, 6], 48, [])
    export(str(run), tmp_path / "results", Asked("coco-results"))
    (found,) = json.loads((tmp_path / "results/results.json").read_text())
    assert "segmentation" not in found


def test_a_class_that_is_both_label_and_prediction_is_one_detection(tmp_path: Path) -> None:
    twice = {"targets": [2, 2], "score": [0.5, 0.5], "mask": [*heat().ravel().tolist()] * 2}
    run = gfi_run(tmp_path / "run", twice | {"box/mean": [0, 0, 7, 5, 1, 1, 6, 4, 2, 2, 4, 3] * 2})
    totals = export(str(run), tmp_path / "out", Asked("png"))
    assert totals == {"images": 1, "detections": 1, "files": 1}
    assert [path.name for path in (tmp_path / "out").rglob("*.png")] == ["2.png"]


def test_chip_and_gfi_runs_too(tmp_path: Path) -> None:
    row = compare_row("a.png")
    chip = row | {"classes": [1, 0], "scores": [0.6, 0.2], "map_shape/m": [6, 8]}
    held(tmp_path / "chip", "chip", "localize", [chip], {})
    export(str(tmp_path / "chip"), tmp_path / "chip-out", Asked("csv", threshold=0.2))
    (found,) = csv.DictReader((tmp_path / "chip-out/boxes.csv").open())
    assert (found["class_id"], found["score"], found["area"]) == ("1", "0.6", "24.0")
    gfi = {
        "key": "a.png", "status": "ok", "error": None, "width": 8, "height": 6, "targets": [2, 0], "score": [0.5, 0.25],
        "mask": np.stack([heat(), heat()]).ravel().tolist(), "mask_shape": [6, 8], "input_shape": [6, 8],
        "upsampling": "scaled", "box/mean": [0, 0, 7, 5, 1, 1, 6, 4] * 2,
    }  # fmt: skip
    held(tmp_path / "gfi", "gfi", "gfi", [gfi], {"config.alphas": [0.0, 1.5]})
    export(str(tmp_path / "gfi"), tmp_path / "gfi-out", Asked("csv"))
    rows = list(csv.DictReader((tmp_path / "gfi-out/boxes.csv").open()))
    assert [(r["class"], r["score"], r["x0"], r["x1"]) for r in rows] == [
        ("é", "0.5", "1.0", "7.0"),
        ("cat", "0.25", "1.0", "7.0"),
    ]
    expected = (heat() >= 1.5 * heat().mean()).sum()
    assert {float(r["area"]) for r in rows} == {float(expected)}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=300), min_size=1, max_size=5, unique=True))
def test_names_stay_inside_and_apart(keys: list[str]) -> None:
    taken: set[str] = set()
    names = [safe_name(key, taken) for key in keys]
    assert len({unicodedata.normalize("NFC", name.casefold()) for name in names}) == len(keys)
    for name in names:
        assert not name.startswith("/")
        assert all(part not in ("", ".", "..") and len(part.encode()) <= 200 for part in name.split("/"))
        assert not any(c in "\\\0" for c in name)
        assert len(name.splitlines()) == 1


def test_a_name_is_the_keys_own_where_it_can_be() -> None:
    taken: set[str] = set()
    for key in ("c d.png", "ä.jpg", "é/日本.jpeg", ".hidden/a.b.png", "s3:x.jpg"):
        assert safe_name(key, taken) == key.rpartition(".")[0]
    assert safe_name("../a\\b.png", taken) == "a/b"
    assert safe_name("/etc/pass\nwd", taken) == "etc/pass_wd"
    for again in ("C D.png", "a\u0308.jpg"):  # another case, the same letter written in two
        assert safe_name(again, taken).startswith(f"{again.rpartition('.')[0]}_")


@pytest.mark.parametrize("name", ["voc", "yolo", "png"])
def test_names_that_changed_are_listed_with_their_keys(name: str, tmp_path: Path) -> None:
    def images(*keys: str) -> Iterator[Exported]:
        for i, key in enumerate(keys, 1):
            yield Exported(i, key, 4, 4, (Detection(0, 0.5, (0.0, 0.0, 2.0, 2.0), None),))

    totals = write(name, tmp_path / "a", ["x"], images("images/c d.png", "../up.png"))
    with (tmp_path / "a/names.csv").open(encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == [{"key": "../up.png", "name": "up"}]
    assert totals["files"] == sum(path.is_file() for path in (tmp_path / "a").rglob("*"))
    write(name, tmp_path / "b", ["x"], images("images/c d.png"))
    assert not (tmp_path / "b/names.csv").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_hostile_keys_write_nothing_outside(name: str, tmp_path: Path) -> None:
    def images() -> Iterator[Exported]:
        for i, key in enumerate(
            ["../../../evil.png", "/etc/passwd", "s3://b/k.jpg", "..", "a\\..\\b.png", "\x00\x07.png"], 1
        ):
            yield Exported(i, key, 4, 4, (Detection(0, 0.5, (0.0, 0.0, 2.0, 2.0), None),))

    folder = tmp_path / "deep" / "out"
    folder.mkdir(parents=True)
    totals = write(name, folder, ["x"], images())
    assert totals["detections"] == 6
    everything = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert everything == {p for p in folder.rglob("*") if p.is_file()}
    if name == "voc":
        for path in folder.rglob("*.xml"):
            assert ElementTree.parse(path).getroot().find("object") is not None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--format", "coc"], "there is no format"),
        (["--format", "coco", "--method", "nope"], "no method 'nope'"),
        (["--format", "coco", "--split", "train"], "no rows of split 'train'"),
        (["--format", "coco", "--score", "7"], "0..1"),
    ],
)
def test_mistakes_are_usage_errors(run: Path, tmp_path: Path, words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "out"), *words])
    assert done.exit_code == 2
    assert told in done.output


def test_help_names_every_format() -> None:
    assert tuple(FORMATS) == EXPORTS


def test_the_command_writes_and_never_over_something(run: Path, tmp_path: Path) -> None:
    words = ["export", str(run), "--format", "csv", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "4 images, 3 detections, 1 file in" in done.output
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 2
    assert "not an empty folder" in again.output
    Run(str(tmp_path / "other")).folder.write("run.json", b'{"job": "coco", "config": {}, "steps": []}')
    with pytest.raises(UsageError, match="hold no boxes"):
        export(str(tmp_path / "other"), tmp_path / "x", Asked("csv"))
