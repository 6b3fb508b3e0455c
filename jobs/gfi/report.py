"""GFI's page: what ran, where the objects were found, what the masks did to the class, what they look like."""

from __future__ import annotations

import math
from typing import Any

from jobs.gfi import report_pictures
from jobs.gfi.report_data import MAPS, RULES, GfiReportData, Row, located
from jobs.report.parts import accounting, as_yaml, plain
from pipeline.report import plots
from pipeline.report.blocks import (
    Card,
    Cell,
    Code,
    Column,
    Details,
    Facts,
    Figure,
    Group,
    Notice,
    Paragraph,
    Section,
    Table,
    Tone,
)
from pipeline.report.page import Page
from pipeline.report.wording import counted, show

_RULE_TITLES = {
    "tuned": "Threshold chosen on the tuning split",
    "halves": "Threshold chosen on one half of the images, applied to the other, both ways",
    "fixed": "No threshold to choose",
    "oracle": "Oracle: the threshold that is best on the evaluation images themselves",
}
_BOXES = {
    "mean": ("alpha × mean, one box around all kept pixels (GFI's protocol)", "alpha"),
    "max": ("t × maximum, largest component (CHIP's protocol)", "threshold, share of the mask's maximum"),
}
_SCORES = (
    ("score", "Whole image"),
    ("kept_before", "Kept part, unoptimised mask"),
    ("kept_after", "Kept part, GFI"),
    ("kept_gain", "Kept part, gain (paired)"),
    ("removed_before", "Removed part, unoptimised mask"),
    ("removed_after", "Removed part, GFI"),
    ("removed_gain", "Removed part, gain (paired)"),
    ("zeros", "Share of weights at 0"),
    ("flat", "Share of masks without contrast"),
)
# Table 1 of the paper, VGG-19; all but GFI quoted there from another paper on another network. Percent, and alpha.
_PAPER = (
    ("Gradient", 41.7, "5.0"), ("Guided backprop", 42.0, "4.5"), ("LRP", 57.8, "1.0"), ("CAM", 48.1, "1.0"),
    ("Mask", 43.2, "0.5"), ("Real-time saliency", 36.9, None), ("GFI", 38.2, "1.1 or 1.5"),
)  # fmt: skip
# The paper's pointing game on VOC07 test, all boxes, no tolerance: VGG-19 with a last layer trained on VOC.
_PAPER_POINTING = (("Centre", 48.3), ("Gradient", 53.1), ("Grad-CAM", 55.0), ("GFI", 54.7))


def gfi_page(data: GfiReportData) -> Page:
    """The whole page. Parts the run does not hold are said in a sentence; only ``data.load`` reads files."""
    return Page(
        title=f"GFI on {data.network.get('name', 'network')}",
        subtitle=f"The part of an image that the network needs to see its class; run {data.run}",
        kicker="Raylens · guided feature inversion",
        sections=[
            _what_ran(data),
            _probabilities(data),
            _localization(data),
            *_pointing(data),
            report_pictures.section(data),
        ],
        cards=_cards(data),
        warnings=[*accounting(data.totals), *(Notice(note) for note in data.notes)],
        provenance=[
            Facts([(str(k).replace("_", " "), plain(v)) for k, v in data.provenance.items()]),
            Details("Resolved configuration", [Code(as_yaml(data.config))]),
        ],
        footer=f"Made by Raylens from {data.run}. This page is one file, holds its images and loads nothing.",
    )


def _cards(data: GfiReportData) -> list[Card]:
    cards = []
    own = located(data.metrics, "mean").get("gfi")
    if own is not None and own["n"]:
        note = f"± {100 * own['se']:.1f}, {counted(own['n'], 'image')}, alpha: {own['rule']}"
        cards.append(Card("Localization error", f"{100 * own['value']:.1f}", note, unit="%"))
    for name, title, good in (("kept_gain", "Kept part, gain", 1), ("removed_gain", "Removed part, gain", -1)):
        row = next((r for r in data.metrics if r["kind"] == "score" and r["name"] == name and r["n"]), None)
        if row is not None:
            beyond = abs(row["value"]) > 2 * (row["se"] or 0)
            tone: Tone = "" if not beyond else "good" if row["value"] * good > 0 else "bad"
            value = f"{row['value']:+.2f}".replace("-", "−")
            cards.append(Card(title, value, f"± {row['se']:.2f} probability against the unoptimised mask", tone))
    done = [t for t in data.totals if t.ok and t.seconds]
    if done:
        each = sum(t.seconds or 0 for t in done) / sum(t.ok + t.failed for t in done)
        cards.append(Card("Seconds an image", show(each), "compute and decoding, on the machines that ran it"))
    failed, total = sum(t.failed for t in data.totals), sum(t.rows for t in data.totals)
    cards.append(Card("Rows failed", show(failed), f"of {show(total)}", "bad" if failed else "good"))
    return cards


