"""CHIP's report: how well the maps find the object (the paper's Table II), and by how much."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa

from jobs.chip.report_data import (
    BASELINES,
    METHODS,
    RULES,
    ChipReportData,
    chosen_metrics,
    method_colours,
    method_order,
    method_title,
    rows,
)
from pipeline.report import plots
from pipeline.report.blocks import (
    Cell,
    Column,
    Figure,
    Group,
    Notice,
    Paragraph,
    Section,
    Table,
    Tone,
)
from pipeline.report.wording import counted, show

_RULE_TITLES = {
    "tuned": "Threshold chosen on the tuning split",
    "halves": "Threshold chosen on one half of the evaluation images, applied to the other, both ways",
    "fixed": "No threshold to choose",
    "oracle": "Oracle: the threshold that is best on the evaluation images themselves",
}
# Table II of the paper; Caffe's VGG16 on the 50,000 ILSVRC validation images. Percent.
_PAPER = (
    ("Backprop", 61.11, 51.43),
    ("c-MWP", 70.92, 63.01),
    ("Grad-CAM", 56.47, 46.35),
    ("CHIP", 51.45, 40.16),
)
_PAPER_CLASS_ERRORS = (30.12, 10.85)


def section(data: ChipReportData) -> Section:
    """Localization errors, paired differences and threshold curves of the first solve."""
    title = "Localization"
    if not data.solves or data.solves[0].metrics is None or not data.solves[0].metrics.num_rows:
        return Section(
            title,
            [
                Paragraph(
                    "This run holds no boxes on an evaluation split, so there are no localization errors to report."
                )
            ],
        )
    solve = data.solves[0]
    metrics = solve.metrics
    assert metrics is not None
    blocks: list[Any] = [_table(metrics, data.paper)]
    blocks += _missing(metrics)
    differences = _differences(metrics)
    if differences is not None:
        blocks.append(differences)
    curve = _curves(metrics)
    if curve is not None:
        blocks.append(curve)
    lead = (
        "A prediction is right when the class is right and the box of its map overlaps a true box by enough "
        f"(IoU ≥ {data.iou:g}). {frame_sentence(data)}"
    )
    return Section(title, blocks, lead)


def frame_sentence(data: ChipReportData) -> str:
    height, width = data.preprocess.size
    if data.preprocess.frame == "squash":
        return f"Frame: the whole image squashed to {width}×{height}, so the map covers all of it."
    resize = data.preprocess.resize or round(max(height, width) * 8 / 7)
    return f"Frame: short side resized to {resize}, centre crop of {width}×{height}; boxes are clipped to the crop."


def _table(metrics: pa.Table, paper: bool) -> Table:
    masks = any(row.get("mask_images") for row in rows(metrics))
    by_rule: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows(metrics):
        by_rule.setdefault(row["rule"] or "", {})[row["method"]] = row
    rules = sorted(by_rule, key=lambda r: RULES.index(r) if r in RULES else len(RULES))
    groups = [
        Group([_row(by_rule[rule][m], masks) for m in method_order(list(by_rule[rule]))], _RULE_TITLES.get(rule, rule))
        for rule in rules
    ]
    if paper:
        groups.append(
            Group(
                [
                    [
                        name,
                        None,
                        *(f"{v:.2f}" for v in (top1, top5, *_PAPER_CLASS_ERRORS)),
                        *[None] * (3 + masks),
                    ]
                    for name, top1, top5 in _PAPER
                ],
                "The paper's Table II, on Caffe's VGG16: compare the order, not the values",
            )
        )
    columns = [
        Column("Method"),
        Column("Threshold", numeric=True, digits=2, help="share of the map's maximum; for the centred box, its side"),
        Column("Top-1 loc", numeric=True, digits=1, best="min", unit="% error"),
        Column("Top-5 loc", numeric=True, digits=1, best="min", unit="% error"),
        Column("Top-1 class", numeric=True, digits=1, unit="% error"),
        Column("Top-5 class", numeric=True, digits=1, unit="% error"),
        Column("Mean IoU", numeric=True, digits=3, best="max"),
        *([Column("Mask IoU", numeric=True, digits=3, best="max", help="with the object's mask")] if masks else []),
        Column("No fit", numeric=True, help="images whose predicted class has no fit: counted as wrong"),
        Column("Images", numeric=True),
    ]
    note = (
        "± is one standard error. Lower is better for errors; the best of each group is bold. The oracle has seen the "
        "answers and is listed for comparison with the paper only."
    )
    return Table(columns, groups, "Errors per method", note)


def _row(row: dict[str, Any], masks: bool) -> list[Any]:
    # Where nothing was chosen only the two reference boxes stand: the better of them is no winner.
    ranked = row["rule"] != "fixed"

    def percent(name: str, se: str = "") -> Cell:
        value, error = row.get(name), row.get(se)
        return Cell(None if value is None else 100 * value, None if error is None else 100 * error, ranked=ranked)

    name = Cell(method_title(row["method"]), tone="muted" if row["method"] in BASELINES else "")
    return [
        name,
        None if row["method"] == "whole_image" else row.get("threshold"),
        percent("top1_loc_error", "top1_loc_se"),
        percent("top5_loc_error", "top5_loc_se"),
        percent("top1_cls_error"),
        percent("top5_cls_error"),
        Cell(row.get("mean_iou"), ranked=ranked),
        *([row.get("mask_iou")] if masks else []),
        row.get("missing_fits"),
        row.get("n"),
    ]


def _missing(metrics: pa.Table) -> list[Notice]:
    worst = max(rows(metrics), key=lambda r: (r.get("missing_fits") or 0) / max(1, r.get("n") or 0))
    count, n = worst.get("missing_fits") or 0, worst.get("n") or 0
    if not count:
        return []
    return [
        Notice(
            f"{show(count)} of {counted(n, 'image')} counted as wrong: the predicted class has no fit",
            "No fit image belongs to those classes. Methods without fits (Grad-CAM, gradient) do not carry this loss.",
        )
    ]


def _differences(metrics: pa.Table) -> Table | None:
    """Paired differences under the fairest rule: to the centred box of fixed size, of the best size, to Grad-CAM."""
    chosen = chosen_metrics(metrics)
    table_rows = []
    for method in method_order(list(chosen)):
        row = chosen[method]
        if method in BASELINES or row.get("vs_center") is None:
            continue
        others = {p["method"]: p for p in row.get("paired") or ()}
        other = others.get("grad_cam", {})
        table_rows.append(
            [
                method_title(method),
                _difference(row["vs_center"], row["vs_center_se"]),
                _difference(row["vs_best_center"], row["vs_best_center_se"]),
                _difference(other.get("difference"), other.get("se")),
            ]
        )
    if not table_rows:
        return None
    sizes = [r["threshold"] for r in rows(metrics) if r["method"] == "center" and r["rule"] == "fixed"]
    fixed = f"{sizes[0]:.0%} of each side, points" if sizes else "points"
    columns = [
        Column("Method"),
        Column("Against the centred box", numeric=True, digits=1, unit=fixed),
        Column("Against its best size", numeric=True, digits=1, unit="points"),
        Column("Against Grad-CAM", numeric=True, digits=1, unit="points"),
    ]
    note = (
        "Difference of top-1 localization error, ± one paired standard error; negative is better. Pairing removes what "
        "makes an image hard for every method. Green and red mark differences beyond two standard errors."
    )
    return Table(columns, [Group(table_rows)], "Paired differences on the same images", note)


def _difference(value: float | None, se: float | None) -> Cell:
    if value is None or se is None or not math.isfinite(value):
        return Cell(None)
    tone: Tone = "" if abs(value) <= 2 * se else "good" if value < 0 else "bad"
    return Cell(100 * value, 100 * se, tone=tone)


def _curves(metrics: pa.Table) -> Figure | None:
    chosen = chosen_metrics(metrics)
    series = []
    for method in method_order(list(chosen)):
        row = chosen[method]
        curve, grid = row.get("curve"), row.get("grid") or []
        if method in BASELINES:
            continue
        if not curve or len(curve) != len(grid):
            continue
        y = [100 * v for v in curve]
        # Away from the chosen threshold the standard error of a share follows from its value.
        se = [100 * (max(0.0, v * (1 - v)) / max(1, row.get("n") or 1)) ** 0.5 for v in curve]
        mark = None
        if row.get("threshold") is not None and row["rule"] != "halves":
            at = min(range(len(y)), key=lambda i: abs(grid[i] - row["threshold"]))
            mark = (grid[at], y[at])
        low, high = [a - b for a, b in zip(y, se, strict=True)], [a + b for a, b in zip(y, se, strict=True)]
        series.append(plots.Series(method_title(method), grid, y, low, high, mark=mark))
    if not series:
        return None
    for method in BASELINES:
        if method in chosen:
            level = 100 * chosen[method]["top1_loc_error"]
            ends = [series[0].x[0], series[0].x[-1]]
            colour = METHODS[method][1]
            series.append(plots.Series(METHODS[method][0], ends, [level] * 2, colour=colour, dashed=True))
    fixed = method_colours(list(chosen))
    painted = [
        plots.Series(s.label, s.x, s.y, s.low, s.high, fixed.get(s.label, s.colour), s.dashed, s.mark) for s in series
    ]
    image = plots.curves(
        painted, x_label="threshold, share of the map's maximum", y_label="top-1 localization error", percent_y=True,
    )  # fmt: skip
    best = "; ".join(f"{s.label} {min(s.y):.1f} % at best" for s in series)
    return Figure(
        image,
        f"Top-1 localization error against the threshold, one curve per method: {best}.",
        "Each curve is the error if that threshold were used for every image (band: one standard error); the dot is "
        "the threshold that was chosen. Flat curves are robust; dashed lines need no map at all.",
        "Error against threshold",
    )
