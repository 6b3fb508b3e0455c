"""GFI's reduction: counted by hand on a few rows, in any order and any grouping."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from stages.gfi.metrics import GfiMetrics, GfiMetricsConfig
from stages.metrics.localization import half_of

ALPHAS, THRESHOLDS, SIZES = (0.0, 1.0, 2.0), (0.2, 0.5), (0.7, 1.0)
CONFIG = GfiMetricsConfig(
    targets=("predicted", "label"), classes=4, alphas=ALPHAS, thresholds=THRESHOLDS, center_sizes=SIZES
)
NAN = math.nan


def row(key: str, split: str = "eval", **more: Any) -> dict[str, Any]:
    base = {
        "split": split,
        "key": key,
        "label": 1,
        "predicted": 2,
        "asked": ["predicted", "label"],
        "targets": [2, 1],
        "flat": [False, True],
        "score": [0.9, 0.5],
        "kept_before": [0.5, 0.25],
        "removed_before": [0.75, 0.25],
        "kept_after": [0.875, 0.5],
        "removed_after": [0.25, 0.125],
        "zeros": [0.5, 1.0],
        "peak_distance": [0.0, 20.0],
        "peak_distance_easy": [NAN, 10.0],
        "iou/center": [0.6, 0.4] * 2,
        "iou/mean": [0.4, 0.6, 0.7, NAN, NAN, NAN],
        "iou/mean_before": [0.4, 0.3, 0.2, NAN, NAN, NAN],
        "iou/max": [0.1, 0.55, NAN, NAN],
        "iou/max_before": [0.1, 0.2, NAN, NAN],
    }
    return base | more


def reduced(rows: list[dict[str, Any]], config: GfiMetricsConfig = CONFIG) -> list[dict[str, Any]]:
    metrics = GfiMetrics(config)
    state = metrics.start()
    if rows:
        state = metrics.add(state, pa.Table.from_pylist(rows))
    return metrics.finish("all", state).to_pylist()


def one(rows: list[dict[str, Any]], **asked: Any) -> dict[str, Any]:
    found = [r for r in rows if all(r[name] == value for name, value in asked.items())]
    assert len(found) == 1
    return found[0]


def test_alpha_comes_from_the_tuning_split() -> None:
    tune = [row("t", "tune", **{"iou/mean": [0.4, 0.8, 0.4, NAN, NAN, NAN]})]
    rows = reduced([*tune, row("a"), row("b", **{"iou/mean": [0.6, 0.4, 0.6, NAN, NAN, NAN]})])
    found = one(rows, kind="localization", name="gfi", box="mean", rule="tuned")
    assert (found["threshold"], found["value"], found["n"], found["tuning_images"]) == (1.0, 0.5, 2, 1)
    assert found["curve"] == [0.5, 0.5, 0.0]  # at alpha 0, the whole image, one of two is wrong
    assert found["se"] == pytest.approx(math.sqrt(0.25 / 2))
    oracle = one(rows, kind="localization", name="gfi", box="mean", rule="oracle")
    assert (oracle["threshold"], oracle["value"]) == (2.0, 0.0)
    before = one(rows, kind="localization", name="unoptimised", box="mean", rule="tuned")
    assert before["curve"] == [1.0, 1.0, 1.0]
    largest = one(rows, kind="localization", name="gfi", box="max", rule="oracle")
    assert largest["curve"] == [1.0, 0.0]


def test_without_a_tuning_split_each_half_is_judged_by_the_other() -> None:
    keys = {half_of(k): k for k in ("a", "b", "c", "d", "e", "f")}
    first = row(keys[0], **{"iou/mean": [0.1, 0.9, 0.1, NAN, NAN, NAN]})
    second = row(keys[1], **{"iou/mean": [0.1, 0.1, 0.9, NAN, NAN, NAN]})
    found = one(reduced([first, second]), kind="localization", name="gfi", box="mean", rule="halves")
    assert found["thresholds"] == [2.0, 1.0]
    assert found["value"] == 1.0


def test_the_whole_image_and_the_centre_stand_beside_it() -> None:
    rows = reduced([row("a"), row("b")])
    assert one(rows, name="whole_image", rule="fixed")["value"] == 1.0  # IoU 0.4
    assert one(rows, name="center", rule="fixed")["value"] == 0.0  # IoU 0.6
    assert one(rows, name="gfi", box="mean", rule="oracle")["vs_center"] == 0.0


def test_probabilities_before_and_after_with_standard_errors() -> None:
    rows = reduced([row("a"), row("b", kept_after=[0.375, 0.5]), row("t", "tune", kept_after=[0.0, 0.0])])
    kept = one(rows, name="kept_after", asked="predicted")
    assert (kept["value"], kept["n"]) == (0.625, 2)  # the tuning image is not of it
    assert kept["se"] == pytest.approx(0.25)  # 7/8 and 3/8: a sample deviation of sqrt(2 / 16), over sqrt(2)
    gain = one(rows, name="kept_gain", asked="predicted")
    assert gain["value"] == 0.125
    assert one(rows, name="removed_gain", asked="predicted")["value"] == -0.5
    assert one(rows, name="removed_gain", asked="predicted")["se"] == 0
    assert one(rows, name="zeros", asked="label")["value"] == 1.0
    assert one(rows, name="flat", asked="label")["value"] == 1.0
    assert one(rows, name="class_error")["value"] == 1.0


def test_pointing_is_the_mean_over_classes() -> None:
    other = row("b", label=3, targets=[2, 3], peak_distance=[NAN, 0.0], peak_distance_easy=[NAN, 0.0])
    third = row("c", label=3, targets=[2, 3], peak_distance=[NAN, 16.0], peak_distance_easy=[NAN, NAN])
    rows = reduced([row("a"), other, third])
    # Class 1: distance 20; class 3: 0 and 16. The predicted class, 2, is in no image: its mask is not asked.
    assert one(rows, kind="pointing", name="all", threshold=0.0)["value"] == 0.25
    assert one(rows, kind="pointing", name="all", threshold=15.0)["value"] == 0.25
    # Without difficult boxes: class 1 only 10, class 3 only 0.
    assert one(rows, kind="pointing", name="easy", threshold=0.0)["value"] == 0.5
    easy = one(rows, kind="pointing", name="easy", threshold=15.0)
    assert (easy["value"], easy["n"], easy["tuning_images"]) == (1.0, 2, 2)
    assert one(rows, kind="pointing", name="all", threshold=15.0)["se"] == 0.25  # of 0 and 1/2
    # Asked twice, as the prediction and as the label, a class counts once.
    twice = reduced([row("d", targets=[1, 1], peak_distance=[0.0, 0.0])])
    assert one(twice, kind="pointing", name="all", threshold=0.0)["tuning_images"] == 1
    # A wrong prediction that is one of the image's classes all the same is asked as that.
    person = row("e", label=1, asked=["predicted", "labels"], targets=[2, 2], peak_distance=[9.0, 0.0])
    config = replace(CONFIG, targets=("predicted", "labels"))
    assert one(reduced([person], config), kind="pointing", name="all", threshold=0.0)["value"] == 1.0


def test_one_image_a_class_leaves_the_pointing_game_an_error() -> None:
    near, far = ({"peak_distance": [d, d], "peak_distance_easy": [d, d]} for d in (0.0, 40.0))
    rows = reduced([row("a", label=1, targets=[2, 1], **near), row("b", label=3, targets=[2, 3], **far)])
    found = one(rows, kind="pointing", name="all", threshold=0.0)
    assert (found["value"], found["se"]) == (0.5, pytest.approx(0.5))
    rows = reduced([row("a", label=1, targets=[2, 1], **near), row("b", label=3, targets=[2, 3], **near)])
    found = one(rows, kind="pointing", name="all", threshold=0.0)
    assert (found["value"], found["high"]) == (1.0, pytest.approx(1.0))
    assert found["low"] < 0.6, "two classes that were both hit are no certainty"


def test_center_sizes_hold_the_whole_image() -> None:
    with pytest.raises(ValueError, match=r"lacks 1\.0"):
        GfiMetricsConfig(center_sizes=(0.5, 0.7))


def test_merging_is_associative_and_knows_nothing_of_order() -> None:
    metrics = GfiMetrics(CONFIG)
    rows = [row(f"k{i}", "tune" if i % 3 == 0 else "eval", kept_after=[i / 7, 0.1 * i]) for i in range(7)]
    alone = [metrics.add(metrics.start(), pa.Table.from_pylist([r])) for r in rows]
    left = alone[0]
    for state in alone[1:]:
        left = metrics.merge(left, state)
    right = alone[-1]
    for state in reversed(alone[:-1]):
        right = metrics.merge(state, right)
    whole = metrics.add(metrics.start(), pa.Table.from_pylist(rows))
    told = [metrics.finish("all", metrics.merge(metrics.start(), s)).to_pylist() for s in (left, right, whole)]
    assert json.dumps(told[0]) == json.dumps(told[1]) == json.dumps(told[2])


def test_rows_without_boxes_or_labels_still_count_for_the_scores() -> None:
    bare = {name: [NAN] * 6 for name in ("iou/mean", "iou/mean_before")}
    bare |= {"iou/max": [NAN] * 4, "iou/max_before": [NAN] * 4, "iou/center": [NAN] * 4}
    rows = reduced([row("a", label=None, asked=["predicted"], targets=[2], peak_distance=[NAN], **bare)])
    assert one(rows, name="gfi", box="mean", rule="oracle")["n"] == 0
    assert one(rows, name="kept_after", asked="predicted")["n"] == 1
    assert one(rows, name="kept_after", asked="label")["n"] == 0
    assert one(rows, name="class_error")["n"] == 0


def test_nothing_at_all_is_nothing_and_not_a_crash() -> None:
    metrics = GfiMetrics(CONFIG)
    told = metrics.summary(metrics.finish("all", metrics.start()))
    json.dumps(told, allow_nan=False)
    assert all(r.get("value") is None for r in told["rows"])
    assert metrics.state_bytes() > 0
