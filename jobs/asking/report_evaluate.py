"""The part of the asking job's page that an evaluation adds: the contest, the order of questions, class precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.asking import papers
from pipeline.report.blocks import Cell, Column, Figure, Group, Notice, Paragraph, Section, Table
from pipeline.report.plots import Series, bars, curves
from pipeline.report.wording import counted, show

_METHODS = {
    "asked": "Asking network",
    "asked_exact": "Asking network, trained without noise",
    "points_random": "Points, random",
    "points_max_error": "Points, maximum error",
    "levin_random": "Levin et al. 2004, random",
    "levin_max_error": "Levin et al. 2004, maximum error",
    "bilateral_random": "Bilateral solver, random",
    "bilateral_max_error": "Bilateral solver, maximum error",
    "none": "No hints at all",
}
_NETWORKS = {"asked": "with noise on answers", "exact": "without noise"}
_AB = {"natural": (110.0, "of a and b")}  # what one unit of y is, where people have a name for it


@dataclass(frozen=True)
class Evaluated:
    """Rows of the tables of stages.asking.contest_table and stages.asking.precision, and facts of the trainings."""

    contest: Sequence[Mapping[str, Any]] = ()
    order: Sequence[Mapping[str, Any]] = ()
    limit: float = 1.0  # where the distribution of errors ends, in units of y
    classes: Sequence[Mapping[str, Any]] = ()
    noisy: bool = True  # the network that asks was trained with noise on its answers
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def sections(found: Evaluated, problem: str, size: Sequence[int], drawn: bool) -> list[Section]:
    """``drawn``: pictures with drawn classes were given."""
    return [_contest(found, problem, size), _order(found, problem), _classes(found, problem, drawn)]


def _contest(found: Evaluated, problem: str, size: Sequence[int]) -> Section:
    title = "Asked, told at points, told nothing"
    if not found.contest:
        return Section(title, [Paragraph("The contest is not finished.")])
    left_out = int(found.contest[0].get("left_out") or 0)
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in (row for row in found.contest if row["n"]):
        rows.setdefault(row["method"], []).append(row)
    if not rows:
        none = (
            f"Some method colours each of the {show(left_out)} images without any error: there is nothing to compare."
        )
        return Section(title, [Paragraph(none)])
    most = max(len(of) for of in rows.values())
    columns = [Column("Method")]
    columns += [Column(f"{n} hint{'s' * (n != 1)}", True, 2, best="max", unit="dB") for n in range(most)]
    columns.append(Column("Asked is ahead", True, 2, unit="dB", help=f"after {most - 1} hints, mean of differences"))
    columns.append(Column("Without error", True, help="images, after the most hints of the method; left out of means"))
    body = []
    for method, of in rows.items():
        cells = [Cell(row["psnr"], row["psnr_se"]) for row in of] + [Cell(None)] * (most - len(of))
        last = of[-1] if len(of) == most and method != "asked" else None
        ahead = Cell(None) if last is None else Cell(last["behind"], last["behind_se"], ranked=False)
        body.append([_METHODS.get(method, method), *cells, ahead, of[-1].get("exact")])
    groups = [Group(body, "Ours, on the images of this run")]
    if problem == "natural":
        groups.append(Group(_of_the_paper(most), "The paper's Table 1: ImageNet, its own networks and size"))
    n = next(iter(rows.values()))[0]["n"]
    note = (
        f"PSNR on 8-bit pictures of {size[1]}×{size[0]}, mean over {show(n)} images ± standard error. Points are "
        "squares on one map, told exactly; the maximum error is that of the method's own last picture. The solves know "
        "the lightness only, and start grey. Everything is told without noise."
    )
    if left_out:
        note += (
            f" {counted(left_out, 'image')} that some method colours without any error, as the solves do a grey "
            "photograph, stand in no mean of any method."
        )
    blocks: list[Any] = [_honest(found, size, problem)] if found.networks else []
    blocks.append(Table(columns, groups, "PSNR after 0, 1, ... hints", note))
    if problem == "natural":
        blocks.append(Paragraph(papers.NOT_REPRODUCED, muted=True))
    series = []
    for method, of in rows.items():
        y, error = [row["psnr"] for row in of], [row["psnr_se"] or 0.0 for row in of]
        if len(of) == 1:  # told nothing: a line to compare with
            y, error = y * most, error * most
        low = [a - b for a, b in zip(y, error, strict=True)]
        high = [a + b for a, b in zip(y, error, strict=True)]
        name = _METHODS.get(method, method)
        series.append(Series(name, range(most), y, low, high, dashed=method.endswith(("random", "none"))))
    image = curves(series, x_label="hints", y_label="PSNR, dB")
    blocks.append(Figure(image, "PSNR by the number of hints", "Bands are one standard error.", "PSNR by hints"))
    return Section(title, blocks)


def _of_the_paper(most: int) -> list[list[Any]]:
    body = []
    for method, told in papers.TABLE_1.items():
        shown = [Cell(value, papers.TABLE_1_ERROR, tone="muted") for value in told][:most]
        body.append([_METHODS[method], *shown, *[Cell(None)] * (most - len(shown)), Cell(None), None])
    return body


def _honest(found: Evaluated, size: Sequence[int], problem: str) -> Notice:
    """How small this training is, first of all."""
    told = []
    for name, facts in found.networks.items():
        history = facts["history"]
        told.append(f"{name}: {len(history)} epochs of {show(facts['rows']['train'])} images, "
                    f"last training loss {history[-1]['loss']:.3g}")  # fmt: skip
    text = f"Networks of one family at {size[1]}×{size[0]}, each trained with the same schedule."
    if problem == "natural":
        text += (
            " The paper trains on ImageNet's 1.28 million pictures: compare orders with it, not values. Unlike its "
            "networks, these paint an answer over what was asked, and are pushed away from their last question."
        )
    return Notice("What these networks have learnt from", text, told, tone="")


def _order(found: Evaluated, problem: str) -> Section:
    title = "The order of questions"
    if not found.order:
        return Section(title, [Paragraph("The order of questions is not measured yet.")])
    scale, unit = _AB.get(problem, (1.0, "units of y"))
    rows = [[_question(r), r["n"], _scaled(r, "error", scale), _scaled(r, "above", scale)] for r in found.order]
    columns = [Column("Where"), Column("Images", True), Column("Error", True, 2, unit=unit)]
    columns.append(Column("Above the picture's mean", True, 2, unit=unit))
    note = (
        "E is the error, per pixel, of a network that is told nothing: |y − truth| averaged over channels. Under a "
        "question it is sum(E·Q) / sum(Q). The paper finds Q1 > Q2 > mean(E) > Q3."
    )
    series = []
    for r in found.order:
        total, width = sum(r["counts"]), scale * found.limit / len(r["counts"])
        x = [width * (at + 0.5) for at in range(len(r["counts"]))]
        y = [100 * count / total for count in r["counts"]]
        series.append(Series(_question(r), x, y, dashed=r["question"] == 0))
    last = max((at for r in found.order for at, count in enumerate(r["counts"]) if count), default=0)
    series = [Series(s.label, s.x[: last + 2], s.y[: last + 2], dashed=s.dashed) for s in series]
    image = curves(series, x_label=f"error, {unit}", y_label="images, %")
    caption = "The share of images by their error under each question: the paper's Fig. 4a."
    figure = Figure(image, "Distribution of the error under each question", caption, "Where is asked first")
    return Section(title, [Table(columns, [Group(rows)], "Error under each question", note), figure])


def _classes(found: Evaluated, problem: str, drawn: bool) -> Section:
    title = "Class precision of questions"
    if not found.classes:
        none = "No pictures with drawn classes were given: data.segmented names some."
        return Section(title, [Paragraph("Class precision is not measured yet." if drawn else none)])
    columns = [Column("Question"), Column("Images", True), Column("Precision", True, 1, unit="%")]
    columns += [Column("At random places", True, 1, unit="%"), Column("Question above random", True, 1, unit="%")]
    columns += [Column("Whole picture", True, 1, unit="%")]
    groups = []
    named = _NETWORKS if found.noisy else _NETWORKS | {"asked": "with learn.noise 0"}
    for network in dict.fromkeys(r["network"] for r in found.classes):
        body = []
        for r in (r for r in found.classes if r["network"] == network):
            cells = [_scaled(r, name, 100.0) for name in ("precision", "moved", "above", "whole")]
            body.append([_question(r, "All questions"), r["n"], *cells])
        groups.append(Group(body, f"Trained {named.get(network, network)}"))
    if problem == "natural":
        theirs = [
            [f"All questions, trained {_NETWORKS[name]}", None, Cell(percent, tone="muted"), *[Cell(None)] * 3]
            for name, percent in papers.CLASS_PRECISION.items()
        ]
        groups.append(Group(theirs, "The paper: VOC2012, its own network"))
    note = (
        "The largest share that one label (a class, or what no mask covers) has of a question: max over k of "
        "sum(Q·M_k) / sum(Q). Beside it the same question moved to random places, so of the same area and shape, and "
        "the largest label's share of the picture. Means over images ± standard error."
    )
    labels, values, errors = [], [], []
    for r in found.classes:
        if r["question"]:
            labels.append(f"Q{r['question']}, {named.get(r['network'], r['network'])}")
            values.append(100 * r["precision"])
            errors.append(100 * (r["precision_se"] or 0.0))
    image = bars(labels, values, errors, x_label="class precision, %")
    caption = "Whiskers are one standard error: the paper's Fig. 4b."
    figure = Figure(image, "Class precision of each question", caption, "Do questions cover one class?")
    return Section(title, [Table(columns, groups, "Class precision", note), figure])


def _question(row: Mapping[str, Any], none: str = "The whole picture") -> str:
    return f"Question {row['question']}" if row["question"] else none


def _scaled(row: Mapping[str, Any], name: str, scale: float) -> Cell:
    if row[name] is None:
        return Cell(None)
    error = row[f"{name}_se"]
    return Cell(scale * row[name], None if error is None else scale * error)
