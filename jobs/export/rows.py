"""Detections from the rows of a comparison, a CHIP run or a GFI run, at the threshold the run chose."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import UsageError
from pipeline.models import ModelSpec, class_names
from pipeline.run import Run
from pipeline.units import Unit, units
from stages.gfi.reading import full_mask
from stages.metrics.boxes import largest_component
from stages.metrics.localization import half_of
from stages.preprocess import Preprocess
from stages.resize import upsample

Box = tuple[float, float, float, float]
Found = tuple[int, float, Box, NDArray[np.bool_] | None]  # class, score, box, mask
Choice = Sequence[float]  # one threshold, or one for each half of the images


class Drawing(ABC):
    """The rows of a measuring step on one split, in the order of keys."""

    step = ""
    grid_name = "thresholds"

    def __init__(
        self, run: Run, described: Mapping[str, Any], method: str, split: str, threshold: float | None
    ) -> None:
        self.run, self.described, self.config = run, described, described["config"]
        self.marks = {s["name"]: s["fingerprint"] for s in described["steps"]}
        self.unit = self._unit(split)
        assert self.unit.plan is not None
        self.fields: Mapping[str, Any] = self.unit.plan.fields  # what the stage was told, whatever the config says now
        self.method = self._method(method)
        self.preprocess = Preprocess(
            size=tuple(self.fields["config.preprocess.size"]),
            frame=self.fields["config.preprocess.frame"],
            resize=self.fields.get("config.preprocess.resize"),
        )
        frame = self.fields.get("config.frame", "auto")
        self.inclusive = bool(self.fields.get("config.inclusive", True))
        self.in_input = frame == "input" or (frame == "auto" and self.preprocess.frame == "crop")
        spec = ModelSpec.model_validate(self.config["model"])
        self.classes = class_names(spec) or run.key_table(self.unit.split).classes
        self.grid = [float(v) for v in self.fields[f"config.{self.grid_name}"]]
        self.chosen = self._chosen() if threshold is None else (self._on_grid(threshold),)

    def rows(self) -> Iterator[tuple[Mapping[str, Any], list[Found]]]:
        """Each image's row with what is found in it; rows that are not ok have nothing."""
        for _, receipt in sorted(self.unit.shards.complete()[0].items()):
            for row in self.unit.shards.open(receipt, None).to_pylist():
                if row.get("width") and row.get("height"):
                    yield row, list(self.found(row)) if row["status"] == "ok" else []

    @abstractmethod
    def found(self, row: Mapping[str, Any]) -> Iterator[Found]:
        """What one image's row says is there."""

    def at(self, key: str) -> int:
        """Number of the threshold that judged this image."""
        value = self.chosen[half_of(key)] if len(self.chosen) == 2 else self.chosen[0]
        return int(np.argmin(np.abs(np.asarray(self.grid) - value)))

    def box(self, flat: Sequence[int], row: Mapping[str, Any]) -> Box:
        """A box of the rows, as edges in the image's own pixels."""
        edge = 1.0 if self.inclusive else 0.0
        x0, y0, x1, y1 = (float(v) for v in flat)
        corners = np.array([x0, y0, x1 + edge, y1 + edge])
        if self.in_input:
            corners = self.preprocess.from_frame(corners, int(row["width"]), int(row["height"]))[0]
        found = [float(v) for v in corners]
        return found[0], found[1], found[2], found[3]

    def mask(self, heat: NDArray[np.floating[Any]], cut: float, row: Mapping[str, Any]) -> NDArray[np.bool_] | None:
        """A map above ``cut`` (and above 0), enlarged to the image.

        None where nothing is, and for a crop, which sees only a part.
        """
        if self.preprocess.frame == "crop":
            return None
        size = (int(row["height"]), int(row["width"]))
        values = torch.from_numpy(np.asarray(heat, dtype=np.float32))[None, None]
        large = upsample(values, size)[0, 0].numpy()
        kept = (large >= cut) & (large > 0)
        return kept if kept.any() else None

    def component(
        self, heat: NDArray[np.float32], at: int, box: Box, row: Mapping[str, Any]
    ) -> NDArray[np.bool_] | None:
        """The mask of a box around a largest component: the largest there is within the box.

        The stored map is smaller than the one that was boxed, so its own largest component may be another one.
        """
        found = self.mask(heat, self.grid[at] * float(np.maximum(heat, 0).max()), row)
        if found is None:
            return None
        x0, y0, x1, y1 = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
        within = np.zeros_like(found)
        within[y0:y1, x0:x1] = found[y0:y1, x0:x1]
        return largest_component(within) if within.any() else None

    def _unit(self, split: str) -> Unit:
        held = [u for u in units(self.run, self.described) if u.step == self.step and u.plan]
        held = [
            u for u in held if u.plan and u.plan.fingerprint == self.marks.get(self.step) and u.shards.complete()[0]
        ]
        names = [u.split for u in held]
        wanted = split or ("eval" if "eval" in names else names[0] if names else "eval")
        for unit in held:
            if unit.split == wanted:
                return unit
        hint = f"it holds {', '.join(names)}" if names else f"finish its step '{self.step}' first"
        raise UsageError(f"holds no rows of split '{wanted}' of step '{self.step}'", where=self.run.url, cure=hint)

    def _method(self, asked: str) -> str:
        names = self._methods()
        if asked and asked not in names:
            raise UsageError(
                f"there is no method '{asked}' in this run", where="--method", cure=f"use {', '.join(names)}"
            )
        return asked or names[0]

    def _methods(self) -> list[str]:
        return list(self.fields["config.methods"])

    def _on_grid(self, asked: float) -> float:
        if not np.isclose(self.grid, asked, rtol=0, atol=1e-6).any():
            known = ", ".join(f"{value:g}" for value in self.grid)
            raise UsageError(f"the run holds no boxes at {asked:g}", where="--threshold", cure=f"use one of {known}")
        return asked

    def _chosen(self) -> Choice:
        """The fairest threshold of the run's metrics; without boxes to choose by, 0.2 of the maximum."""
        rows = [r for r in self._metrics() if r["method"] == self.method and r["rule"] in ("tuned", "halves")]
        rows = [r for r in rows if r.get("measure", "chip_top1_error") in ("chip_top1_error", "mask_iou")]
        return next((r["thresholds"] for r in rows if r["thresholds"]), (0.2,))

    def _metrics(self) -> list[dict[str, Any]]:
        folder = self.run.step_folder("metrics", fingerprint=self.marks.get("metrics", ""))
        try:
            return list(json.loads(folder.read("metrics.json"))["rows"])
        except (FileNotFoundError, KeyError, ValueError):
            return []


