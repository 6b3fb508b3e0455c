"""CHIP's report: which channels carry which class (the paper's importance figures)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.chip.report_data import ChipReportData, layer_rows
from pipeline.report import plots, venn
from pipeline.report.blocks import (
    Figure,
    FigureRow,
    Paragraph,
    Section,
)
from pipeline.report.wording import show
from stages.chip.importance import channels_above, heatmap, top_channels

_HEATMAP_CLASSES, _HEATMAP_CHANNELS = 24, 48


def section(data: ChipReportData) -> Section:
    """Channel importance and the overlap of classes, from the first solve."""
    if not data.solves or not data.solves[0].table.num_rows:
        text = "This run holds no solve yet, so there are no channel weights to show."
        return Section("Channel weights", [Paragraph(text)])
    return _weights(data)


def _weights(data: ChipReportData) -> Section:
    fits = [r for r in layer_rows(data.solves[0], data.last_layer) if np.any(np.asarray(r["w"]))]
    if not fits:
        text = "Every weight of this solve is zero (lambda is too large), so there is no importance to show."
        return Section("Channel weights", [Paragraph(text)])
    by_class = {r["class_id"]: r for r in fits}
    asked = [c for c in data.heatmap_classes if c in by_class]
    chosen = asked or sorted(by_class, key=lambda c: (-by_class[c]["images"], c))[:_HEATMAP_CLASSES]
    chosen = chosen if asked else sorted(chosen)
    blocks: list[Any] = [_heatmap(data, [by_class[c] for c in chosen], len(fits))]
    groups = [[c for c in g if c in by_class] for g in data.venn_classes] or _similar(by_class, chosen)
    drawn = [f for g in groups if len(g) in (2, 3) for f in _venns(data, [by_class[c] for c in g])]
    if drawn:
        blocks.append(FigureRow(drawn))
    lead = f"Which channels of {data.last_layer} carry each class, from the sparse weights of the fit."
    return Section("Channel weights", blocks, lead)


def _heatmap(data: ChipReportData, fits: Sequence[dict[str, Any]], total: int) -> Figure:
    shown = heatmap(np.asarray([r["w"] for r in fits], dtype=float), _HEATMAP_CHANNELS)
    names = [data.class_name(r["class_id"]) for r in fits]
    image = plots.heatmap(
        shown.values,
        names,
        [str(k) for k in shown.channels],
        x_label=f"channel of {data.last_layer}",
        bar_label="weight / largest",
    )
    few = f" ({show(len(fits))} of {show(total)} classes: those with most images)" if len(fits) < total else ""
    return Figure(
        image,
        f"Heatmap of {len(fits)} classes by {len(shown.channels)} channels: weights scaled by each class's largest.",
        "Red channels speak for the class, blue ones against it; each row is scaled by its own largest weight. "
        f"Channels stand under the class they serve most, so a column with several red cells is shared{few}.",
        "Channel importance",
    )


def _similar(by_class: dict[int, dict[str, Any]], chosen: Sequence[int]) -> list[list[int]]:
    """Without a wish: the three classes that share most of their top channels, and the pair that shares least."""
    tops = {c: top_channels(by_class[c]["w"]) for c in chosen}
    pairs = sorted(
        ((-len(tops[a] & tops[b]), a, b) for i, a in enumerate(chosen) for b in chosen[i + 1 :]), key=lambda p: p[:3]
    )
    if not pairs:
        return []
    _, a, b = pairs[0]
    others = [c for c in chosen if c not in (a, b)]
    if not others:
        return [[a, b]]
    third = max(others, key=lambda c: (len(tops[c] & (tops[a] | tops[b])), -c))
    return [[a, b, third]]


def _venns(data: ChipReportData, fits: Sequence[dict[str, Any]]) -> list[Figure]:
    names = [f"{data.class_name(r['class_id'])}" for r in fits]
    if len(set(names)) < len(names):
        names = [f"{n} [{r['class_id']}]" for n, r in zip(names, fits, strict=True)]
    figures = []
    for title, sets, how in (
        ("Top-10 channels", [top_channels(r["w"]) for r in fits], "the ten channels of largest weight"),
        (
            "Channels above max/1000",
            [channels_above(r["w"]) for r in fits],
            "the channels above a thousandth of the largest weight",
        ),
    ):
        named = dict(zip(names, sets, strict=True))
        shared = len(set.intersection(*sets))
        figures.append(
            Figure(
                venn.venn(named),
                f"Venn diagram, {title}: {', '.join(f'{n} {len(s)}' for n, s in named.items())}; {shared} in all.",
                f"How many of {how} the classes share; numbers count channels, areas mean nothing.",
                title,
            )
        )
    return figures
