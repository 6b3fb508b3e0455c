"""Plots for report pages: arrays in, an SVG data URI out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.report.images import DataImage
from pipeline.report.ink import INK, PALETTE, SOFT, colours, render
from pipeline.report.wording import shorten


@dataclass(frozen=True)
class Series:
    """A curve: x, y [n]; an optional band low..high [n]; ``mark`` puts a dot at one (x, y)."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    colour: str = ""
    dashed: bool = False
    mark: tuple[float, float] | None = None


def curves(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    percent_y: bool = False,
    y_range: tuple[float | None, float | None] = (None, None),
    width: float = 820,
    height: float = 400,
) -> DataImage:
    """Curves with error bands, legend below. NaN breaks a curve."""
    palette = colours([s.label for s in series], {s.label: s.colour for s in series if s.colour})

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        _draw_curves(axes, series, palette, log_x=log_x, percent_y=percent_y, y_range=y_range)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(series) > 1:
            canvas.legend(loc="outside lower center", ncols=min(4, len(series)), handlelength=1.6)

    return render(paint, width, height)


def stacked_curves(
    panels: Sequence[tuple[str, Sequence[Series]]], *, x_label: str, log_x: bool = False, width: float = 820
) -> DataImage:
    """Panels (y label, curves) above each other on one x axis: two quantities without two y axes."""
    names = list(dict.fromkeys(s.label for _, series in panels for s in series))
    fixed = {s.label: s.colour for _, series in panels for s in series if s.colour}
    palette = colours(names, fixed)

    def paint(canvas: Canvas) -> None:
        grid = canvas.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, (label, series) in zip(grid, panels, strict=True):
            _draw_curves(axes, series, palette, log_x=log_x)
            axes.set_ylabel(label)
            if len(series) > 1:
                axes.legend(loc="best", handlelength=1.6, ncols=len(series))
        grid[-1].set_xlabel(x_label)

    return render(paint, width, 70 + 185 * len(panels))


def bars(
    labels: Sequence[str],
    values: Sequence[float],
    errors: Sequence[float] | None = None,
    *,
    x_label: str,
    colour: Mapping[str, str] | None = None,
    digits: int = 1,
    width: float = 760,
) -> DataImage:
    """Horizontal bars, first on top, with standard deviations (or errors) as whiskers and the value written out."""
    palette = {label: (colour or {}).get(label, PALETTE[0]) for label in labels}
    at = np.asarray(values, dtype=float)
    spread = np.zeros_like(at) if errors is None else np.nan_to_num(np.asarray(errors, dtype=float))

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        y = np.arange(len(labels))
        axes.barh(y, np.nan_to_num(at), color=[palette[label] for label in labels], height=0.66, alpha=0.9)
        if errors is not None:
            axes.errorbar(np.nan_to_num(at), y, xerr=spread, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5)
        axes.axvline(0, color=SOFT, linewidth=0.8)
        axes.set_yticks(y, [shorten(label, 30) for label in labels])
        axes.tick_params(axis="y", length=0, colors=INK)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.grid(axis="x")
        axes.set_xlabel(x_label)
        room = float(np.nanmax(np.abs(at) + spread, initial=1e-9))
        for i, value in enumerate(at):
            text = "no value" if np.isnan(value) else f"{value:.{digits}f}"
            end = np.nan_to_num(value) + (spread[i] if np.nan_to_num(value) >= 0 else -spread[i])
            axes.annotate(
                text,
                (end, i),
                xytext=(5 if end >= 0 else -5, 0),
                textcoords="offset points",
                va="center",
                ha="left" if end >= 0 else "right",
                fontsize=10.5,
            )
        low = min(0.0, float(np.nanmin(at - spread, initial=0.0)))
        axes.set_xlim(
            low - (0.14 * room if low < 0 else 0), max(0.0, float(np.nanmax(at + spread, initial=0))) + 0.14 * room
        )

    return render(paint, width, 62 + 27 * len(labels))


