"""The asking job's page: PSNR by answers, the process of single images, the training, and what ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.asking.page import SCRIPTS, Steering, steering_section, steering_style
from jobs.asking.report_evaluate import Evaluated
from jobs.asking.report_evaluate import sections as evaluation_sections
from jobs.asking.sheet import Conversation, film
from jobs.report.parts import accounting, as_yaml, plain
from jobs.report.totals import StepTotals
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
from pipeline.report.plots import Series, stacked_curves
from pipeline.report.wording import show

_TITLES = {"natural": "Colours of grey pictures", "drawing": "Colours of drawings", "inpaint": "What is behind a hole"}
_SHEET = (
    "What the network sees, then its picture without any answer and after each, with PSNR, then the picture itself. "
    "Above: the colour it was told. Below: what it asked next, bright where it asks, each up to its largest value."
)
_LEFT_OUT = 20  # names of images that could not be read


@dataclass(frozen=True)
class AskingReportData:
    """Everything on the page; what is empty is said there.

    ``facts``: what the training returned. ``psnr``: rows of stages.asking.answered.
    """

    run: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    facts: Mapping[str, Any] | None = None
    psnr: Sequence[Mapping[str, Any]] = ()
    examples: Sequence[Conversation] = ()
    steering: Steering = field(default_factory=Steering)
    evaluated: Evaluated | None = None
    totals: Sequence[StepTotals] = ()
    notes: Sequence[str] = field(default_factory=tuple)


def asking_page(data: AskingReportData) -> Page:
    """The whole page."""
    problem = str(data.config["learn"]["problem"])
    asks = data.config["task"] != "train"
    steered = steering_section(data.steering)
    sections = [_answers(data), *([steered] if steered else []), _process(data)] if asks else []
    if data.evaluated is not None:
        drawn = data.config["data"].get("segmented") is not None
        sections[1:1] = evaluation_sections(data.evaluated, problem, data.config["learn"]["size"], drawn)
    alone = data.steering.scripts is None
    footer = "is one file, holds its images and loads nothing" if alone else "is a folder: keep it together"
    return Page(
        title=f"{_TITLES[problem]}, learnt by asking",
        subtitle=f"A network that asks about places of an image and is told their colour; run {data.run}",
        kicker="Raylens · asking networks",
        sections=[*sections, _learning(data), _what_ran(data)],
        cards=_cards(data),
        warnings=[*accounting(data.totals), *(Notice(note) for note in dict.fromkeys(data.notes))],
        provenance=[
            Facts([(str(k).replace("_", " "), plain(v)) for k, v in data.provenance.items()]),
            Details("Resolved configuration", [Code(as_yaml(data.config))]),
        ],
        footer=f"Made by Raylens from {data.run}. This page {footer}.",
        scripts=() if alone else SCRIPTS,
        style="" if alone else steering_style(),
    )


def _cards(data: AskingReportData) -> list[Card]:
    cards = []
    if data.psnr:
        for row in (data.psnr[0], data.psnr[-1]):
            count = row["answers"]
            label = "Without answers" if count == 0 else f"After {count} answer{'s' * (count > 1)}"
            cards.append(Card(label, show(row["psnr"], 2), f"±{show(row['psnr_se'], 2)} over {row['n']}", unit="dB"))
    failed, total = sum(t.failed for t in data.totals), sum(t.rows for t in data.totals)
    if total:
        cards.append(Card("Rows failed", show(failed), f"of {show(total)}", "bad" if failed else "good"))
    return cards


def _answers(data: AskingReportData) -> Section:
    if not data.psnr:
        return Section("PSNR by answers", [Paragraph("No image has been asked about yet.")])
    columns = [Column("Answers"), Column("Images", True), Column("PSNR", True, 2, unit="dB")]
    columns += [Column("The answer's gain", True, 2, unit="dB"), Column("Without error", True)]
    rows = [
        [r["answers"], r["n"], Cell(r["psnr"], r["psnr_se"]), Cell(r["gain"], r["gain_se"]), r["exact"]]
        for r in data.psnr
    ]
    note = (
        "On 8-bit pictures at the network's size, mean over images ± standard error; gains are means of the images' "
        "own differences. Answers are exact: no noise is added here. An image without any error counts as 100 dB."
    )
    return Section("PSNR by answers", [Table(columns, [Group(rows)], "PSNR after 0, 1, ... answers", note)])


def _process(data: AskingReportData) -> Section:
    if not data.examples:
        return Section("The process", [Paragraph("No image can be shown here.")])
    return Section("The process", [film(example) for example in data.examples], _SHEET)


def _learning(data: AskingReportData) -> Section:
    if data.facts is None:
        return Section("Learning", [Paragraph("The training is not finished.")])
    facts, history = data.facts, data.facts["history"]
    told = [
        ("images", ", ".join(f"{show(count)} ({split})" for split, count in facts["rows"].items())),
        ("epochs", f"{len(history)}; the weights are those of epoch {facts['best_epoch']}"),
        ("network", ", ".join(f"{name} {value}" for name, value in facts["unet"].items())),
    ]
    if facts.get("hints", "asked") == "asked":
        noise = facts["lesson"]["noise"]
        shown = f"noise of standard deviation {noise:g}, in units of y" if noise else "no noise"
        told.append(("on answers in training", shown))
        told.append(("weight of the questions' total variation", f"{facts['lesson']['smooth']:g}"))
        if "question" in facts:
            told.append(("questions", _QUESTIONS.format(**facts["question"])))
    else:
        told.append(("told in training", "nothing" if facts["hints"] == "none" else "squares at random, exactly"))
    epochs = [entry["epoch"] for entry in history]
    losses = [Series(name, epochs, [e[key] for e in history]) for name, key in _LOSSES if key in history[0]]
    answers = [key for key in history[0] if key.startswith("psnr_")]
    psnr = [Series(f"{key[5:]} answers", epochs, [e[key] for e in history]) for key in answers]
    panels = [("loss", losses), *([("PSNR on tune, dB", psnr)] if psnr else [])]
    blocks: list[Any] = [Facts(told)]
    if len(history) > 1:
        caption = _curves(facts, data.config["training"]["augment"] is not None)
        blocks.append(Figure(stacked_curves(panels, x_label="epoch", width=860), "Learning curves", caption))
    for split, left in facts["unreadable"].items():
        if left:
            rows = [[key, why] for key, why in list(left.items())[:_LEFT_OUT]]
            columns = [Column("Key", code=True), Column("Reason")]
            blocks.append(
                Details(
                    f"{show(len(left))} images of {split} left out because they cannot be read",
                    [Table(columns, [Group(rows)], "Left out")],
                )
            )
    return Section("Learning", blocks)


_QUESTIONS = "sharpness {sharpness:g}, {refusal:g} of the last one taken off; answers are painted over what was asked"
_LOSSES = (("training", "loss"), ("tune", "tune_loss"))


def _curves(facts: Mapping[str, Any], augmented: bool) -> str:
    """What the losses are of, as this training went."""
    kind = facts.get("hints", "asked")
    exact = {"asked": " with exact answers", "random": " with exact hints", "none": ""}[kind]
    noisy = kind == "asked" and facts["lesson"]["noise"]
    told = f"The training loss is of {'augmented' if augmented else 'plain'} images"
    told += " with noisy answers" if noisy else exact or " without hints"
    many = kind != "none"
    told += ", as many as were drawn for each" * many
    if "tune_loss" in facts["history"][0]:
        told += f"; the tune loss of plain images{exact}" + ", its mean over 0 to T of them" * many
    return f"{told}."


def _what_ran(data: AskingReportData) -> Section:
    learn, network = data.config["learn"], data.config["network"]
    facts = [
        ("problem", str(learn["problem"])),
        ("input", f"{learn['size'][1]}×{learn['size'][0]}, {learn['frame']}"),
        ("network", f"U-Net, width {network['width']}, {network['depth']} resolutions"),
    ]
    blocks: list[Any] = [Facts(facts)]
    if data.totals:
        counts = [Column(c, numeric=True) for c in ("Planned", "Ok", "Filtered", "Failed")]
        rows = [
            [t.step, t.rows, t.ok, t.filtered, Cell(t.failed, tone="bad" if t.failed else ""), round(t.seconds or 0)]
            for t in data.totals
        ]
        seconds = Column("Compute", numeric=True, unit="seconds")
        blocks.append(Table([Column("Step"), *counts, seconds], [Group(rows)], "Images by how they ended"))
    for t in data.totals:
        if t.failures:
            table = Table(
                [Column("Key", code=True), Column("Reason")], [Group([list(f) for f in t.failures])], "Failed rows"
            )
            blocks.append(Details(f"{show(t.failed)} failed in {t.step}", [table], open=len(t.failures) <= 5))
    return Section("What ran", blocks)
