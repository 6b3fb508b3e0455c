"""CHIP's report: how far the fits can be trusted (samples, certificates, R², sparsity), and solves side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jobs.chip.report_data import METHODS, ChipReportData, chosen_metrics, layer_rows, method_title
from pipeline.report import plots
from pipeline.report.blocks import Cell, Column, Details, Figure, Group, Notice, Section, Table
from pipeline.report.wording import counted, show

_MAX_CLASS_ROWS = 1000
_R2_LIMITS = (-0.5, 1.0)
_R2 = {"centred": "#2f6fb7", "uncentred": "#d9601a"}


def sections(data: ChipReportData) -> list[Section]:
    """Fit quality per class, and solves side by side where there are several; nothing without a solve."""
    if not data.solves or not data.solves[0].table.num_rows:
        return []
    return [_quality(data), _solves(data)] if len(data.solves) > 1 else [_quality(data)]


def underdetermined(data: ChipReportData) -> Notice | None:
    """The box that names the classes whose fit cannot generalise; None where every fit has enough samples."""
    if not data.solves:
        return None
    fits = layer_rows(data.solves[0], data.last_layer)
    poor = sorted((r for r in fits if r.get("underdetermined")), key=lambda r: (r["images"], r["class_id"]))
    if not poor:
        return None
    channels = len(poor[0]["w"])
    items = [
        f"{data.class_name(r['class_id'])}: {counted(r['images'], 'image')}, {counted(r['samples'], 'sample')}"
        for r in poor[:8]
    ]
    if len(poor) > 8:
        items.append(f"and {show(len(poor) - 8)} more, marked in the table of classes")
    return Notice(
        f"{show(len(poor))} of {show(len(fits))} classes have an underdetermined fit",
        f"With {data.gates} gates per image they have too few samples for the layer's {channels} channels, so their "
        "weights follow the few images they saw. Read their maps as illustrations, not as findings.",
        items,
    )


def _quality(data: ChipReportData) -> Section:
    solve = data.solves[0]
    blocks: list[Any] = []
    notice = underdetermined(data)
    if notice is not None:
        blocks.append(notice)
    fits = layer_rows(solve, data.last_layer)
    blocks.append(_r2(fits))
    path = _path(fits)
    if path is not None:
        blocks.append(path)
    blocks.append(_classes(data, fits, data.last_layer))
    for layer in data.layers[-2::-1]:
        other = layer_rows(solve, layer.asked)
        if other:
            blocks.append(Details(f"Classes at {layer.asked}", [_r2(other), _classes(data, other, layer.asked)]))
    lead = (
        "How well the weights predict the output of perturbed networks. Centred R² is the honest one: it compares with "
        "predicting the mean, where the uncentred compares with predicting zero."
    )
    if solve.chose:
        lead += (
            " λ was chosen for each class by its R² on the held-out images: what is called held-out is the best of "
            "many values, no independent check."
        )
    return Section("Fit quality", blocks, lead)


def _r2(fits: Sequence[dict[str, Any]]) -> Figure:
    def values(name: str) -> list[float]:
        return [float(r[name]) for r in fits if r.get(name) is not None]

    panels = [
        ("Images of the fit", {"centred": values("r2_fit_centred"), "uncentred": values("r2_fit")}),
        ("Held-out images", {"centred": values("r2_heldout_centred"), "uncentred": values("r2_heldout")}),
    ]
    held = [v for v in values("r2_heldout_centred") if math.isfinite(v)]
    middle = f"median held-out centred R² {np.median(held):.2f}" if held else "no held-out value"
    below = sum(v < _R2_LIMITS[0] for v in held)
    extra = f" Below {show(_R2_LIMITS[0])}, counted at the edge: {counted(below, 'held-out value')}." if below else ""
    return Figure(
        plots.histogram(panels, x_label="R² of a class", limits=_R2_LIMITS, colour=_R2, bins=30),
        f"Histograms of R² over {len(fits)} classes on fit and held-out images, centred and uncentred; {middle}.",
        f"One count per class. Where the right panel lies well left of the left one, fits do not generalise.{extra}",
        "R² over classes",
    )


def _path(fits: Sequence[dict[str, Any]]) -> Figure | None:
    points: dict[float, list[dict[str, Any]]] = {}
    for r in fits:
        for step in r.get("path") or ():
            points.setdefault(step["lambda_rel"], []).append(step)
    if len(points) < 2:
        return None
    x = sorted(points)

    def series(name: str, label: str, colour: str) -> plots.Series:
        spread = [[float(s[name]) for s in points[v] if s.get(name) is not None] for v in x]
        quartiles = [np.nanpercentile(v, (25, 50, 75)) if np.isfinite(v).any() else [math.nan] * 3 for v in spread]
        low, mid, high = ([float(q[i]) for q in quartiles] for i in range(3))
        return plots.Series(label, x, mid, low, high, colour)

    nonzeros = series("nonzeros", "nonzero weights", METHODS["chip"][1])
    held = [
        series("r2_heldout_centred", "centred", _R2["centred"]),
        series("r2_heldout", "uncentred", _R2["uncentred"]),
    ]
    image = plots.stacked_curves(
        [("nonzero weights", [nonzeros]), ("held-out R²", held)],
        x_label="lambda / smallest lambda that gives all zeros",
        log_x=True,
    )
    return Figure(
        image,
        f"Nonzero weights and held-out R² along the lambda path: from {nonzeros.y[0]:.0f} weights at {x[0]:g} to "
        f"{nonzeros.y[-1]:.0f} at {x[-1]:g}.",
        "Median over classes, band from quartile to quartile. Going right, fewer channels explain a class; where the "
        "lower curves stay level, the dropped ones were not needed.",
        "Sparsity along the lambda path",
    )


def _classes(data: ChipReportData, fits: Sequence[dict[str, Any]], layer: str) -> Table:
    shown = sorted(fits, key=lambda r: r["class_id"])
    note = "KKT/λ and the duality gap certify the optimum (0 is exact). Samples = images × gates. "
    if len(shown) > _MAX_CLASS_ROWS:
        note += f"The first {show(_MAX_CLASS_ROWS)} of {show(len(shown))} classes; the solve's Parquet files hold all."
        shown = shown[:_MAX_CLASS_ROWS]
    table_rows = []
    for r in shown:
        poor = bool(r.get("underdetermined"))
        table_rows.append(
            [
                Cell(
                    data.class_name(r["class_id"]), note="underdetermined" if poor else "", tone="warn" if poor else ""
                ),
                r["images"],
                r["samples"],
                r["nonzeros"],
                r["lambda"],
                _scientific(r["kkt"]),
                _scientific(r["gap"]),
                r["r2_fit_centred"],
                r["r2_heldout_centred"],
                r["r2_heldout"],
            ]
        )
    columns = [
        Column("Class"),
        Column("Images", numeric=True),
        Column("Samples", numeric=True),
        Column("Nonzeros", numeric=True, help="channels with a weight other than 0"),
        Column("λ", numeric=True),
        Column("KKT/λ", numeric=True, help="violation of the optimality conditions, relative to lambda"),
        Column("Gap", numeric=True, help="relative duality gap"),
        Column("R² fit", numeric=True, digits=3, unit="centred"),
        Column("R² held‑out", numeric=True, digits=3, unit="centred"),
        Column("R² held‑out", numeric=True, digits=3, unit="uncentred"),
    ]
    return Table(columns, [Group(table_rows)], f"Classes at {layer}", note.strip())


def _scientific(value: float | None) -> str | float | None:
    return None if value is None or math.isnan(value) else "0" if value == 0 else f"{value:.1e}".replace("-", "−")


def _solves(data: ChipReportData) -> Section:
    table_rows = []
    for i, solve in enumerate(data.solves):
        fits = layer_rows(solve, data.last_layer)
        metrics = chosen_metrics(solve.metrics)
        state = "shown above" if i == 0 else "stale" if solve.stale else ""
        table_rows.append(
            [
                Cell(solve.label, note=state, tone="warn" if solve.stale else ""),
                Cell(solve.fingerprint[:8], tone="muted"),
                solve.lambda_rel,
                solve.sigma2,
                len(fits),
                _mean(fits, "nonzeros"),
                # What stands on a changed input, or was chosen by this very value, is shown, but wins nothing.
                *(
                    Cell(_mean(fits, name), note="chose λ" * solve.chose, ranked=not (solve.stale or solve.chose))
                    for name in ("r2_heldout", "r2_heldout_centred")
                ),
                *(_error(metrics.get(m), ranked=not solve.stale) for m in ("chip", "refined_chip")),
            ]
        )
    columns = [
        Column("Solve"),
        Column("Fingerprint", code=True),
        Column("λ / λmax", numeric=True),
        Column("σ²", numeric=True),
        Column("Classes", numeric=True),
        Column("Nonzeros", numeric=True, digits=1, unit="mean"),
        Column("R² held‑out", numeric=True, digits=3, best="max", unit="uncentred"),
        Column("R² held‑out", numeric=True, digits=3, best="max", unit="centred"),
        Column(f"{method_title('chip')} top-1 loc", numeric=True, digits=1, best="min", unit="%"),
        Column(f"{method_title('refined_chip')} top-1 loc", numeric=True, digits=1, best="min", unit="%"),
    ]
    note = (
        f"Means over classes at {data.last_layer}. All stand on the same sweep. Stale: its input has changed since; "
        "the next run recomputes it."
    )
    return Section(
        "Solves side by side",
        [Table(columns, [Group(table_rows)], "Settings and what they give", note)],
        "The sweep was measured once; each row is another way to solve it.",
    )


def _mean(fits: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [float(r[name]) for r in fits if r.get(name) is not None and math.isfinite(r[name])]
    return float(np.mean(values)) if values else None


def _error(row: dict[str, Any] | None, *, ranked: bool) -> Cell:
    if row is None or row.get("top1_loc_error") is None:
        return Cell(None)
    se = row.get("top1_loc_se")
    return Cell(100 * row["top1_loc_error"], None if se is None else 100 * se, ranked=ranked)
