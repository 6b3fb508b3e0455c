"""One image's row of a comparison: its columns, and how each map does by every measure that the row's truth allows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from stages.baselines.asking import Pair
from stages.baselines.rectangles import RECTANGLES
from stages.metrics.boxes import best_iou, level_boxes, threshold_levels
from stages.metrics.masks import level_mask_ious
from stages.metrics.mean_boxes import mean_boxes
from stages.metrics.pointing import Point, distance, middle, peak
from stages.metrics.robustness import rank_correlation
from stages.metrics.salient import Salient, salient
from stages.metrics.truth import Frame
from stages.resize import upsample
from stages.schema import column


@dataclass(frozen=True)
class Measures:
    """What is measured of each method's maps, and where."""

    methods: tuple[str, ...]
    thresholds: tuple[float, ...]
    alphas: tuple[float, ...]
    center_sizes: tuple[float, ...]
    where: Frame
    any_object: bool
    map_side: int


@dataclass(frozen=True)
class Seen:
    """What the network and the methods made of one image; ``maps`` [asked, h, w], ``attacked`` [h, w]."""

    row: Mapping[str, Any]
    asked: Sequence[Pair]
    ranked: NDArray[np.int64]
    probabilities: NDArray[Any]
    maps: Mapping[str, torch.Tensor]
    attacked: Mapping[str, torch.Tensor]
    curves: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
    judged: int | None  # class of the truth
    right: int | None
    attack_right: int | None = None


def result_schema(measures: Measures, *, curves: bool, attack: bool) -> pa.Schema:
    """The method's columns of the comparison."""
    single, half, whole = pa.list_(pa.float32()), pa.list_(pa.float16()), pa.list_(pa.int32())
    rows = [
        column("label", pa.int32(), "true class id; null if unknown"),
        column("judged", pa.int32(), "the class of the truth that localization is judged by; null: no label"),
        column("right", pa.int32(), "rank of the first predicted class that is that one; -1: none; null: no label"),
        column("classes", whole, "predicted class ids, best first", shape="[ranks]"),
        column("scores", single, "their softmax probabilities", shape="[ranks]"),
        column("asked", whole, "the network's classes whose maps were drawn; localization judges the first"),
        column("asked_scores", single, "their softmax probabilities", shape="[asked]"),
        column("truth", whole, "the class of the truth that each stands for; -1: any object, or several"),
        column("width", pa.int32(), "of the original image", unit="pixels"),
        column("height", pa.int32(), "of the original image", unit="pixels"),
        column("nonfinite", pa.list_(pa.string()), "methods with a map that is not finite; such pixels count as 0"),
        column("unanswered", pa.list_(pa.string()), "methods without an answer for the first asked class"),
        column("iou/whole_image", single, "best IoU with a true box of the first asked class; empty: no true box"),
        column("iou/center", single, "the same for centred boxes", shape="[sizes]"),
    ]
    kept = "best IoU of the first asked class's box with a true box; NaN: no answer; empty: no true box"
    heat = "map of each asked class, scaled to a largest magnitude of 1"
    miss = (
        "from there to the nearest true box of the class: of all, of those not difficult; inf: no answer, no contrast, "
        "or a box outside the crop; NaN: no such box; empty: no box"
    )
    rows.append(
        column("miss/center", single, "the same for the middle of the image", shape="[asked, 2]", unit="pixels")
    )
    of_box = "box of the first asked class; empty: no answer"
    point = "highest pixel for each asked class; -1: no answer, or no contrast"
    measures_of = "precision, recall, F, MAE against the mask at 2 x mean; no answer finds nothing; empty: no mask"
    for m in measures.methods:
        rows += [
            column(f"iou/{m}", single, f"{kept}; pixels >= t * max, largest component", shape="[thresholds]"),
            column(f"alpha_iou/{m}", single, f"{kept}; pixels >= alpha * mean, one box", shape="[alphas]"),
            column(f"mask_iou/{m}", single, "IoU of pixels >= t * max with the mask, if any", shape="[thresholds]"),
            column(f"salient/{m}", single, measures_of),
            column(f"point/{m}", whole, point, shape="[asked, x y]", unit="pixels"),
            column(f"miss/{m}", single, miss, shape="[asked, 2]", unit="pixels"),
            column(f"box/{m}", whole, f"{of_box} (t * max)", shape="[thresholds, x0 y0 x1 y1]", unit="pixels"),
            column(f"alpha_box/{m}", whole, f"{of_box} (alpha * mean)", shape="[alphas, x0 y0 x1 y1]", unit="pixels"),
            column(f"map/{m}", half, heat, shape="[asked, h, w]"),
            column(f"map_shape/{m}", whole, "number of asked classes, height and width of the maps"),
        ]  # fmt: skip
        if curves:
            steps = {"shape": "[steps + 1]"}
            rows += [
                column(
                    f"deletion/{m}", single, "probability while the map's highest pixels go; empty: no answer", **steps
                ),
                column(f"insertion/{m}", single, "probability while they come, from a blur; empty: no answer", **steps),
            ]
        if attack:
            rows += [
                column(f"attack_iou/{m}", single, "iou on the attacked input", shape="[thresholds]"),
                column(f"attack_rank/{m}", pa.float32(), "rank correlation of the map with that on the attacked input"),
            ]
    if attack:
        rows.append(column("attack_right", pa.int32(), "right on the attacked input"))
    grids = {b"thresholds": measures.thresholds, b"alphas": measures.alphas}
    return pa.schema(rows, metadata={name: " ".join(map(str, grid)).encode() for name, grid in grids.items()})