def _what_ran(data: GfiReportData) -> Section:
    recipe, stage = data.stage.recipe, data.stage
    height, width = stage.preprocess.size
    short = stage.preprocess.resize or round(max(height, width) * 8 / 7)
    frame = (
        f"the whole image squashed to {width}×{height}"
        if stage.preprocess.frame == "squash"
        else f"short side to {short}, centre crop {width}×{height}"
    )
    where = "pixels of the input, true boxes clipped to it" if stage.in_input else "pixels of the image"
    facts = [(str(k).replace("_", " "), plain(v)) for k, v in data.network.items()]
    facts += [
        ("preset", f"{recipe.preset}: {recipe.steps[0]} + {recipe.steps[1]} steps, mask {recipe.upsampling}"),
        ("losses", _losses(data)),
        ("background", stage.background),
        ("targets", ", ".join(map(str, stage.targets))),
        ("attack", f"FGSM, {stage.attack:g} grey levels, against the true class" if stage.attack else "none"),
        ("frame", f"{frame}; boxes compared in {where}"),
        ("precision", stage.precision),
    ]
    blocks: list[Any] = [Facts(facts)]
    if data.totals:
        counts = [Column(c, numeric=True) for c in ("Planned", "Ok", "Failed")]
        columns = [Column("Split"), *counts, Column("Compute", numeric=True, unit="seconds")]
        rows = [
            [t.split, t.rows, t.ok, Cell(t.failed, tone="bad" if t.failed else ""), round(t.seconds or 0)]
            for t in data.totals
        ]
        blocks.append(Table(columns, [Group(rows)], "Images by how they ended"))
    for t in data.totals:
        if t.failures:
            table = Table(
                [Column("Key", code=True), Column("Reason")], [Group([list(f) for f in t.failures])], "Failed rows"
            )
            blocks.append(Details(f"{show(t.failed)} failed in {t.split}", [table], open=len(t.failures) <= 5))
    return Section("What ran", blocks)


def _losses(data: GfiReportData) -> str:
    r = data.stage.recipe
    distance = "|f(Φ) − f(x)|²" + (" / |f(x)|²" if r.relative else "")
    norm = "|w|₁" if r.penalty == "l1" else "|w|₂²"
    return (
        f"{distance} + {r.gamma:g} {norm}, then −f_c(Φ) + {r.suppress:g} f_c(Φ_bg) + {r.delta:g} {norm}; f_c: {r.score}"
    )


def _probabilities(data: GfiReportData) -> Section:
    scores = [r for r in data.metrics if r["kind"] == "score"]
    asked = list(dict.fromkeys(r["asked"] for r in scores if r["asked"] is not None))
    found = {(r["asked"], r["name"]): r for r in scores}
    asked = [a for a in asked if found.get((a, "score"), {}).get("n")]
    if not asked:
        return Section("What the masks do to the class", [Paragraph("No evaluation image has an answer yet.")])
    columns = [Column("Probability of the class"), *(Column(f"target: {a}", numeric=True, digits=3) for a in asked)]
    rows = [[title, *(_score(found.get((a, name))) for a in asked)] for name, title in _SCORES]
    rows.append(["Images and classes", *(Cell(found[(a, "score")]["n"]) for a in asked)])
    blocks: list[Any] = [
        Table(
            [columns[0], *(Column(c.title, numeric=True) for c in columns[1:])],
            [Group(rows)],
            "Kept and removed part, before and after",
            "± is one standard error. A mask that works keeps the class and takes it from the rest.",
        )
    ]
    wrong = found.get((None, "class_error"))
    if wrong is not None and wrong["n"]:
        share = f"{100 * wrong['value']:.1f} ± {100 * wrong['se']:.1f} %"
        blocks.append(Paragraph(f"The network's own class error on these images: {share}.", muted=True))
    figure = _trajectories(data)
    blocks += [figure] if figure is not None else []
    lead = "Localization error alone barely sees the optimisation, so this comes first."
    return Section("What the masks do to the class", blocks, lead)


def _score(row: Row | None) -> Cell:
    if row is None or row["value"] is None or math.isnan(row["value"]):
        return Cell(None)
    se = row.get("se")
    return Cell(f"{row['value']:.3f}".replace("-", "−"), None, note="" if se is None else f"±{se:.3f}")


def _trajectories(data: GfiReportData) -> Figure | None:
    paths = data.paths
    panels = []
    inversion = len(paths.inversion)
    if inversion:
        at = list(range(inversion))
        panels.append(("inversion loss", [plots.Series("share of the first step's", at, list(paths.inversion))]))
    if len(paths.kept):
        at = list(range(inversion, inversion + len(paths.kept)))
        kept = plots.Series("kept part", at, list(paths.kept), colour=MAPS["gfi"][1])
        panels.append(("class score", [kept, plots.Series("removed part", at, list(paths.removed))]))
    if not panels or not paths.images:
        return None
    image = plots.stacked_curves(panels, x_label="step")
    alt = f"Mean trajectories over {paths.images} images: the kept part's class score rises, the removed part's falls."
    caption = f"Means over {counted(paths.images, 'image')} (the first target), measured before each step."
    return Figure(image, alt, caption, "Along the optimisation")


