"""The page's parts on votes: how many pixels speak for what is predicted, and images masked by their votes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from scipy.ndimage import uniform_filter

from jobs.linear.report_data import VIEWS, Interpreted, LinearReportData, Row
from pipeline.errors import RaylensError
from pipeline.report import overlay
from pipeline.report.blocks import Card, Cell, Column, Figure, Group, Paragraph, Section, Table, Tone
from pipeline.report.groups import Bars, beside
from pipeline.report.ink import PALETTE
from pipeline.report.wording import counted
from stages.linear.classifier import prefix
from stages.linear.votes import STEADY

_COLOURED = 4  # classes that have a colour of their own in the vote picture
_COLOURS = ("blue", "orange", "green", "purple")
_MASKED = 3  # pictures of the pixels of one class
_BUDGET = 2_200_000  # bytes of pictures of all networks
_AROUND = 9  # pixels to a side of the neighbourhood whose votes give the vote picture its colour
_NUMBERS = (
    ("predicted_share", "Pixels for the prediction", "%, mean ± std"),
    ("label_share", "For the label", "%, mean ± std"),
    ("first_share", "For the winner", "%, mean ± std"),
    ("first_is_predicted", "Winner is the prediction", "% of images"),
    ("first_is_label", "Winner is the label", "% of images"),
    ("class_error", "Class error", "% of images"),
    ("voted", "Classes voted for", "mean ± std"),
)


def cards(data: LinearReportData) -> list[Card]:
    found = []
    for n in data.networks[:3]:
        row = n.found("first_is_predicted")
        if row is not None:
            note = f"of {counted(row['n'], 'image')}: most pixels vote for the predicted class"
            found.append(Card(f"Votes agree, {n.name}", f"{100 * row['mean']:.0f}", note, unit="%"))
    return found


def sections(data: LinearReportData) -> list[Section]:
    if not any(n.summary or n.examples for n in data.networks):
        return [Section("Votes", [Paragraph("No image has an answer yet.")])]
    return [_table(data), *_pictures(data)]


def _table(data: LinearReportData) -> Section:
    told = [x for x in _NUMBERS if any(n.found(x[0], v) for n in data.networks for v in data.views)]
    columns = [Column("Network"), *(Column(title, numeric=True, unit=unit) for _, title, unit in told)]
    groups = []
    for view in data.views:
        rows = []
        for n in data.networks:
            if n.found("voted", view) is not None:
                cells = [_cell(name, n.found(name, view)) for name, _, _ in told]
                rows.append([n.name, *cells])
        groups.append(Group(rows, data.view_title(view) if len(data.views) > 1 else ""))
    most = max((row["n"] for n in data.networks if (row := n.found("voted")) is not None), default=0)
    note = f"{counted(most, 'image')}; ± is the standard deviation over them. The winner: the class with most votes."
    changed = [f"{n.name} {100 * r['mean']:.0f} %" for n in data.networks if (r := n.found("changed", "attacked"))]
    if changed:
        note += f" The attack changes the prediction of so many images: {', '.join(changed)}."
    blocks: list[Any] = [Table(columns, groups, "What pixels vote for", note)]
    if data.asked["scaling"] in ("total", "bias"):
        blocks += [Paragraph(told) for told in [_steadiness(data)] if told]
    bars = []
    for view in data.views:
        shares = [n.found("predicted_share", view) for n in data.networks]
        values = [math.nan if r is None else 100 * r["mean"] for r in shares]
        errors = [math.nan if r is None or r["std"] is None else 100 * r["std"] for r in shares]
        bars.append(Bars(VIEWS[view][0], values, errors, VIEWS[view][1]))
    image = beside([n.name for n in data.networks], bars, axis="pixels that vote for the predicted class, %")
    alt = f"Pixels for the predicted class, {', '.join(n.name for n in data.networks)}."
    blocks.append(Figure(image, alt, "Means over images; whiskers: one standard deviation."))
    lead = "Each pixel has something to say for each class, and votes for the class it says most for."
    return Section("Votes", blocks, lead)


def _steadiness(data: LinearReportData) -> str:
    """How many pixels are won by scaling alone; empty where no image has an answer."""
    told = [f"{n.name} {100 * row['mean']:.1f} %" for n in data.networks if (row := n.found("unsteady"))]
    if not told:
        return ""
    return (
        "Scaling: so many pixels, on average over images, are won by classes whose map was scaled by a negative "
        f"factor or by more than {STEADY:g}, because its own sum is near 0 or of the other sign: {', '.join(told)}. "
        "What such pixels vote for says little; classify.scaling: shift has no such factor."
    )


def _cell(name: str, row: Row | None) -> Cell:
    if row is None:
        return Cell(None)
    if name == "voted":
        return Cell(f"{row['mean']:.1f}", note="" if row["std"] is None else f"±{row['std']:.1f}")
    spread = name.endswith("_share") and row["std"] is not None
    return Cell(f"{100 * row['mean']:.1f}", note=f"±{100 * row['std']:.1f}" if spread else "")


def _pictures(data: LinearReportData) -> list[Section]:
    shown = [n for n in data.networks if n.examples]
    if not shown:
        return []
    colours = ", ".join(_COLOURS)
    caption = (
        f"Votes: {colours} are the {_COLOURED} classes with most votes, in this order. A place has the colour of the "
        f"one that most of the {_AROUND}×{_AROUND} pixels around it vote for, the stronger the more they are. Beside "
        "it, pixel by pixel, the image where it votes for one class. Images are spread evenly over the keys, not "
        "hand-picked."
    )
    if data.attack:
        caption += " Attacked rows show the attacked image's votes over the clean image."
    blocks: list[Any] = []
    for n in shown:
        rows = [_row(data, n, row, key, view) for row, key in n.examples for view in data.views]
        count = min(_MASKED, max(len(row["top"]) for row, _ in n.examples))
        headings = ("Image", "Votes", *(f"{('Most', 'Second', 'Third')[i]} votes" for i in range(count)))
        drawn = [(title, note, [*cells, *_empty(len(headings) - len(cells))]) for title, note, cells in rows]
        blocks.append(
            overlay.grid(
                headings, drawn, caption=caption if not blocks else "", title=n.name, budget=_BUDGET // len(shown)
            )
        )
    return [Section("Images and their votes", blocks)]


def _empty(count: int) -> list[overlay.Cell]:
    return [overlay.Cell(None, "no further class", missing="no further class has a vote")] * count


def _row(data: LinearReportData, n: Interpreted, row: Row, key: Row, view: str) -> tuple[str, str, list[overlay.Cell]]:
    start = prefix(view)
    height, width = row["size"]
    predicted = n.class_name(row[f"{start}predicted"])
    note = f"predicted: {predicted} ({row[f'{start}probability']:.2f})"
    if row["label"] is not None and row["label"] != row[f"{start}predicted"]:
        note = f"true: {n.class_name(row['label'])} · {note}"
    title = f"{row['key']}, {data.view_title(view)}" if len(data.views) > 1 else row["key"]
    share = [(c, s) for c, s in zip(row[f"{start}top"], row[f"{start}top_share"], strict=True) if s > 0]
    told = [(c, f"{n.class_name(c)}, {100 * s:.0f} %") for c, s in share[:_MASKED]]
    image, reason = _image(data, n, key)
    if image is None:
        what = ("Image", "Votes", *(text for _, text in told))
        return title, note, [overlay.Cell(None, f"{w}: {row['key']}", missing=reason) for w in what]
    votes = np.asarray(row[f"{start}votes"], dtype=np.int32).reshape(height, width)
    voted = row[f"{start}voted"]
    coloured = _coloured(image, votes, [c for c, _ in share[:_COLOURED]])
    cells = [
        overlay.Cell(image, f"{row['key']}, {predicted}"),
        overlay.Cell(coloured, f"Votes of {row['key']}", note="1 class" if voted == 1 else f"{voted} classes"),
    ]
    for c, text in told:
        tone: Tone = "good" if c == row["label"] else ""
        cells.append(overlay.Cell(_masked(image, votes == c), f"Pixels of {row['key']}: {text}", note=text, tone=tone))
    return title, note, cells


def _image(data: LinearReportData, n: Interpreted, key: Row) -> tuple[np.ndarray | None, str]:
    """The image as the network got it: uint8 [h, w, 3]."""
    if data.load is None:
        return None, "the image was not at hand when this page was made"
    try:
        image = n.preprocess.pixels(data.load(key))
    except (OSError, ValueError, RaylensError) as error:
        return None, f"the image is no longer reachable: {' '.join(str(error).split())[:160]}"
    return np.ascontiguousarray(image.transpose(1, 2, 0)), ""


def _coloured(image: np.ndarray, votes: np.ndarray, classes: list[int]) -> np.ndarray:
    """The image in grey, tinted by what the pixels around each place vote for among ``classes``."""
    grey = 0.8 * image.astype(np.float32).mean(axis=2, keepdims=True) + 25
    # Single pixels seldom agree with their neighbours: neighbourhoods show where a class has its votes.
    around = np.stack([uniform_filter((votes == c).astype(np.float32), _AROUND) for c in classes])
    tints = np.array([to_rgb(colour) for colour in PALETTE[: len(classes)]], dtype=np.float32)
    strongest = around.max(axis=0)
    top = float(np.percentile(strongest, 99.5)) or 1.0
    weight = (0.8 * np.clip(strongest / top, 0, 1) ** 1.5)[..., None]
    shown = grey * (1 - weight) + 255 * tints[around.argmax(axis=0)] * weight
    return np.clip(shown, 0, 255).astype(np.uint8)


def _masked(image: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The image where ``kept``, elsewhere an even grey."""
    return np.where(kept[..., None], image, np.uint8(128)).astype(np.uint8)
