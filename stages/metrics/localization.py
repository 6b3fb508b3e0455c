"""Weakly-supervised localization: error at every threshold, and thresholds chosen without looking at what is reported.

An image is right when its class is right and the box of that class's map overlaps one of the true boxes by at least one
half; top-5 is wrong only if all five (class, box of that class's own map) fail. The threshold comes from the tuning
split ("tuned"); without one, from each half of the evaluation images for the other ("halves"); the best threshold in
hindsight is reported beside it and called what it is ("oracle").

Everything is counted in integers, so merging is exactly associative and commutative, in whatever order shards arrive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.metrics.boxes import CENTER_SIZES, THRESHOLDS
from stages.metrics.localization_table import HALF_A, HALF_B, TUNE, rows, summary
from stages.metrics.moments import UNIT
from stages.schema import column

State = dict[str, NDArray[np.int64]]


@dataclass(frozen=True)
class LocalizationConfig:
    """What to compare. ``methods`` and the grids are those of the localize step; ``iou`` is the overlap that counts."""

    methods: tuple[str, ...] = ("chip", "refined_chip", "grad_cam", "gradient")
    thresholds: tuple[float, ...] = THRESHOLDS
    center_sizes: tuple[float, ...] = CENTER_SIZES
    center: float = 0.7
    iou: float = 0.5
    tune_split: str = "tune"
    eval_split: str = "eval"


@dataclass(frozen=True)
class Span:
    """One method's columns in the matrix of (method, threshold) choices."""

    method: str
    grid: tuple[float, ...]
    first: int

    @property
    def slice(self) -> slice:
        return slice(self.first, self.first + len(self.grid))


