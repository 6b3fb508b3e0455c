"""From counts to the localization table: thresholds chosen by rule, errors with standard errors, paired differences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.metrics.moments import UNIT, mean_and_error

if TYPE_CHECKING:
    from stages.metrics.localization import LocalizationMetrics, Span, State

TUNE, HALF_A, HALF_B = range(3)  # groups of images; the halves are those of the evaluation split
Choice = tuple[tuple[int, int], ...]  # (group that is reported on, column of the matrix) for every reported group


def rows(metrics: LocalizationMetrics, state: State) -> list[dict[str, Any]]:
    """One dict per method and rule, as ``LocalizationMetrics.schema`` says."""
    held_out = "tuned" if state["images"][TUNE] else "halves"
    center = next(span for span in metrics.spans if span.method == "center")
    fixed_center = center.first + center.grid.index(metrics.config.center)
    out = []
    for rule in ("fixed", held_out, "oracle"):
        chosen: dict[str, Choice] = {}
        for span in metrics.spans:
            if rule != "fixed" and span.method != "whole_image":
                chosen[span.method] = choose(span, rule, state["both_wrong"].diagonal(0, 1, 2), state["iou"])
            elif rule == "fixed" and span.method == "center":
                chosen["center"] = ((HALF_A, fixed_center), (HALF_B, fixed_center))
            elif rule == "fixed" and span.method == "whole_image":
                chosen["whole_image"] = ((HALF_A, span.first), (HALF_B, span.first))
        for index, span in enumerate(metrics.spans):
            if span.method not in chosen:
                continue
            choice = chosen[span.method]
            row = _row(span, index, rule, choice, state)
            row["vs_center"], row["vs_center_se"] = _paired(
                state, choice, ((HALF_A, fixed_center), (HALF_B, fixed_center))
            )
            row["vs_best_center"], row["vs_best_center_se"] = _paired(state, choice, chosen["center"])
            others = [(name, _paired(state, choice, other)) for name, other in chosen.items() if name != span.method]
            row["paired"] = [{"method": name, "difference": d, "se": se} for name, (d, se) in others]
            out.append(row)
    return sorted(out, key=lambda row: [span.method for span in metrics.spans].index(row["method"]))


def choose(span: Span, rule: str, wrong: NDArray[np.int64], iou: NDArray[np.int64]) -> Choice:
    """The column with the fewest wrong, then the highest IoU, then the lowest threshold, where ``rule`` may look."""

    def best(groups: list[int]) -> int:
        errors, overlap = wrong[groups, span.slice].sum(0), iou[groups, span.slice].sum(0)
        return span.first + int(np.lexsort((np.arange(len(span.grid)), -overlap, errors))[0])

    if rule == "tuned":
        return ((HALF_A, best([TUNE])), (HALF_B, best([TUNE])))
    if rule == "halves":  # each half is judged at the threshold the other one prefers
        return ((HALF_A, best([HALF_B])), (HALF_B, best([HALF_A])))
    return ((HALF_A, best([HALF_A, HALF_B])), (HALF_B, best([HALF_A, HALF_B])))


def _row(span: Span, index: int, rule: str, choice: Choice, state: State) -> dict[str, Any]:
    held = [HALF_A, HALF_B]
    n = int(state["images"][held].sum())
    wrong = state["both_wrong"].diagonal(0, 1, 2)
    top1, top5 = _at(wrong, choice), _at(state["top5_wrong"], choice)
    _, mean, error = mean_and_error(np.array([n, _at(state["iou"], choice), _at(state["iou_squared"], choice)]))
    used = [span.grid[c - span.first] for _, c in choice]
    thresholds = used if rule == "halves" else used[:1]
    masked = int(state["masked"][held, index].sum())
    mask = _at(state["mask_iou"], choose_mask(span, rule, state)) if masked else 0
    curves = {
        name: (counts[held, span.slice].sum(0) / n if n else np.full(len(span.grid), np.nan)).tolist()
        for name, counts in (("curve", wrong), ("curve_top5", state["top5_wrong"]), ("curve_iou", state["iou"] / UNIT))
    }
    tuning = {"tuned": state["images"][TUNE], "halves": n, "oracle": n, "fixed": 0}[rule]
    return {
        "method": span.method,
        "rule": rule,
        "threshold": float(np.mean(thresholds)),
        "thresholds": thresholds,
        "n": n,
        "skipped": int(state["skipped"][held].sum()),
        "tuning_images": int(tuning),
        "top1_loc_error": _share(top1, n),
        "top1_loc_se": _binomial(top1, n),
        "top5_loc_error": _share(top5, n),
        "top5_loc_se": _binomial(top5, n),
        "top1_cls_error": _share(int(state["top1_class"][held].sum()), n),
        "top5_cls_error": _share(int(state["top5_class"][held].sum()), n),
        "mean_iou": mean,
        "mean_iou_se": error,
        "missing_fits": int(state["missing"][held, index].sum()),
        "missing_fits_top5": int(state["missing_any"][held, index].sum()),
        "grid": list(span.grid),
        **curves,
        "mask_images": masked,
        "mask_iou": _share(mask, masked) / UNIT,
        "mask_iou_best": _share(int(state["mask_best"][held, index].sum()), masked) / UNIT,
    }


def choose_mask(span: Span, rule: str, state: State) -> Choice:
    """The threshold for masks, by the same rule but for the highest mean mask IoU."""
    if rule == "tuned" and not state["masked"][TUNE].any():
        rule = "halves"  # a tuning split without masks says nothing about them
    return choose(span, rule, -state["mask_iou"], state["mask_iou"])


def _at(counts: NDArray[np.int64], choice: Choice) -> int:
    return int(sum(counts[group, index] for group, index in choice))


def _share(count: int, n: int) -> float:
    return count / n if n else math.nan


def _binomial(count: int, n: int) -> float:
    return math.sqrt(count / n * (1 - count / n) / n) if n else math.nan


def _paired(state: State, mine: Choice, other: Choice) -> tuple[float, float]:
    """Mean and standard error of (I am wrong) - (the other is wrong) over the same images."""
    n = int(state["images"][[HALF_A, HALF_B]].sum())
    if not n:
        return math.nan, math.nan
    only_mine = only_other = 0
    for (group, a), (_, b) in zip(mine, other, strict=True):
        counts = state["both_wrong"][group]
        only_mine += int(counts[a, a] - counts[a, b])
        only_other += int(counts[b, b] - counts[a, b])
    difference = (only_mine - only_other) / n
    return difference, math.sqrt(max(0.0, (only_mine + only_other) / n - difference**2) / n)


def summary(metrics: LocalizationMetrics, table: pa.Table) -> dict[str, Any]:
    """JSON-able: NaN becomes None."""
    rows_ = [{name: _plain(value) for name, value in row.items()} for row in table.to_pylist()]
    first = rows_[0] if rows_ else {}
    rule = next((r["rule"] for r in rows_ if r["rule"] in ("tuned", "halves")), None)
    return {
        "rule": rule,
        "iou": metrics.config.iou,
        "center": metrics.config.center,
        **{name: first.get(name) for name in ("n", "skipped", "top1_cls_error", "top5_cls_error")},
        "tuning_images": next((r["tuning_images"] for r in rows_ if r["rule"] == rule), 0),
        "rows": rows_,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value
