"""The semantic job's page: data, learning, the paper's tables, confusions, decision paths."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml

from jobs.semantic import report_paths, report_tables
from jobs.semantic.report_data import COLOURS, Result, SemanticReportData, rule_title
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
)
from pipeline.report.page import Page
from pipeline.report.plots import Series, heatmap, stacked_curves
from pipeline.report.wording import counted, show
from stages.semantic.rules import THRESHOLD

_TITLES = {"train": "learnt from", "tune": "watched while learning", "eval": "measured"}


def semantic_page(data: SemanticReportData) -> Page:
    """The whole page; reads nothing."""
    networks = list(dict.fromkeys(r.variant.network for r in data.results))
    provenance = data.described.get("provenance", {})
    return Page(
        title=f"Two levels of semantics: {', '.join(networks)}",
        subtitle=f"Fine classes are recognised, a coarse class follows from them. Run {data.run}",
        kicker="Raylens · multi-semantic recognition",
        sections=[
            _data(data),
            report_tables.section(data),
            _learning(data),
            _confusion(data),
            report_paths.section(data),
            _rows(data),
        ],
        cards=_cards(data),
        warnings=[*_unreadable(data), *(Notice(note) for note in data.notes)],
        provenance=[
            Facts(
                [(str(k).replace("_", " "), str(v)) for k, v in provenance.items() if not isinstance(v, (dict, list))]
            ),
            Details("Resolved configuration", [Code(yaml.safe_dump(data.described["config"], sort_keys=False))]),
        ],
        footer=f"Made by Raylens from {data.run}. This page is one file, holds its images and loads nothing.",
    )


def _cards(data: SemanticReportData) -> list[Card]:
    cards = []
    shown = data.shown
    if shown is not None and shown.measured:
        found = shown.measured
        name = f"{shown.variant.network}, {shown.kind}"
        accuracy = found["coarse_accuracy"]["value"]
        cards.append(Card("Coarse accuracy", show(accuracy, 3), f"{name}, {counted(found['images'], 'image')}"))
        if shown.variant.rules:
            rule = shown.variant.rules[0]
            indexes = found["rules"][rule]["set"]
            cards.append(Card("IA", show(indexes["IA"]["value"], 3), f"both levels right; {_rule(data, rule)}"))
            both = " / ".join(show(indexes[name]["value"], 3) for name in ("IP", "IR"))
            cards.append(Card("IP / IR", both, "in the paper, IP is above IR for every network"))
    done = sum(r.measured is not None for r in data.results)
    cards.append(Card("Networks", f"{done} of {len(data.results)}", "trained and measured"))
    failed, rows = sum(r.failed for r in data.rows), sum(r.rows for r in data.rows)
    cards.append(Card("Rows failed", show(failed), f"of {show(rows)} evaluated", "bad" if failed else "good"))
    return cards


def _rule(data: SemanticReportData, rule: str) -> str:
    return "k known (oracle)" if rule == "oracle_k" else rule_title(rule, data.config)


def _data(data: SemanticReportData) -> Section:
    model, asked = data.config.training, data.config.evaluation
    learnt = "the heads, on features of a frozen backbone" if model.freeze else "the whole network"
    facts = [
        ("classes", f"{len(data.fine)} fine, {len(data.coarse)} coarse"),
        ("coarse head reads", "the fine scores" if data.config.coarse_input == "fine" else "the backbone's features"),
        ("what learns", learnt),
        ("recipe", f"{model.epochs} epochs, batch {model.batch}, {model.optimizer}, lr {model.lr:g}, {model.schedule}"),
        ("weights kept", _kept(model.monitor)),
        ("focal loss", f"α {data.config.focal.alpha:g}, γ {data.config.focal.gamma:g}; predicts the k best (oracle)"),
        ("BCE", f"predicts scores above {asked.threshold:g}"),
    ]
    columns = [
        Column("Split"),
        Column("From", code=True),
        Column("In the file", True),
        Column("Kept by the rule", True),
    ]
    columns += [Column("Used here", True), Column("People only", True), Column("Could not be read", True)]
    rows = []
    for split, counts in data.splits.items():
        bad = max((len(r.facts["unreadable"].get(split, {})) for r in data.results if r.facts), default=0)
        if split == "eval":
            bad = max((r.failed for r in data.rows if r.split == "eval"), default=0)
        rows.append(
            [
                f"{split} ({_TITLES[split]})",
                str(counts.get("split", "")),
                counts.get("images"),
                counts.get("kept"),
                counts["used"],
                counts["people"],
                Cell(bad, tone="bad" if bad else ""),
            ]
        )
    blocks: list[Any] = [Facts(facts), Table(columns, [Group(rows)], "Images")]
    if data.coarse:
        heads = [Column("Coarse class"), *(Column(split, True) for split in data.splits)]
        lines: list[list[Any]] = [
            [name, *(Cell(s["coarse"][name], tone="" if s["coarse"][name] else "warn") for s in data.splits.values())]
            for name in data.coarse
        ]
        blocks.append(Table(heads, [Group(lines)], "Images of each coarse class"))
    return Section("Data and recipe", blocks)


def _kept(monitor: str | None) -> str:
    if monitor is None:
        return "of the last epoch"
    on = "" if monitor == "loss" else " on the tune split"
    return f"of the epoch with the best {monitor.removeprefix('tune_').replace('_', ' ')}{on}"


def _learning(data: SemanticReportData) -> Section:
    learnt = [r for r in data.results if r.facts]
    if not learnt:
        return Section("Learning", [Paragraph("No network has been trained to its end yet.")])
    blocks: list[Any] = []
    columns = [Column("Network"), Column("Variant"), Column("Feature layer", code=True), Column("Features", True)]
    columns += [Column("Images", True), Column("Epochs", True), Column("Best epoch", True)]
    columns += [Column("Tune loss", True, 3), Column("Tune coarse accuracy", True, 3), Column("Tune IA", True, 3)]
    rows: list[list[Any]] = []
    for r in learnt:
        facts = r.facts or {}
        told = facts["metrics"]
        row = [r.variant.network, r.kind, facts["features"]["layer"], facts["features"]["width"]]
        row += [facts["rows"].get("train"), len(facts["history"]), facts["best_epoch"]]
        rows.append(row + [told.get(name) for name in ("tune_loss", "coarse_accuracy", "ia")])
    blocks.append(Table(columns, [Group(rows)], "What each training came to"))
    for network in dict.fromkeys(r.variant.network for r in learnt):
        mine = [r for r in learnt if r.variant.network == network]
        panels = [(label, _curves(mine, name)) for label, name in _PANELS]
        image = stacked_curves([p for p in panels if p[1]], x_label="epoch", width=860)
        blocks.append(Figure(image, f"Learning curves of {network}", _CURVES, title=network))
    return Section("Learning", blocks)


_PANELS = (
    ("training loss", "loss"),
    ("tune loss", "tune_loss"),
    ("coarse accuracy", "coarse_accuracy"),
    ("IA", "ia"),
)
_CURVES = (
    "Accuracy and IA are those of the tune split, IA by the loss's own rule (BCE: score > "
    f"{THRESHOLD:g}, whatever the indexes are asked for); the dot is the epoch whose weights are kept."
)


def _curves(results: list[Result], metric: str) -> list[Series]:
    series = []
    for r in results:
        facts = r.facts or {}
        history = [e for e in facts["history"] if metric in e]
        if not history:
            continue
        x, y = [e["epoch"] for e in history], [e[metric] for e in history]
        mark = next(((e["epoch"], e[metric]) for e in history if e["epoch"] == facts["best_epoch"]), None)
        series.append(Series(r.kind, x, y, colour=COLOURS[r.kind], mark=mark))
    return series


def _confusion(data: SemanticReportData) -> Section:
    lead = "Rows are true coarse classes: the share of a class's images that is taken for each class."
    if data.shown is None or data.shown.measured is None:
        return Section("Confusions of coarse classes", [Paragraph("No network has been measured yet.")], lead)
    first = data.shown
    others = [r for r in data.results if r.measured and r is not first]
    blocks: list[Any] = [_matrix(data, first), _classes(data, first)]
    blocks += [Details(f"{r.variant.network}, {r.kind}", [_matrix(data, r), _classes(data, r)]) for r in others]
    return Section("Confusions of coarse classes", blocks, lead)


def _matrix(data: SemanticReportData, result: Result) -> Figure:
    assert result.measured is not None
    counts = np.array(result.measured["confusion"], float)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    image = heatmap(
        shares,
        list(data.coarse),
        list(data.coarse),
        x_label="predicted",
        y_label="true",
        bar_label="% of the true class",
        symmetric=False,
        width=760,
    )
    right = ", ".join(f"{n} {s:.0f} %" for n, s in zip(data.coarse, np.diag(shares), strict=True) if np.isfinite(s))
    return Figure(
        image,
        f"Confusion matrix; right: {right}",
        "Grey rows: classes without an image.",
        title=f"{result.variant.network}, {result.kind}",
    )


def _classes(data: SemanticReportData, result: Result) -> Table:
    assert result.measured is not None
    counts = np.array(result.measured["confusion"])
    columns = [Column("Coarse class"), Column("Images", True), Column("Right", True), Column("Accuracy", True, 3)]
    columns.append(Column("Most often taken for"))
    rows: list[list[Any]] = []
    for i, (name, told) in enumerate(result.measured["coarse_classes"].items()):
        line = counts[i].copy()
        line[i] = 0
        other = f"{data.coarse[int(line.argmax())]} ({line.max()})" if line.max() else None
        rows.append([name, told["images"], told["right"], told["accuracy"], other])
    return Table(columns, [Group(rows)], f"Coarse classes, {result.variant.network}, {result.kind}")


def _rows(data: SemanticReportData) -> Section:
    columns = [Column("Network"), Column("Split"), Column("Planned", True), Column("Ok", True), Column("Failed", True)]
    rows = [[r.network, r.split, r.rows, r.ok, Cell(r.failed, tone="bad" if r.failed else "")] for r in data.rows]
    blocks: list[Any] = [Table(columns, [Group(rows)], "Evaluated rows by how they ended")] if rows else []
    for r in data.rows:
        if r.failures:
            shown = [[key, reason] for key, reason in r.failures]
            table = Table(
                [Column("Key", code=True), Column("Reason")], [Group(shown)], f"Failed: {r.network} ({r.split})"
            )
            blocks.append(Details(f"{show(r.failed)} failed: {r.network} ({r.split})", [table]))
    return Section("Rows", blocks or [Paragraph("No network has been evaluated yet.")])


def _unreadable(data: SemanticReportData) -> list[Notice]:
    """Images that the trainings left out, named once."""
    bad: dict[str, dict[str, str]] = {}
    for result in data.results:
        for split, found in (result.facts or {}).get("unreadable", {}).items():
            bad.setdefault(split, {}).update(found)
    return [
        Notice(
            f"Left out because they cannot be read: {counted(len(found), 'image')} of {split}",
            "",
            [f"{key}: {reason}" for key, reason in sorted(found.items())[:20]],
        )
        for split, found in bad.items()
        if found
    ]