class LocalizationMetrics:
    """Reduction over localize rows of the tuning and evaluation splits to one row per (method, rule)."""

    version = 2
    aligned = False

    def __init__(self, config: LocalizationConfig) -> None:
        if config.center not in config.center_sizes:
            raise ValueError(f"center {config.center} is not one of center_sizes {config.center_sizes}: add it there")
        self.config = config
        self.spans: list[Span] = []
        for method in (*config.methods, "center", "whole_image"):
            grid = {"center": config.center_sizes, "whole_image": (0.0,)}.get(method, config.thresholds)
            self.spans.append(Span(method, tuple(grid), sum(len(s.grid) for s in self.spans)))
        self.width = sum(len(span.grid) for span in self.spans)

    @property
    def columns(self) -> Sequence[str]:
        return [
            "label",
            "classes",
            *(f"iou/{s.method}" for s in self.spans),
            *(f"mask_iou/{m}" for m in self.config.methods),
        ]

    def blocks(self) -> list[Any]:
        return ["all"]

    def start(self, block: Any = "all") -> State:
        """Nothing counted yet: the identity of :meth:`merge`."""
        groups, methods, width = 3, len(self.spans), self.width
        shapes: dict[str, tuple[int, ...]] = {
            "images": (groups,),  # images with a label and boxes
            "skipped": (groups,),  # images without: they cannot be judged
            "top1_class": (groups,),  # wrong class
            "top5_class": (groups,),
            "both_wrong": (
                groups,
                width,
                width,
            ),  # top-1 wrong under both choices; the diagonal is each one's own count
            "top5_wrong": (groups, width),
            "iou": (groups, width),  # of the predicted class's box, whether or not that class is right
            "iou_squared": (groups, width),
            "missing": (groups, methods),  # the predicted class has no fit
            "missing_any": (groups, methods),  # one of the five has none
            "masked": (groups, methods),  # images with a mask
            "mask_iou": (groups, width),
            "mask_best": (groups, methods),  # each image at its own best threshold
        }
        return {name: np.zeros(shape, dtype=np.int64) for name, shape in shapes.items()}

    def add(self, state: State, table: pa.Table) -> State:
        """``state`` and the rows of ``table``; those without a label or boxes are counted apart."""
        out = {name: value.copy() for name, value in state.items()}
        if table.num_rows == 0:
            return out
        group = self._groups(table)
        label = table["label"].combine_chunks()
        known = label.is_valid().to_numpy(zero_copy_only=False)
        judged = known & (_lengths(table, f"iou/{self.spans[-1].method}") > 0)
        out["skipped"] += np.bincount(group[~judged], minlength=3)
        if not judged.any():
            return out
        table = table.filter(pa.array(judged))
        group = group[judged]
        classes = _matrix(table, "classes")
        hit = classes == table["label"].to_numpy()[:, None]  # [images, ranks]
        right = np.zeros((len(group), self.width), dtype=bool)
        for index, span in enumerate(self.spans):
            ious = _matrix(table, f"iou/{span.method}").astype(np.float64)
            if span.method in ("center", "whole_image"):
                ious = np.broadcast_to(ious[:, None, :], (len(group), hit.shape[1], ious.shape[1]))
            elif ious.shape[1] != hit.shape[1] * len(span.grid):
                raise ValueError(
                    f"iou/{span.method} has {ious.shape[1]} values a row, not {hit.shape[1]} classes x "
                    f"{len(span.grid)} thresholds: the localize step ran with another grid; give its thresholds here"
                )
            ious = ious.reshape(len(group), hit.shape[1], -1)
            missing = np.isnan(ious[:, :, 0])
            ious = np.nan_to_num(ious)
            good = (ious >= self.config.iou) & hit[:, :, None] & ~missing[:, :, None]
            right[:, span.slice] = good[:, 0]
            _tally(out["top5_wrong"][:, span.slice], group, ~good.any(axis=1))
            _tally(out["iou"][:, span.slice], group, np.rint(ious[:, 0] * UNIT))
            _tally(out["iou_squared"][:, span.slice], group, np.rint(ious[:, 0] ** 2 * UNIT))
            _tally(out["missing"][:, index], group, missing[:, 0])
            _tally(out["missing_any"][:, index], group, missing.any(axis=1))
            if span.method in self.config.methods:
                self._add_masks(out, table, group, index, span)
        for g in range(3):
            wrong = (~right[group == g]).astype(np.float64)  # counts stay far below 2^53: the product is exact
            out["both_wrong"][g] += (wrong.T @ wrong).astype(np.int64)
        out["images"] += np.bincount(group, minlength=3)
        _tally(out["top1_class"], group, ~hit[:, 0])
        _tally(out["top5_class"], group, ~hit.any(axis=1))
        return out

    def merge(self, left: State, right: State) -> State:
        return {name: left[name] + right[name] for name in left}

    def finish(self, block: Any, state: State) -> pa.Table:
        """A row per method and rule; see :attr:`schema`."""
        return pa.Table.from_pylist(rows(self, state), schema=self.schema)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        """The table as JSON: one entry per method and rule under "rows", and what holds for all of them."""
        return summary(self, table)

    def state_bytes(self, block: Any = "all") -> int:
        return sum(value.nbytes for value in self.start(block).values())

    @property
    def schema(self) -> pa.Schema:
        count, number, share = pa.int64(), pa.float64(), "share of images"
        grid = pa.list_(pa.float64())
        paired = pa.list_(pa.struct([("method", pa.string()), ("difference", number), ("se", number)]))
        return pa.schema(
            [
                column("method", pa.string(), "method; 'center' and 'whole_image' are boxes that look at no map"),
                column("rule", pa.string(), "where the threshold comes from: tuned, halves, oracle (hindsight), fixed"),
                column(
                    "threshold",
                    number,
                    "share of the map's maximum, or the centred box's side; the mean of halves' two",
                ),
                column("thresholds", grid, "the threshold; for 'halves' that of either half"),
                column("n", count, "evaluation images with a label and boxes"),
                column("skipped", count, "evaluation images without: not judged"),
                column("tuning_images", count, "images the threshold was chosen on"),
                column("top1_loc_error", number, "class wrong or box wrong", unit=share),
                column("top1_loc_se", number, "its standard error", unit=share),
                column("top5_loc_error", number, "none of five classes right with its own box", unit=share),
                column("top5_loc_se", number, "its standard error", unit=share),
                column("top1_cls_error", number, "class wrong", unit=share),
                column("top5_cls_error", number, "class not among five", unit=share),
                column("mean_iou", number, "best IoU of the predicted class's box, mean over images"),
                column("mean_iou_se", number, "its standard error"),
                column("missing_fits", count, "images whose predicted class has no fit: counted as wrong"),
                column("missing_fits_top5", count, "images where one of the five classes has no fit"),
                column("vs_center", number, "top-1 error minus the centred box's, same images", unit=share),
                column("vs_center_se", number, "its standard error, paired", unit=share),
                column("vs_best_center", number, "the same against the best size under the same rule", unit=share),
                column("vs_best_center_se", number, "its standard error, paired", unit=share),
                column("paired", paired, "top-1 error minus every other method's under the same rule, paired"),
                column("grid", grid, "thresholds or sizes of the curves"),
                column("curve", grid, "top-1 localization error", shape="[grid]", unit=share),
                column("curve_top5", grid, "top-5 localization error", shape="[grid]", unit=share),
                column("curve_iou", grid, "mean IoU", shape="[grid]"),
                column("mask_images", count, "evaluation images with a mask"),
                column("mask_iou", number, "mean IoU of the thresholded map with the mask, threshold by the same rule"),
                column("mask_iou_best", number, "each image at its own best threshold (oracle, for figures only)"),
            ]
        )

    def _groups(self, table: pa.Table) -> NDArray[np.int64]:
        out = np.empty(table.num_rows, dtype=np.int64)
        pairs = zip(table["split"].to_pylist(), table["key"].to_pylist(), strict=True)
        for i, (split, key) in enumerate(pairs):
            if split == self.config.tune_split:
                out[i] = TUNE
            elif split == self.config.eval_split:
                out[i] = HALF_B if half_of(key) else HALF_A
            else:
                raise ValueError(
                    f"row {key!r} is of split {split!r}: localization reads "
                    f"{self.config.tune_split!r} (to choose) and {self.config.eval_split!r} (to report)"
                )
        return out

    def _add_masks(self, out: State, table: pa.Table, group: NDArray[Any], index: int, span: Span) -> None:
        name = f"mask_iou/{span.method}"
        if name not in table.column_names:
            return
        drawn = _lengths(table, name) > 0
        if drawn.any():
            ious = np.nan_to_num(_matrix(table.filter(pa.array(drawn)), name).astype(np.float64))
            _tally(out["mask_iou"][:, span.slice], group[drawn], np.rint(ious * UNIT))
            _tally(out["mask_best"][:, index], group[drawn], np.rint(ious.max(axis=1) * UNIT))
            out["masked"][:, index] += np.bincount(group[drawn], minlength=3)


def half_of(key: str) -> int:
    """0 or 1: which half of the evaluation images a key belongs to, by its hash alone."""
    return hashlib.blake2b(b"halves\0" + key.encode(), digest_size=1).digest()[0] & 1


def _tally(target: NDArray[np.int64], group: NDArray[Any], values: Any) -> None:
    """Adds ``values [images, ...]`` into the row of ``target`` that each image's group names."""
    np.add.at(target, group, values.astype(np.int64))


def _lengths(table: pa.Table, name: str) -> NDArray[np.int64]:
    return np.asarray(pc.fill_null(pc.list_value_length(table[name]), 0).to_numpy()).astype(np.int64)


def _matrix(table: pa.Table, name: str) -> NDArray[Any]:
    """A list column whose rows are equally long, as ``[rows, values]``."""
    lengths = _lengths(table, name)
    if (lengths != lengths[0]).any():
        raise ValueError(
            f"rows of {name} have {lengths.min()} to {lengths.max()} values: they come from different configs"
        )
    values = table[name].combine_chunks()
    flat = values.flatten() if not isinstance(values, pa.ChunkedArray) else pa.concat_arrays(values.chunks).flatten()
    return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(lengths), -1)
