"""GFI as the engine runs it: rows for every image, whatever it holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from pipeline import slices
from pipeline.decode import stack
from pipeline.steps import config_fields, row_schema
from stages.gfi.config import GfiConfig
from stages.gfi.reading import full_mask, weights
from stages.gfi.stage import GfiStage
from stages.metrics.boxes import best_iou, box_at
from stages.metrics.mean_boxes import mean_boxes
from stages.preprocess import Preprocess

SQUASH = Preprocess(size=(32, 32))
ALPHAS, THRESHOLDS = (0.0, 1.0, 2.0), (0.2, 0.5)


def picture(seed: int, height: int = 40, width: int = 52) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 90, (height, width, 3))
    image[8:24, 10:30] += rng.integers(60, 160, 3)
    return image.astype(np.uint8)


def row(i: int, **more: Any) -> dict[str, Any]:
    return {"key": f"{i:03d}.jpg", "label": i % 5, "boxes": [[10.0, 8.0, 29.0, 23.0]], "width": 52, "height": 40} | more


def stage(network: nn.Module, **fields: Any) -> GfiStage:
    config = GfiConfig(
        **{"preprocess": SQUASH, "alphas": ALPHAS, "thresholds": THRESHOLDS, "class_steps": 6, "inversion_steps": 3}
        | fields
    )
    made = GfiStage(config)
    made.setup(torch.device("cpu"), {"network": network})
    return made


def run(
    made: GfiStage, rows: list[dict[str, Any]], images: list[np.ndarray] | None = None, shape: int = 0
) -> list[dict[str, Any]]:
    pictures = images or [picture(i) for i in range(len(rows))]
    prepared = stack([made.prepare(image, given) for image, given in zip(pictures, rows, strict=True)])
    out = slices.run_slice(made, "eval", rows, prepared, shape or len(rows))
    slices.to_table(out, row_schema(made), "gfi")  # every value fits its column
    return out


@pytest.mark.parametrize("preset", ["paper", "authors"])
@pytest.mark.parametrize("background", ["blur", "mean", "noise"])
def test_rows_fit_the_schema_and_say_what_was_found(
    small: Callable[..., nn.Module], preset: str, background: str
) -> None:
    made = stage(small(), preset=preset, background=background, targets=("predicted", "label", 3))
    rows = [row(i) for i in range(3)]
    found = run(made, rows)
    assert all(field.metadata[b"meaning"] for field in made.schema)
    for given, got in zip(rows, found, strict=True):
        assert got["status"] == "ok", got["error"]
        assert list(got["targets"]) == [got["predicted"], given["label"], 3]
        assert got["asked"] == ["predicted", "label", "3"]
        assert got["loss"].shape == (3, 9)
        assert got["kept_path"].shape == (3, 6)
        assert got["box/mean"].shape == (3, 3, 4)
        assert got["box/max"].shape == (3, 2, 4)
        for name in ("score", "kept_before", "removed_before", "kept_after", "removed_after", "zeros"):
            assert ((got[name] >= 0) & (got[name] <= 1)).all()
        for rank in range(3):
            w = weights(got, rank)
            assert (w >= 0).all()
            assert got["zeros"][rank] == pytest.approx((w == 0).mean())


def test_the_mask_is_made_again_from_the_row(small: Callable[..., nn.Module]) -> None:
    for preset in ("paper", "authors"):
        made = stage(small(), preset=preset, targets=("predicted", 1))
        got = run(made, [row(0), row(1)])[0]
        kept = slices.to_table([got], row_schema(made), "gfi").to_pylist()[0]
        for rank in range(2):
            mask = full_mask(kept, rank)
            assert mask.shape == (32, 32)
            large = torch.nn.functional.interpolate(
                torch.from_numpy(mask)[None, None], size=(40, 52), mode="bilinear", align_corners=False
            )[0, 0].numpy()
            boxes = np.array(kept["box/mean"]).reshape(2, 3, 4)[rank]
            assert np.abs(boxes - mean_boxes(large[None], ALPHAS)[0]).max() <= 1  # float16 may move an edge by a pixel
            largest = np.array(kept["box/max"]).reshape(2, 2, 4)[rank]
            assert np.abs(largest[1] - box_at(large, 0.5)).max() <= 1
        with pytest.raises(IndexError, match="2 class"):
            full_mask(kept, 2)


def test_overlaps_are_with_boxes_of_the_class_that_is_asked(small: Callable[..., nn.Module]) -> None:
    made = stage(small(), targets=("predicted", "labels"))
    truth = row(0, labels=[1, 4], boxes=[[0.0, 0.0, 51.0, 39.0], [10.0, 8.0, 29.0, 23.0]], box_labels=[0, 4])
    got = run(made, [truth, row(1, labels=[1])])[0]
    assert got["asked"] == ["predicted", "labels", "labels"]
    assert got["iou/mean"][0, 0] == 1.0  # the prediction is judged by the label's boxes; alpha 0 is the whole image
    assert np.isnan(got["iou/mean"][1]).all()  # class 1 has no box
    assert got["iou/mean"][2] == pytest.approx(best_iou(got["box/mean"][2], truth["boxes"][1:]))
    assert got["iou/max"][2] == pytest.approx(best_iou(got["box/max"][2], truth["boxes"][1:]))
    assert got["peak_distance"][0] == 0
    assert np.isnan(got["peak_distance"][1])


def test_difficult_boxes_count_apart(small: Callable[..., nn.Module]) -> None:
    made = stage(small(), targets=("label",))
    got = run(made, [row(0, difficult=[True])])[0]
    assert np.isfinite(got["peak_distance"]).all()
    assert np.isnan(got["peak_distance_easy"]).all()


def test_an_image_keeps_its_numbers_whatever_its_neighbours_ask(small: Callable[..., nn.Module]) -> None:
    made = stage(small().double(), precision="float64", targets=("labels",), background="noise")
    rows = [row(0, labels=[2]), row(1, labels=[0, 1, 4]), row(2, labels=[3, 1])]
    together = run(made, rows)
    assert [len(r["targets"]) for r in together] == [1, 3, 2]
    for i in range(3):
        alone = run(made, [rows[i]], [picture(i)], shape=3)[0]
        for name in ("loss", "w_value", "kept_after", "iou/mean"):
            assert np.asarray(alone[name]) == pytest.approx(np.asarray(together[i][name]), abs=1e-9, nan_ok=True)
        assert np.array_equal(alone["mask"], together[i]["mask"])


def test_odd_images_are_rows_and_finite(small: Callable[..., nn.Module]) -> None:
    grey = np.repeat(picture(0)[:, :, :1], 3, axis=2)
    for preset in ("paper", "authors"):
        made = stage(small(), preset=preset, class_steps=None, inversion_steps=None)
        found = run(
            made, [row(0), row(1), row(2)], [np.full((40, 52, 3), 128, np.uint8), grey, np.zeros((40, 52, 3), np.uint8)]
        )
        assert [r["status"] for r in found] == ["ok"] * 3
        for got in found:
            for name, value in got.items():
                if isinstance(value, np.ndarray) and value.dtype.kind == "f" and not name.startswith("peak"):
                    assert np.isfinite(value).all(), name


def test_dead_features_give_a_flat_mask_that_says_so(small: Callable[..., nn.Module]) -> None:
    network = small()
    with torch.no_grad():
        network[4].bias.fill_(-1e3)  # the last ReLU never opens
    for preset in ("paper", "authors"):
        got = run(stage(network, preset=preset), [row(0)])[0]
        assert got["status"] == "ok"
        assert got["flat"] == [True]
        assert not np.asarray(got["mask"]).any()
        assert got["box/mean"][0].tolist() == [[0, 0, 51, 39]] * 3
        assert list(got["peak"][0]) == [-1, -1]
        assert np.isposinf(got["peak_distance"]).all()  # it points nowhere: never a hit
        assert got["kept_after"] == pytest.approx(got["kept_before"])


def test_weights_that_are_not_numbers_fail_the_row_with_a_reason(small: Callable[..., nn.Module]) -> None:
    made = stage(small())
    with torch.no_grad():
        next(p for n, p in made.explainer._forward.named_parameters() if n == "8.bias")[0] = float("nan")
    got = run(made, [row(0)])[0]
    assert got["status"] == "failed"
    assert "not finite" in got["error"]


def test_weights_that_are_not_numbers_from_the_start_are_told_as_such(small: Callable[..., nn.Module]) -> None:
    network = small()
    with torch.no_grad():
        network[8].bias[0] = float("nan")
    with pytest.raises(ValueError, match="not finite for plain noise"):
        stage(network)


def test_what_cannot_be_asked_fails_its_own_row_only(small: Callable[..., nn.Module]) -> None:
    made = stage(small(), targets=("label",))
    rows = [
        row(0),
        row(1, label=None),
        row(2, label=77),
        row(3, boxes=[[0, 0, float("nan"), 3]]),
        row(4, box_labels=[1, 2]),
    ]
    found = run(made, rows)
    assert [r["status"] for r in found] == ["ok", "failed", "failed", "failed", "failed"]
    for got, told in zip(found[1:], ("no label", "77", "not a number", "one label per box"), strict=True):
        assert told in got["error"]


def test_an_attack_lowers_the_class_and_the_mask_is_of_what_the_network_then_saw(
    small: Callable[..., nn.Module],
) -> None:
    network = small()
    rows = [row(i) for i in range(4)]
    plain = run(stage(network, targets=("label",)), rows)
    attacked = run(stage(network, targets=("label",), attack=8.0), rows)
    assert all(r["predicted_clean"] is None for r in plain)
    assert [r["predicted_clean"] for r in attacked] == [r["predicted"] for r in plain]
    before, after = (np.array([r["score"][0] for r in found]) for found in (plain, attacked))
    assert (after < before).all()


def test_the_attack_moves_every_colour_by_its_levels_and_stays_within_0_255(small: Callable[..., nn.Module]) -> None:
    made = stage(small(), attack=8.0)
    pixels = np.stack([SQUASH.pixels(picture(i)) for i in range(2)])
    pixels[0, :, :4] = 255
    x = SQUASH.normalise(torch.from_numpy(pixels))
    moved, _ = made._attacked(x, [0, 1])
    mean, std = torch.tensor(SQUASH.mean).view(1, 3, 1, 1), torch.tensor(SQUASH.std).view(1, 3, 1, 1)
    levels = (moved * std + mean) * 255
    assert levels.min() >= -1e-3
    assert levels.max() <= 255 + 1e-3
    shift = (levels - torch.from_numpy(pixels)).abs()
    assert shift.max() <= 8 + 1e-3
    assert ((shift - 8).abs() < 1e-3).float().mean() > 0.8


def test_the_crop_frame_compares_boxes_in_the_input(small: Callable[..., nn.Module]) -> None:
    crop = Preprocess(size=(32, 32), frame="crop", resize=32)
    got = run(
        stage(small(), preset="authors", preprocess=crop, targets=("label",)), [row(0, boxes=[[0.0, 0.0, 51.0, 39.0]])]
    )[0]
    assert got["box/mean"][0, 0].tolist() == [0, 0, 31, 31]
    assert got["iou/mean"][0, 0] == pytest.approx(1.0)  # the box is clipped to the crop


def test_a_box_outside_the_crop_is_never_hit(small: Callable[..., nn.Module]) -> None:
    crop = Preprocess(size=(32, 32), frame="crop", resize=32)  # sees columns 4 to 35 of 41
    made = stage(small(), preprocess=crop, targets=("label",))
    for boxes in ([[0.0, 10.0, 4.0, 30.0]], [[48.0, 10.0, 51.0, 30.0]]):
        got = run(made, [row(0, boxes=boxes)])[0]
        assert np.isposinf(got["peak_distance"]).all()
        assert (got["iou/mean"] == 0).all()


def test_boxes_without_labels_are_of_the_images_class_alone(small: Callable[..., nn.Module]) -> None:
    got = run(stage(small(), targets=("label", 3)), [row(0)])[0]
    assert np.isfinite(got["iou/mean"][0]).all()
    assert np.isnan(got["iou/mean"][1]).all()
    assert np.isnan(got["peak_distance"][1])


def test_settings_are_checked_before_anything_runs() -> None:
    for fields, told in (
        ({"preset": "theirs"}, "paper, authors"),
        ({"targets": ("predicated",)}, "predicated"),
        ({"targets": ()}, "at least one"),
        ({"background": "black"}, "noise"),
        ({"class_steps": 0, "inversion_steps": 0}, "at least one"),
        ({"attack": 300.0}, "255"),
        ({"alphas": (2.0, 1.0)}, "ascending"),
        ({"frame": "image", "preprocess": Preprocess(frame="crop")}, "use 'input'"),
    ):
        with pytest.raises(ValueError, match=told):
            GfiConfig(**fields)
    assert "batch" not in config_fields(GfiConfig())
    with pytest.raises(RuntimeError, match="setup"):
        GfiStage(GfiConfig())({})


def test_cost_and_micro_batch(small: Callable[..., nn.Module]) -> None:
    made = stage(small(), inversion_steps=None, class_steps=None)
    assert 283 < made.cost()["forwards_per_row"] <= 305
    assert made.micro_batch(torch.device("cpu")) == 8
    assert stage(small(), batch=3).micro_batch(torch.device("cpu")) == 3
    explainer = made.explainer
    sizes = [explainer.images_within(space) for space in (1.0, 1e6, 1e7, 1e12)]
    assert sizes[0] == 1
    assert sizes[-1] == 64
    assert sizes == sorted(sizes)


def test_rows_travel_through_parquet(small: Callable[..., nn.Module], tmp_path) -> None:
    import pyarrow.parquet as pq

    made = stage(small())
    table = slices.to_table(run(made, [row(0)]), row_schema(made), "gfi")
    pq.write_table(table, tmp_path / "rows.parquet")
    back = pq.read_table(tmp_path / "rows.parquet")
    assert back.schema.field("mask").type == pa.list_(pa.field("element", pa.float16()))
    assert np.array_equal(full_mask(back.to_pylist()[0]), full_mask(table.to_pylist()[0]))


def test_of_several_labels_the_label_comes_first_for_it_is_judged_by_the_first(small: Callable[..., nn.Module]) -> None:
    made = stage(small(), targets=("labels",))
    got = run(made, [row(0, label=3, labels=[1, 2, 3])])[0]
    assert list(got["targets"]) == [3, 1, 2]
