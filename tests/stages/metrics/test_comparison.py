"""The comparison's numbers: by hand, merged in any order, and what must hold between them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.metrics.comparison import ComparisonConfig, ComparisonMetrics
from stages.metrics.comparison_table import MEASURES
from stages.metrics.localization import half_of

GRID, ALPHAS, SIZES = (0.1, 0.5), (0.0, 1.0, 2.0), (0.5, 0.7, 1.0)
CONFIG = ComparisonConfig(("a", "b"), GRID, ALPHAS, SIZES, curves=True, attack=True)
LISTS = ("iou", "alpha_iou", "mask_iou", "salient", "miss", "deletion", "insertion", "attack_iou")
SCHEMA = pa.schema(
    [
        ("key", pa.string()), ("split", pa.string()), ("label", pa.int32()), ("right", pa.int32()),
        ("judged", pa.int32()), ("classes", pa.list_(pa.int32())), ("asked", pa.list_(pa.int32())),
        ("truth", pa.list_(pa.int32())), ("attack_right", pa.int32()), ("unanswered", pa.list_(pa.string())),
        *((f"{name}", pa.list_(pa.float32())) for name in ("iou/center", "iou/whole_image", "miss/center")),
        *((f"{name}/{m}", pa.list_(pa.float32())) for m in "ab" for name in LISTS),
        *((f"attack_rank/{m}", pa.float32()) for m in "ab"),
    ]
)  # fmt: skip


def row(
    key: str, label: int = 1, right: int = 0, split: str = "eval", *, attack_right: int | None = None, **more: Any
) -> dict[str, Any]:
    """Method b is always whole-image bad; ``more`` gives method a's columns by their first word.

    ``attack_right``: the same as ``right`` unless it is given.
    """
    plain: dict[str, Any] = {
        "iou": [0.6, 0.4], "alpha_iou": [0.3, 0.7, 0.2], "mask_iou": [0.2, 0.4], "salient": [1.0, 0.5, 0.8, 0.1],
        "miss": [0.0, 20.0], "deletion": [1.0, 0.5, 0.0], "insertion": [0.0, 1.0, 1.0], "attack_iou": [0.6, 0.4],
        "attack_rank": 0.5,
    }  # fmt: skip
    bad = {
        "iou": [0.1, 0.1], "alpha_iou": [0.1] * 3, "mask_iou": [], "salient": [], "miss": [30.0, math.inf],
        "deletion": [1.0] * 3, "insertion": [0.0] * 3, "attack_iou": [0.1] * 2, "attack_rank": None,
    }  # fmt: skip
    found = {f"{name}/a": value for name, value in (plain | more).items()}
    found |= {f"{name}/b": value for name, value in bad.items()}
    fixed = {"iou/center": [0.2, 0.6, 0.4], "iou/whole_image": [0.4], "truth": [label], "miss/center": [0.0, 20.0]}
    fixed |= {"attack_right": right if attack_right is None else attack_right, "unanswered": []}
    fixed |= {"judged": label, "classes": [10, 11, 12, 13, 14], "asked": [10 + right]}  # the right class's map
    return {"key": key, "split": split, "label": label, "right": right, **fixed, **found}


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def reduced(rows: list[dict[str, Any]]) -> dict[tuple, dict[str, Any]]:
    metrics = ComparisonMetrics(CONFIG)
    found = metrics.finish("all", metrics.add(metrics.start(), table(rows)))
    assert found.schema.names == metrics.schema.names
    return {(r["measure"], r["method"], r["rule"], r["class_id"]): r for r in found.to_pylist()}


def test_every_measure_by_hand() -> None:
    rows = [
        row("t", split="tune", alpha_iou=[0.1, 0.9, 0.9]),  # chooses t = 0.1 and alpha = 1
        row("1"),
        row("2", right=1, iou=[0.9, 0.9]),  # the class is second: a good box does not help top-1
        row("3", right=-1, alpha_iou=[0.3, 0.4, 0.9], salient=[0.0, 0.0, 0.0, 0.5], miss=[15.0, 16.0]),
        row("4", label=2, iou=[0.4, 0.6], attack_iou=[0.7, 0.1], attack_rank=-0.5, deletion=[0.5, 0.5, 0.5]),
    ]
    found = reduced(rows)
    at = lambda name, rule="", method="a", c=None: found[name, method, rule, c]  # noqa: E731
    assert at("chip_top1_error", "tuned")["value"] == 0.75  # 2 and 3 by class, 4 by its box at 0.1
    assert at("chip_top1_error", "tuned")["thresholds"] == [0.1]
    assert at("chip_top5_error", "tuned")["value"] == 0.5
    assert at("class_top1_error", "tuned")["value"] == 0.5
    assert at("gfi_error", "tuned")["value"] == 0.25  # the class is given: only 3 fails at alpha = 1
    assert at("gfi_error", "tuned")["thresholds"] == [1.0]
    assert at("gfi_error", "tuned")["curve"] == [1.0, 0.25, 0.75]
    assert at("chip_top1_error", "oracle", "b")["value"] == 1
    assert at("chip_top1_error", "fixed", "center")["value"] == 0.5  # class wrong twice, 0.6 >= 0.5 else
    assert at("chip_vs_center", "tuned")["value"] == pytest.approx(0.25)
    assert at("mask_iou", "tuned")["value"] == pytest.approx(0.4, abs=1e-6)
    assert (at("precision")["value"], at("recall")["value"]) == (pytest.approx(0.75), pytest.approx(0.375))
    assert at("f")["value"] == pytest.approx(0.6, abs=1e-6)
    assert at("f_of_means")["value"] == pytest.approx(1.3 * 0.75 * 0.375 / (0.3 * 0.75 + 0.375))
    assert at("mae")["value"] == pytest.approx(0.2, abs=1e-6)
    assert at("deletion")["value"] == pytest.approx(0.5)
    assert at("insertion")["value"] == pytest.approx(0.75)
    assert at("attack_rank")["value"] == pytest.approx((0.5 * 3 - 0.5) / 4)
    assert ("attack_rank", "b", "", None) not in found
    assert at("attack_error_change", "tuned")["value"] == -0.25  # row 4 becomes right
    # Classes 1 (three images) and 2 (one): 2/3 and 1 at no tolerance, mean over classes.
    assert at("pointing_0")["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert at("pointing_0")["se"] == pytest.approx(1 / 6)  # 2/3 and 1 are 1/6 from their mean: sqrt(2/36 / 1) / sqrt(2)
    assert at("pointing_0")["low"] == pytest.approx(5 / 6 - 1.96 / 6, abs=1e-4)
    assert at("pointing_0")["high"] == 1  # 5/6 + 1.96/6 would be more than all
    assert at("pointing_0", c=1)["value"] == pytest.approx(2 / 3)
    assert at("pointing_15")["value"] == 1
    assert at("pointing_0_easy")["value"] == 0
    assert at("pointing_0", method="b")["value"] == 0
    assert at("chip_top1_error", "tuned", c=2)["value"] == 1
    assert at("chip_top1_error", "tuned", c=1)["n"] == 3


def test_an_attack_that_changes_the_class_makes_the_image_wrong_whatever_its_box() -> None:
    good = {"iou": [0.9, 0.9], "attack_iou": [0.9, 0.9]}
    rows = [
        row("t", split="tune"),
        row("1", attack_right=2, **good),
        row("2", attack_right=-1, **good),
        row("3", **good),
    ]
    rows.append(row("4", right=1, attack_right=0, **good))  # an attack may also put the class right
    found = reduced(rows)
    assert found["chip_top1_error", "a", "tuned", None]["value"] == 0.25  # on clean inputs only 4
    change = found["attack_error_change", "a", "tuned", None]
    assert change["value"] == 0.25  # 1 and 2 became wrong, 4 right
    assert change["se"] == pytest.approx(((3 / 4 - 1 / 16) / 4) ** 0.5)


def test_what_a_method_does_not_answer_is_counted_apart() -> None:
    assert not any(measure == "unanswered" for measure, *_ in reduced([row("1"), row("2")]))
    bare = {"salient": [0.0, 0.0, 0.0, 0.25], "deletion": [], "insertion": []}
    rows = [row("1"), row("2", **bare), row("3"), row("4"), row("t", split="tune", **bare)]
    rows[1]["unanswered"] = rows[4]["unanswered"] = ["a"]
    found = reduced(rows)
    missing = found["unanswered", "a", "", None]
    assert (missing["value"], missing["n"]) == (0.25, 4)
    assert found["unanswered", "b", "", None]["value"] == 0
    assert found["precision", "a", "", None]["value"] == pytest.approx(0.75)
    assert (found["deletion", "a", "", None]["n"], found["precision", "a", "", None]["n"]) == (3, 4)


def test_the_middle_of_the_image_plays_the_pointing_game_too() -> None:
    found = reduced([row("1"), row("2", label=2), row("3", label=2)])
    assert found["pointing_0", "center", "", None]["value"] == 1
    assert found["pointing_15_easy", "center", "", None]["value"] == 0
    assert found["pointing_0", "center", "", 2]["n"] == 2
    assert found["pointing_0", "a", "", None]["low"] < 1, "all hits of three images are no certainty"


def many(n: int = 60) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    out = []
    for i in range(n):
        p, r = rng.uniform(0.01, 1, 2)
        scores = [p, r, 1.3 * p * r / (0.3 * p + r), rng.uniform()]
        values = {
            "iou": rng.uniform(size=2), "alpha_iou": rng.uniform(size=3), "mask_iou": rng.uniform(size=2),
            "salient": scores, "miss": rng.choice([0.0, 5.0, 15.0, 20.0, np.inf], 2), "deletion": rng.uniform(size=3),
            "insertion": rng.uniform(size=3), "attack_iou": rng.uniform(size=2), "attack_rank": rng.uniform(-1, 1),
        }  # fmt: skip
        attacked = {"attack_right": int(rng.integers(-1, 5))}
        plain = {k: float(v) if np.ndim(v) == 0 else np.asarray(v).tolist() for k, v in values.items()}
        out.append(
            row(
                f"{i}.png", int(rng.integers(4)), int(rng.integers(-1, 5)), "tune" if i % 6 == 0 else "eval",
                **attacked, **plain,
            )
        )  # fmt: skip
        out[-1]["unanswered"] = ["a"] if i % 5 == 0 else []
    return out


def test_merging_is_associative_and_commutative_and_has_an_identity() -> None:
    metrics, rows = ComparisonMetrics(CONFIG), many()
    parts = [metrics.add(metrics.start(), table(rows[i::3])) for i in range(3)]
    whole = metrics.finish("all", metrics.add(metrics.start(), table(rows)))
    orders = [
        metrics.merge(metrics.merge(parts[0], parts[1]), parts[2]),
        metrics.merge(parts[0], metrics.merge(parts[1], parts[2])),
        metrics.merge(metrics.merge(parts[2], parts[0]), parts[1]),
        metrics.merge(metrics.start(), metrics.merge(parts[1], metrics.merge(parts[0], parts[2]))),
        metrics.add(metrics.add(metrics.start(), table(rows[:7])), table(rows[7:])),
    ]
    for state in orders:
        assert json.dumps(metrics.finish("all", state).to_pylist()) == json.dumps(whole.to_pylist())
    empty = metrics.add(parts[0], table([]))
    assert json.dumps(metrics.finish("all", empty).to_pylist()) == json.dumps(
        metrics.finish("all", parts[0]).to_pylist()
    )


def test_what_must_hold_between_measures() -> None:
    found = reduced(many(120))
    for rule in ("tuned", "oracle"):
        value = lambda name: found[name, "a", rule, None]["value"]  # noqa: B023, E731
        assert value("chip_top5_error") <= value("chip_top1_error")
        assert value("chip_top1_error") >= value("class_top1_error")
    assert (
        found["chip_top1_error", "a", "oracle", None]["value"] <= found["chip_top1_error", "a", "tuned", None]["value"]
    )
    for easy in ("", "_easy"):
        assert found[f"pointing_0{easy}", "a", "", None]["value"] <= found[f"pointing_15{easy}", "a", "", None]["value"]
    for r in found.values():
        assert r["measure"] in MEASURES
        if r["value"] is not None and not math.isnan(r["low"]):
            assert r["low"] <= r["value"] + 1e-9
            assert r["value"] <= r["high"] + 1e-9


def test_without_a_tuning_split_each_half_chooses_for_the_other() -> None:
    keys = [f"{i}.png" for i in range(40)]
    rows = [row(k, iou=[0.9, 0.1] if half_of(k) else [0.1, 0.9]) for k in keys]
    found = reduced(rows)
    assert found["chip_top1_error", "a", "halves", None]["value"] == 1  # what one half prefers is wrong on the other
    assert sorted(found["chip_top1_error", "a", "halves", None]["thresholds"]) == [0.1, 0.5]


def test_no_boxes_and_no_labels_leave_the_measures_that_need_none() -> None:
    nothing = {"iou": [], "alpha_iou": [], "miss": [], "attack_iou": []}
    rows = [row(f"{i}.png", **nothing) for i in range(6)]
    for r in rows:
        r.update(dict.fromkeys(("label", "judged", "right")) | {"truth": [-1]})
        r.update({"iou/center": [], "iou/whole_image": [], "miss/center": []})
        r.update({f"{name}/b": [] for name in ("iou", "alpha_iou", "miss", "attack_iou")})
    found = reduced(rows)
    names = {r["measure"] for r in found.values()}
    assert {"precision", "recall", "f", "mae", "mask_iou"} <= names
    assert not names & {"chip_top1_error", "gfi_error", "pointing_0", "attack_error_change"}
    assert json.loads(json.dumps(ComparisonMetrics(CONFIG).summary(pa.Table.from_pylist(list(found.values())))))["rows"]


def test_a_map_of_another_class_than_the_right_one_makes_no_prediction_right() -> None:
    """Asked for the predicted class: the right one, which is second, has no map, so top-5 is not of this run."""
    second = row("2", right=1, iou=[0.9, 0.9]) | {"asked": [10]}
    found = reduced([row("1"), second])
    assert found["chip_top5_error", "a", "halves", None]["value"] == 0.5
    assert found["class_top5_error", "a", "halves", None]["value"] == 0.0
    assert found["class_top1_error", "a", "halves", None]["value"] == 0.5
    metrics = ComparisonMetrics(replace(CONFIG, top5=False))
    measures = {r["measure"] for r in metrics.finish("all", metrics.add(metrics.start(), table([second]))).to_pylist()}
    assert "chip_top5_error" not in measures
    assert {"chip_top1_error", "class_top5_error"} <= measures


def test_classes_are_those_that_are_judged_by() -> None:
    """An image of a person, which the network does not know, and a dog, which is what is asked."""
    found = reduced([row("1", label=14) | {"judged": 11}, row("2", label=11)])
    assert ("chip_top1_error", "a", "halves", 14) not in found
    assert found["chip_top1_error", "a", "halves", 11]["n"] == 2
