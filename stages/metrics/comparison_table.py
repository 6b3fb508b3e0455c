"""From counts to the comparison's table: every measure with its standard error and a 95 % interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.metrics.localization_table import HALF_A, HALF_B, TUNE, Choice, choose, choose_mask
from stages.metrics.localization_table import rows as localization_rows
from stages.metrics.moments import UNIT, mean_and_error, normal_interval, wilson_interval
from stages.metrics.pointing import over_classes
from stages.metrics.salient import f_measure

if TYPE_CHECKING:
    from stages.metrics.comparison import ComparisonMetrics, State

#: name -> (what it is, whether more is better)
MEASURES: dict[str, tuple[str, bool]] = {
    "chip_top1_error": ("class or box wrong: pixels >= t * max, largest component, overlap as asked", False),
    "chip_top5_error": ("the same, the class being one of five", False),
    "chip_mean_iou": ("IoU of the asked class's box with the best true box", True),
    "chip_vs_center": ("top-1 error minus that of the centred box, same images", False),
    "gfi_error": ("box wrong, the class given: pixels >= alpha * mean, one box, overlap as asked", False),
    "gfi_mean_iou": ("IoU of that box with the best true box", True),
    "gfi_vs_center": ("GFI's error minus that of the centred box, same images", False),
    "class_top1_error": ("class wrong", False),
    "class_top5_error": ("class not among five", False),
    "mask_iou": ("IoU of pixels >= t * max with the mask", True),
    "mask_iou_best": ("the same, each image at its own best threshold (for figures only)", True),
    "pointing_0": ("highest pixel on an object of the class, mean over classes", True),
    "pointing_15": ("the same within 15 pixels", True),
    "pointing_0_easy": ("highest pixel on an object that is not difficult, mean over classes", True),
    "pointing_15_easy": ("the same within 15 pixels", True),
    "precision": ("of pixels >= 2 x mean", True),
    "recall": ("of pixels >= 2 x mean", True),
    "f": ("F (beta^2 = 0.3) of each image, mean", True),
    "f_of_means": ("F (beta^2 = 0.3) of mean precision and mean recall", True),
    "mae": ("mean absolute error of the map itself", False),
    "deletion": ("area under the probability while the highest pixels go", False),
    "insertion": ("area under the probability while they come", True),
    "attack_rank": ("rank correlation of the map with that of the attacked input", True),
    "attack_error_change": ("top-1 localization error (class or box wrong) on attacked inputs minus on clean", False),
    "unanswered": ("images for whose class the method has no answer: each counts as wrong, no curve is drawn", False),
}
_SHARES = {"chip_top1_error", "chip_top5_error", "gfi_error", "class_top1_error", "class_top5_error", "unanswered"}
_POINTING = {(0, 0): "pointing_0", (1, 0): "pointing_15", (0, 1): "pointing_0_easy", (1, 1): "pointing_15_easy"}
_SCALARS = ("precision", "recall", "f", "mae", "deletion", "insertion", "attack_rank")


def rows(metrics: ComparisonMetrics, state: State) -> list[dict[str, Any]]:
    """As ``ComparisonMetrics.schema`` says, in the order of MEASURES, then methods."""
    out = [*_localization(metrics, state), *_scalars(metrics, state), *_pointing(metrics, state)]
    out += _unanswered(metrics, state)
    if any(row["measure"] == "chip_top1_error" for row in out):
        out += [*_classes(metrics, state), *_attacked(metrics, state)]
    measures, methods = list(MEASURES), [span.method for span in metrics.chip.spans]

    def place(row: dict[str, Any]) -> tuple[int, int, int]:
        of_class = -1 if row["class_id"] is None else row["class_id"]
        return measures.index(row["measure"]), methods.index(row["method"]), of_class

    return sorted(out, key=place)


def _localization(metrics: ComparisonMetrics, state: State) -> list[dict[str, Any]]:
    out = []
    for protocol, reduction in (("chip", metrics.chip), ("gfi", metrics.gfi)):
        for row in localization_rows(reduction, state[protocol]):
            if row["n"]:
                curve = {"grid": row["grid"], "curve": row["curve"]}
                kept = {"method": row["method"], "rule": row["rule"], "thresholds": row["thresholds"], "n": row["n"]}
                error = "chip_top1_error" if protocol == "chip" else "gfi_error"
                out.append(_made(error, row["top1_loc_error"], row["top1_loc_se"], **kept, **curve))
                if protocol == "chip" and metrics.config.top5:
                    curve = {"grid": row["grid"], "curve": row["curve_top5"]}
                    out.append(_made("chip_top5_error", row["top5_loc_error"], row["top5_loc_se"], **kept, **curve))
                if protocol == "chip":
                    for k in ("top1", "top5"):
                        wrong = row[f"{k}_cls_error"]
                        se = math.sqrt(wrong * (1 - wrong) / row["n"])
                        out.append(_made(f"class_{k}_error", wrong, se, **kept))
                out.append(_made(f"{protocol}_mean_iou", row["mean_iou"], row["mean_iou_se"], **kept))
                out.append(_made(f"{protocol}_vs_center", row["vs_center"], row["vs_center_se"], **kept))
    return out + _masks(metrics, state)


def _masks(metrics: ComparisonMetrics, state: State) -> list[dict[str, Any]]:
    """Mask IoU does not need boxes, so it is chosen and counted apart from them."""
    out = []
    held = [HALF_A, HALF_B]
    counts = state
    for index, span in enumerate(metrics.chip.spans[: len(metrics.config.methods)]):
        n = int(counts["masked"][held, index].sum())
        if not n:
            continue
        for rule in ("tuned" if counts["masked"][TUNE].any() else "halves", "oracle"):
            choice = choose_mask(span, rule, counts)
            sums = (_at(counts[name], choice) for name in ("mask_iou", "mask_squared"))
            _, mean, error = mean_and_error(np.array([n, *sums]))
            curve = (counts["mask_iou"][held, span.slice].sum(0) / UNIT / n).tolist()
            used = [span.grid[c - span.first] for _, c in choice]
            more = {"method": span.method, "rule": rule, "n": n, "grid": list(span.grid), "curve": curve}
            thresholds = used if rule == "halves" else used[:1]
            out.append(_made("mask_iou", mean, error, thresholds=thresholds, **more))
        best = int(counts["mask_best"][held, index].sum()) / UNIT / n
        out.append(_made("mask_iou_best", best, math.nan, method=span.method, rule="oracle", n=n))
    return out


def _scalars(metrics: ComparisonMetrics, state: State) -> list[dict[str, Any]]:
    out = []
    for index, method in enumerate(metrics.config.methods):
        found = {name: mean_and_error(of) for name, of in zip(_SCALARS, state["scalars"][index], strict=True)}
        out += [_made(name, mean, se, method=method, n=n) for name, (n, mean, se) in found.items() if n]
        n, precision, _ = found["precision"]
        if n:
            out.append(_made("f_of_means", f_measure(precision, found["recall"][1]), math.nan, method=method, n=n))
    return out


def _pointing(metrics: ComparisonMetrics, state: State) -> list[dict[str, Any]]:
    """Per class, and their mean: of every method, and of the point in the middle, which looks at nothing."""
    out = []
    for index, method in enumerate((*metrics.config.methods, "center")):
        for (tolerance, kind), measure in _POINTING.items():
            counted = [
                (c, *map(int, counts[index, tolerance, kind])) for c, counts in sorted(state["pointing"].items())
            ]
            counted = [(c, n, hits) for c, n, hits in counted if n]
            for c, n, hits in counted:
                if c >= 0:
                    share = hits / n
                    low, high = wilson_interval(share, n)
                    row = _made(measure, share, math.sqrt(share * (1 - share) / n), method=method, n=n, class_id=c)
                    out.append(row | {"low": low, "high": high})
            if counted:
                _, points, hit = zip(*counted, strict=True)
                value, se, low, high = over_classes(hit, points)
                out.append(_made(measure, value, se, method=method, n=sum(points)) | {"low": low, "high": high})
    return out


def _unanswered(metrics: ComparisonMetrics, state: State) -> list[dict[str, Any]]:
    """Nothing where every method answers everything."""
    n, missing = int(state["unanswered"][-1]), state["unanswered"][:-1]
    if not missing.any():
        return []
    out = []
    for method, count in zip(metrics.config.methods, missing, strict=True):
        share = int(count) / n
        out.append(_made("unanswered", share, math.sqrt(share * (1 - share) / n), method=method, n=n))
    return out


def _classes(metrics: ComparisonMetrics, state: State) -> list[dict[str, Any]]:
    """Top-1 error under CHIP's protocol by class, at the threshold that was chosen for all."""
    out = []
    for span, choice, rule in _chosen(metrics, state):
        for c, counts in sorted(state["classes"].items()):
            n = int(counts[[HALF_A, HALF_B], 0].sum())
            if n:
                share = _at(counts[:, 1:], choice) / n
                se = math.sqrt(share * (1 - share) / n)
                out.append(_made("chip_top1_error", share, se, method=span.method, rule=rule, n=n, class_id=c))
    return out


