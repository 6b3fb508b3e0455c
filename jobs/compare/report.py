"""The comparison's page: one table of methods by measures, curves, classes, and the maps side by side."""

from __future__ import annotations

import math
from typing import Any

from jobs.compare import papers, report_pictures
from jobs.compare.report_data import COLUMNS, METHODS, CompareReportData, class_name, title
from jobs.report.parts import accounting, as_yaml, plain
from pipeline.report import plots
from pipeline.report.blocks import (
    Cell,
    Code,
    Column,
    Details,
    Facts,
    Figure,
    Group,
    Paragraph,
    Section,
    Table,
)
from pipeline.report.page import Page
from pipeline.report.wording import show
from stages.metrics.comparison_table import MEASURES

_RULES = {
    "tuned": "threshold chosen on the tuning split",
    "halves": "threshold chosen on one half of the images, applied to the other, both ways",
    "fixed": "no threshold to choose",
    "oracle": "oracle: the threshold that is best on these images themselves",
    "": "no threshold to choose",
}


def write_report(run_url: str) -> str:
    """Write RUN/report/<fingerprint8>/index.html and return where it lies."""
    from jobs.compare.gather import gather

    run, mark, data = gather(run_url)
    folder = run.folder.child("report", mark[:8])
    folder.write("index.html", compare_page(data).bytes())
    return folder.path("index.html")


def compare_page(data: CompareReportData) -> Page:
    """The whole page. Parts the run does not hold are said in a sentence; only ``data.load`` reads files."""
    return Page(
        title=f"{len(data.methods)} methods compared on {data.network}",
        subtitle=f"The same images, boxes, thresholds and protocol for every method. Run {data.run}",
        kicker="Raylens · comparison",
        sections=[
            _table(data),
            *report_pictures.sections(data),
            _curves(data),
            _intervals(data),
            *papers.sections(data),
            _classes(data),
            _what_ran(data),
        ],
        warnings=accounting(data.totals),
        provenance=[
            Facts([(str(k).replace("_", " "), plain(v)) for k, v in data.provenance.items()]),
            Details("Resolved configuration", [Code(as_yaml(data.config))]),
        ],
        footer=f"Made by Raylens from {data.run}. This page is one file, holds its images and loads nothing.",
    )


def _table(data: CompareReportData) -> Section:
    references = ["center", "whole_image"]
    shown = [c for c in COLUMNS if any(data.value(c.measure, m) is not None for m in data.methods)]
    if not shown:
        return Section("Methods by measures", [Paragraph("No row of this run has boxes or masks to be measured by.")])
    columns = [Column("Method")]
    for c in shown:
        counts = sorted({r["n"] for m in data.methods if (r := data.value(c.measure, m)) is not None})
        alike = len(counts) == 1
        of = "images and classes" if c.measure.startswith("pointing") else "images"
        note = f"{MEASURES[c.measure][0]}; {show(counts[0])}{'' if alike else f' to {show(counts[-1])}'} {of}"
        if not alike:
            note += ": methods that answer for others only cannot be ranked"
        best: Any = c.best if alike else ""
        columns.append(Column(c.title, numeric=True, digits=c.digits, best=best, unit=c.unit, help=note))
    if data.seconds:
        columns.append(Column("Seconds", numeric=True, digits=3, best="min", unit="per image", help="one class asked"))
    body = [_table_row(data, m, shown) for m in data.methods]
    fixed = [_table_row(data, m, shown) for m in references if any(data.value(c.measure, m) for c in shown)]
    groups = [Group(body), *([Group(fixed, "Boxes and points that look at nothing")] if fixed else [])]
    rules = {r["rule"] for m in data.methods for c in shown if (r := data.value(c.measure, m)) is not None}
    how = " · ".join(_RULES[rule] for rule in ("tuned", "halves") if rule in rules)
    note = "± is one standard error; the best of each column is bold, where all are of the same images."
    note += f" Localization: {how}." if how else ""
    lead = "Lower is better for errors, MAE and deletion; higher for everything else. Intervals of 95 % are below."
    return Section("Methods by measures", [Table(columns, groups, "Every method by every measure", note)], lead)


def _table_row(data: CompareReportData, method: str, columns: Any) -> list[Any]:
    row: list[Any] = [title(method)]
    for c in columns:
        found = data.value(c.measure, method)
        scale = 100 if c.percent else 1
        if found is None or found["value"] is None:
            row.append(Cell(None))
        else:
            error = found["se"]
            row.append(Cell(scale * found["value"], None if error is None else scale * error))
    if data.seconds:
        seconds = data.seconds.get(method)
        row.append(Cell(None if seconds is None else seconds[0]))
    return row


