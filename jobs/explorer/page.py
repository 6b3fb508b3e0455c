"""What stands on the explorer's page around the explorer: how to read it, what ran, what failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from jobs.report.parts import accounting, as_yaml, plain
from jobs.report.totals import StepTotals
from jobs.show import size
from pipeline.report.blocks import (
    Card,
    Cell,
    Code,
    Column,
    Details,
    Facts,
    Group,
    Mount,
    Notice,
    Paragraph,
    Section,
    Table,
)
from pipeline.report.page import Page
from pipeline.report.wording import counted, show

# In the order in which they stand on each other; the index, which starts the page, comes last.
SHIPPED = (
    "page_elements.js", "explorer_store.js", "explorer_paint.js", "explorer_panel.js", "explorer_network.js",
    "explorer_toolbar.js", "explorer_strip.js", "explorer.js",
)  # fmt: skip
SCRIPTS = (*SHIPPED, "data/index.js")
_LEAD = (
    "With every decision of the network frozen as this image made it, the output is F times the input plus a residual. "
    "Point at a pixel: the row of F shows what this output pixel reads, the column what the input pixel there writes."
)
_SINGULAR = (
    "An eigen-input is a pattern that F maps to σ times its eigen-output; the first are what the network passes on "
    "most strongly. Red and blue are of opposite sign, which of them is which is arbitrary."
)
_WAITING = "The numbers lie beside this page as scripts: it needs JavaScript, and its folder kept together."


@dataclass(frozen=True)
class ExplorerData:
    """Everything on the page; ``images`` as in its index."""

    run: str
    described: Mapping[str, Any]
    totals: Sequence[StepTotals]
    images: Sequence[Mapping[str, Any]] = ()
    left_out: int = 0
    bytes: int = 0

    @property
    def networks(self) -> list[str]:
        return list(self.described["config"]["networks"])

    def of(self, network: int, kind: str) -> Mapping[str, Any] | None:
        """What the first image that has it says of a network's filters, or svd."""
        told = (image["networks"][network].get(kind, {}) for image in self.images)
        return next((facts for facts in told if "folder" in facts), None)

    def has(self, kind: str) -> bool:
        return any(self.of(n, kind) for n in range(len(self.networks)))


def explorer_page(data: ExplorerData) -> Page:
    """The whole page; its scripts and numbers are written by jobs.explorer."""
    svd_only = data.described["config"]["task"] == "svd"
    what = "Singular vectors" if svd_only else "Rows and columns"
    sections = []
    if data.has("filters"):
        sections.append(Section("Explorer", [Mount("filters-explorer", _WAITING)], _LEAD))
    if data.has("svd"):
        sections.append(Section("Singular vectors", [Mount("svd-strip", _WAITING)], _SINGULAR))
    if not sections:
        sections.append(Section("Explorer", [Paragraph("No image has an answer yet.")]))
    return Page(
        title=f"{what} of {_listed(data.networks)}",
        subtitle=f"What single pixels read and write, at {counted(len(data.images), 'image')}; run {data.run}",
        kicker="Raylens · linear interpreters",
        sections=[*sections, _what_ran(data)],
        cards=_cards(data),
        warnings=[*accounting(data.totals), *_left_out(data)],
        provenance=[
            Facts([(str(k).replace("_", " "), plain(v)) for k, v in data.described.get("provenance", {}).items()]),
            Details("Resolved configuration", [Code(as_yaml(data.described["config"]))]),
        ],
        footer=f"Made by Raylens from {data.run}. This page is a folder: keep it together. It loads nothing else.",
        scripts=SCRIPTS if data.has("filters") or data.has("svd") else (),
        style=_style(),
    )


@cache
def _style() -> str:
    return (files("jobs.explorer") / "explorer.css").read_text(encoding="utf-8")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _left_out(data: ExplorerData) -> Iterable[Notice]:
    if data.left_out:
        yield Notice(
            f"{counted(data.left_out, 'image')} of the run {'is' if data.left_out == 1 else 'are'} not on this page",
            f"A page holds {size(data.bytes)} here; the rows of all images are in the run folder.",
            tone="",
        )


def _cards(data: ExplorerData) -> list[Card]:
    failed, total = sum(t.failed for t in data.totals), sum(t.rows for t in data.totals)
    cards = [
        Card("Networks", show(len(data.networks)), "side by side" if len(data.networks) > 1 else ""),
        Card("Images", show(len(data.images)), "to choose from" if len(data.images) > 1 else ""),
    ]
    done = [t for t in data.totals if t.ok and t.seconds]
    if done:
        each = sum(t.seconds or 0 for t in done) / sum(t.ok + t.failed for t in done)
        cards.append(Card("Seconds an image", show(each), "and network, on the machines that ran it"))
    cards.append(Card("On disk", size(data.bytes), "numbers as stored, lossless"))
    cards.append(Card("Rows failed", show(failed), f"of {show(total)}", "bad" if failed else "good"))
    return cards


def _what_ran(data: ExplorerData) -> Section:
    blocks: list[Any] = [_networks(data)]
    if data.totals:
        columns = [Column("Step"), *(Column(name, numeric=True) for name in ("Planned", "Ok", "Failed"))]
        columns.append(Column("Compute", numeric=True, unit="seconds"))
        rows = [
            [t.step, t.rows, t.ok, Cell(t.failed, tone="bad" if t.failed else ""), round(t.seconds or 0)]
            for t in data.totals
        ]
        blocks.append(Table(columns, [Group(rows)], "Images by how they ended"))
    failures = [[t.step, *failure] for t in data.totals for failure in t.failures]
    if failures:
        heads = [Column("Step"), Column("Key", code=True), Column("Reason")]
        table = Table(heads, [Group(failures)], "Failed rows, the first of each step")
        failed = sum(t.failed for t in data.totals)
        blocks.append(Details(f"{counted(failed, 'row')} failed", [table], open=len(failures) <= 12))
    return Section("What ran", blocks)


def _networks(data: ExplorerData) -> Table:
    columns = [Column("Network"), Column("Definition", code=True), Column("Weights", code=True)]
    columns += [Column(name) for name in ("Input", "Output", "A row reads", "A column writes")]
    columns.append(Column("σ₁", numeric=True, digits=3))
    rows = []
    for number, (name, given) in enumerate(data.described["config"]["networks"].items()):
        filters, svd = data.of(number, "filters"), data.of(number, "svd")
        any_of = filters or svd or {}
        patches = (filters or {}).get("patch", {})
        rows.append(
            [
                name,
                str(given.get("name", "")),
                str(given.get("weights") or f"seed {given.get('seed')}"),
                _pixels(any_of.get("input")),
                _pixels(any_of.get("output")),
                _pixels(patches.get("rows")),
                _pixels(patches.get("columns")),
                svd["sigma"][0] if svd else None,
            ]
        )
    return Table(columns, [Group(rows)], "Networks", "Width × height in pixels; σ₁ of the first image on this page.")


def _pixels(shape: Sequence[int] | None) -> str | None:
    """(C, H, W) or (H, W) as width x height."""
    if shape is None:
        return None
    channels = f", {shape[0]} channels" if len(shape) == 3 and shape[0] > 1 else ""
    return f"{shape[-1]} × {shape[-2]}{channels}"
