"""Bars of several groups beside each other, with whiskers: one chart for many labels, or for few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure as Canvas

from pipeline.report.images import DataImage
from pipeline.report.ink import INK, SOFT, colours, render
from pipeline.report.wording import shorten

_TOLD = 64  # labels written under upright bars; of more, every second or third


@dataclass(frozen=True)
class Bars:
    """One group: a value for each label (NaN: no bar), and what its whiskers reach to either side (NaN: none)."""

    label: str
    values: Sequence[float]
    errors: Sequence[float] | None = None
    colour: str = ""


def beside(
    labels: Sequence[str], groups: Sequence[Bars], *, axis: str, digits: int = 1, width: float = 760
) -> DataImage:
    """Horizontal bars, first label on top, the groups of a label together; values are written out."""
    palette = _palette(groups)
    height = 0.8 / max(1, len(groups))

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        ends: list[float] = [0.0]
        for g, group in enumerate(groups):
            y = np.arange(len(labels)) + (g - (len(groups) - 1) / 2) * height
            at, spread = _arrays(group)
            axes.barh(y, np.nan_to_num(at), height=0.9 * height, color=palette[group.label], label=group.label)
            told = ~np.isnan(at)
            whiskers = np.nan_to_num(spread)
            axes.errorbar(at[told], y[told], xerr=whiskers[told], fmt="none", ecolor=INK, elinewidth=1, capsize=2)
            for value, error, place in zip(at[told], whiskers[told], y[told], strict=True):
                end = value + (error if value >= 0 else -error)
                ends.append(float(end))
                axes.annotate(
                    f"{value:.{digits}f}".replace("-", "−"),
                    (end, place),
                    xytext=(5 if value >= 0 else -5, 0),
                    textcoords="offset points",
                    va="center",
                    ha="left" if value >= 0 else "right",
                    fontsize=9.5,
                )
        axes.axvline(0, color=SOFT, linewidth=0.8)
        axes.set_yticks(np.arange(len(labels)), [shorten(label, 30) for label in labels])
        axes.tick_params(axis="y", length=0, colors=INK)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.set_xlabel(axis)
        room = 0.12 * (max(ends) - min(ends) or 1.0)
        axes.set_xlim(min(ends) - (room if min(ends) < 0 else 0), max(ends) + room)
        if len(groups) > 1:
            canvas.legend(loc="outside lower center", ncols=min(4, len(groups)), handlelength=1.2)

    return render(paint, width, 75 + (25 * len(groups) + 10) * len(labels))


def upright(
    labels: Sequence[str],
    groups: Sequence[Bars],
    *,
    axis: str,
    apart: int = 0,
    width: float = 900,
    height: float = 430,
) -> DataImage:
    """Upright bars from left to right: for many labels in an order of their own, such as the layers of a network.

    The first ``apart`` labels stand in a panel of their own, with its own scale.
    """
    palette = _palette(groups)
    wide = 0.84 / max(1, len(groups))
    parts = [range(apart, len(labels))] if not apart else [range(apart), range(apart, len(labels))]
    parts = [part for part in parts if len(part)] or [range(0)]

    def paint(canvas: Canvas) -> None:
        # A panel needs room for its numbers, however few its bars.
        ratios = [max(len(part), 0.04 * len(labels) + 1) for part in parts]
        panels = canvas.subplots(1, len(parts), squeeze=False, width_ratios=ratios)[0]
        for axes, part in zip(panels, parts, strict=True):
            for g, group in enumerate(groups):
                at, spread = (values[part.start : part.stop] for values in _arrays(group))
                x = np.arange(len(part)) + (g - (len(groups) - 1) / 2) * wide
                axes.bar(x, np.nan_to_num(at), width=wide, color=palette[group.label], label=group.label)
                told = ~np.isnan(at) & ~np.isnan(spread)
                thin = 1.0 if len(labels) * len(groups) <= 80 else 0.6
                axes.errorbar(x[told], at[told], yerr=spread[told], fmt="none", ecolor=INK, elinewidth=thin, alpha=0.75)
            axes.axhline(0, color=SOFT, linewidth=0.8)
            step = -(-len(part) // _TOLD) or 1
            names = [shorten(labels[i], 22) for i in part[::step]]
            size = 9.5 if len(part) <= 40 else 7.5
            axes.set_xticks(range(0, len(part), step), names, rotation=90, fontsize=size)
            axes.tick_params(axis="x", length=0, colors=INK)
            axes.grid(axis="y")
            axes.margins(x=0.01)
        panels[0].set_ylabel(axis)
        if len(groups) > 1:
            handles, names = panels[-1].get_legend_handles_labels()
            canvas.legend(handles, names, loc="outside lower center", ncols=len(groups), handlelength=1.2)

    return render(paint, width, height)


def _palette(groups: Sequence[Bars]) -> dict[str, str]:
    return colours([g.label for g in groups], {g.label: g.colour for g in groups if g.colour})


def _arrays(group: Bars) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(group.values, dtype=float)
    errors = np.full(len(values), np.nan) if group.errors is None else np.asarray(group.errors, dtype=float)
    return values, errors
