"""GFI over a dataset: how well its boxes find the object, and what the optimisation did to the class's probability.

Localization error alone hardly sees the optimisation (an unoptimised mask, or a centred box, can score as well), so
the probabilities of the kept and the removed part, before and after, always stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.metrics.boxes import CENTER_SIZES, THRESHOLDS
from stages.metrics.localization import LocalizationConfig, LocalizationMetrics
from stages.metrics.mean_boxes import ALPHAS
from stages.metrics.moments import UNIT, mean_and_error
from stages.metrics.pointing import TOLERANCES, over_classes
from stages.schema import column

Counts = dict[str, NDArray[np.int64]]
State = dict[str, Counts]

SCORES = ("score", "kept_before", "removed_before", "kept_after", "removed_after", "zeros")
_GAINS = {"kept_gain": ("kept_after", "kept_before"), "removed_gain": ("removed_after", "removed_before")}
_RULES = ("mean", "max")


@dataclass(frozen=True)
class GfiMetricsConfig:
    """The grids and ``targets`` are those of the gfi step; ``classes`` is the network's number of classes.

    Boxes are judged for the first target of each image.
    """

    targets: tuple[int | str, ...] = ("predicted",)
    classes: int = 1000
    alphas: tuple[float, ...] = ALPHAS
    thresholds: tuple[float, ...] = THRESHOLDS
    center_sizes: tuple[float, ...] = CENTER_SIZES
    iou: float = 0.5
    tune_split: str = "tune"
    eval_split: str = field(default="eval")

    def __post_init__(self) -> None:
        if 1.0 not in self.center_sizes:
            raise ValueError(f"center_sizes {self.center_sizes} lacks 1.0: the whole image stands beside every map")


class GfiMetrics:
    """Reduction over gfi rows of the tuning and evaluation splits; one block, one row per measure."""

    version = 4
    aligned = False

    def __init__(self, config: GfiMetricsConfig) -> None:
        self.config = config
        splits = {"tune_split": config.tune_split, "eval_split": config.eval_split}
        grids = {"mean": config.alphas, "max": config.thresholds}
        # Every threshold's errors, the choice of one and paired differences are localization's own. The paper asks
        # only where the object is, so the class counts as right.
        self._located = {
            rule: LocalizationMetrics(
                LocalizationConfig(
                    methods=("gfi", "unoptimised"),
                    thresholds=grids[rule],
                    center_sizes=config.center_sizes,
                    center=config.center_sizes[len(config.center_sizes) // 2]
                    if 0.7 not in config.center_sizes
                    else 0.7,
                    iou=config.iou,
                    **splits,
                )
            )
            for rule in _RULES
        }
        self._asked = tuple(str(target) for target in config.targets)

    @property
    def columns(self) -> Sequence[str]:
        boxes = [f"iou/{rule}{part}" for rule in _RULES for part in ("", "_before")]
        pointing = ["peak_distance", "peak_distance_easy"]
        return ["label", "predicted", "asked", "targets", "iou/center", *SCORES, "flat", *boxes, *pointing]

    def blocks(self) -> list[Any]:
        return ["all"]

    def start(self, block: Any = "all") -> State:
        """Nothing counted yet: the identity of :meth:`merge`."""
        asked, named = len(self._asked), (*SCORES, *_GAINS)
        own = {
            "n": np.zeros(asked, np.int64),
            "flat": np.zeros(asked, np.int64),
            "sum": np.zeros((asked, len(named)), np.int64),
            "square": np.zeros((asked, len(named)), np.int64),
            "labelled": np.zeros(1, np.int64),
            "wrong_class": np.zeros(1, np.int64),
            "pointed": np.zeros((2, self.config.classes), np.int64),  # with and without difficult boxes
            "hit": np.zeros((2, len(TOLERANCES), self.config.classes), np.int64),
        }
        return {"own": own, **{rule: located.start() for rule, located in self._located.items()}}

    def add(self, state: State, table: pa.Table) -> State:
        """``state`` and the rows of ``table``; rows that failed are not of it."""
        if table.num_rows == 0:
            return state
        out = {rule: located.add(state[rule], self._judged(table, rule)) for rule, located in self._located.items()}
        own = {name: value.copy() for name, value in state["own"].items()}
        for row in table.select(self._own_columns).to_pylist():
            if row["split"] == self.config.eval_split:
                self._count(own, row)
        return {"own": own, **out}

    @property
    def _own_columns(self) -> list[str]:
        return [
            "split",
            "label",
            "predicted",
            "asked",
            "targets",
            "flat",
            *SCORES,
            "peak_distance",
            "peak_distance_easy",
        ]

    def _count(self, own: Counts, row: dict[str, Any]) -> None:
        if row["label"] is not None:
            own["labelled"] += 1
            own["wrong_class"] += row["label"] != row["predicted"]
        pointed: set[int] = set()
        for i, source in enumerate(row["asked"]):
            at = self._asked.index(source)
            values = {name: float(row[name][i]) for name in SCORES}
            values |= {name: values[after] - values[before] for name, (after, before) in _GAINS.items()}
            own["n"][at] += 1
            own["flat"][at] += bool(row["flat"][i])
            own["sum"][at] += np.rint(np.array(list(values.values())) * UNIT).astype(np.int64)
            own["square"][at] += np.rint(np.array(list(values.values())) ** 2 * UNIT).astype(np.int64)
            class_id = row["label"] if source == "predicted" else row["targets"][i]
            # The mask of a class that is not there, or of one that was counted for this image, points at nothing new.
            if row["targets"][i] != class_id or class_id in pointed:
                continue
            pointed.add(class_id)
            for kind, name in enumerate(("peak_distance", "peak_distance_easy")):
                gap = row[name][i]
                if class_id is None or gap is None or math.isnan(gap) or not 0 <= class_id < self.config.classes:
                    continue
                own["pointed"][kind, class_id] += 1
                own["hit"][kind, :, class_id] += gap <= np.array(TOLERANCES)

    def _judged(self, table: pa.Table, rule: str) -> pa.Table:
        """The table as localization reads it: the first target's overlaps; empty where there was no true box."""
        size = {"mean": len(self.config.alphas), "max": len(self.config.thresholds)}[rule]
        columns: dict[str, Any] = {name: table[name] for name in ("split", "key")}
        label = [None if v is None else int(v) for v in table["label"].to_pylist()]
        columns["label"] = pa.array(label, pa.int32())
        columns["classes"] = pa.array([[v if v is not None else -1] for v in label], pa.list_(pa.int32()))
        center = [_first(v, len(self.config.center_sizes)) for v in table["iou/center"].to_pylist()]
        columns["iou/center"] = center
        whole = self.config.center_sizes.index(1.0)
        columns["iou/whole_image"] = [v[whole : whole + 1] for v in center]
        for method, name in (("gfi", f"iou/{rule}"), ("unoptimised", f"iou/{rule}_before")):
            columns[f"iou/{method}"] = [_first(v, size) for v in table[name].to_pylist()]
        for name, values in columns.items():
            if name.startswith("iou/"):
                columns[name] = pa.array(values, pa.list_(pa.float32()))
        return pa.table(columns)

    def merge(self, left: State, right: State) -> State:
        return {part: {name: left[part][name] + right[part][name] for name in left[part]} for part in left}

    def finish(self, block: Any, state: State) -> pa.Table:
        """See :attr:`schema`."""
        rows = []
        for rule, located in self._located.items():
            for row in located.finish(block, state[rule]).to_pylist():
                if rule == "max" and row["method"] in ("center", "whole_image"):
                    continue  # they have no map: once is enough
                rows.append(self._location(rule, row))
        own = state["own"]
        names = (*SCORES, *_GAINS)
        for at, asked in enumerate(self._asked):
            n = int(own["n"][at])
            for j, name in enumerate(names):
                _, mean, se = mean_and_error(np.array([n, own["sum"][at, j], own["square"][at, j]]))
                rows.append({"kind": "score", "name": name, "asked": asked, "value": mean, "se": se, "n": n})
            flat = {"kind": "score", "name": "flat", "asked": asked, "value": own["flat"][at] / n if n else math.nan}
            rows.append(flat | {"n": n})
        labelled = int(own["labelled"][0])
        wrong = own["wrong_class"][0] / labelled if labelled else math.nan
        se = math.sqrt(wrong * (1 - wrong) / labelled) if labelled else math.nan
        rows.append({"kind": "score", "name": "class_error", "value": wrong, "se": se, "n": labelled})
        rows += self._pointing(own)
        return pa.Table.from_pylist(rows, schema=self.schema)

    def _location(self, rule: str, row: dict[str, Any]) -> dict[str, Any]:
        return {
            "kind": "localization",
            "name": row["method"],
            "box": rule,
            "rule": row["rule"],
            "value": row["top1_loc_error"],
            "se": row["top1_loc_se"],
            "n": row["n"],
            "threshold": row["threshold"],
            "thresholds": row["thresholds"],
            "tuning_images": row["tuning_images"],
            "mean_iou": row["mean_iou"],
            "grid": row["grid"],
            "curve": row["curve"],
            "paired": row["paired"],
            "vs_center": row["vs_center"],
            "vs_center_se": row["vs_center_se"],
        }

    def _pointing(self, own: Counts) -> list[dict[str, Any]]:
        rows = []
        for kind, boxes in enumerate(("all", "easy")):
            n = own["pointed"][kind]
            for j, tolerance in enumerate(TOLERANCES):
                value, se, low, high = over_classes(own["hit"][kind, j], n)
                rows.append(
                    {
                        "kind": "pointing",
                        "name": boxes,
                        "value": value,
                        "se": se,
                        "low": low,
                        "high": high,
                        "n": int(n.sum()),
                        "threshold": float(tolerance),
                        "tuning_images": int((n > 0).sum()),
                    }
                )
        return rows

    def summary(self, table: pa.Table) -> dict[str, Any]:
        """The rows as JSON; NaN becomes null, and what a row lacks is left out."""
        return {"rows": [_plain(row) for row in table.to_pylist()]}

    def state_bytes(self, block: Any = "all") -> int:
        return sum(value.nbytes for part in self.start(block).values() for value in part.values())

    @property
    def schema(self) -> pa.Schema:
        number, share = pa.float64(), "share of images"
        paired = pa.list_(pa.struct([("method", pa.string()), ("difference", number), ("se", number)]))
        return pa.schema(
            [
                column("kind", pa.string(), "localization (value: error), score (mean), pointing (accuracy)"),
                column("name", pa.string(), "gfi, unoptimised, center or whole_image; the score; all or easy boxes"),
                column("box", pa.string(), "mean: alpha * mean, one box; max: t * max, largest component"),
                column("rule", pa.string(), "where the threshold comes from: tuned, halves, oracle (hindsight), fixed"),
                column("asked", pa.string(), "which target the score is of"),
                column("value", number, "error, mean or accuracy"),
                column("se", number, "its standard error"),
                column("low", number, "pointing: its 95 % interval"),
                column("high", number, "the interval's upper end"),
                column("n", pa.int64(), "images, or (image, class) pairs"),
                column("threshold", number, "alpha or t; a centred box's side; pointing's tolerance in pixels"),
                column("thresholds", pa.list_(number), "the threshold; for 'halves' that of either half"),
                column("tuning_images", pa.int64(), "images the threshold was chosen on; pointing: classes seen"),
                column("mean_iou", number, "best IoU of the box, mean over images"),
                column("grid", pa.list_(number), "thresholds of the curve"),
                column("curve", pa.list_(number), "localization error", shape="[grid]", unit=share),
                column("paired", paired, "error minus each other's under the same rule, same images"),
                column("vs_center", number, "error minus the centred box's, same images", unit=share),
                column("vs_center_se", number, "its standard error, paired", unit=share),
            ]
        )


def _first(values: Sequence[float] | None, size: int) -> list[float]:
    """The first target's overlaps; none where it has no true box."""
    mine = list(values or ())[:size]
    return [] if not mine or any(v is None or math.isnan(v) for v in mine) else mine


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    def told(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, list):
            return [told(v) for v in value]
        if isinstance(value, dict):
            return {k: told(v) for k, v in value.items()}
        return value

    return {name: told(value) for name, value in row.items() if value is not None}
