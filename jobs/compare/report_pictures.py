"""The maps of chosen images: one image and class per row, one method per column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jobs.compare.report_data import CompareReportData, Row, class_name, title
from pipeline.errors import RaylensError
from pipeline.report import overlay
from pipeline.report.blocks import Box, Paragraph, Section
from stages.metrics.localization import half_of

_BUDGET = 2_600_000  # bytes of the grid


def sections(data: CompareReportData) -> list[Section]:
    if not data.shown:
        return [Section("Maps", [Paragraph("This run holds no maps to show.")])]
    rows = [row for pair in data.shown for row in _rows(data, *pair)]
    grid = overlay.grid(
        ["Image", *(title(m) for m in data.methods)],
        rows,
        caption="Each map is scaled to its own largest value. Solid boxes are true, dashed ones are drawn around the "
        "largest part above the chosen threshold (of the first class asked), with their overlap.",
        budget=_BUDGET,
    )
    chosen = "images are those the config names" if data.picked else "images are not hand-picked"
    return [Section("Maps", [grid], f"One image and class per row, one method per column; {chosen}.")]


def example_keys(keys: Sequence[str], chosen: Sequence[str], count: int) -> list[str]:
    """The images that are asked for, else ``count`` of them, evenly apart in the order of keys."""
    if chosen:
        return [key for key in keys if key in set(chosen)]
    if not keys or not count:
        return []
    at = sorted({round(float(v)) for v in np.linspace(0, len(keys) - 1, min(count, len(keys)))})
    return [keys[i] for i in at]


def _rows(data: CompareReportData, row: Row, key: Row) -> list[tuple[str, str, list[overlay.Cell]]]:
    image, boxes, reason = _image(data, row, key)
    out = []
    for number, asked in enumerate(row["asked"]):
        name = class_name(data.names, asked)
        score = f" ({row['asked_scores'][number]:.2f})"
        predicted = "" if asked == row["classes"][0] else f" · predicted: {class_name(data.names, row['classes'][0])}"
        cells = [overlay.Cell(image, f"{row['key']}, {name}", boxes=boxes if number == 0 else [], missing=reason)]
        cells += [_cell(data, row, m, number, image, boxes, reason) for m in data.methods]
        out.append((row["key"] if number == 0 else "", f"{name}{score}{predicted}", cells))
    return out


def _cell(
    data: CompareReportData,
    row: Row,
    method: str,
    number: int,
    image: np.ndarray | None,
    boxes: list[Box],
    reason: str,
) -> overlay.Cell:
    alt = f"{title(method)} map for {class_name(data.names, row['asked'][number])} on {row['key']}"
    heat = kept_map(row, method, number)
    if image is None or heat is None:
        return overlay.Cell(None, alt, missing=reason or "no map: no answer, or nothing above zero")
    if number:
        return overlay.Cell(image, alt, heat)
    at = _threshold(data, row, method)
    found, text, tone = [], "", ""
    flat = (row.get(f"box/{method}") or [])[4 * at : 4 * at + 4]
    if len(flat) == 4 and boxes:
        height, width = data.preprocess.size if data.in_input else image.shape[:2]
        edge = 1 if data.inclusive else 0
        found = [Box.of_pixels([flat[0], flat[1], flat[2] + edge, flat[3] + edge], width, height, "predicted")]
    overlaps = row.get(f"iou/{method}") or []
    if at < len(overlaps) and overlaps[at] is not None and np.isfinite(overlaps[at]):
        text, tone = f"IoU {overlaps[at]:.2f}", "good" if overlaps[at] >= 0.5 else "bad"
    return overlay.Cell(image, alt, heat, [*boxes, *found], text, tone)  # type: ignore[arg-type]


def kept_map(row: Row, method: str, number: int) -> np.ndarray | None:
    """The stored map [h, w] of one asked class; None where nothing in it is above zero."""
    flat, shape = np.asarray(row.get(f"map/{method}") or [], np.float32), row.get(f"map_shape/{method}") or []
    if len(shape) != 3 or number >= shape[0]:
        return None
    heat = flat.reshape(shape)[number]
    return heat if np.nan_to_num(heat).max(initial=0) > 0 else None


def _threshold(data: CompareReportData, row: Row, method: str) -> int:
    """Number of the threshold that judged this image."""
    found = data.value("chip_top1_error", method) or data.value("mask_iou", method)
    if found is None or not found["thresholds"]:
        return 5
    both = found["thresholds"]
    value = both[half_of(row["key"])] if found["rule"] == "halves" and len(both) == 2 else both[0]
    return int(np.argmin(np.abs(np.asarray(found["grid"]) - value)))


def _image(data: CompareReportData, row: Row, key: Row) -> tuple[np.ndarray | None, list[Box], str]:
    """The image in the frame of the maps, and the true boxes of the first asked class there."""
    if data.load is None:
        return None, [], "the image was not at hand when this page was made"
    try:
        image = data.load(key)
    except (OSError, ValueError, RaylensError) as error:
        return None, [], f"the image is no longer reachable: {' '.join(str(error).split())[:160]}"
    owners, wanted = key.get("box_labels"), (list(row.get("truth") or []) or [-1])[0]
    given = key.get("boxes") or []
    mine = [b for j, b in enumerate(given) if wanted < 0 or not owners or owners[j] == wanted]
    boxes = np.asarray(mine, dtype=float).reshape(-1, 4) + (np.array([0, 0, 1, 1]) if data.inclusive else 0)
    if data.preprocess.frame == "crop":
        boxes = data.preprocess.to_frame(boxes, image.shape[1], image.shape[0])
        image = data.preprocess.pixels(image).transpose(1, 2, 0)
    image = np.ascontiguousarray(image)
    return image, [Box.of_pixels(b, image.shape[1], image.shape[0]) for b in boxes.tolist()], ""