def _localization(data: GfiReportData) -> Section:
    title = "Localization"
    rows = [r for r in data.metrics if r["kind"] == "localization" and r["n"]]
    if not rows:
        return Section(title, [Paragraph("This run holds no true boxes, so there are no localization errors.")])
    groups = []
    for rule in RULES:
        for box in _BOXES:
            mine = [r for r in rows if r["rule"] == rule and r["box"] == box]
            if mine:
                groups.append(Group([_located_row(r) for r in mine], f"{_RULE_TITLES[rule]}; box: {_BOXES[box][0]}"))
    if data.paper is True:
        paper = [[name, alpha, f"{error:.1f}", None, None, None] for name, error, alpha in _PAPER]
        groups.append(Group(paper, "The paper's Table 1 (VGG-19; the others quoted there from another network)"))
    columns = [
        Column("Map"),
        Column("Threshold", numeric=True, digits=2, help="alpha or t; a centred box's side"),
        Column("Error", numeric=True, digits=1, best="min", unit="%"),
        Column("Against the centred box", numeric=True, digits=1, unit="points, paired"),
        Column("Mean IoU", numeric=True, digits=3, best="max"),
        Column("Images", numeric=True),
    ]
    note = (
        f"Wrong when the best IoU with a true box of the label is below {data.config.get('iou', 0.5)}; the class "
        "itself is not asked. At alpha = 0 the box is the whole image, whatever the mask: an error of the boxes and "
        "the frame alone. The oracle has seen the answers."
    )
    blocks: list[Any] = [Table(columns, groups, "Localization error", note)]
    for box in _BOXES:
        figure = _curve(data, box)
        blocks += [figure] if figure is not None else []
    return Section(title, blocks, "One box an image, compared with the boxes of its label.")


def _located_row(row: Row) -> list[Any]:
    ranked = row["rule"] != "fixed"
    gain, se = row["vs_center"], row["vs_center_se"]
    tone: Tone = "" if gain is None or abs(gain) <= 2 * (se or 0) else "good" if gain < 0 else "bad"
    return [
        Cell(MAPS[row["name"]][0], tone="" if row["name"] in ("gfi", "unoptimised") else "muted"),
        None if row["name"] == "whole_image" else row["threshold"],
        Cell(100 * row["value"], 100 * row["se"], ranked=ranked),
        Cell(None if gain is None else 100 * gain, None if se is None else 100 * se, tone=tone),
        Cell(row["mean_iou"], ranked=ranked),
        row["n"],
    ]


def _curve(data: GfiReportData, box: str) -> Figure | None:
    chosen = located(data.metrics, box)
    series = []
    for name in ("gfi", "unoptimised"):
        row = chosen.get(name)
        if row is None or not row["curve"] or not row["n"]:
            continue
        y = [100 * v for v in row["curve"]]
        se = [100 * math.sqrt(max(0.0, v * (1 - v)) / row["n"]) for v in row["curve"]]
        low, high = [a - b for a, b in zip(y, se, strict=True)], [a + b for a, b in zip(y, se, strict=True)]
        series.append(plots.Series(MAPS[name][0], row["grid"], y, low, high, colour=MAPS[name][1]))
    if not series:
        return None
    for name in ("center", "whole_image"):
        row = located(data.metrics, "mean").get(name)
        if row is not None and row["n"]:
            ends = [series[0].x[0], series[0].x[-1]]
            level = [100 * row["value"]] * 2
            series.append(plots.Series(MAPS[name][0], ends, level, colour=MAPS[name][1], dashed=True))
    best = "; ".join(f"{s.label} {min(s.y):.1f} % at best" for s in series)
    image = plots.curves(series, x_label=_BOXES[box][1], y_label="localization error", percent_y=True)
    caption = "The error if that threshold were used for every image; band: one standard error. Dashed: needs no map."
    return Figure(image, f"Localization error against the threshold: {best}.", caption, _BOXES[box][0].capitalize())


def _pointing(data: GfiReportData) -> list[Section]:
    rows = [r for r in data.metrics if r["kind"] == "pointing" and r["n"]]
    if not rows:
        return []
    columns = [
        Column("Boxes"),
        Column("Tolerance", numeric=True, unit="pixels"),
        Column("Accuracy", numeric=True, digits=1, unit="%"),
        Column("95 %"),
        Column("Classes", numeric=True),
        Column("Points", numeric=True),
    ]
    shown = [
        [
            "all" if r["name"] == "all" else "without difficult ones",
            r["threshold"],
            Cell(100 * r["value"], 100 * r["se"]),
            f"{100 * r['low']:.1f} to {100 * r['high']:.1f}",
            r["tuning_images"],
            r["n"],
        ]
        for r in rows
    ]
    groups = [Group(shown)]
    if data.paper == "pointing":
        theirs = [[f"all; {name}", 0, Cell(percent), None, None, None] for name, percent in _PAPER_POINTING]
        groups.append(Group(theirs, "The paper (VGG-19 with a last layer trained on VOC)"))
    note = (
        "Does the largest pixel of a class's mask lie in a box of that class? Masks of predictions that are wrong are "
        "not asked. Mean over classes; ± is one standard error."
    )
    return [Section("Pointing game", [Table(columns, groups, "Pointing game", note)])]