def measured(measures: Measures, seen: Seen, width: int, height: int) -> dict[str, Any]:
    """The row; ``filtered`` where the first asked class stands for no object, ``failed`` where the truth is wrong."""
    truth = [of[0] if len(of) == 1 and not measures.any_object else -1 for _, of in seen.asked]
    out: dict[str, Any] = {
        "label": seen.row.get("label"),
        "judged": seen.judged,
        "right": seen.right,
        "classes": seen.ranked.astype(np.int32),
        "scores": seen.probabilities[seen.ranked].astype(np.float32),
        "asked": np.array([c for c, _ in seen.asked], dtype=np.int32),
        "asked_scores": seen.probabilities[[c for c, _ in seen.asked]].astype(np.float32),
        "truth": np.array(truth, dtype=np.int32),
        "width": width,
        "height": height,
    }
    if seen.attacked:
        out["attack_right"] = seen.attack_right
    if not np.isfinite(seen.probabilities).all():
        reason = "ValueError: the network's answer is not finite: its weights or this image hold NaN or infinity"
        return out | {"status": "failed", "error": reason}
    if not seen.asked[0][1] and not measures.any_object:
        named = f"class {seen.asked[0][0]}" if seen.row.get("label") is None else f"label {seen.row['label']}"
        return out | {"status": "filtered", "error": f"'objects' names no object of the truth for {named}"}
    try:
        return out | _Image(measures, seen, width, height).columns()
    except ValueError as error:  # this row's boxes or masks are wrong; the others' are not
        return out | {"status": "failed", "error": f"{type(error).__name__}: {error}"}


