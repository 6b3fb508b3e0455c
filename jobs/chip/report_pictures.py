"""CHIP's report: what the maps look like, on examples nobody picked by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.chip.report_data import BASELINES, ChipReportData, chosen_metrics, method_order, method_title
from pipeline.errors import RaylensError
from pipeline.report import overlay
from pipeline.report.blocks import Box, Paragraph, Section
from stages.metrics.boxes import THRESHOLDS
from stages.metrics.localization import half_of

Row = Mapping[str, Any]

_GROUPS = {
    "good": ("Good", "Evenly spaced over the tenth of the images with the highest overlap."),
    "median": ("Median", "Around the middle of the ranking: what to expect of an ordinary image."),
    "bad": ("Bad", "Evenly spaced over the tenth of the images with the lowest overlap."),
}
_HOW = (
    "Bright yellow marks what counts most for the predicted class; each map has its own scale. Dashed: the box of the "
    "map at that method's chosen threshold; the number is its overlap (IoU) with the best true box."
)
_USUAL = 0.2  # threshold of the drawn boxes where none was chosen
_FULL = 3_600_000  # bytes of pictures a page may carry over all grids


def choose_examples(overlaps: Mapping[str, float], count: int) -> dict[str, list[str]]:
    """Keys of good, median and bad images by overlap; ties go by key, so the same run shows the same images.

    NaN (no box, no fit) is not ranked; where nothing is, evenly spaced keys come back under "median".
    """
    keys = [key for _, key in sorted((-v, key) for key, v in overlaps.items() if math.isfinite(v))]
    n = len(keys)
    if not n:
        keys = sorted(overlaps)
        return {"median": [keys[i] for i in _spaced(0, len(keys), count)]}
    if n < 3 * count:
        third = max(1, n // 3)
        return {"good": keys[:third], "median": keys[third : n - third], "bad": keys[max(third, n - third) :]}
    tenth = max(count, n // 10)
    middle = (n - count) // 2
    return {
        "good": [keys[i] for i in _spaced(0, tenth, count)],
        "median": keys[middle : middle + count],
        "bad": [keys[i] for i in _spaced(n - tenth, n, count)],
    }


def example_keys(data: ChipReportData) -> dict[str, list[str]]:
    """The images the page shows, by group. Reads key, status and one overlap column of ``localize``, no map."""
    localize = data.localize
    if localize is None or not localize.num_rows:
        return {}
    measured = [c.removeprefix("iou/") for c in localize.column_names if c.startswith("iou/")]
    ranked = [m for m in method_order(measured) if m not in BASELINES]
    light = localize.select(
        [c for c in ("key", "status", *(f"iou/{m}" for m in ranked[:1])) if c in localize.column_names]
    )
    overlaps = {
        row["key"]: _overlap(data, row, ranked[0]) if ranked else math.nan
        for row in light.to_pylist()
        if row.get("status", "ok") == "ok"
    }
    return choose_examples(overlaps, data.examples)


def sections(data: ChipReportData) -> list[Section]:
    """The overlay grids per method, and the interpretations across layers; each says in a sentence what is missing."""
    return [_overlays(data), _layers(data)]


def _overlays(data: ChipReportData) -> Section:
    title, localize = "Maps", _maps(data)
    if localize is None or not localize.num_rows:
        return Section(
            title, [Paragraph("This run computed no maps on an evaluation split, so there is nothing to show.")]
        )
    methods = [m for m in method_order(_methods(localize)) if not m.startswith("chip:") and m not in BASELINES]
    if not methods:
        return Section(
            title, [Paragraph("The evaluation rows hold no maps (they were not stored), so there is nothing to show.")]
        )
    groups, blocks = example_keys(data), []
    shown = _shown(data, localize, [key for keys in groups.values() for key in keys])
    for name, keys in groups.items():
        if not keys:
            continue
        heading, how = (
            _GROUPS[name] if len(groups) > 1 else ("Examples", "Evenly spaced over the images: none has a box.")
        )
        grid_rows = [_row(data, shown, key, methods, f"{heading} example") for key in keys]
        blocks.append(
            overlay.grid(
                ["Image", *(method_title(m) for m in methods)],
                grid_rows,
                caption=f"{how} {_HOW if name == 'good' or len(groups) == 1 else ''}".strip(),
                title=f"{heading} images" if len(groups) > 1 else "Examples",
                budget=int(_FULL * 0.24),
            )
        )
    lead = "Maps of the class the network predicts; images are ranked by CHIP's overlap, not hand‑picked."
    if data.load is None or data.keys is None:
        lead += " The images themselves were not at hand when this page was made."
    return Section(title, blocks, lead)


def _layers(data: ChipReportData) -> Section:
    title, localize = "Interpretations across layers", _maps(data)
    columns = {} if localize is None else _layer_columns(data, _methods(localize))
    if localize is None:
        return Section(title, [Paragraph("This run computed no maps, so there is nothing to compare.")])
    if len(columns) < 2:
        return Section(title, [Paragraph("Maps of one layer only were computed, so there are no layers to compare.")])
    examples = example_keys(data)
    keys = [*examples.get("good", [])[:2], *examples.get("median", [])[:3], *examples.get("bad", [])[:1]]
    shown = _shown(data, localize, keys)
    grid_rows = [_row(data, shown, key, list(columns.values()), "Layers", boxes=False) for key in keys]
    shape = {layer.asked: f"{layer.asked} ({layer.channels}×{layer.height}×{layer.width})" for layer in data.layers}
    grid = overlay.grid(
        ["Image", *(shape[layer] for layer in columns)],
        grid_rows,
        caption="From left to right, early to late layers: early ones follow edges and texture, late ones the object. "
        "Each layer has its own weights, fitted from the same perturbed networks.",
        budget=int(_FULL * 0.28),
    )
    return Section(title, [grid], "The same images seen through the weights of each gated layer.")


def _methods(localize: pa.Table) -> list[str]:
    return [name.removeprefix("map/") for name in localize.column_names if name.startswith("map/")]


def _layer_columns(data: ChipReportData, methods: Sequence[str]) -> dict[str, str]:
    """Layer as asked -> the method whose map it is, in network order."""
    found = {layer.asked: f"chip:{layer.asked}" for layer in data.layers if f"chip:{layer.asked}" in methods}
    if data.last_layer and data.last_layer not in found and "chip" in methods:
        found[data.last_layer] = "chip"
    return found


def _maps(data: ChipReportData) -> pa.Table | None:
    return data.localize if data.maps is None else data.maps


def _shown(data: ChipReportData, localize: pa.Table, keys: Sequence[str]) -> dict[str, tuple[Row, Row | None]]:
    """key -> its localize row and its key row (None where there is no key table)."""
    wanted = pa.array(keys, pa.string())
    rows = localize.filter(pc.is_in(localize["key"].cast(pa.string()), wanted)).to_pylist()
    truth: dict[str, Row] = {}
    if data.keys is not None:
        kept = data.keys.filter(pc.is_in(data.keys["key"].cast(pa.string()), wanted))
        truth = {row["key"]: row for row in kept.to_pylist()}
    return {row["key"]: (row, truth.get(row["key"])) for row in rows}


def _choice(data: ChipReportData, method: str, key: str) -> tuple[int, float]:
    """Number and value of the threshold that judged this image: with the rule "halves", each half has its own."""
    row = chosen_metrics(data.solves[0].metrics if data.solves else None).get(method, {})
    both, value = row.get("thresholds") or [], row.get("threshold")
    if row.get("rule") == "halves" and len(both) == 2:
        value = both[half_of(key)]
    if value is None or not math.isfinite(value):
        value = _USUAL
    grid = np.asarray(row.get("grid") or THRESHOLDS)
    number = int(np.argmin(np.abs(grid - value)))
    return number, float(grid[number])


def _overlap(data: ChipReportData, row: Row, method: str) -> float:
    """The measured overlap of the first class's map at the chosen threshold; NaN without boxes or without a fit."""
    number, _ = _choice(data, method, row["key"])
    values = row.get(f"iou/{method}") or []
    return float(values[number]) if number < len(values) and values[number] is not None else math.nan


