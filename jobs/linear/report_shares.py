"""The page's parts on contributions: residual shares beside the paper's, bars of layers, bytes of what is frozen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from jobs.linear.papers import MEMORY, PAPER, SPREADS
from jobs.linear.report_data import VIEWS, Interpreted, LinearReportData, Row
from jobs.show import size
from pipeline.report.blocks import Card, Cell, Column, Details, Figure, Group, Paragraph, Section, Table
from pipeline.report.groups import Bars, beside, upright
from pipeline.report.wording import counted, show

_CARDS = 3  # networks that have a card of their own
_PAPER_COLOUR = "#8a929c"


def cards(data: LinearReportData) -> list[Card]:
    found = []
    for n in data.networks[:_CARDS]:
        row = n.found("share")
        if row is not None:
            note = f"mean ± std over {counted(row['n'], 'image')}" if row["std"] is not None else "one image"
            value = f"{100 * row['mean']:.1f}".replace("-", "−") + _spread(row)
            found.append(Card(f"Residual share, {n.name}", value, note, unit="%"))
    return found


def sections(data: LinearReportData) -> list[Section]:
    if not any(n.summary for n in data.networks):
        return [Section("Residual shares", [Paragraph("No image has an answer yet.")])]
    own = [_shares(data)]
    if data.task == "layers":
        own.append(_layers(data))
    return [*own, _memory(data)]


def _spread(row: Row) -> str:
    return "" if row["std"] is None else f" ± {100 * row['std']:.1f}"


def _shares(data: LinearReportData) -> Section:
    columns = [
        Column("Network"),
        Column("Residual share r / y", numeric=True, unit="%, mean ± std"),
        Column("Median", numeric=True, digits=1, unit="%"),
        Column("|r| / (|Fx| + |r|)", numeric=True, unit="%, mean ± std"),
        Column("Class error", numeric=True, digits=1, unit="%"),
        Column("Images", numeric=True),
    ]
    papers = data.paper and any(n.architecture in PAPER for n in data.networks)
    if papers:
        columns.append(Column("The paper's", numeric=True, unit="%, mean ± std"))
    groups = []
    for view in data.views:
        rows = []
        for n in data.networks:
            share, magnitude = n.found("share", view), n.found("magnitude", view)
            if share is None or magnitude is None:
                continue
            error = n.found("class_error", view)
            row: list[Any] = [
                n.name,
                _percent(share),
                100 * share["median"],
                _percent(magnitude),
                None if error is None else 100 * error["mean"],
                share["n"],
            ]
            groups_paper = _published(n) if view == "clean" else Cell(None)
            rows.append([*row, groups_paper] if papers else row)
        title = data.view_title(view) if len(data.views) > 1 else ""
        groups.append(Group(rows, title))
    blocks: list[Any] = [Table(columns, groups, "How much of the score is bias", _note(data, papers)), _figure(data)]
    without = sum(r["without"] for n in data.networks for r in n.summary if r["name"] == "share")
    if without:
        blocks.append(Paragraph(f"{counted(without, 'image')} without a share: their score is 0.", muted=True))
    gaps = [r["mean"] for n in data.networks for r in n.summary if r["name"] == "gap"]
    blocks.append(
        Paragraph(
            f"The image's and the layers' terms add up to the score: they miss it by {max(gaps):.1g} of their size at "
            "most.",
            muted=True,
        )
    )
    lead = (
        "With every decision of the network frozen at an image x, a score is y = F x + r: what the image adds, and the "
        "residual, which comes from the biases."
    )
    return Section("Residual shares", blocks, lead)


def _percent(row: Row) -> Cell:
    note = "" if row["std"] is None else f"±{100 * row['std']:.1f}"
    return Cell(f"{100 * row['mean']:.1f}".replace("-", "−"), note=note)


def _published(n: Interpreted) -> Cell:
    if n.architecture not in PAPER:
        return Cell(None)
    mean, std = PAPER[n.architecture]
    told = f"{mean:.1f}" + ("" if std is None else f" ±{std:.1f}")
    return Cell(told, note="" if n.same_weights else "other weights", tone="" if n.same_weights else "muted")


def _note(data: LinearReportData, papers: bool) -> str:
    note = "± is the standard deviation over images. A share can leave 0 to 100 % where the parts have opposite signs."
    if not papers:
        return note
    note += f" The paper's: top-1 logit, 100 ILSVRC validation images, torchvision's weights. {SPREADS}"
    if any(n.architecture in PAPER and not n.same_weights for n in data.networks):
        note += (
            " “Other weights”: ours of that network are others than those, and the share depends on how a network was "
            "trained, so the two need not agree."
        )
    return note


def _figure(data: LinearReportData) -> Figure:
    labels = [n.name for n in data.networks]
    groups = []
    for view in data.views:
        rows = [n.found("share", view) for n in data.networks]
        groups.append(_bars(VIEWS[view][0], rows, VIEWS[view][1]))
    if data.paper and any(n.architecture in PAPER for n in data.networks):
        told = [PAPER.get(n.architecture, (math.nan, None)) for n in data.networks]
        errors = [math.nan if std is None else std for _, std in told]
        groups.append(Bars("The paper's", [mean for mean, _ in told], errors, _PAPER_COLOUR))
    image = beside(labels, groups, axis="residual share of the score, %")
    alt = "; ".join(f"{n.name} {100 * row['mean']:.1f} %" for n in data.networks if (row := n.found("share")))
    return Figure(image, f"Residual shares: {alt}.", "Means over images; whiskers: one standard deviation.")


def _bars(label: str, rows: Sequence[Row | None], colour: str) -> Bars:
    values = [math.nan if r is None else 100 * r["mean"] for r in rows]
    errors = [math.nan if r is None or r["std"] is None else 100 * r["std"] for r in rows]
    return Bars(label, values, errors, colour)


def _layers(data: LinearReportData) -> Section:
    blocks: list[Any] = []
    for n in data.networks:
        by_view = {view: n.terms(view) for view in data.views}
        terms = by_view["clean"]
        if not terms:
            blocks.append(Paragraph(f"No image has an answer of {n.name} yet."))
            continue
        names = [t["name"] for t in terms]
        groups = [_bars(VIEWS[view][0], rows, VIEWS[view][1]) for view, rows in by_view.items() if rows]
        image = upright(names, groups, axis="share of the score, %", apart=1)
        largest = max(terms, key=lambda t: abs(t["mean"]))
        alt = f"Shares of the score of {n.name}, input first: largest {largest['name']}, {100 * largest['mean']:.1f} %."
        caption = (
            "Left, on a scale of its own, what the image adds (input); right every layer's bias term, from the first "
            "layer to the last, a batch norm behind a convolution counted with it. Means over "
            f"{counted(terms[0]['n'], 'image')}; whiskers: one standard deviation. All bars of a colour sum to 100 %."
        )
        blocks.append(Figure(image, alt, caption, n.name))
        columns = [Column("Term", code=True)]
        columns += [Column(data.view_title(v), numeric=True, unit="%, mean ± std") for v in data.views]
        rows = [[name, *(_percent(by_view[v][i]) for v in data.views)] for i, name in enumerate(names)]
        table = Table(columns, [Group(rows)], f"Terms of {n.name}")
        blocks.append(Details(f"{counted(len(names), 'term')} of {n.name} as numbers", [table]))
    lead = "Each term as a share of the explained score, mean over images."
    changed = [f"{n.name} {100 * r['mean']:.0f} %" for n in data.networks if (r := n.found("changed", "attacked"))]
    if changed:
        target = "the class it then predicts" if data.asked["target"] == "predicted" else "the same class"
        lead += (
            f" The attack changes the prediction of so many images: {', '.join(changed)}; the attacked image is "
            f"explained for {target}."
        )
    return Section("Contributions of layers", blocks, lead)


def _memory(data: LinearReportData) -> Section:
    papers = data.paper and any(n.architecture in MEMORY for n in data.networks)
    rows = []
    for n in data.networks:
        held = {r["name"]: r["mean"] for r in n.summary if r.get("kind") == "bytes"}
        if held:
            height, width = n.preprocess.size
            told = [size(held[name]) for name in ("activations", "keep", "stream")]
            row: list[Any] = [n.name, f"{width}×{height}", *(Cell(t) for t in told)]
            paper = MEMORY.get(n.architecture)
            rows.append([*row, None if paper is None else f"{paper} GB"] if papers else row)
    columns = [
        Column("Network"),
        Column("Input"),
        Column("Activations", numeric=True, help="every call's value: what automatic differentiation keeps"),
        Column("Kept masks", numeric=True, help="masks, indices and statistics alone, kept for all probes"),
        Column("Streamed", numeric=True, help="the most that lives while the image runs beside its probes"),
    ]
    note = (
        "For one image, beside the weights. Activations: every call's value, as automatic differentiation keeps them. "
        "Kept masks: only what was decided, a byte for each mask value and eight for an index. Streamed: nothing is "
        "kept, the image runs one call ahead of its probes. Rows take the activations once more for each probe that "
        "runs at the time, whatever is kept of the image; columns do not."
    )
    if papers:
        columns.append(Column("The paper's Table 1", numeric=True, help="all activations kept"))
        note += " The paper states 58 GB for VGG-19 and does not say for how many images or probes."
    table = Table(columns, [Group(rows)], "Bytes that a frozen image takes", note)
    lead = f"{show(len(rows))} networks: what it costs to keep what was frozen, and not to." if len(rows) > 1 else ""
    return Section("What freezing takes", [table], lead)
