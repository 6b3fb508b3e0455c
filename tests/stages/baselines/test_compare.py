"""The comparison pass: its columns against the plain path, images alone and together, whatever the truth."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from stages.baselines.asking import classes_asked, judged_class, right_rank
from stages.baselines.compare import Compare, CompareConfig
from stages.baselines.query import Query
from stages.baselines.registry import Setting, build
from stages.baselines.speed import Speed
from stages.metrics.boxes import best_iou, box_at
from stages.metrics.masks import coco_mask
from stages.metrics.mean_boxes import mean_boxes
from stages.metrics.pointing import distance, peak
from stages.metrics.robustness import fgsm, rank_correlation
from stages.metrics.salient import salient
from stages.network import cut
from stages.preprocess import Preprocess

LAYERS = ("1", "4")
METHODS = ("grad_cam", "gradient", "c_mwp", "lime", "chip")
GRID, ALPHAS = (0.05, 0.3, 0.6, 0.9), (0.0, 1.0, 3.0)
SQUASH = Preprocess(size=(16, 16))
SHAPES = [(30, 44), (50, 24), (16, 16)]
OPTIONS: dict[str, Any] = {
    "methods": METHODS, "layers": LAYERS, "thresholds": GRID, "alphas": ALPHAS, "preprocess": SQUASH, "top": 3,
    "options": {"lime": {"grid": 3, "samples": 8}}, "steps": 3, "attack": 0.02, "seed": 5,
}  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7),
    ).eval().requires_grad_(False)  # fmt: skip


def solve(classes: range = range(7)) -> pa.Table:
    rng = np.random.default_rng(0)
    rows = [{"layer": LAYERS[1], "class_id": c, "w": rng.normal(size=8)} for c in range(7)]
    return pa.Table.from_pylist([r for r in rows if r["class_id"] in classes])


def stage(table: pa.Table | None = None, **options: Any) -> Compare:
    made = Compare(CompareConfig(**{**OPTIONS, **options}))
    made.setup(torch.device("cpu"), {"network": network(), "solve": solve() if table is None else table})
    return made


def image(seed: int) -> np.ndarray:
    height, width = SHAPES[seed]
    small = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    large = interpolate(small, size=(height, width), mode="bilinear", align_corners=False)[0]
    return (large.permute(1, 2, 0).numpy() * 255).astype(np.uint8)


def mask_of(row: dict[str, Any], box: list[float]) -> str:
    x0, y0, x1, y1 = box
    return json.dumps([[x0, y0, x1, y0, x1, y1, x0, y1]])


def rows() -> list[dict[str, Any]]:
    x = inputs()
    order = network()(x).argsort(dim=1, descending=True)
    out = []
    for i, (height, width) in enumerate(SHAPES):
        label, other = int(order[i, [0, 1, 6][i]]), int(order[i, 3])
        boxes = [[2.0, 3.0, width / 2, height / 2], [width / 3, 1.0, width - 2.0, height - 4.0], [0.0, 0.0, 5.0, 5.0]]
        row: dict[str, Any] = {"key": f"{i}.png", "label": label, "boxes": boxes, "width": width, "height": height}
        row |= {"box_labels": [label, label, other], "labels": sorted([label, other]), "difficult": [False, True, True]}
        row["masks"] = [mask_of(row, boxes[0]), None, mask_of(row, boxes[2])]
        out.append(row)
    return out


def inputs(seeds: tuple[int, ...] = (0, 1, 2)) -> torch.Tensor:
    return SQUASH.normalise(torch.stack([torch.from_numpy(SQUASH.pixels(image(i))) for i in seeds]))


def run(made: Any, truth: list[dict[str, Any] | None], pad: int = 0) -> list[dict[str, Any]]:
    chosen = [i for i, row in enumerate(truth) if row is not None]
    prepared = [made.prepare(image(i), truth[i] or {}) for i in chosen]
    batch: dict[str, Any] = {
        name: np.stack([p[name] for p in prepared] + [np.zeros_like(prepared[0][name])] * pad) for name in prepared[0]
    }
    batch["key"] = [truth[i]["key"] for i in chosen] + [""] * pad  # type: ignore[index]
    batch["rows"] = [truth[i] for i in chosen] + [None] * pad
    batch["valid"] = np.array([True] * len(chosen) + [False] * pad)
    return made(batch)


def test_every_measure_is_that_of_the_plain_path_from_map_to_number() -> None:
    truth = rows()
    found = run(stage(), truth)
    x = inputs()
    keys = tuple(r["key"] for r in truth)
    query = Query(cut(network(), LAYERS, x), x, torch.tensor([[r["label"]] for r in truth]), keys=keys, seed=5)
    for name in METHODS:
        options = {"lime": OPTIONS["options"]["lime"]} if name == "lime" else {}
        maps = build(name, Setting(LAYERS, tables={"solve": solve()}, options=options)).maps(query)[:, 0]
        for i, (height, width) in enumerate(SHAPES):
            large = interpolate(maps[i][None, None], size=(height, width), mode="bilinear", align_corners=False)[0, 0]
            heat, mine = large.numpy(), np.array(truth[i]["boxes"][:2])
            row = found[i]
            expected = [best_iou(box_at(heat, t), mine) for t in GRID]
            assert row[f"iou/{name}"] == pytest.approx(np.array(expected), abs=1e-6)
            around = mean_boxes(heat[None], ALPHAS)[0]
            assert row[f"alpha_iou/{name}"] == pytest.approx(best_iou(around, mine), abs=1e-6)
            assert row[f"alpha_box/{name}"].reshape(3, 4).tolist() == around.tolist()
            point = peak(heat)
            assert tuple(row[f"point/{name}"]) == point
            assert row[f"miss/{name}"] == pytest.approx([distance(point, mine), distance(point, mine[:1])], abs=1e-4)
            mask = coco_mask(truth[i]["masks"][0], width, height)
            scores = salient(heat, mask)
            assert row[f"salient/{name}"] == pytest.approx(
                [scores.precision, scores.recall, scores.f, scores.mae], abs=1e-5
            )
            middle = (width // 2, height // 2)
            assert row["miss/center"] == pytest.approx([distance(middle, mine), distance(middle, mine[:1])], abs=1e-4)
    assert [r["right"] for r in found] == [0, 1, -1]
    assert [r["asked"].tolist() for r in found] == [[r["label"]] for r in truth]


def test_an_attack_and_the_curves_are_those_of_their_definition() -> None:
    truth = rows()
    found = run(stage(), truth)
    net, x = network(), inputs()
    labels = torch.tensor([r["label"] for r in truth])
    leaf = x.clone().requires_grad_(True)
    gradient = torch.autograd.grad(torch.nn.functional.cross_entropy(net(leaf), labels, reduction="sum"), leaf)[0]
    std = torch.tensor(SQUASH.std).view(1, 3, 1, 1)
    mean = torch.tensor(SQUASH.mean).view(1, 3, 1, 1)
    moved = ((x * std + mean + 0.02 * gradient.sign()).clamp(0, 1) - mean) / std
    for name in ("grad_cam", "gradient"):
        method = build(name, Setting(LAYERS))
        clean, other = (method.maps(Query(cut(net, LAYERS, x), v, labels[:, None]))[:, 0] for v in (x, moved))
        for i, (height, width) in enumerate(SHAPES):
            row = found[i]
            assert row[f"attack_rank/{name}"] == pytest.approx(rank_correlation(clean[i], other[i]), abs=2e-3)
            large = interpolate(other[i][None, None], size=(height, width), mode="bilinear", align_corners=False)
            ious = [best_iou(box_at(large[0, 0].numpy(), t), truth[i]["boxes"][:2]) for t in GRID]
            assert row[f"attack_iou/{name}"] == pytest.approx(np.array(ious), abs=1e-5)
            heat = interpolate(clean[i][None, None], size=(16, 16), mode="bilinear", align_corners=False)[0, 0]
            order = np.argsort(-heat.numpy().ravel(), kind="stable")
            for step, at in enumerate((0, 85, 171, 256)):
                gone = np.zeros(256, bool)
                gone[order[:at]] = True
                hidden = torch.where(torch.from_numpy(gone).view(16, 16), torch.zeros(()), x[i])
                score = net(hidden[None]).softmax(1)[0, labels[i]]
                assert row[f"deletion/{name}"][step] == pytest.approx(float(score), abs=1e-5)
            assert row[f"insertion/{name}"][-1] == pytest.approx(
                float(net(x[i : i + 1]).softmax(1)[0, labels[i]]), abs=1e-5
            )


def test_what_is_right_on_the_attacked_input_is_asked_anew() -> None:
    truth = rows()
    found = run(stage(methods=("gradient",), options={}, attack=0.6, steps=0), truth)
    net, x, labels = network(), inputs(), torch.tensor([r["label"] for r in truth])
    moved = fgsm(net, x, labels, 0.6, SQUASH.mean, SQUASH.std)
    order = net(moved).argsort(dim=1, descending=True)[:, :3].tolist()
    ranks = [classes.index(c) if c in classes else -1 for classes, c in zip(order, labels.tolist(), strict=True)]
    assert [row["attack_right"] for row in found] == ranks
    assert ranks != [row["right"] for row in found], "an attack that moves no class shows nothing"


def test_an_image_alone_is_the_same_as_in_company_and_fits_the_schema() -> None:
    truth = rows()
    made = stage(asks="present")
    together = run(made, truth, pad=2)
    assert len(together) == 3
    table = pa.Table.from_pylist(together, schema=made.schema)
    assert table.num_rows == 3
    for i in range(3):
        alone = run(made, [r if j == i else None for j, r in enumerate(truth)])[0]
        assert set(alone) == set(made.schema.names)
        for name, value in alone.items():
            # LIME's largest cell lies at the edge, where enlarging makes a plateau: any of its pixels is the peak.
            if name not in ("nonfinite", "point/lime", "miss/lime") and not name.startswith("map/"):
                assert np.asarray(value, dtype=float) == pytest.approx(
                    np.asarray(together[i][name], dtype=float), abs=1e-4, nan_ok=True
                ), name


def test_present_asks_the_label_first_and_points_at_every_class() -> None:
    truth = rows()
    found = run(stage(asks="present"), truth)
    for row, key in zip(found, truth, strict=True):
        other = next(c for c in key["labels"] if c != key["label"])
        assert row["asked"].tolist() == [key["label"], other]
        assert row["truth"].tolist() == [key["label"], other]
        misses = row["miss/gradient"].reshape(2, 2)
        assert np.isfinite(misses[0]).all()
        assert np.isfinite(misses[1, 0])
        assert np.isnan(misses[1, 1])  # its only box is difficult
        assert row["map_shape/gradient"].tolist() == [2, 16, 16]
        assert row["point/gradient"].shape == (4,)


def test_a_class_without_a_fit_is_no_answer_and_counts_as_a_miss() -> None:
    truth = rows()
    only = truth[1]["label"]
    made = stage(solve(range(only, only + 1)), methods=("chip",), options={})
    found = run(made, truth)
    for i in (0, 2):
        if truth[i]["label"] == only:
            continue
        assert np.isnan(found[i]["iou/chip"]).all()
        assert found[i]["miss/chip"].tolist() == [math.inf, math.inf]
        assert len(found[i]["box/chip"]) == 0
        assert found[i]["unanswered"] == ["chip"]
        assert found[i]["point/chip"].tolist() == [-1, -1]
        assert found[i]["salient/chip"][:3].tolist() == [0, 0, 0]
        height, width = SHAPES[i]
        share = coco_mask(truth[i]["masks"][0], width, height).mean()
        assert found[i]["salient/chip"][3] == pytest.approx(share)  # nothing found, everything drawn is missed
        assert [len(found[i][f"{name}/chip"]) for name in ("deletion", "insertion")] == [0, 0]
    assert np.isfinite(found[1]["iou/chip"]).all()
    assert found[1]["unanswered"] == []
    assert len(found[1]["deletion/chip"]) == 4


def test_a_map_without_contrast_is_an_answer_that_points_nowhere() -> None:
    truth = rows()
    nothing = pa.Table.from_pylist([{"layer": LAYERS[1], "class_id": c, "w": np.zeros(8)} for c in range(7)])
    found = run(stage(nothing, methods=("chip",), options={}), truth)
    for row in found:
        assert row["unanswered"] == []
        assert row["point/chip"].tolist() == [-1, -1]
        assert row["miss/chip"].tolist() == [math.inf, math.inf]


def test_a_box_outside_the_crop_is_never_hit() -> None:
    truth = rows()
    truth[0] |= {"boxes": [[0.0, 3.0, 4.0, 20.0]], "box_labels": None, "masks": None, "difficult": None}  # left of it
    crop = Preprocess(size=(16, 16), frame="crop", resize=16)
    row = run(stage(methods=("gradient",), options={}, preprocess=crop), truth)[0]
    assert row["miss/gradient"].tolist() == row["miss/center"].tolist() == [math.inf, math.inf]


def test_an_answer_that_is_no_number_fails_its_row_with_a_reason() -> None:
    truth = rows()
    made = stage(methods=("gradient",), options={}, steps=0, attack=0.0)
    prepared = [made.prepare(image(i), truth[i]) for i in range(3)]
    batch = {name: np.stack([p[name] for p in prepared]) for name in prepared[0]}
    batch |= {"key": [r["key"] for r in truth], "rows": truth, "valid": np.ones(3, bool)}
    batch["pixels"] = batch["pixels"].astype(np.float32)
    batch["pixels"][1, 0, 3, 3] = np.nan
    found = made(batch)
    assert [row.get("status", "ok") for row in found] == ["ok", "failed", "ok"]
    assert "the network's answer is not finite" in found[1]["error"]


def test_rows_without_truth_have_empty_measures_and_a_wrong_truth_fails_alone() -> None:
    truth = rows()
    truth[0] |= {"boxes": None, "box_labels": None, "masks": None, "difficult": None}
    truth[1]["box_labels"] = [1]
    truth[2] |= {"label": None, "boxes": None, "box_labels": None, "masks": [mask_of({}, [1, 1, 9, 9])]}
    found = run(stage(), truth)
    assert [len(found[0][f"{n}/gradient"]) for n in ("iou", "alpha_iou", "mask_iou", "salient", "miss")] == [0] * 5
    assert found[1]["status"] == "failed"
    assert "3 boxes with 1 labels" in found[1]["error"]
    assert found[2]["right"] is None
    assert len(found[2]["salient/gradient"]) == 4  # an unlabelled image with a mask: salient objects
    assert found[2]["asked"].tolist() == [int(network()(inputs((2,))).argmax())]


def test_objects_stand_between_the_networks_classes_and_the_truths() -> None:
    p = np.array([[0.1, 0.5, 0.2, 0.2]])
    stands = {0: (8,), 2: (8,), 3: (9, 7)}
    row = {"label": 8, "labels": [5, 7, 8]}
    assert classes_asked([row], p, "label", stands, 9) == [[(2, (8,))]]  # the likelier of 0 and 2
    assert classes_asked([row], p, "present", stands, 9) == [[(2, (8,)), (3, (7,))]]  # nothing stands for 5
    assert classes_asked([row], p, "present", stands, 1) == [[(2, (8,))]]
    assert classes_asked([row], p, "predicted", stands, 9) == [[(1, ())]]
    assert classes_asked([{"label": 1}], p, "predicted", {1: (7, 9)}, 9) == [[(1, (7, 9))]]
    assert classes_asked([{"label": 3}], p, "predicted", stands, 9) == [[(1, (9, 7))]]  # wrong, and still judged
    assert classes_asked([{}], p, "predicted", {1: (7, 9)}, 9) == [[(1, (7, 9))]]
    assert classes_asked([None], p, "label", {}, 9) == [[(1, (1,))]]
    assert classes_asked([{"label": 3}], p, "predicted", {}, 9) == [[(1, (3,))]]
    assert right_rank(np.array([1, 2, 3]), 8, "label", stands) == 1
    assert right_rank(np.array([1, 0]), 9, "label", stands) == -1
    assert right_rank(np.array([1]), None, "label", {}) is None
    assert judged_class({"label": 8}, "present", stands, (2, (8,))) == 8
    assert judged_class({"label": 5}, "present", stands, (3, (7,))) == 7, "nothing stands for 5"
    assert right_rank(np.array([3, 1]), 7, "present", stands) == 0
    assert judged_class({"label": 8}, "predicted", stands, (1, (8,))) == 8
    assert judged_class({}, "label", {}, (1, (1,))) is None
    with pytest.raises(ValueError, match="map them with 'objects'"):
        classes_asked([{"label": 4}], p, "label", {}, 9)


def test_a_scene_without_an_object_is_filtered_and_says_so() -> None:
    truth = rows()
    others = tuple((c, (truth[0]["label"],)) for c in range(7) if c != truth[0]["label"])
    found = run(stage(asks="predicted", objects=others), truth)
    assert found[0]["status"] == "filtered"
    assert "names no object" in found[0]["error"]


def test_what_is_wrong_with_a_config_is_told_at_once() -> None:
    for wrong, what in [
        ({"methods": ("gradcam",)}, "did you mean grad_cam"),
        ({"options": {"lime": {"sample": 3}}}, "did you mean samples"),
        ({"options": {"oclusion": {}}}, "did you mean occlusion"),
        ({"methods": ("gradient", "gradient"), "options": {}}, "named twice"),
        ({"asks": "truth"}, "not one of the choices"),
        ({"thresholds": (0.5, 0.1)}, "ascending"),
        ({"attack": 1.5}, "attack"),
    ]:
        with pytest.raises((LookupError, ValueError), match=what):
            CompareConfig(**{**OPTIONS, **wrong})


def test_speed_rows_fit_their_schema() -> None:
    made = Speed(CompareConfig(**OPTIONS))
    made.setup(torch.device("cpu"), {"network": network(), "solve": solve()})
    found = run(made, rows(), pad=1)
    assert len(found) == 3
    assert pa.Table.from_pylist(found, schema=made.schema).num_rows == 3
    assert all(row[f"seconds/{m}"] > 0 for row in found for m in METHODS)