def _row(
    data: ChipReportData,
    shown: Mapping[str, tuple[Row, Row | None]],
    key: str,
    methods: Sequence[str],
    what: str,
    *,
    boxes: bool = True,
) -> tuple[str, str, list[overlay.Cell]]:
    if key not in shown:
        gone = [overlay.Cell(None, f"{what}: {key}", missing="its row was not at hand") for _ in ("", *methods)]
        return key, "", gone
    row, truth = shown[key]
    label = row.get("label")
    image, true_boxes, reason = _image(data, truth, label)
    classes, scores = row.get("classes") or [], row.get("scores") or []
    predicted = data.class_name(classes[0] if classes else None)
    score = f" ({scores[0]:.2f})" if scores else ""
    note = f"{predicted}{score}"
    if not classes or classes[0] != label:
        note = f"true: {data.class_name(label)} · predicted: {predicted}{score}"
    drawn = [] if image is None or not boxes else [Box.of_pixels(b, image.shape[1], image.shape[0]) for b in true_boxes]
    cells = [
        overlay.Cell(
            image,
            f"{what}: {key}, {data.class_name(label)}",
            boxes=drawn,
            note="no box" if boxes and image is not None and not drawn else "",
            missing=reason,
        )
    ]
    for method in methods:
        heat = _map(row, method)
        alt = f"{method_title(method)} map for {predicted} on {key}"
        overlap = _overlap(data, row, method)
        unfit = bool(row.get(f"iou/{method}")) and math.isnan(overlap)
        if heat is None or image is None or unfit:
            why = reason or ("no fit for the predicted class" if unfit else "no map: no fit, or nothing above zero")
            cells.append(overlay.Cell(None, alt, missing=why))
            continue
        if not boxes:
            cells.append(overlay.Cell(image, alt, heat))
            continue
        found = _found(data, row, method, image)
        text, tone = ("", "") if math.isnan(overlap) else (f"IoU {overlap:.2f}", "good" if overlap >= 0.5 else "bad")
        cells.append(overlay.Cell(image, alt, heat, [*drawn, *found], text, tone))  # type: ignore[arg-type]
    return key, note, cells


