"""What CHIP's report is built from: plain tables and values, gathered by the job or made up by a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.report.totals import StepTotals
from stages.preprocess import Preprocess

# How methods are called on the page, in the order they stand in, and the colour each keeps in every figure.
METHODS = {
    "chip": ("CHIP", "#2f6fb7"),
    "refined_chip": ("Refined CHIP", "#d9601a"),
    "guided_chip": ("Guided CHIP", "#c39a13"),
    "grad_cam": ("Grad-CAM", "#2b8f6b"),
    "gradient": ("Gradient", "#b04f93"),
    "guided_backprop": ("Guided backprop", "#4aa5c9"),
    "center": ("Centred box", "#8a929c"),
    "whole_image": ("Whole image", "#7c6553"),
}
BASELINES = ("center", "whole_image")
RULES = ("tuned", "halves", "fixed", "oracle")


@dataclass(frozen=True)
class Layer:
    """A gated layer: as asked in the config, as resolved, its shape, and the way gates take through the network."""

    asked: str
    name: str
    channels: int
    height: int
    width: int
    path: str = ""


@dataclass(frozen=True)
class Solve:
    """One solve of the run: its settings, its rows (schema of stages.chip.solve), its metrics rows if any."""

    label: str
    table: pa.Table
    metrics: pa.Table | None = None
    fingerprint: str = ""
    lambda_rel: float | None = None
    sigma2: float | None = None
    stale: bool = False
    chose: bool = False  # held-out images chose lambda, so their R² is no independent check


@dataclass(frozen=True)
class ChipReportData:
    """Everything on CHIP's page. ``solves[0]`` is shown in full, the others beside it; what is empty is said.

    ``keys`` and ``localize`` are the key table and the localize rows of the evaluation split. For a large split, leave
    the map columns out of ``localize`` and give the full rows of ``chip_report_pictures.example_keys(data)`` as
    ``maps``. ``load(key row)`` gives the decoded image, uint8 [H, W, 3], and may raise OSError, ValueError or
    RaylensError. Errors in metrics rows are shares (0..1). ``layers`` are in network order, the last one is CHIP's
    own. ``paper`` puts the paper's numbers beside ours.
    """

    run: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    network: Mapping[str, Any]
    layers: Sequence[Layer]
    preprocess: Preprocess
    totals: Sequence[StepTotals]
    classes: Sequence[str] = ()
    solves: Sequence[Solve] = ()
    keys: pa.Table | None = None
    localize: pa.Table | None = None
    maps: pa.Table | None = None
    load: Callable[[Mapping[str, Any]], np.ndarray] | None = None
    heatmap_classes: Sequence[int] = ()
    venn_classes: Sequence[Sequence[int]] = ()
    examples: int = 4
    paper: bool = False
    title: str = ""
    gates: int = 100
    iou: float = 0.5  # the overlap that counts
    inclusive: bool = True  # boxes name their last pixel, as ILSVRC and VOC do
    boxes_in_input: bool = False  # localize compared boxes in input pixels; always so for a crop
    notes: Sequence[str] = field(default=())

    def class_name(self, index: int | None) -> str:
        """The class's name, or its number where the source gave none."""
        if index is None or index < 0:
            return "unknown"
        return self.classes[index] if index < len(self.classes) and self.classes[index] else f"class {index}"

    @property
    def last_layer(self) -> str:
        return self.layers[-1].asked if self.layers else ""


def method_title(method: str) -> str:
    if method in METHODS:
        return METHODS[method][0]
    base, _, layer = method.partition(":")
    return f"{method_title(base)} at {layer}" if layer else method.replace("_", " ").capitalize()


def method_colours(methods: Sequence[str]) -> dict[str, str]:
    """Fixed colours by title, for those methods that have one."""
    return {METHODS[m][0]: METHODS[m][1] for m in methods if m in METHODS}


def method_order(methods: Sequence[str]) -> list[str]:
    """The order of METHODS, CHIP at other layers after Refined CHIP, strangers last; stable."""
    known = list(METHODS)

    def rank(method: str) -> tuple[int, int]:
        if method in METHODS:
            return (known.index(method), 0)
        return (known.index("refined_chip"), 1) if method.startswith("chip:") else (len(known), 0)

    return sorted(dict.fromkeys(methods), key=rank)


def rows(table: pa.Table | None) -> Iterator[dict[str, Any]]:
    yield from (table.to_pylist() if table is not None else ())


def layer_rows(solve: Solve, layer: str) -> list[dict[str, Any]]:
    return [row for row in rows(solve.table) if row["layer"] == layer]


def chosen_metrics(metrics: pa.Table | None) -> dict[str, dict[str, Any]]:
    """Per method its row of the fairest rule there is: tuned, halves, fixed (no choice at all), oracle."""
    order = {rule: i for i, rule in enumerate(RULES)}
    chosen: dict[str, dict[str, Any]] = {}
    for row in rows(metrics):
        held = chosen.get(row["method"])
        if held is None or order.get(row["rule"], 9) < order.get(held["rule"], 9):
            chosen[row["method"]] = row
    return chosen
