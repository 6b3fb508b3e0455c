"""What GFI's report is built from: plain values, gathered by the job or made up by a test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from jobs.report.totals import StepTotals
from stages.gfi.config import GfiConfig
from stages.metrics.localization import half_of

Row = Mapping[str, Any]

RULES = ("tuned", "halves", "fixed", "oracle")
MAPS = {
    "gfi": ("GFI", "#2f6fb7"),
    "unoptimised": ("Unoptimised mask", "#d9601a"),
    "center": ("Centred box", "#8a929c"),
    "whole_image": ("Whole image", "#7c6553"),
}


@dataclass(frozen=True)
class Paths:
    """Means over the evaluation images, before each step: [steps]."""

    images: int = 0
    inversion: Sequence[float] = ()  # the first stage's loss, as a share of what it began with
    kept: Sequence[float] = ()  # the class's score in the kept part, second stage
    removed: Sequence[float] = ()


@dataclass(frozen=True)
class GfiReportData:
    """Everything on GFI's page; what is empty is said there.

    ``metrics`` are the rows of stages.gfi.metrics; ``examples`` pairs of a gfi row and its key row by group; ``load``
    gives the decoded image of a key row, uint8 [H, W, 3], and may raise OSError, ValueError or RaylensError.
    """

    run: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    network: Mapping[str, Any]
    stage: GfiConfig
    totals: Sequence[StepTotals]
    metrics: Sequence[Row] = ()
    paths: Paths = field(default_factory=Paths)
    examples: Mapping[str, Sequence[tuple[Row, Row]]] = field(default_factory=dict)
    load: Callable[[Row], np.ndarray] | None = None
    classes: Sequence[str] = ()
    paper: bool | Literal["pointing"] = False
    notes: Sequence[str] = ()

    def class_name(self, index: int | None) -> str:
        if index is None or index < 0:
            return "unknown"
        return self.classes[index] if index < len(self.classes) and self.classes[index] else f"class {index}"


def located(metrics: Sequence[Row], box: str) -> dict[str, Row]:
    """Per map its localization row under the fairest rule there is: tuned, halves, fixed, oracle."""
    chosen: dict[str, Row] = {}
    for row in metrics:
        if row["kind"] == "localization" and row["box"] == box:
            held = chosen.get(row["name"])
            if held is None or RULES.index(row["rule"]) < RULES.index(held["rule"]):
                chosen[row["name"]] = row
    return chosen


def chosen_alpha(metrics: Sequence[Row], alphas: Sequence[float], key: str) -> int:
    """Which of ``alphas`` judged this image: with the rule "halves", each half has its own. Without boxes: 1.5."""
    row = located(metrics, "mean").get("gfi", {})
    both, value = row.get("thresholds") or [], row.get("threshold")
    if row.get("rule") == "halves" and len(both) == 2:
        value = both[half_of(key)]
    if value is None or not np.isfinite(value) or not row.get("n"):
        value = 1.5
    return int(np.argmin(np.abs(np.asarray(alphas) - value)))
