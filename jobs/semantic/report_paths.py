"""The decision path the paper draws: an image, the fine classes recognised in it, the coarse class that follows."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure as Canvas
from PIL import Image

from jobs.semantic.report_data import CASES, Path, SemanticReportData, rule_title
from pipeline.report.blocks import Figure, Paragraph, Section
from pipeline.report.images import DataImage
from pipeline.report.ink import INK, SOFT, render
from pipeline.report.wording import shorten

RIGHT, WRONG, LEFT_OUT = "#2b8f6b", "#c8442f", "#8a929c"
_SIDE = 300  # pixels of the picture inside a figure


def section(data: SemanticReportData) -> Section:
    title = "Decision paths"
    if data.shown is None or not data.paths:
        return Section(title, [Paragraph("No evaluated image with a fine and a coarse label can be shown.")])
    rule = data.shown.variant.rules[0]
    lead = (
        f"{data.shown.variant.network}, {data.shown.kind}. Left the image; in the middle what its fine classes add to "
        "the chosen coarse class's score; right the coarse classes. Drawn by key hash, not hand‑picked."
    )
    note = (
        f"Recognised (rule: {rule_title(rule, data.config)}): green if the image has the class, red if not; grey "
        "classes are not recognised. The number is the fine score; the bar is weight × score."
    )
    blocks: list[Any] = [Paragraph(note, muted=True)]
    for case, meaning in CASES.items():
        mine = [path for path in data.paths if path.case == case]
        count = data.shown.measured["rules"][rule]["cases"][case] if data.shown.measured else 0
        if not mine:
            blocks.append(Paragraph(f"{case} ({meaning}): {'none' if not count else 'none can be shown'}.", muted=True))
        for i, path in enumerate(mine):
            heading = f"{case}: {meaning} ({count:,} images)" if i == 0 else ""
            blocks.append(Figure(figure(path), _alt(path), caption=_caption(path), title=heading))
    return Section(title, blocks, lead)


def figure(path: Path) -> DataImage:
    """One image's path as a drawing."""
    steps = list(path.fine)
    rows = [(f"{name} {score:.2f}", added, name) for name, score, added in steps]
    if path.rest is not None:
        rows.append(("all others", path.rest, ""))
    if path.bias is not None:
        rows.append(("bias", path.bias, ""))

    def paint(canvas: Canvas) -> None:
        picture, middle, right = canvas.subplots(1, 3, width_ratios=(1.0, 1.35, 1.0))
        small = Image.fromarray(path.pixels)
        small.thumbnail((_SIDE, _SIDE))
        if max(small.size) < _SIDE // 2:
            small = small.resize((small.width * 3, small.height * 3), Image.Resampling.NEAREST)
        picture.imshow(small, interpolation="nearest")
        picture.set_axis_off()
        _bars(middle, rows, {n: RIGHT if n in path.true else WRONG for n in path.predicted}, "adds to the score")
        good = path.coarse == path.coarse_true
        colour = {path.coarse: RIGHT if good else WRONG}
        _bars(right, [(name, score, name) for name, score in path.coarse_scores], colour, "probability")
        middle.set_title("fine classes", loc="left", color=INK)
        right.set_title(f"→ {shorten(path.coarse, 22)}", loc="left", color=colour[path.coarse])

    return render(paint, 860, 210)


def _bars(axes: Any, rows: list[tuple[str, float, str]], colour: dict[str, str], label: str) -> None:
    at = range(len(rows))
    axes.barh(at, [value for _, value, _ in rows], height=0.62, color=[colour.get(n, LEFT_OUT) for _, _, n in rows])
    axes.set_yticks(at, [shorten(text, 22) for text, _, _ in rows])
    for tick, (_, _, name) in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_color(colour.get(name, SOFT))
    axes.tick_params(axis="y", length=0)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel(label)
    axes.locator_params(axis="x", nbins=4)


def _caption(path: Path) -> str:
    missed = [name for name in path.true if name not in path.predicted]
    told = f"{path.key}: recognised {', '.join(path.predicted) or 'nothing'}"
    told += f"; missed {', '.join(missed)}" if missed else ""
    return told + ("" if path.coarse == path.coarse_true else f"; its coarse class is {path.coarse_true}")


def _alt(path: Path) -> str:
    return f"{path.key} shows {', '.join(path.true)}; decided as {path.coarse}"