class _Image:
    """One image with its truth in the frame of comparison."""

    def __init__(self, measures: Measures, seen: Seen, width: int, height: int) -> None:
        self.measures, self.seen, self.where = measures, seen, measures.where
        row = dict(seen.row)
        self.size = self.where.size(width, height)
        self.objects = [self.where.objects(row, None if measures.any_object else set(of)) for _, of in seen.asked]
        self.boxes = [self.where.boxes(row, mine, width, height) for mine in self.objects]
        self.mask = self.where.mask(row, self.objects[0], width, height)
        self.hard = [self.where.difficult(row, mine) for mine in self.objects]

    def columns(self) -> dict[str, Any]:
        height, width = self.size
        middles = [middle(width, height)] * len(self.seen.asked)
        answers = np.ones(len(middles), dtype=bool)
        out: dict[str, Any] = {"nonfinite": [], "unanswered": [], "miss/center": self._misses(middles, answers)}
        for name, rectangle in RECTANGLES.items():
            out[f"iou/{name}"] = self._ious(rectangle(width, height, self.measures.center_sizes))
        for name, heat in self.seen.maps.items():
            heat = heat[: len(self.seen.asked)]
            finite = torch.isfinite(heat).flatten(1)
            answered = finite.any(dim=1).cpu().numpy()  # all NaN: no answer for this class
            if not bool(finite[torch.from_numpy(answered)].all()):
                out["nonfinite"].append(name)
            if not answered[0]:
                out["unanswered"].append(name)
            heat = heat.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
            out |= self._of_method(name, heat, answered) | self._small(name, heat)
            if name in self.seen.curves:  # without an answer they would be those of pixels in reading order
                down, up = (curve[slice(None) if answered[0] else slice(0)] for curve in self.seen.curves[name])
                out |= {f"deletion/{name}": down, f"insertion/{name}": up}
            if name in self.seen.attacked:
                out |= self._attacked(name, heat[0], bool(answered[0]))
        return out

    def _of_method(self, name: str, heat: torch.Tensor, answered: NDArray[np.bool_]) -> dict[str, Any]:
        thresholds, alphas = self.measures.thresholds, self.measures.alphas
        large = upsample(heat[None], self.size)[0].cpu().numpy()
        levels = threshold_levels(large[:1], thresholds)
        boxes, around = level_boxes(levels, len(thresholds))[0], mean_boxes(large[:1], alphas)[0]
        flat = (heat.amax(dim=(1, 2)) == heat.amin(dim=(1, 2))).tolist()  # enlarged, rounding would make a peak of it
        points = [None if level else peak(one) for level, one in zip(flat, large, strict=True)]
        found: dict[str, Any] = {
            f"iou/{name}": self._ious(boxes, bool(answered[0])),
            f"alpha_iou/{name}": self._ious(around, bool(answered[0])),
            f"box/{name}": self._drawn(boxes, bool(answered[0])),
            f"alpha_box/{name}": self._drawn(around, bool(answered[0])),
            f"point/{name}": np.array([(-1, -1) if p is None else p for p in points], np.int32).ravel(),
            f"miss/{name}": self._misses(points, answered),
            f"mask_iou/{name}": np.zeros(0, np.float32),
            f"salient/{name}": np.zeros(0, np.float32),
        }
        if self.mask is not None:
            shares = level_mask_ious(levels[0], self.mask, len(thresholds))
            found[f"mask_iou/{name}"] = (shares if answered[0] else np.full_like(shares, np.nan)).astype(np.float32)
            scores = salient(large[0], self.mask) if answered[0] else Salient(0.0, 0.0, 0.0, float(self.mask.mean()))
            found[f"salient/{name}"] = np.array([scores.precision, scores.recall, scores.f, scores.mae], np.float32)
        return found

    def _ious(self, boxes: NDArray[np.int64], answered: bool = True) -> NDArray[np.float32]:
        truths = self.boxes[0]
        if truths is None or not len(truths):
            return np.zeros(0, dtype=np.float32)
        ious = best_iou(self.where.edges(boxes), truths, inclusive=self.where.inclusive)
        return (ious if answered else np.full_like(ious, np.nan)).astype(np.float32)

    def _drawn(self, boxes: NDArray[np.int64], answered: bool) -> NDArray[np.int32]:
        return self.where.edges(boxes)[slice(None) if answered else slice(0)].ravel().astype(np.int32)

    def _misses(self, points: Sequence[Point | None], answered: NDArray[np.bool_]) -> NDArray[np.float32]:
        if all(boxes is None or not len(boxes) for boxes in self.boxes):
            return np.zeros(0, dtype=np.float32)
        out = np.full((len(points), 2), np.nan, dtype=np.float32)
        for r, (point, boxes) in enumerate(zip(points, self.boxes, strict=True)):
            if boxes is None or not len(boxes):
                continue
            for at, mine in enumerate((boxes, boxes[~self.hard[r]])):
                if len(mine):
                    gap = distance(point, mine, inclusive=self.where.inclusive)
                    out[r, at] = gap if answered[r] else math.inf
        return out.ravel()

    def _attacked(self, name: str, clean: torch.Tensor, answered: bool) -> dict[str, Any]:
        heat = self.seen.attacked[name]
        answered = answered and bool(torch.isfinite(heat).any())
        heat = heat.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        large = upsample(heat[None, None], self.size)[0].cpu().numpy()
        thresholds = self.measures.thresholds
        boxes = level_boxes(threshold_levels(large, thresholds), len(thresholds))[0]
        rank = rank_correlation(clean.cpu().numpy(), heat.cpu().numpy()) if answered else math.nan
        return {f"attack_iou/{name}": self._ious(boxes, answered), f"attack_rank/{name}": rank}

    def _small(self, name: str, heat: torch.Tensor) -> dict[str, Any]:
        side = self.measures.map_side
        if not side:
            return {f"map/{name}": np.zeros(0, dtype=np.float16), f"map_shape/{name}": np.zeros(0, dtype=np.int32)}
        shape = (min(side, heat.shape[1]), min(side, heat.shape[2]))
        small = adaptive_avg_pool2d(heat, shape)
        largest = small.abs().amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return {  # scaled: float16 has few exponents
            f"map/{name}": (small / largest).flatten().cpu().numpy().astype(np.float16),
            f"map_shape/{name}": np.array([len(heat), *shape], dtype=np.int32),
        }
