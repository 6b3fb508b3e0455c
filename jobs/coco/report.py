"""The COCO job's page: what was kept and why not, under each reading, by class, with examples of each coarse class."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from jobs.coco.config import CocoConfig
from jobs.coco.examples import Example, examples
from jobs.coco.kept import kept_folder
from jobs.coco.taxonomy import read_taxonomy
from jobs.config import config_of
from pipeline.report import overlay
from pipeline.report.blocks import (
    Card,
    Cell,
    Code,
    Column,
    Details,
    Facts,
    Figure,
    FigureRow,
    Group,
    Notice,
    Paragraph,
    PictureGrid,
    Section,
    Table,
)
from pipeline.report.page import Page
from pipeline.report.plots import bars
from pipeline.report.wording import counted, show
from pipeline.run import Run
from stages.coco.rule import READINGS, REASONS, Reading

# What the paper keeps of COCO 2017 (PROTOCOLS section 3), and val2017 under the reading with people-only images.
PAPER = {("train", 0): 58_107, ("val", 0): 2_447, ("val", 1): 2_465}


@dataclasses.dataclass(frozen=True)
class CocoReportData:
    """All that the page shows."""

    run: str
    config: CocoConfig
    described: Mapping[str, Any]
    coarse: Sequence[str]
    public: Sequence[str]
    splits: Mapping[str, Mapping[str, Any]]  # the summary
    files: str  # where the kept images' files lie
    examples: Mapping[str, Sequence[Example]]  # coarse class -> pictures


def write_report(run_url: str) -> str:
    """Write RUN/report/<fingerprint8>/index.html and return where it lies."""
    run = Run(run_url)
    described = run.describe()
    config = config_of(CocoConfig, run, described)
    mark = next((s["fingerprint"] for s in described["steps"] if s["name"] == "filter"), "")
    files = kept_folder(run, mark)
    try:
        splits = json.loads(files.read("summary.json"))
    except FileNotFoundError:
        splits = {}
    taxonomy = read_taxonomy(config.taxonomy)
    shown = examples(run, config, taxonomy) if splits and config.report.examples else {}
    data = CocoReportData(run.url, config, described, taxonomy.coarse_names, taxonomy.public, splits, files.url, shown)
    folder = run.folder.child("report", mark[:8] or "unfinished")
    folder.write("index.html", coco_page(data).bytes())
    return folder.path("index.html")


def coco_page(data: CocoReportData) -> Page:
    """The whole page; reads nothing."""
    provenance = data.described.get("provenance", {})
    return Page(
        title="COCO at two levels",
        subtitle=f"{', '.join(data.config.splits)}: images whose classes share one coarse class. Run {data.run}",
        kicker="Raylens · multi-semantic recognition",
        sections=[
            _what_ran(data),
            _kept(data),
            _readings(data),
            _coarse(data),
            *_pictures(data),
            _fine(data),
        ]
        if data.splits
        else [Section("Nothing yet", [Paragraph("The run has not reached its summary.")])],
        cards=_cards(data),
        warnings=_rejected(data),
        provenance=[
            Facts(
                [(str(k).replace("_", " "), str(v)) for k, v in provenance.items() if not isinstance(v, (dict, list))]
            ),
            Details("Resolved configuration", [Code(yaml.safe_dump(data.described["config"], sort_keys=False))]),
        ],
        footer=f"Made by Raylens from {data.run}. This page is one file, holds its images and loads nothing.",
    )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "of none"


def _cards(data: CocoReportData) -> list[Card]:
    images = sum(s["images"] for s in data.splits.values())
    kept = sum(s["kept"] for s in data.splits.values())
    used = {name for s in data.splits.values() for name, c in s.get("coarse", {}).items() if c["kept"]}
    rejected = sum(r["count"] for s in data.splits.values() for r in s["rejected"].values())
    return [
        Card("Images", show(images), f"in {counted(len(data.splits), 'split')}"),
        Card("Kept", show(kept), f"{_share(kept, images)} of all", "good" if kept else "bad"),
        Card("Coarse classes", show(len(used)), f"of {len(data.coarse)} have kept images"),
        Card("Rejected entries", show(rejected), "of the annotation files", "warn" if rejected else ""),
    ]


def _rejected(data: CocoReportData) -> list[Notice]:
    notices = []
    for split, found in data.splits.items():
        if found["rejected"]:
            total = sum(r["count"] for r in found["rejected"].values())
            items = [
                f"{kind}: {show(r['count'])}, first {r['first'][0]}" for kind, r in sorted(found["rejected"].items())
            ]
            notices.append(
                Notice(f"{split}: {counted(total, 'entry').replace('entrys', 'entries')} rejected", "", items)
            )
    return notices


def _what_ran(data: CocoReportData) -> Section:
    rule = data.config.rule
    facts = [
        ("rule", "an image stays if all its classes, public ones aside, share one coarse class"),
        ("reading", str(Reading(rule.crowds, rule.people_only))),
        ("taxonomy", f"{data.config.taxonomy or 'the paper’s'}, {len(data.coarse)} coarse classes"),
        ("public classes", ", ".join(data.public) or "none"),
        ("kept images' files", data.files),
    ]
    columns = [
        Column("Split"), Column("Annotation file", code=True), Column("Images", True), Column("Annotations", True),
        Column("Kept images", True), Column("Kept annotations", True), Column("Kept json", True, unit="MB", digits=1),
    ]  # fmt: skip
    rows = [
        [
            split,
            data.config.splits[split].annotations.rsplit("/", 1)[-1],
            s["entries"]["images"],
            s["entries"]["annotations"],
            s["file"]["images"],
            s["file"]["annotations"],
            s["file"]["bytes"] / 1e6,
        ]
        for split, s in data.splits.items()
    ]
    return Section("What ran", [Facts(facts), Table(columns, [Group(rows)], "Splits")])


def _kept(data: CocoReportData) -> Section:
    splits = list(data.splits)
    columns = [Column("Outcome"), *(Column(s, True) for s in splits), Column("Meaning")]
    rows: list[list[Any]] = [
        ["kept", *(Cell(data.splits[s]["kept"], tone="good") for s in splits), "all classes share one coarse class"]
    ]
    rows += [
        [reason.replace("_", " "), *(data.splits[s]["filtered"].get(reason, 0) for s in splits), meaning]
        for reason, meaning in REASONS.items()
        if any(data.splits[s]["filtered"].get(reason) for s in splits)
    ]
    rows.append(["all", *(data.splits[s]["images"] for s in splits), "every image has one outcome"])
    figures = []
    for split in splits:
        found = data.splits[split]
        names = ["kept", *(r for r in REASONS if found["filtered"].get(r))]
        values = [found["kept"], *(found["filtered"][r] for r in names[1:])]
        percent = [100 * v / found["images"] for v in values]
        shown = [n.replace("_", " ") for n in names]
        image = bars(shown, percent, x_label="% of the images", colour={"kept": "#2a9d6f"}, width=520)
        told = ", ".join(f"{n} {p:.1f} %" for n, p in zip(shown, percent, strict=True))
        figures.append(Figure(image, f"{split}: {told}", title=split))
    return Section("Kept and filtered", [Table(columns, [Group(rows)], "Images by outcome"), FigureRow(figures)])


def _readings(data: CocoReportData) -> Section:
    splits = list(data.splits)
    chosen = Reading(data.config.rule.crowds, data.config.rule.people_only)
    paper = data.config.report.paper
    columns = [Column("Reading"), *(Column(s, True) for s in splits), Column("All", True)]
    columns += [Column(f"Paper, {s}", True) for s in splits if paper]
    rows: list[list[Any]] = []
    for i, reading in enumerate(READINGS):
        counts = [data.splits[s]["readings"][str(reading)] for s in splits]
        row: list[Any] = [
            Cell(str(reading), note="chosen" if reading == chosen else "", tone="good" if reading == chosen else "")
        ]
        row += [*counts, sum(counts)]
        row += [PAPER.get((s, i)) for s in splits if paper]
        rows.append(row)
    note = (
        "A crowd is a region annotated as many objects at once. People-only images show nothing but public classes; "
        "kept, they have no coarse label."
    )
    return Section(
        "Readings of the rule",
        [Table(columns, [Group(rows)], "Images kept under each reading", note)],
        "The rule leaves two things open; every reading is counted, whichever is chosen.",
    )


def _coarse(data: CocoReportData) -> Section:
    splits = list(data.splits)
    none = {"images": 0, "kept": 0}
    columns = [Column("Coarse class")]
    for split in splits:
        columns += [Column(f"{split}, kept", True), Column(f"{split}, shown in", True)]
    rows: list[list[Any]] = []
    for name in data.coarse:
        counts = [data.splits[s].get("coarse", {}).get(name, none) for s in splits]
        rows.append(
            [name, *(v for c in counts for v in (Cell(c["kept"], tone="" if c["kept"] else "warn"), c["images"]))]
        )
    figures = []
    for split in splits:
        values = [data.splits[split].get("coarse", {}).get(name, none)["kept"] for name in data.coarse]
        image = bars(data.coarse, values, x_label="kept images", digits=0, width=520)
        told = ", ".join(f"{n} {show(v)}" for n, v in zip(data.coarse, values, strict=True))
        figures.append(Figure(image, f"{split}: {told}", title=split))
    note = "Shown in: images that show the class, kept or not."
    return Section(
        "Coarse classes", [FigureRow(figures), Table(columns, [Group(rows)], "Images by coarse class", note)]
    )


def _fine(data: CocoReportData) -> Section:
    splits = list(data.splits)
    names = dict.fromkeys(name for s in splits for name in data.splits[s].get("fine", {}))
    columns = [Column("Fine class")]
    for split in splits:
        columns += [Column(f"{split}, kept", True), Column(f"{split}, shown in", True)]
    rows: list[list[Any]] = []
    for name in names:
        counts = [data.splits[s].get("fine", {}).get(name, {"images": 0, "kept": 0}) for s in splits]
        rows.append(
            [name, *(v for c in counts for v in (Cell(c["kept"], tone="" if c["kept"] else "warn"), c["images"]))]
        )
    people = [f"{s}: {show(data.splits[s].get('person', {}).get('person', {}).get('kept', 0))}" for s in splits]
    blocks: list[Any] = [
        Table(columns, [Group(rows)], "Images by fine class", "Classes that no image shows are left out.")
    ]
    if data.public:
        blocks.append(Paragraph(f"Kept images that also show {' or '.join(data.public)}: {', '.join(people)}."))
    return Section("Fine classes", blocks)


def _pictures(data: CocoReportData) -> list[Section]:
    if not data.config.report.examples:
        return []
    lead = "Kept images with their annotated regions: one colour for each fine class, grey for public classes."
    rows = []
    wide = max((len(found) for found in data.examples.values()), default=0)
    for name, found in data.examples.items():
        cells = [overlay.Cell(e.pixels, f"{name}: {e.key} shows {e.caption}", note=e.caption) for e in found]
        cells += [overlay.Cell(None, "no further image", missing="no further image")] * (wide - len(cells))
        rows.append((name, "", cells))
    if not rows:
        text = "No image could be read: name the folder of each split's images in the config to see some."
        return [Section("Examples", [Paragraph(text, muted=True)], lead)]
    grid: PictureGrid = overlay.grid(
        [f"Example {i + 1}" for i in range(wide)], rows, caption="Kept images of each coarse class", budget=3_000_000
    )
    return [Section("Examples", [grid], lead)]
