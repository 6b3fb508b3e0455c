"""What a mask is measured by: boxes at every threshold, their overlap with true boxes, where its peak lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.gfi.boxes import distance, mean_boxes, peak
from stages.gfi.config import GfiConfig
from stages.metrics.boxes import best_iou, center_box, threshold_boxes


@dataclass(frozen=True)
class Truth:
    """Boxes of one class in the frame of comparison. ``easy`` leaves out those flagged as difficult."""

    boxes: NDArray[np.float64]  # [n, 4]
    easy: NDArray[np.float64]


def truth_of(config: GfiConfig, row: dict[str, Any], class_id: int | None, width: int, height: int) -> Truth | None:
    """The row's boxes of a class; None where the source has no boxes at all. Boxes without labels are the label's."""
    boxes = row.get("boxes")
    if boxes is None or class_id is None:
        return None
    owners = row.get("box_labels") or [row.get("label")] * len(boxes)
    if len(owners) != len(boxes):
        raise ValueError(f"{len(boxes)} boxes with {len(owners)} labels: give one label per box, or none at all")
    hard = row.get("difficult") or [False] * len(boxes)
    mine = [i for i, owner in enumerate(owners) if owner == class_id]
    found = np.array([boxes[i] for i in mine], dtype=np.float64).reshape(-1, 4)
    if not np.isfinite(found).all():
        raise ValueError("a box has a coordinate that is not a number")
    if config.in_input and len(found):
        last = 1.0 if config.inclusive else 0.0
        found = config.preprocess.to_frame(found + np.array([0, 0, last, last]), width, height).astype(np.float64)
        found[:, 2:] -= last
    return Truth(found, found[[not hard[i] for i in mine]])


def measure(
    config: GfiConfig, mask: NDArray[np.floating], before: NDArray[np.floating], truth: Truth | None
) -> dict[str, Any]:
    """One target's columns from its mask and the unoptimised one, both [H, W] in the frame of comparison."""
    height, width = mask.shape
    both = np.stack([mask, before])
    by_mean, by_max = (
        _edges(config, mean_boxes(both, config.alphas)),
        _edges(config, threshold_boxes(both, config.thresholds)),
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
    centres = _edges(config, np.stack([center_box(width, height, size) for size in config.center_sizes]))
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
        found["peak_distance"] = distance(at, truth.boxes, inclusive=config.inclusive)
        found["peak_distance_easy"] = distance(at, truth.easy, inclusive=config.inclusive)
    return found


def _edges(config: GfiConfig, boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Boxes drawn by first and last pixel, in the convention they are compared in."""
    return boxes if config.inclusive else boxes + np.array([0, 0, 1, 1])
