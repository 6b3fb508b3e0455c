"""The localization pass: its columns against the plain path from map to box, images alone and together, odd truths."""

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

from stages.baselines.query import Query
from stages.baselines.registry import Setting, build
from stages.chip.localize import Localize, LocalizeConfig
from stages.metrics.boxes import best_iou, box_at, center_box
from stages.metrics.localization import LocalizationConfig, LocalizationMetrics
from stages.metrics.masks import coco_mask, mask_iou
from stages.network import cut
from stages.preprocess import Preprocess

LAYERS = ("1", "4")
METHODS = ("chip", "refined_chip", "grad_cam", "gradient", "guided_chip", "chip:1")
GRID = (0.05, 0.3, 0.6, 0.9)
SQUASH = Preprocess(size=(16, 16))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7),
    ).eval()  # fmt: skip


def solve(classes: range = range(7)) -> pa.Table:
    rng = np.random.default_rng(0)
    rows = [
        {"layer": layer, "class_id": c, "w": rng.normal(size=k)}
        for layer, k in zip(LAYERS, (6, 8), strict=True)
        for c in range(7)
    ]
    return pa.Table.from_pylist([r for r in rows if r["class_id"] in classes])


def stage(inputs: dict[str, Any] | None = None, **options: Any) -> Localize:
    options = {"methods": METHODS, "layers": LAYERS, "thresholds": GRID, "preprocess": SQUASH, "top": 3, **options}
    made = Localize(LocalizeConfig(**options))
    made.setup(torch.device("cpu"), inputs or {"network": network(), "solve": solve()})
    return made


def image(seed: int, height: int, width: int) -> np.ndarray:
    small = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    large = interpolate(small, size=(height, width), mode="bilinear", align_corners=False)[0]
    return (large.permute(1, 2, 0).numpy() * 255).astype(np.uint8)


SHAPES = [(30, 44), (50, 24), (16, 16), (33, 21)]


def rows() -> list[dict[str, Any]]:
    """The label is the predicted class, the second one, a class that is not predicted, and the second again."""
    x = SQUASH.normalise(torch.stack([torch.from_numpy(SQUASH.pixels(image(i, *s))) for i, s in enumerate(SHAPES)]))
    order = network()(x).argsort(dim=1, descending=True)
    out = []
    for i, (height, width) in enumerate(SHAPES):
        label = int(order[i, [0, 1, 6, 1][i]])
        boxes = [[2.0, 3.0, width / 2, height / 2], [width / 3, 1.0, width - 2.0, height - 4.0]]
        out.append({"key": f"{i}.png", "label": label, "boxes": boxes, "width": width, "height": height})
    return out


def run(made: Localize, truth: list[dict[str, Any] | None], pad: int = 0) -> list[dict[str, Any]]:
    chosen = [i for i, row in enumerate(truth) if row is not None]
    prepared = [made.prepare(image(i, *SHAPES[i]), truth[i] or {}) for i in chosen]
    batch: dict[str, Any] = {
        name: np.stack([p[name] for p in prepared] + [np.zeros_like(prepared[0][name])] * pad) for name in prepared[0]
    }
    batch["key"] = [truth[i]["key"] for i in chosen] + [""] * pad  # type: ignore[index]
    batch["rows"] = [truth[i] for i in chosen] + [None] * pad
    batch["valid"] = np.array([True] * len(chosen) + [False] * pad)
    batch["split"] = "eval"
    return made(batch)


def test_overlaps_are_those_of_the_plain_path_from_map_to_box() -> None:
    truth = rows()
    found = run(stage(ranks="all"), truth)
    x = SQUASH.normalise(torch.stack([torch.from_numpy(SQUASH.pixels(image(i, *s))) for i, s in enumerate(SHAPES)]))
    query = Query(cut(network(), LAYERS, x), x, top=3)
    for name in METHODS:
        maps = build(name, Setting(LAYERS, tables={"solve": solve()})).maps(query)
        for i, (height, width) in enumerate(SHAPES):
            large = interpolate(maps[i : i + 1], size=(height, width), mode="bilinear", align_corners=False)[0].numpy()
            expected = [[best_iou(box_at(heat, t), truth[i]["boxes"]) for t in GRID] for heat in large]
            assert found[i][f"iou/{name}"].reshape(3, 4) == pytest.approx(np.array(expected), abs=1e-6)
            assert found[i][f"box/{name}"].reshape(4, 4).tolist() == [box_at(large[0], t).tolist() for t in GRID]
    assert [list(f["classes"]) for f in found] == query.ranked.tolist()
    probabilities = query.logits.softmax(dim=1).gather(1, query.ranked).numpy()
    assert np.stack([f["scores"] for f in found]) == pytest.approx(probabilities, abs=1e-6)