def heatmap(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    x_label: str = "",
    y_label: str = "",
    bar_label: str = "",
    symmetric: bool = True,
    width: float = 900,
) -> DataImage:
    """[rows, columns] as colours: blue - white - red around 0 when ``symmetric``, else dark to light. NaN is grey."""
    table = np.asarray(values, dtype=float)
    if table.shape != (len(rows), len(columns)):
        raise ValueError(f"a heatmap of shape {table.shape} under {len(rows)} rows and {len(columns)} columns")
    top = float(np.nanmax(np.abs(table), initial=0.0)) or 1.0
    low, high = (-top, top) if symmetric else (None, None)

    def paint(canvas: Canvas) -> None:
        axes = canvas.subplots()
        scale = mpl.colormaps["RdBu_r" if symmetric else "viridis"].with_extremes(bad="#9aa1a9")
        drawn = axes.imshow(table, cmap=scale, aspect="auto", interpolation="nearest", vmin=low, vmax=high)
        size = 10.5 if len(rows) <= 24 else 8.5
        axes.set_yticks(range(len(rows)), [shorten(r, 26) for r in rows], fontsize=size)
        step = max(1, -(-len(columns) // 48))
        ticks = range(0, len(columns), step)
        axes.set_xticks(ticks, [shorten(columns[i], 16) for i in ticks], rotation=90, fontsize=8.5)
        axes.tick_params(length=0)
        axes.tick_params(axis="y", colors=INK)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        bar = canvas.colorbar(drawn, ax=axes, fraction=0.025, pad=0.015)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.set_label(bar_label)

    return render(paint, width, min(1100, 95 + max(14, 24 - len(rows) // 4) * max(3, len(rows))))


def histogram(
    panels: Sequence[tuple[str, Mapping[str, Sequence[float]]]],
    *,
    x_label: str,
    limits: tuple[float, float],
    bins: int = 40,
    colour: Mapping[str, str] | None = None,
    width: float = 900,
    height: float = 300,
) -> DataImage:
    """Panels (title, {name: values}) side by side, one scale. Values beyond ``limits`` are counted in the last bins."""
    names = list(dict.fromkeys(name for _, groups in panels for name in groups))
    palette = colours(names, colour)
    edges = np.linspace(*limits, bins + 1)

    def paint(canvas: Canvas) -> None:
        grid = canvas.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, groups) in zip(grid, panels, strict=True):
            for name, values in groups.items():
                data = np.asarray(values, dtype=float)
                data = np.clip(data[~np.isnan(data)], *limits)
                axes.hist(data, edges, histtype="stepfilled", color=palette[name], alpha=0.28)
                axes.hist(data, edges, histtype="step", color=palette[name], linewidth=1.4, label=name)
            axes.set_title(title, loc="left")
            axes.set_xlabel(x_label)
            axes.set_xlim(*limits)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            axes.grid(axis="y")
        grid[0].set_ylabel("count")
        grid[-1].legend(loc="upper left", handlelength=1.2)

    return render(paint, width, height)


def _draw_curves(
    axes: Any,
    series: Sequence[Series],
    palette: Mapping[str, str],
    *,
    log_x: bool = False,
    percent_y: bool = False,
    y_range: tuple[float | None, float | None] = (None, None),
) -> None:
    for s in series:
        colour = palette[s.label]
        axes.plot(
            s.x,
            s.y,
            color=colour,
            linewidth=1.8,
            linestyle=(0, (4, 2)) if s.dashed else "-",
            label=shorten(s.label, 34),
        )
        if s.low is not None and s.high is not None:
            axes.fill_between(s.x, s.low, s.high, color=colour, alpha=0.16, linewidth=0)
        if s.mark is not None:
            axes.plot(*s.mark, "o", color=colour, markersize=6, zorder=3)
    if log_x:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda v, _: ""))
    if percent_y:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g} %"))
    axes.set_ylim(*y_range)
    axes.grid(axis="y")
    axes.margins(x=0.02)
