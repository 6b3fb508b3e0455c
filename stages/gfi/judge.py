"""What a mask is measured by: boxes at every threshold, their overlap with true boxes, where its peak lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.gfi.config import GfiConfig
from stages.metrics.boxes import best_iou, center_box, threshold_boxes
from stages.metrics.mean_boxes import mean_boxes
from stages.metrics.pointing import distance, peak


@dataclass(frozen=True)
class Truth:
    """Boxes of one class in the frame of comparison. ``easy`` leaves out those flagged as difficult."""

    boxes: NDArray[np.float64]  # [n, 4]
    easy: NDArray[np.float64]


def truth_of(config: GfiConfig, row: dict[str, Any], class_id: int | None, width: int, height: int) -> Truth | None:
    """The row's boxes of a class; None where the source has no boxes at all. Boxes without labels are the label's."""
    if class_id is None:
        return None
    mine = config.where.objects(row, {class_id})
    if not row.get("box_labels") and class_id != row.get("label"):
        mine = []
    found = config.where.boxes(row, mine, width, height)
    return None if found is None else Truth(found, found[~config.where.difficult(row, mine)])


def measure(
    config: GfiConfig, mask: NDArray[np.floating], before: NDArray[np.floating], truth: Truth | None
) -> dict[str, Any]:
    """One target's columns from its mask and the unoptimised one, both [H, W] in the frame of comparison."""
    height, width = mask.shape
    both = np.stack([mask, before])
    by_mean, by_max = (
        config.where.edges(mean_boxes(both, config.alphas)),
        config.where.edges(threshold_boxes(both, config.thresholds)),
    )
    at = peak(mask)
    found: dict[str, Any] = {
        "box/mean": by_mean[0],
        "box/max": by_max[0],
        "peak": (-1, -1) if at is None else at,
        "peak_distance": np.nan,
        "peak_distance_easy": np.nan,
    }
    judged = truth is not None and len(truth.boxes) > 0
    centres = config.where.edges(np.stack([center_box(width, height, size) for size in config.center_sizes]))
    for name, boxes in (
        ("mean", by_mean[0]),
        ("mean_before", by_mean[1]),
        ("max", by_max[0]),
        ("max_before", by_max[1]),
        ("center", centres),
    ):
        ious = best_iou(boxes, truth.boxes, inclusive=config.inclusive) if truth is not None else None
        found[f"iou/{name}"] = ious if judged else np.full(len(boxes), np.nan)
    if truth is not None:
        for name, boxes in (("peak_distance", truth.boxes), ("peak_distance_easy", truth.easy)):
            found[name] = distance(at, boxes, inclusive=config.inclusive) if len(boxes) else np.nan
    return found