def test_needed_ranks_are_the_first_and_the_true_class_and_give_the_same_errors() -> None:
    truth = rows()
    every, needed = run(stage(ranks="all"), truth), run(stage(ranks="needed"), truth)
    for i, drawn in enumerate([[0], [0, 1], [0], [0, 1]]):
        for name in METHODS:
            a, b = (f[i][f"iou/{name}"].reshape(3, 4) for f in (every, needed))
            assert np.array_equal(a[drawn], b[drawn])
            assert (np.delete(b, drawn, axis=0) == -1).all()

    def table(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        config = LocalizationConfig(methods=METHODS, thresholds=GRID)
        metrics = LocalizationMetrics(config)
        full = [{**f, "key": r["key"], "split": "eval"} for f, r in zip(found, truth, strict=True)]
        return metrics.finish("all", metrics.add(metrics.start(), pa.Table.from_pylist(full))).to_pylist()

    for a, b in zip(table(every), table(needed), strict=True):
        assert json.dumps(a) == json.dumps(b)


def test_an_image_alone_is_the_same_as_in_company() -> None:
    truth = rows()
    made = stage()
    together = run(made, truth, pad=2)
    assert len(together) == 4
    for i in range(4):
        alone = run(made, [r if j == i else None for j, r in enumerate(truth)])[0]
        for name, value in alone.items():
            assert np.asarray(value, dtype=object if name == "nonfinite" else None) == pytest.approx(
                np.asarray(together[i][name]), abs=2e-3 if name.startswith("map/") else 1e-5, nan_ok=True
            )


def test_rows_fit_the_schema() -> None:
    made = stage()
    table = pa.Table.from_pylist(run(made, rows()), schema=made.schema)
    assert table["map_shape/chip"].to_pylist() == [[8, 8]] * 4
    assert table["map_shape/gradient"].to_pylist() == [[16, 16]] * 4
    assert all(max(map(abs, m)) == 1 for m in table["map/chip"].to_pylist())
    assert all(field.metadata[b"meaning"] for field in made.schema)
    assert run(stage(map_side=5), rows())[0]["map/gradient"].shape == (25,)
    assert run(stage(map_side=0), rows())[0]["map/gradient"].shape == (0,)


def test_rectangles_need_no_map() -> None:
    truth = rows()
    found = run(stage({"network": network()}, methods=()), truth)
    for i, (height, width) in enumerate(SHAPES):
        assert found[i]["iou/whole_image"] == pytest.approx(
            best_iou([[0, 0, width - 1, height - 1]], truth[i]["boxes"])
        )
        seventy = best_iou(center_box(width, height, 0.7), truth[i]["boxes"])
        assert found[i]["iou/center"][6] == pytest.approx(float(seventy))


def test_only_boxes_of_the_true_class_count() -> None:
    truth = rows()
    label = truth[0]["label"]
    made = stage()
    both = run(made, truth)[0]["iou/chip"]
    truth[0]["box_labels"] = [label, label]
    assert np.array_equal(run(made, truth)[0]["iou/chip"], both)
    truth[0]["box_labels"] = [label, label + 1]
    first = run(made, truth)[0]["iou/chip"]
    assert np.array_equal(
        first, run(made, [{**truth[0], "boxes": truth[0]["boxes"][:1], "box_labels": None}])[0]["iou/chip"]
    )
    truth[0]["box_labels"] = [label + 1, label + 1]
    assert run(made, truth)[0]["iou/chip"].shape == (0,)  # nothing true to compare with: not judged


@pytest.mark.parametrize("missing", [{"label": None}, {"boxes": None}, {"boxes": []}])
def test_without_label_or_boxes_there_are_predictions_and_maps_but_no_overlap(missing: dict[str, Any]) -> None:
    found = run(stage(), [{**rows()[0], **missing}])[0]
    assert found["iou/chip"].shape == found["iou/center"].shape == found["iou/whole_image"].shape == (0,)
    assert len(found["classes"]) == 3
    assert found["map/chip"].shape == (64,)
    assert found["box/chip"].shape == (16,)  # boxes are an answer of their own where nothing is known


def test_a_predicted_class_without_a_fit_is_nan() -> None:
    truth = rows()
    first = int(run(stage(), truth)[1]["classes"][0])
    fitted = [c for c in range(7) if c != first]
    table = solve().filter(pa.compute.is_in(solve()["class_id"], pa.array(fitted)))
    found = run(stage({"network": network(), "solve": table}), truth)[1]
    ious = found["iou/chip"].reshape(3, 4)
    assert np.isnan(ious[0]).all()
    assert (ious[1] >= 0).all()  # the true class, second, has one
    assert not np.isnan(found["iou/grad_cam"]).any()
    assert found["nonfinite"] == []  # no fit is not a broken map
    assert found["map/chip"].size == found["map_shape/chip"].size == found["box/chip"].size == 0
    assert found["map/chip:1"].size == 0
    assert found["map/grad_cam"].size == 64


def test_a_map_that_is_not_finite_is_named_and_its_pixels_count_as_nothing() -> None:
    truth, net = rows()[:1], network()
    height, width = SHAPES[0]
    with torch.no_grad():
        net[3].weight.mul_(100)  # type: ignore[operator, union-attr]
    sums = net[:5](SQUASH.normalise(torch.from_numpy(SQUASH.pixels(image(0, height, width)))[None])).sum(dim=1).detach()
    weight = 3e38 / float(sums.median())  # half of the pixels overflow
    huge = [{**r, "w": [weight] * len(r["w"])} for r in solve().to_pylist()]
    found = run(stage({"network": net, "solve": pa.Table.from_pylist(huge)}, methods=("chip", "grad_cam")), truth)[0]
    assert found["nonfinite"] == ["chip"]
    heat = weight * sums
    heat[~heat.isfinite()] = 0
    assert 0 < (heat == 0).float().mean() < 1
    large = interpolate(heat[None], size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    expected = [float(best_iou(box_at(large, t), truth[0]["boxes"])) for t in GRID]
    assert found["iou/chip"][:4] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_map_without_a_positive_value_gives_the_whole_image(value: float) -> None:
    flat = [{**r, "w": [value] * len(r["w"])} for r in solve().to_pylist()]
    for row in run(stage({"network": network(), "solve": pa.Table.from_pylist(flat)}, methods=("chip",)), rows()):
        assert row["iou/chip"][:4] == pytest.approx(float(row["iou/whole_image"][0]))


def test_masks_are_compared_with_the_first_classes_kept_pixels() -> None:
    truth = rows()[:1]
    height, width = SHAPES[0]
    square = [[4, 4, 20, 4, 20, 18, 4, 18]]
    truth[0] |= {"masks": [json.dumps(square), None]}
    made = stage(methods=("chip",))
    found = run(made, truth)[0]
    x = SQUASH.normalise(torch.from_numpy(SQUASH.pixels(image(0, height, width)))[None])
    heat = build("chip", Setting(LAYERS, tables={"solve": solve()})).maps(Query(cut(network(), LAYERS, x), x, top=1))
    large = interpolate(heat, size=(height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    drawn = coco_mask(square, width, height)
    expected = [mask_iou(large >= np.float32(t * float(large.max())), drawn) for t in GRID]
    assert found["mask_iou/chip"] == pytest.approx(expected, abs=1e-6)
    assert run(made, rows()[:1])[0]["mask_iou/chip"].shape == (0,)


def test_wrong_truth_fails_its_own_row_only() -> None:
    truth = rows()
    truth[1]["boxes"] = [[0.0, math.nan, 3.0, 3.0]]
    truth[2]["box_labels"] = [1]
    truth[3]["masks"] = [json.dumps({"counts": [9], "size": [3, 3]}), None]
    found = run(stage(), truth)
    assert "status" not in found[0]
    assert [f["status"] for f in found[1:]] == ["failed"] * 3
    assert "not a number" in found[1]["error"]
    assert "one label per box" in found[2]["error"]
    assert "does not fit" in found[3]["error"]


def test_in_the_crop_frame_boxes_move_into_the_input() -> None:
    crop = Preprocess(size=(16, 16), frame="crop", resize=20)
    made = stage(preprocess=crop, methods=("chip",))
    # 50 x 24 (height x width): 24 -> 20, 50 -> 41; the window is columns 2..17 and rows 12..27.
    truth: list[dict[str, Any] | None] = [None, {**rows()[1], "boxes": [[0.0, 0.0, 23.0, 49.0]], "masks": None}]
    whole = run(made, truth)[0]
    assert whole["iou/whole_image"] == pytest.approx(1.0)  # everything, clipped, is the whole input
    outside = run(made, [None, {**rows()[1], "boxes": [[0.0, 0.0, 23.0, 5.0]]}])[0]
    assert outside["iou/whole_image"].tolist() == [0.0]  # outside the crop: the image counts, and nothing can be right
    with pytest.raises(ValueError, match="frame 'input'"):
        LocalizeConfig(preprocess=crop, frame="image")


def test_edges_and_last_pixels_agree_when_each_is_told_so() -> None:
    truth = rows()
    edges = [{**r, "boxes": [[x0, y0, x1 + 1, y1 + 1] for x0, y0, x1, y1 in r["boxes"]]} for r in truth]
    a, b = run(stage(), truth), run(stage(inclusive=False), edges)
    for one, other in zip(a, b, strict=True):
        assert one["iou/chip"] == pytest.approx(other["iou/chip"], abs=1e-6)
        assert one["iou/center"] == pytest.approx(other["iou/center"], abs=1e-6)


def test_settings_are_checked_before_anything_runs() -> None:
    with pytest.raises(LookupError, match="did you mean grad_cam"):
        LocalizeConfig(methods=("gradcam",))
    with pytest.raises(ValueError, match="ascending"):
        LocalizeConfig(thresholds=(0.5, 0.1))
    with pytest.raises(LookupError, match="add it to the sweep's layers"):
        stage(layers=("1", "3"))
    with pytest.raises(RuntimeError, match="setup"):
        Localize(LocalizeConfig())({})


def test_cost_counts_whole_networks() -> None:
    made = stage(methods=("chip", "gradient"))
    assert (
        made.cost()["forwards_per_row"] == 1 + 1 + 2 * 2
    )  # the pass itself; a forward and two backwards for the gradient
    assert made.micro_batch(torch.device("cpu")) == 8
