"""The page of linear interpreters of classifiers: residual shares, layers or votes, and what ran."""

from __future__ import annotations

from typing import Any

from jobs.linear import report_shares, report_votes
from jobs.linear.report_data import LinearReportData
from jobs.report.parts import accounting, as_yaml, plain
from pipeline.report.blocks import Card, Cell, Code, Column, Details, Facts, Group, Notice, Section, Table
from pipeline.report.page import Page
from pipeline.report.wording import show

_TITLES = {
    "residual": ("Residual shares", "How much of a class's score comes from biases and not from the image"),
    "layers": ("Contributions of layers", "What the image and the bias of every layer add to a class's score"),
    "votes": ("Pixel votes", "Which class every pixel of an image speaks for"),
}
_BIAS = {"class": "the class row times each layer's bias", "literal": "the biases alone (eq. 18 as printed)"}


def linear_page(data: LinearReportData) -> Page:
    """The whole page. Parts the run does not hold are said in a sentence; only ``data.load`` reads files."""
    title, subtitle = _TITLES[data.task]
    parts = report_votes if data.task == "votes" else report_shares
    names = ", ".join(n.name for n in data.networks)
    return Page(
        title=f"{title} of {names if len(names) <= 60 else f'{len(data.networks)} networks'}",
        subtitle=f"{subtitle}; run {data.run}",
        kicker="Raylens · linear interpreters",
        sections=[*parts.sections(data), _what_ran(data)],
        cards=[*parts.cards(data), *_cards(data)],
        warnings=[*accounting(data.totals), *(Notice(note) for note in dict.fromkeys(data.notes))],
        provenance=[
            Facts([(str(k).replace("_", " "), plain(v)) for k, v in data.provenance.items()]),
            Details("Resolved configuration", [Code(as_yaml(data.config))]),
        ],
        footer=f"Made by Raylens from {data.run}. This page is one file, holds its images and loads nothing.",
    )


def _cards(data: LinearReportData) -> list[Card]:
    failed, total = sum(t.failed for t in data.totals), sum(t.rows for t in data.totals)
    return [Card("Rows failed", show(failed), f"of {show(total)}", "bad" if failed else "good")]


def _what_ran(data: LinearReportData) -> Section:
    facts = [("task", data.task), *_asked(data)]
    networks = [[n.name, n.architecture, n.weights, _frame(n.preprocess)] for n in data.networks]
    columns = [Column("Network"), Column("Architecture"), Column("Weights", code=True), Column("Input")]
    blocks: list[Any] = [Facts(facts), Table(columns, [Group(networks)], "Networks")]
    if data.totals:
        counts = [Column(c, numeric=True) for c in ("Planned", "Ok", "Failed")]
        rows = [
            [t.step, t.rows, t.ok, Cell(t.failed, tone="bad" if t.failed else ""), round(t.seconds or 0), _each(t)]
            for t in data.totals
        ]
        taken = [Column("Compute", numeric=True, unit="seconds"), Column("An image", numeric=True, unit="seconds")]
        blocks.append(Table([Column("Step"), *counts, *taken], [Group(rows)], "Images by how they ended"))
    for t in data.totals:
        if t.failures:
            table = Table(
                [Column("Key", code=True), Column("Reason")], [Group([list(f) for f in t.failures])], "Failed rows"
            )
            blocks.append(Details(f"{show(t.failed)} failed in {t.step}", [table], open=len(t.failures) <= 5))
    return Section("What ran", blocks)


def _each(total: Any) -> float | None:
    count = total.ok + total.failed
    return float(f"{total.seconds / count:.2g}") if count and total.seconds else None


def _asked(data: LinearReportData) -> list[tuple[str, str]]:
    asked = data.asked
    attack = f"FGSM, {data.attack:g} grey levels of 255, against the label (the prediction where there is none)"
    facts = [("attack", attack if data.attack else "none"), ("precision", str(asked["precision"]))]
    if data.task != "votes":
        target = asked["target"]
        told = {"predicted": "the predicted class of the image as the network sees it", "label": "the image's label"}
        return [("target", f"logit of {told.get(target, f'class {target}')}"), *facts]
    running = f"the {asked['classes']} with the highest scores" if asked["classes"] else "all"
    scaled = {"total": "the map sums to the score", "bias": "the biases' part sums to the residual"}
    scaled |= {"shift": "the same added to every pixel, so that the map sums to the score", "none": "none"}
    return [
        ("classes that stand for election", running),
        ("bias terms", _BIAS[asked["bias"]]),
        ("scaling", scaled[asked["scaling"]]),
        *facts,
    ]


def _frame(preprocess: Any) -> str:
    height, width = preprocess.size
    if preprocess.frame == "squash":
        return f"{width}×{height}, the whole image squashed"
    return f"{width}×{height}, centre of the image"
