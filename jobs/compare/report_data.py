"""What the comparison's page is built from, and how methods and measures are called on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.chip.report_data import METHODS as CHIP_METHODS
from jobs.report.totals import StepTotals
from stages.preprocess import Preprocess

METHODS = {
    **CHIP_METHODS,
    "gfi": ("GFI", "#1d3f72"),
    "smooth_grad": ("SmoothGrad", "#d99ac5"),
    "integrated_gradients": ("Integrated gradients", "#7c3f6b"),
    "guided_grad_cam": ("Guided Grad-CAM", "#6fbf9f"),
    "cam": ("CAM", "#12664a"),
    "lrp": ("LRP", "#a8322d"),
    "excitation_backprop": ("Excitation backprop", "#e0b04a"),
    "c_mwp": ("c-MWP", "#8a6a12"),
    "occlusion": ("Occlusion", "#5a5f9e"),
    "lime": ("LIME", "#8fae3a"),
    "optimised_mask": ("Optimised mask", "#e07a8b"),
    "ft": ("FT", "#3b3b3b"),
}
RULES = ("tuned", "halves", "fixed", "", "oracle")  # fairest first


@dataclass(frozen=True)
class MeasureColumn:
    """A column of the table: its measure, heading, unit, decimals; percent where the value is a share."""

    measure: str
    title: str
    best: str
    digits: int = 3
    percent: bool = False
    unit: str = ""


COLUMNS = (
    MeasureColumn("chip_top1_error", "CHIP top-1 loc", "min", 1, True, "% error"),
    MeasureColumn("chip_top5_error", "CHIP top-5 loc", "min", 1, True, "% error"),
    MeasureColumn("gfi_error", "GFI loc", "min", 1, True, "% error"),
    MeasureColumn("pointing_0", "Pointing", "max", 1, True, "% hits"),
    MeasureColumn("pointing_15", "Pointing, 15 px", "max", 1, True, "% hits"),
    MeasureColumn("pointing_0_easy", "Not difficult", "max", 1, True, "% hits"),
    MeasureColumn("pointing_15_easy", "Not difficult, 15 px", "max", 1, True, "% hits"),
    MeasureColumn("mask_iou", "Mask IoU", "max"),
    MeasureColumn("precision", "Precision", "max"),
    MeasureColumn("recall", "Recall", "max"),
    MeasureColumn("f", "Mean F", "max"),
    MeasureColumn("f_of_means", "F of means", "max"),
    MeasureColumn("mae", "MAE", "min"),
    MeasureColumn("deletion", "Deletion", "min"),
    MeasureColumn("insertion", "Insertion", "max"),
    MeasureColumn("attack_rank", "Rank corr. under FGSM", "max"),
    MeasureColumn("attack_error_change", "Error under FGSM", "min", 1, True, "points more"),
    MeasureColumn("unanswered", "No answer", "min", 1, True, "% of images"),
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class CompareReportData:
    """Everything on the page. ``metrics`` are rows of stages.metrics.comparison; ``shown`` the rows with maps.

    ``load(key row)`` gives the decoded image and may raise OSError, ValueError or RaylensError.
    """

    run: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    methods: Sequence[str]
    network: str
    preprocess: Preprocess
    totals: Sequence[StepTotals]
    metrics: Sequence[Row]
    seconds: Mapping[str, tuple[float, float, int]]  # method -> median, its spread, images
    device: str
    shown: Sequence[tuple[Row, Row]]  # (compare row, key row)
    load: Callable[[Row], np.ndarray] | None
    names: Sequence[str]  # classes of the network
    truth_names: Sequence[str]
    papers: Sequence[str] = ()
    classes: int = 20
    picked: bool = False  # whether the config names the images that are shown
    inclusive: bool = True
    in_input: bool = False

    @property
    def frame(self) -> str:
        height, width = self.preprocess.size
        if self.preprocess.frame == "squash":
            return f"the whole image squashed to {width}×{height}"
        return f"centre crop of {width}×{height}; boxes are clipped to it"

    def value(self, measure: str, method: str) -> Row | None:
        """The row of the fairest rule there is, over all classes."""
        rows = [r for r in self.metrics if r["measure"] == measure and r["method"] == method and r["class_id"] is None]
        return min(rows, key=lambda r: RULES.index(r["rule"]), default=None)


def title(method: str) -> str:
    base, _, layer = method.partition(":")
    name = METHODS[base][0] if base in METHODS else base.replace("_", " ").capitalize()
    return f"{name} at {layer}" if layer else name


def class_name(names: Sequence[str], index: int | None) -> str:
    if index is None or index < 0:
        return "any object"
    return names[index] if index < len(names) and names[index] else f"class {index}"


def table_rows(table: pa.Table | None) -> list[dict[str, Any]]:
    return [] if table is None else table.to_pylist()