def _intervals(data: CompareReportData) -> Section:
    """Every value with its rule, threshold and interval: the oracle's too."""
    names = {c.measure: c for c in COLUMNS}
    groups = []
    for measure, (meaning, _) in MEASURES.items():
        rows = [r for r in data.metrics if r["measure"] == measure and r["class_id"] is None and r["value"] is not None]
        if not rows:
            continue
        scale = 100 if measure in names and names[measure].percent else 1
        body = []
        for r in rows:
            interval = "" if _nan(r["low"]) else f"{scale * r['low']:.3g} to {scale * r['high']:.3g}"
            thresholds = ", ".join(f"{t:g}" for t in r["thresholds"])
            value = Cell(scale * r["value"], None if _nan(r["se"]) else scale * r["se"])
            body.append([title(r["method"]), r["rule"] or "-", thresholds or None, value, interval, r["n"]])
        groups.append(Group(body, f"{measure.replace('_', ' ')}: {meaning}" + (" (percent)" if scale == 100 else "")))
    columns = [
        Column("Method"),
        Column("Rule"),
        Column("Threshold"),
        Column("Value", numeric=True, digits=3),
        Column("95 %"),
        Column("n", numeric=True),
    ]
    if not groups:
        return Section("Intervals", [Paragraph("There is nothing to give an interval of.")])
    note = "Intervals: Wilson's for shares, else 1.96 standard errors to either side."
    return Section("Intervals and thresholds", [Details("All values", [Table(columns, groups, "All values", note)])])


def _curves(data: CompareReportData) -> Section:
    figures: list[Any] = []
    for measure, x_label, y_label in (
        ("chip_top1_error", "threshold, share of the map's maximum", "top-1 localization error"),
        ("gfi_error", "alpha, multiple of the map's mean", "localization error"),
        ("mask_iou", "threshold, share of the map's maximum", "IoU with the mask"),
    ):
        series = []
        for method in data.methods:
            row = data.value(measure, method)
            if row is not None and row["curve"]:
                scale = 1 if measure == "mask_iou" else 100
                y = [scale * v for v in row["curve"]]
                colour = METHODS.get(method, ("", ""))[1]
                series.append(plots.Series(title(method), row["grid"], y, colour=colour))
        if series:
            image = plots.curves(series, x_label=x_label, y_label=y_label, percent_y=measure != "mask_iou")
            text = f"{y_label} of {len(series)} methods by {x_label}"
            figures.append(
                Figure(image, text, "All images, every threshold.", f"{y_label[0].upper()}{y_label[1:]} by threshold")
            )
    if not figures:
        return Section("Threshold curves", [Paragraph("No threshold was applied in this run.")])
    return Section("Threshold curves", figures)


def _classes(data: CompareReportData) -> Section:
    blocks: list[Any] = []
    for measure, heading in (("chip_top1_error", "Top-1 localization error"), ("pointing_0", "Pointing, hits")):
        rows = [r for r in data.metrics if r["measure"] == measure and r["class_id"] is not None]
        counts: dict[int, int] = {}
        for r in rows:
            counts[r["class_id"]] = max(counts.get(r["class_id"], 0), r["n"])
        chosen = sorted(sorted(counts, key=lambda c: (-counts[c], c))[: data.classes])
        if not chosen or max(counts.values()) < 2:
            continue
        value = {(r["class_id"], r["method"]): r for r in rows}
        body = []
        for c in chosen:
            cells = [value.get((c, m)) for m in data.methods]
            shown = [Cell(None) if r is None else Cell(100 * r["value"], 100 * r["se"]) for r in cells]
            body.append([class_name(data.truth_names, c), counts[c], *shown])
        columns = [Column("Class"), Column("Images", numeric=True)]
        columns += [Column(title(m), numeric=True, digits=0, unit="%") for m in data.methods]
        note = f"The {len(chosen)} of {len(counts)} classes with the most images."
        blocks.append(Table(columns, [Group(body)], heading, note))
    if not blocks:
        return Section("By class", [Paragraph("No class has two images or more, so a breakdown would say nothing.")])
    return Section("By class", blocks)


def _what_ran(data: CompareReportData) -> Section:
    facts = [("network", data.network), ("frame", data.frame)]
    if data.seconds:
        facts.append(("timed on", data.device))
    columns = [
        Column("Step"),
        Column("Split"),
        *(Column(n, numeric=True) for n in ("Planned", "Ok", "Filtered", "Failed")),
    ]
    body = [
        [t.step, t.split, t.rows, t.ok, t.filtered, Cell(t.failed, tone="bad" if t.failed else "")] for t in data.totals
    ]
    blocks: list[Any] = [Facts(facts)]
    if body:
        blocks.append(Table(columns, [Group(body)], "Rows by how they ended"))
    for t in data.totals:
        if t.failures:
            rows = [[key, reason] for key, reason in t.failures]
            table = Table(
                [Column("Key", code=True), Column("Reason")], [Group(rows)], f"Failed in {t.step} ({t.split})"
            )
            blocks.append(Details(f"{show(t.failed)} failed in {t.step} ({t.split})", [table]))
    return Section("What ran", blocks)


def _nan(value: Any) -> bool:
    return value is None or not math.isfinite(value)