def _attacked(metrics: ComparisonMetrics, state: State) -> list[dict[str, Any]]:
    if not metrics.config.attack:
        return []
    out = []
    n = int(state["chip"]["images"][[HALF_A, HALF_B]].sum())
    for span, choice, rule in _chosen(metrics, state):
        worse, better = (_at(state["attacked"][i], choice) for i in range(2))
        change = (worse - better) / n
        se = math.sqrt(max(0.0, (worse + better) / n - change**2) / n)
        out.append(_made("attack_error_change", change, se, method=span.method, rule=rule, n=n))
    return out


def _chosen(metrics: ComparisonMetrics, state: State) -> list[tuple[Any, Choice, str]]:
    """Each method's threshold under CHIP's protocol by the rule that may be reported."""
    counts = state["chip"]
    rule = "tuned" if counts["images"][TUNE] else "halves"
    wrong = counts["both_wrong"].diagonal(0, 1, 2)
    mine = [span for span in metrics.chip.spans if span.method in metrics.config.methods]
    return [(span, choose(span, rule, wrong, counts["iou"]), rule) for span in mine]


def _at(counts: NDArray[np.int64], choice: Choice) -> int:
    return int(sum(counts[group, index] for group, index in choice))


def _made(measure: str, value: float, se: float, *, method: str, n: int, **more: Any) -> dict[str, Any]:
    low, high = wilson_interval(value, n) if measure in _SHARES else normal_interval(value, se)
    row = {"measure": measure, "method": method, "rule": "", "class_id": None, "n": n, "value": value, "se": se}
    return row | {"low": low, "high": high, "thresholds": [], "grid": [], "curve": []} | more


def summary(table: pa.Table) -> dict[str, Any]:
    """JSON-able: NaN becomes None; classes are left to the table."""
    kept = [row for row in table.to_pylist() if row["class_id"] is None]
    return {
        "measures": {k: v[0] for k, v in MEASURES.items()},
        "rows": [{k: _plain(v) for k, v in r.items()} for r in kept],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [_plain(v) for v in value] if isinstance(value, list) else value