class BestDrawing(Drawing):
    """One class of each image, with the box and the map of the chosen method."""

    class_column: ClassVar[str]  # classes, the best first
    score_column: ClassVar[str]

    def found(self, row: Mapping[str, Any]) -> Iterator[Found]:
        at = self.at(row["key"])
        flat = row[f"box/{self.method}"][4 * at : 4 * at + 4]
        if len(flat) == 4:
            shape, values = row[f"map_shape/{self.method}"], row[f"map/{self.method}"]
            box, mask = self.box(flat, row), None
            if shape:
                heat = np.asarray(values, dtype=np.float32).reshape(-1, *shape[-2:])[0]  # of several classes the first
                mask = self.component(heat, at, box, row)
            yield int(row[self.class_column][0]), float(row[self.score_column][0]), box, mask


class CompareDrawing(BestDrawing):
    """The first asked class of each image."""

    step, class_column, score_column = "compare", "asked", "asked_scores"


class ChipDrawing(BestDrawing):
    """The predicted class of each image."""

    step, class_column, score_column = "localize", "classes", "scores"


class GfiDrawing(Drawing):
    """Every explained class once, by GFI's own rule: pixels >= alpha * mean, one box around all of them."""

    step = "gfi"
    grid_name = "alphas"

    def found(self, row: Mapping[str, Any]) -> Iterator[Found]:
        at = self.at(row["key"])
        boxes = np.asarray(row["box/mean"]).reshape(len(row["targets"]), -1, 4)
        for number, target in enumerate(row["targets"]):
            if target in row["targets"][:number]:  # the label and the prediction may be one class
                continue
            heat = full_mask(row, number)
            mask = self.mask(heat, self.grid[at] * float(heat.mean()), row)
            yield int(target), float(row["score"][number]), self.box(boxes[number, at].tolist(), row), mask

    def _methods(self) -> list[str]:
        return ["gfi"]

    def _chosen(self) -> Choice:
        """The fairest alpha of the run's metrics; without boxes to choose by, the paper's 1.5, or the nearest to it."""
        rows = [r for r in self._metrics() if r.get("kind") == "localization" and r.get("name") == "gfi"]
        rows = [r for r in rows if r["box"] == "mean" and r["rule"] in ("tuned", "halves") and r.get("n")]
        return next((r["thresholds"] for r in rows if r.get("thresholds")), (1.5,))


READERS: dict[str, type[Drawing]] = {"compare": CompareDrawing, "chip": ChipDrawing, "gfi": GfiDrawing}
