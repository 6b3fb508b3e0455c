"""GFI's report: masks, what they keep and what they remove, on examples nobody picked by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from jobs.gfi.report_data import GfiReportData, Row, chosen_alpha
from pipeline.errors import RaylensError
from pipeline.report import overlay
from pipeline.report.blocks import Box, Paragraph, Section
from stages.gfi.background import RADIUS, blurred_image
from stages.gfi.judge import truth_of
from stages.gfi.reading import full_mask

_GROUPS = {
    "good": ("Good", "Evenly spaced over the tenth of the images with the highest overlap."),
    "median": ("Median", "Around the middle of the ranking: what to expect of an ordinary image."),
    "bad": ("Bad", "Evenly spaced over the tenth of the images with the lowest overlap."),
}
_HOW = (
    "Bright yellow is where the mask is 1. Dashed: the box at the chosen alpha; the number is its overlap with the "
    "best true box. Kept and removed are shown with a blurred background, whatever stood there in the run."
)
_COLUMNS = ("Image", "Mask", "Kept", "Removed")
_BUDGET = 1_100_000  # bytes of pictures in each group


def section(data: GfiReportData) -> Section:
    """A grid for each group of examples."""
    blocks: list[Any] = []
    for name, pairs in data.examples.items():
        if not pairs:
            continue
        heading, how = _GROUPS[name] if len(data.examples) > 1 else ("Examples", "Evenly spaced over the images.")
        blocks.append(
            overlay.grid(
                _COLUMNS,
                [_row(data, row, key) for row, key in pairs],
                caption=f"{how} {_HOW if not blocks else ''}".strip(),
                title=f"{heading} images" if len(data.examples) > 1 else heading,
                budget=_BUDGET,
            )
        )
    if not blocks:
        return Section("Masks", [Paragraph("No evaluation image has a mask yet, so there is nothing to show.")])
    return Section("Masks", blocks, "The first target of each image; images are ranked by overlap, not hand-picked.")


def _row(data: GfiReportData, row: Row, key: Row) -> tuple[str, str, list[overlay.Cell]]:
    name = data.class_name(row["targets"][0])
    note = f"{name} ({row['score'][0]:.2f})"
    if row["label"] is not None and row["label"] != row["targets"][0]:
        note = f"true: {data.class_name(row['label'])} · {row['asked'][0]}: {note}"
    image, reason = _image(data, key)
    if image is None:
        cells = [
            overlay.Cell(None, f"{what}: {row['key']}", missing=reason) for what in ("image", "mask", "kept", "removed")
        ]
        return row["key"], note, cells
    height, width = image.shape[:2]
    drawn = _truth(data, row, key, width, height)
    number = chosen_alpha(data.metrics, data.stage.alphas, row["key"])
    overlap = row["iou/mean"][number]
    text, tone = ("", "") if np.isnan(overlap) else (f"IoU {overlap:.2f}", "good" if overlap >= 0.5 else "bad")
    mask = full_mask(row)
    kept, removed = _parts(image, mask)
    before, after = ("kept_before", "removed_before"), ("kept_after", "removed_after")
    told = [f"{row[b][0]:.2f} → {row[a][0]:.2f}" for b, a in zip(before, after, strict=True)]
    if row["flat"][0]:
        text, tone = "no contrast", "bad"
    found = _box(data, row, number, width, height)
    cells = [
        overlay.Cell(image, f"{row['key']}, {name}", boxes=drawn),
        overlay.Cell(image, f"Mask for {name} on {row['key']}", mask, [*drawn, found], text, tone),  # type: ignore[arg-type]
        overlay.Cell(kept, f"What the mask keeps of {row['key']}", note=told[0]),
        overlay.Cell(removed, f"What the mask leaves of {row['key']}", note=told[1]),
    ]
    return row["key"], note, cells


def _image(data: GfiReportData, key: Row) -> tuple[np.ndarray | None, str]:
    """The image as the mask covers it: whole, or the crop."""
    if data.load is None:
        return None, "the image was not at hand when this page was made"
    try:
        image = data.load(key)
    except (OSError, ValueError, RaylensError) as error:
        return None, f"the image is no longer reachable: {' '.join(str(error).split())[:160]}"
    if data.stage.preprocess.frame == "crop":
        image = data.stage.preprocess.pixels(image).transpose(1, 2, 0)
    return np.ascontiguousarray(image), ""


def _truth(data: GfiReportData, row: Row, key: Row, width: int, height: int) -> list[Box]:
    judged = row["label"] if row["asked"][0] == "predicted" else row["targets"][0]
    truth = truth_of(data.stage, dict(key), judged, row["width"], row["height"])
    if truth is None:
        return []
    edge = 1 if data.stage.inclusive else 0
    frame = data.stage.preprocess.size if data.stage.in_input else (height, width)
    return [Box.of_pixels(b + np.array([0, 0, edge, edge]), frame[1], frame[0]) for b in truth.boxes]


def _box(data: GfiReportData, row: Row, number: int, width: int, height: int) -> Box:
    x0, y0, x1, y1 = row["box/mean"][4 * number : 4 * number + 4]
    edge = 1 if data.stage.inclusive else 0
    frame = data.stage.preprocess.size if data.stage.in_input else (height, width)
    return Box.of_pixels([x0, y0, x1 + edge, y1 + edge], frame[1], frame[0], "predicted")


def _parts(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image where the mask is 1 and where it is 0, before a blur as wide as the input's was."""
    height, width = image.shape[:2]
    large = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR))[..., None]
    large = np.clip(large, 0, 1)
    hidden = blurred_image(image, RADIUS * height / mask.shape[0])
    mixed = (image * large + hidden * (1 - large), image * (1 - large) + hidden * large)
    kept, removed = (np.clip(part, 0, 255).astype(np.uint8) for part in mixed)
    return kept, removed