def _image(data: ChipReportData, row: Row | None, label: int | None) -> tuple[np.ndarray | None, np.ndarray, str]:
    """The image in the frame of the maps, the true boxes (edges) of its label there, or why there is none."""
    none = np.zeros((0, 4))
    if data.load is None or row is None:
        return None, none, "the image was not at hand when this page was made"
    try:
        image = data.load(row)
    except (OSError, ValueError, RaylensError) as error:
        text = " ".join(str(error).split())
        return None, none, f"the image is no longer reachable: {text[:160]}"
    found = row.get("boxes") or []
    owners = row.get("box_labels") or [label] * len(found)
    own = [b for b, o in zip(found, owners, strict=False) if label is None or o is None or o == label]
    boxes = np.asarray(own, dtype=float).reshape(-1, 4) + (np.array([0, 0, 1, 1]) if data.inclusive else 0)
    if data.preprocess.frame == "crop":
        boxes = data.preprocess.to_frame(boxes, image.shape[1], image.shape[0])
        image = data.preprocess.pixels(image).transpose(1, 2, 0)
    return np.ascontiguousarray(image), boxes, ""


def _found(data: ChipReportData, row: Row, method: str, image: np.ndarray) -> list[Box]:
    """The box that was measured at the chosen threshold, to its far edge; none where the row holds none."""
    number, _ = _choice(data, method, row["key"])
    flat = (row.get(f"box/{method}") or [])[4 * number : 4 * number + 4]
    if len(flat) < 4:
        return []
    height, width = data.preprocess.size if data.boxes_in_input else image.shape[:2]  # a crop is shown at input size
    edge = 1 if data.inclusive else 0
    return [Box.of_pixels([flat[0], flat[1], flat[2] + edge, flat[3] + edge], width, height, "predicted")]


def _map(row: Row, method: str) -> np.ndarray | None:
    """The stored map [h, w] of the first class; None where there is none or nothing in it."""
    flat = np.asarray(row.get(f"map/{method}") or [], dtype=np.float32)
    if not np.isfinite(flat).any() or not np.nan_to_num(flat).any():
        return None
    shape = row.get(f"map_shape/{method}") or [math.isqrt(len(flat))] * 2
    return flat.reshape(shape) if math.prod(shape) == len(flat) else None


def _spaced(first: int, stop: int, count: int) -> list[int]:
    """At most ``count`` distinct numbers of range(first, stop), ends included, evenly apart."""
    if stop <= first:
        return []
    return sorted({round(float(v)) for v in np.linspace(first, stop - 1, min(count, stop - first))})
