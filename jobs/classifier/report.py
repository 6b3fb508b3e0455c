"""The classifier's page: how the training went, and the average precision of each class."""

from __future__ import annotations

from typing import Any

from jobs.classifier.config import ClassifierConfig, class_names
from jobs.classifier.train import learnt
from jobs.config import config_of
from jobs.report.parts import as_yaml, plain
from pipeline.report import plots
from pipeline.report.blocks import Cell, Code, Column, Details, Facts, Figure, Group, Paragraph, Section, Table
from pipeline.report.page import Page
from pipeline.run import Run


def write_report(run_url: str) -> str:
    """Write RUN/report/<fingerprint8>/index.html and RUN/network.safetensors; returns where the page lies."""
    run = Run(run_url)
    described = run.describe()
    found = learnt(run)
    marks = [s["fingerprint"] for s in described["steps"]]
    folder = run.folder.child("report", marks[0][:8] if marks and found is not None else "unfinished")
    if found is not None:
        run.folder.write("network.safetensors", found[1])
    folder.write("index.html", _page(run, described, None if found is None else found[0]).bytes())
    return folder.path("index.html")


def _page(run: Run, described: dict[str, Any], facts: dict[str, Any] | None) -> Page:
    config = config_of(ClassifierConfig, run, described)
    names = class_names(config)
    sections = [Section("Training", [Paragraph("The training is not finished; run the same command again.")])]
    if facts is not None:
        sections = [_training(config, facts), _precision(names, facts)]
    return Page(
        title=f"{config.model.name} for {len(names)} classes",
        subtitle=f"The last layer trained anew, several classes to an image. Run {run.url}",
        kicker="Raylens · classifier",
        sections=sections,
        provenance=[
            Facts([(str(k).replace("_", " "), plain(v)) for k, v in described.get("provenance", {}).items()]),
            Details("Resolved configuration", [Code(as_yaml(described["config"]))]),
        ],
        footer=f"Made by Raylens from {run.url}. This page is one file, holds its images and loads nothing.",
    )


def _training(config: ClassifierConfig, facts: dict[str, Any]) -> Section:
    history = facts["history"]
    epochs = [float(e["epoch"]) for e in history]
    series = [plots.Series("loss", epochs, [e["loss"] for e in history])]
    if "mean_ap" in history[-1]:
        series.append(plots.Series("mean average precision", epochs, [e["mean_ap"] for e in history]))
    text = f"Loss and what is watched over {len(epochs)} epochs"
    left_out = sum(len(found) for found in facts["unreadable"].values())
    told = [
        ("layer trained anew", facts["layer"]),
        ("images learnt from", f"{facts['rows']['train']:,}"),
        ("images watched", f"{facts['rows'].get('tune', 0):,}"),
        ("images left out, unreadable", f"{left_out:,}"),
        ("weights", "network.safetensors in the run folder"),
    ]
    figure = Figure(
        plots.curves(series, x_label="epoch", y_label="value"), text, "Binary cross-entropy: mean over classes."
    )
    return Section("Training", [Facts(told), figure])


def _precision(names: list[str], facts: dict[str, Any]) -> Section:
    found = facts["average_precision"]
    if found is None:
        return Section("Average precision", [Paragraph("No split was watched: name one as data.eval.")])
    known = [p for p in found if p is not None]
    body = [[name, Cell(None if p is None else 100 * p)] for name, p in zip(names, found, strict=True)]
    body.append(["mean", Cell(100 * sum(known) / len(known) if known else None)])
    columns = [Column("Class"), Column("Average precision", numeric=True, digits=1, unit="%")]
    note = "Of the watched images; empty: none of them shows the class."
    return Section("Average precision", [Table(columns, [Group(body)], "Average precision by class", note)])
