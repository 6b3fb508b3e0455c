"""Localization: errors counted by hand, thresholds chosen apart from what they are judged on, merging in any order."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.metrics.localization import LocalizationConfig, LocalizationMetrics, half_of

GRID, SIZES = (0.1, 0.5, 0.9), (0.5, 0.7, 1.0)
CONFIG = LocalizationConfig(methods=("a", "b"), thresholds=GRID, center_sizes=SIZES)
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("split", pa.string()),
        ("label", pa.int32()),
        ("classes", pa.list_(pa.int32())),
        *((f"iou/{m}", pa.list_(pa.float32())) for m in ("a", "b", "center", "whole_image")),
        *((f"mask_iou/{m}", pa.list_(pa.float32())) for m in ("a", "b")),
    ]
)


def row(
    key: str, label: int | None, classes: list[int], a: Any, b: Any = None, split: str = "eval", **more: Any
) -> dict:
    """``a`` and ``b``: IoU [ranks][thresholds]."""
    b = a if b is None else b
    flat = {"iou/a": np.ravel(a).tolist(), "iou/b": np.ravel(b).tolist()}
    fixed = {"iou/center": [0.2, 0.6, 0.4], "iou/whole_image": [0.4], "mask_iou/a": [], "mask_iou/b": []}
    return {"key": key, "split": split, "label": label, "classes": classes, **flat, **fixed, **more}


def table(rows: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def reduce(rows: list[dict], config: LocalizationConfig = CONFIG) -> dict[tuple[str, str], dict]:
    metrics = LocalizationMetrics(config)
    found = metrics.finish("all", metrics.add(metrics.start(), table(rows)))
    return {(r["method"], r["rule"]): r for r in found.to_pylist()}


def by_half(n: int) -> tuple[list[str], list[str]]:
    keys = [f"image{i}.jpg" for i in range(20 * n)]
    return [k for k in keys if not half_of(k)][:n], [k for k in keys if half_of(k)][:n]


RIGHT = [[0.9, 0.9, 0.9], [0.1, 0.1, 0.1]]  # first class's box good at every threshold, second's never
SECOND = [[0.1, 0.1, 0.1], [0.1, 0.7, 0.1]]  # the second class's box good at 0.5


def test_errors_by_hand() -> None:
    rows = [
        row("1", 3, [3, 4], RIGHT),  # class right, box right
        row("2", 3, [3, 4], SECOND),  # class right, box wrong; the good box is that of a wrong class
        row("3", 4, [3, 4], SECOND),  # right in the second place, at 0.5 only
        row("4", 9, [3, 4], RIGHT),  # class wrong: a good box does not help
    ]
    found = reduce(rows)["a", "oracle"]
    assert found["curve"] == [0.75, 0.75, 0.75]
    assert found["curve_top5"] == [0.75, 0.5, 0.75]
    assert (found["n"], found["top1_cls_error"], found["top5_cls_error"]) == (4, 0.5, 0.25)
    assert found["mean_iou"] == pytest.approx((0.9 + 0.1 + 0.1 + 0.9) / 4, abs=1e-7)
    assert found["mean_iou_se"] == pytest.approx(math.sqrt(4 * 0.16 / 3 / 4), abs=1e-7)  # each is 0.4 from the mean
    assert found["top1_loc_se"] == pytest.approx(math.sqrt(0.75 * 0.25 / 4))


def test_the_threshold_comes_from_the_tuning_split() -> None:
    low, high = [[0.9, 0.1, 0.1]], [[0.1, 0.1, 0.9]]
    rows = [row(f"t{i}", 1, [1], low, split="tune") for i in range(3)] + [row(f"e{i}", 1, [1], high) for i in range(5)]
    found = reduce(rows)
    tuned, oracle = found["a", "tuned"], found["a", "oracle"]
    assert (tuned["threshold"], tuned["top1_loc_error"], tuned["n"], tuned["tuning_images"]) == (0.1, 1.0, 5, 3)
    assert (oracle["threshold"], oracle["top1_loc_error"]) == (0.9, 0.0)
    assert ("a", "halves") not in found


def test_without_a_tuning_split_each_half_chooses_for_the_other() -> None:
    first, second = by_half(4)
    low, high = [[0.9, 0.1, 0.1]], [[0.1, 0.1, 0.9]]
    found = reduce([row(k, 1, [1], low) for k in first] + [row(k, 1, [1], high) for k in second])["a", "halves"]
    assert found["thresholds"] == [0.9, 0.1]  # the first half is judged at what the second prefers
    assert found["top1_loc_error"] == 1.0
    agreeing = reduce([row(k, 1, [1], low) for k in first + second])["a", "halves"]
    assert (agreeing["thresholds"], agreeing["top1_loc_error"]) == ([0.1, 0.1], 0.0)


def test_of_equal_errors_the_higher_overlap_then_the_lower_threshold_is_chosen() -> None:
    found = reduce([row("1", 1, [1], [[0.6, 0.8, 0.8]])])["a", "oracle"]
    assert found["threshold"] == 0.5


def test_a_class_without_a_fit_is_wrong_and_counted_apart() -> None:
    none = [math.nan] * 3
    rows = [
        row("1", 1, [1, 2], [none, [0.9] * 3]),
        row("2", 2, [1, 2], [none, [0.9] * 3]),  # top-5 right through the second class, which has a fit
        row("3", 2, [1, 2], [[0.9] * 3, none]),
    ]
    found = reduce(rows)["a", "oracle"]
    assert (found["missing_fits"], found["missing_fits_top5"]) == (2, 3)
    assert (found["top1_loc_error"], found["top5_loc_error"]) == (1.0, pytest.approx(2 / 3))
    assert found["mean_iou"] == pytest.approx(0.3, abs=1e-7)


def test_images_without_label_or_boxes_are_counted_not_judged() -> None:
    blank = {"iou/a": [], "iou/b": [], "iou/center": [], "iou/whole_image": []}
    rows = [row("1", 1, [1], [[0.9] * 3]), row("2", None, [1], [[0.9] * 3]), row("3", 1, [1], [], **blank)]
    found = reduce(rows)["a", "oracle"]
    assert (found["n"], found["skipped"], found["top1_loc_error"]) == (1, 2, 0.0)


def test_center_and_whole_image_stand_in_every_table() -> None:
    found = reduce([row("1", 1, [1], [[0.9] * 3]), row("2", 1, [2], [[0.9] * 3])])
    assert found["center", "fixed"]["threshold"] == 0.7
    assert found["center", "fixed"]["top1_loc_error"] == 0.5  # 0.6 overlaps enough, and one class is wrong
    assert found["center", "oracle"]["curve"] == [1.0, 0.5, 1.0]
    assert found["whole_image", "fixed"]["top1_loc_error"] == 1.0
    assert {rule for method, rule in found if method == "center"} == {"fixed", "halves", "oracle"}


def test_paired_differences_by_hand() -> None:
    good, bad = [[0.9] * 3], [[0.1] * 3]
    # center (0.7) is right on all five; b is wrong on two of them, a on one more besides one of b's.
    rows = [
        row(str(i), 1, [1], a, b)
        for i, (a, b) in enumerate([(good, good)] * 2 + [(bad, good), (bad, bad), (good, bad)])
    ]
    found = reduce(rows)
    a = found["a", "oracle"]
    differences = np.array([0, 0, 1, 1, 0])
    assert a["vs_center"] == pytest.approx(0.4)
    assert a["vs_center_se"] == pytest.approx(differences.std() / math.sqrt(5))
    against = {p["method"]: p for p in a["paired"]}
    assert against["b"]["difference"] == 0
    assert against["b"]["se"] == pytest.approx(np.array([0, 0, 1, 0, -1]).std() / math.sqrt(5))
    assert a["vs_best_center"] == pytest.approx(0.4)


def test_masks_have_their_own_threshold_and_count() -> None:
    rows = [
        row("1", 1, [1], [[0.9, 0.1, 0.1]], **{"mask_iou/a": [0.2, 0.6, 0.1]}),
        row("2", 1, [1], [[0.9, 0.1, 0.1]], **{"mask_iou/a": [0.4, 0.6, 0.9]}),
        row("3", 1, [1], [[0.9, 0.1, 0.1]]),
    ]
    found = reduce(rows)
    a = found["a", "oracle"]
    assert a["mask_images"] == 2
    assert a["mask_iou"] == pytest.approx(0.6, abs=1e-7)
    assert a["mask_iou_best"] == pytest.approx(0.75, abs=1e-7)
    assert (found["b", "oracle"]["mask_images"], math.isnan(found["b", "oracle"]["mask_iou"])) == (0, True)


def test_nothing_at_all_is_reported_as_undefined() -> None:
    found = reduce([])["a", "oracle"]
    assert found["n"] == 0
    assert math.isnan(found["top1_loc_error"])
    metrics = LocalizationMetrics(CONFIG)
    shown = metrics.summary(metrics.finish("all", metrics.start()))
    assert json.loads(json.dumps(shown, allow_nan=False))["rows"][0]["top1_loc_error"] is None


def test_another_grid_and_another_split_are_refused() -> None:
    with pytest.raises(ValueError, match="another grid"):
        reduce([row("1", 1, [1], [[0.9, 0.1]])])
    with pytest.raises(ValueError, match="'fit'"):
        reduce([row("1", 1, [1], [[0.9] * 3], split="fit")])
    with pytest.raises(ValueError, match="center_sizes"):
        LocalizationMetrics(LocalizationConfig(center=0.33))


overlap = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32))
ious = st.lists(st.one_of(st.just([math.nan] * 3), st.lists(overlap, min_size=3, max_size=3)), min_size=5, max_size=5)


@st.composite
def images(draw: st.DrawFn) -> list[dict]:
    out = []
    for i in range(draw(st.integers(0, 6))):
        more = {"mask_iou/a": draw(st.one_of(st.just([]), st.lists(overlap, min_size=3, max_size=3)))}
        label, split = draw(st.one_of(st.none(), st.integers(0, 6))), draw(st.sampled_from(["tune", "eval", "eval"]))
        out.append(
            row(f"{draw(st.integers(0, 999))}-{i}", label, [2, 3, 4, 5, 6], draw(ious), draw(ious), split, **more)
        )
    return out


@settings(max_examples=60, deadline=None)
@given(x=images(), y=images(), z=images())
def test_merging_is_associative_and_commutative_with_an_identity(x: list, y: list, z: list) -> None:
    metrics = LocalizationMetrics(CONFIG)
    empty = metrics.start()
    a, b, c = (metrics.add(empty, table(rows)) for rows in (x, y, z))

    def same(left: dict, right: dict) -> bool:
        return all((left[name] == right[name]).all() for name in left)

    assert same(metrics.merge(a, b), metrics.merge(b, a))
    assert same(metrics.merge(metrics.merge(a, b), c), metrics.merge(a, metrics.merge(b, c)))
    assert same(metrics.merge(a, empty), a)
    assert same(metrics.merge(metrics.merge(a, b), c), metrics.add(empty, table(x + y + z)))
    assert same(metrics.add(metrics.add(a, table(y)), table(z)), metrics.add(empty, table(x + y + z)))


@settings(max_examples=60, deadline=None)
@given(rows=images())
def test_errors_are_ordered_as_they_must_be(rows: list) -> None:
    for (_, rule), found in reduce(rows).items():
        if found["n"] == 0:
            continue
        assert found["top5_loc_error"] <= found["top1_loc_error"]
        assert all(five <= one for five, one in zip(found["curve_top5"], found["curve"], strict=True))
        assert found["top1_loc_error"] >= found["top1_cls_error"]
        assert found["top5_loc_error"] >= found["top5_cls_error"]
        assert min(found["curve"]) <= found["top1_loc_error"] <= max(found["curve"]) or rule == "halves"
        if rule == "oracle":
            assert found["top1_loc_error"] == min(found["curve"])


@settings(max_examples=40, deadline=None)
@given(rows=images())
def test_counts_are_those_of_a_loop_over_images(rows: list) -> None:
    found = reduce(rows)["a", "oracle"]
    judged = [r for r in rows if r["split"] == "eval" and r["label"] is not None]
    for i in range(3):
        top1 = top5 = 0
        for r in judged:
            hits = [
                c == r["label"] and not math.isnan(v) and v >= 0.5
                for c, v in zip(r["classes"], np.reshape(r["iou/a"], (5, 3))[:, i], strict=True)
            ]
            top1 += not hits[0]
            top5 += not any(hits)
        if judged:
            assert found["curve"][i] == pytest.approx(top1 / len(judged))
            assert found["curve_top5"][i] == pytest.approx(top5 / len(judged))


def test_halves_do_not_depend_on_anything_but_the_key() -> None:
    assert [half_of(f"n{i}/x.jpg") for i in range(8)] == [half_of(f"n{i}/x.jpg") for i in range(8)]
    share = np.mean([half_of(f"ILSVRC2012_val_{i:08d}.JPEG") for i in range(4000)])
    assert 0.47 < share < 0.53
