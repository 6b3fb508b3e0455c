"""CHIP's page: what ran, how it ended, how well the maps find objects, what they look like, what the weights say."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jobs.chip import report_errors, report_fits, report_pictures, report_weights
from jobs.chip.report_data import (
    ChipReportData,
    Layer,
    Solve,
    chosen_metrics,
    layer_rows,
)
from jobs.report.parts import accounting, as_yaml, plain
from pipeline.report.blocks import (
    Card,
    Cell,
    Code,
    Column,
    Details,
    Facts,
    Group,
    Notice,
    Paragraph,
    Section,
    Table,
    Tone,
)
from pipeline.report.page import Page
from pipeline.report.wording import counted, show

__all__ = ["ChipReportData", "Layer", "Solve", "chip_page"]

_FAILURES_SHOWN = 50


def chip_page(data: ChipReportData) -> Page:
    """The whole page. Parts the run does not hold are said in a sentence; only ``data.load`` reads files."""
    network = str(data.network.get("name", "network"))
    warnings = [*accounting(data.totals), *(Notice(note) for note in data.notes)]
    poor = report_fits.underdetermined(data)
    if poor is not None:
        warnings.append(
            Notice(poor.title, "They are named under Fit quality, with their images and samples.", tone="warn")
        )
    return Page(
        title=data.title or f"CHIP on {network}",
        subtitle=_subtitle(data),
        kicker="Raylens · channel-wise disentangled interpretation",
        sections=[
            _what_ran(data),
            _rows(data),
            report_errors.section(data),
            *report_pictures.sections(data),
            report_weights.section(data),
            *report_fits.sections(data),
        ],
        cards=_cards(data),
        warnings=warnings,
        provenance=[
            Facts([(str(k).replace("_", " "), plain(v)) for k, v in data.provenance.items()]),
            Details("Resolved configuration", [Code(as_yaml(data.config))]),
        ],
        footer=f"Made by Raylens from {data.run}. This page is one file, holds its images and loads nothing.",
    )


def _subtitle(data: ChipReportData) -> str:
    layers = ", ".join(layer.asked for layer in data.layers)
    return f"Which channels decide, and where they look. Gated at {layers or 'no layer'}; run {data.run}"


def _cards(data: ChipReportData) -> list[Card]:
    cards = []
    failed = sum(t.failed for t in data.totals)
    total = sum(t.rows for t in data.totals)
    chosen = chosen_metrics(data.solves[0].metrics if data.solves else None)
    own = chosen.get("chip")
    if own is not None:
        cards.append(
            Card(
                "CHIP, top-1 localization error",
                f"{100 * own['top1_loc_error']:.1f}",
                f"± {100 * own['top1_loc_se']:.1f}, {counted(own['n'], 'image')}, threshold: {own['rule']}",
                unit="%",
            )
        )
    gain = None if own is None else own.get("vs_center")
    if own is not None and gain is not None and math.isfinite(gain):
        tone: Tone = "" if abs(gain) <= 2 * own["vs_center_se"] else "good" if gain < 0 else "bad"
        cards.append(
            Card(
                "Against the centred box",
                f"{100 * gain:+.1f}".replace("-", "−"),
                f"± {100 * own['vs_center_se']:.1f}, paired; negative is better",
                tone,
                "points",
            )
        )
    fits = layer_rows(data.solves[0], data.last_layer) if data.solves else []
    held = [r["r2_heldout_centred"] for r in fits if r.get("r2_heldout_centred") is not None]
    held = [v for v in held if math.isfinite(v)]
    if held:
        note = "median over classes" + ("; it chose λ, so it is too good" if data.solves[0].chose else "")
        cards.append(Card("Held-out R², centred", f"{np.median(held):.2f}".replace("-", "−"), note))
    if fits:
        poor = sum(bool(r.get("underdetermined")) for r in fits)
        note = (
            f"{show(poor)} underdetermined" if poor else f"each with 1 × {len(fits[0]['w'])} channels or more samples"
        )
        mean = float(np.mean([r["nonzeros"] for r in fits]))
        note = note if poor else f"{mean:.0f} of {len(fits[0]['w'])} channels on average"
        cards.append(Card("Classes fitted", show(len(fits)), note, "warn" if poor else ""))
    cards.append(Card("Rows failed", show(failed), f"of {show(total)} over all steps", "bad" if failed else "good"))
    return cards


def _what_ran(data: ChipReportData) -> Section:
    facts = [(str(k).replace("_", " "), plain(v)) for k, v in data.network.items()]
    facts.append(("frame", report_errors.frame_sentence(data).removeprefix("Frame: ")))
    facts.append(("gates", f"{data.gates} perturbed networks per image and layer"))
    blocks: list[Any] = [Facts(facts)]
    if data.layers:
        columns = [
            Column("Layer, as asked"),
            Column("Call", code=True),
            Column("Channels", numeric=True),
            Column("Size", numeric=True),
            Column("Way the gates take"),
        ]
        table_rows = [[a.asked, a.name, a.channels, f"{a.height}×{a.width}", a.path or None] for a in data.layers]
        note = "Push-down moves the gates exactly through the later layers; prefix + suffix runs those once per gate."
        blocks.append(Table(columns, [Group(table_rows)], "Gated layers", note))
    else:
        blocks.append(Paragraph("The run names no gated layer."))
    return Section("What ran", blocks)


def _rows(data: ChipReportData) -> Section:
    if not data.totals:
        return Section("Rows", [Paragraph("No step of this run has finished a shard yet.")])
    columns = [
        Column("Step"),
        Column("Split"),
        Column("Planned", numeric=True),
        Column("Ok", numeric=True),
        Column("Filtered", numeric=True),
        Column("Failed", numeric=True),
        Column("Compute", numeric=True, unit="seconds"),
    ]
    table_rows = [
        [
            t.step,
            t.split,
            t.rows,
            t.ok,
            t.filtered,
            Cell(t.failed, tone="bad" if t.failed else ""),
            None if t.seconds is None else round(t.seconds),
        ]
        for t in data.totals
    ]
    blocks: list[Any] = [Table(columns, [Group(table_rows)], "Rows by how they ended")]
    for t in data.totals:
        if t.failures:
            shown = [[key, reason] for key, reason in t.failures[:_FAILURES_SHOWN]]
            note = (
                f"The first {len(shown)} of {show(t.failed)}; the step's Parquet files hold all."
                if t.failed > len(shown)
                else ""
            )
            table = Table(
                [Column("Key", code=True), Column("Reason")], [Group(shown)], f"Failed in {t.step} ({t.split})", note
            )
            blocks.append(Details(f"{show(t.failed)} failed in {t.step} ({t.split})", [table], open=len(shown) <= 5))
    return Section("Rows", blocks, "Every key of the plan ends as ok, filtered or failed; none may vanish.")
