"""Venn diagrams of two or three sets, with their counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Circle

from pipeline.report.images import DataImage
from pipeline.report.ink import INK, PALETTE, SOFT, render
from pipeline.report.wording import shorten


def venn_counts(sets: Mapping[str, Collection[Any]]) -> dict[tuple[str, ...], int]:
    """{names of the sets a region lies in, in the given order: members that lie in exactly those}."""
    members = {name: set(values) for name, values in sets.items()}
    counts: dict[tuple[str, ...], int] = {}
    for item in set().union(*members.values()):
        region = tuple(name for name, values in members.items() if item in values)
        counts[region] = counts.get(region, 0) + 1
    return counts


def venn(sets: Mapping[str, Collection[Any]], *, width: float = 380, height: float = 320) -> DataImage:
    """Two or three sets as equal circles, each region holding the count of its members (areas mean nothing)."""
    names = list(sets)
    if len(names) not in (2, 3):
        raise ValueError(f"a Venn diagram here has 2 or 3 sets, not {len(names)}")
    counts = venn_counts(sets)
    spots: dict[tuple[int, ...], tuple[float, float]]
    if len(names) == 2:
        centres, spots = [(-0.55, 0.0), (0.55, 0.0)], {(0,): (-0.95, 0), (1,): (0.95, 0), (0, 1): (0, 0)}
        tags = [(-0.8, 1.2), (0.8, 1.2)]
    else:
        centres = [(-0.55, 0.32), (0.55, 0.32), (0.0, -0.63)]
        spots = {
            (0,): (-0.95, 0.55), (1,): (0.95, 0.55), (2,): (0, -1.12), (0, 1): (0, 0.68),
            (0, 2): (-0.52, -0.28), (1, 2): (0.52, -0.28), (0, 1, 2): (0, 0.02),
        }  # fmt: skip
        tags = [(-0.8, 1.48), (0.8, 1.48), (0.0, -1.82)]

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        for i, (x, y) in enumerate(centres):
            disc, rim = Circle((x, y), 1.0), Circle((x, y), 1.0)
            disc.set(facecolor=PALETTE[i], alpha=0.22, linewidth=0)
            rim.set(facecolor="none", edgecolor=PALETTE[i], linewidth=1.4)
            axes.add_patch(disc)
            axes.add_patch(rim)
            label = f"{shorten(names[i], 18)} ({len(set(sets[names[i]]))})"
            axes.text(*tags[i], label, ha="center", va="center", fontsize=10.5)
        for region, (x, y) in spots.items():
            count = counts.get(tuple(names[i] for i in region), 0)
            axes.text(x, y, str(count), ha="center", va="center", fontsize=13, color=INK if count else SOFT)
        axes.set_xlim(-2.1, 2.1)
        axes.set_ylim(-2.0 if len(names) == 3 else -1.1, 1.65 if len(names) == 3 else 1.35)
        axes.set_aspect("equal")
        axes.axis("off")

    return render(paint, width, height)
