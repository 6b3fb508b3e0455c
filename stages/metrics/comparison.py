"""The comparison's numbers: rows of the compare pass in, one row per measure, method and rule out.

Localization is counted twice by `stages.metrics.localization`, under CHIP's protocol (pixels >= t * max, largest
component, the class has to be right too) and under GFI's (pixels >= alpha * mean, one box, the class is given).
Everything is summed in integers, so merging is exactly associative and commutative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stages.metrics import comparison_table
from stages.metrics.boxes import CENTER_SIZES, THRESHOLDS
from stages.metrics.deletion import area_under
from stages.metrics.localization import LocalizationConfig, LocalizationMetrics
from stages.metrics.mean_boxes import ALPHAS
from stages.metrics.moments import moments
from stages.metrics.pointing import TOLERANCES
from stages.schema import column

State = dict[str, Any]
SALIENT = ("precision", "recall", "f", "mae")
_ARRAYS = ("masked", "mask_iou", "mask_squared", "mask_best", "attacked", "scalars", "unanswered")
SCALARS = (*SALIENT, "deletion", "insertion", "attack_rank")  # in the order of the state's array


@dataclass(frozen=True)
class ComparisonConfig:
    """What the compare step measured: its methods and grids; ``iou`` is the overlap that counts."""

    methods: tuple[str, ...] = ("grad_cam", "gradient")
    thresholds: tuple[float, ...] = THRESHOLDS
    alphas: tuple[float, ...] = ALPHAS
    center_sizes: tuple[float, ...] = CENTER_SIZES
    center: float = 0.7
    iou: float = 0.5
    top5: bool = True  # whether the class that is right has a map wherever it is predicted
    curves: bool = False
    attack: bool = False
    tune_split: str = "tune"
    eval_split: str = "eval"


class ComparisonMetrics:
    """Reduction over compare rows of the tuning and evaluation splits."""

    version = 6
    aligned = False

    def __init__(self, config: ComparisonConfig) -> None:
        self.config = config
        shared = {
            "methods": config.methods, "center_sizes": config.center_sizes, "center": config.center, "iou": config.iou,
            "tune_split": config.tune_split, "eval_split": config.eval_split,
        }  # fmt: skip
        self.chip = LocalizationMetrics(LocalizationConfig(thresholds=config.thresholds, **shared))  # type: ignore[arg-type]
        self.gfi = LocalizationMetrics(LocalizationConfig(thresholds=config.alphas, **shared))  # type: ignore[arg-type]

    @property
    def columns(self) -> Sequence[str]:
        names = ["iou", "alpha_iou", "mask_iou", "salient", "miss"]
        names += ["deletion", "insertion"] if self.config.curves else []
        names += ["attack_iou", "attack_rank"] if self.config.attack else []
        mine = [f"{name}/{m}" for m in self.config.methods for name in names]
        mine += ["attack_right"] if self.config.attack else []
        fixed = ["iou/center", "iou/whole_image", "miss/center"]
        return ["judged", "right", "classes", "asked", "truth", "unanswered", *fixed, *mine]

    def blocks(self) -> list[Any]:
        return ["all"]

    def start(self, block: Any = "all") -> State:
        """Nothing counted yet: the identity of :meth:`merge`."""
        methods, width = len(self.config.methods), self.chip.width
        return {
            "chip": self.chip.start(),
            "gfi": self.gfi.start(),
            "masked": np.zeros((3, methods), np.int64),  # images with a mask, which need no box
            "mask_iou": np.zeros((3, width), np.int64),
            "mask_squared": np.zeros((3, width), np.int64),
            "mask_best": np.zeros((3, methods), np.int64),  # each image at its own best threshold
            "attacked": np.zeros((2, 3, width), np.int64),  # newly wrong, newly right
            "scalars": np.zeros((methods, len(SCALARS), 3), np.int64),
            "unanswered": np.zeros(methods + 1, np.int64),  # images without an answer, by method; all images
            "pointing": {},  # class -> [methods and the middle, tolerances, all and not difficult, (images, hits)]
            "classes": {},  # class -> [groups, 1 + width]: images, and wrong under CHIP's protocol
        }

    def add(self, state: State, table: pa.Table) -> State:
        """``state`` and the rows of ``table``; choices of thresholds see the tuning split, everything else does not."""
        chip = self.chip.add(state["chip"], self._localized(table, "iou", len(self.config.thresholds), ranks=5))
        gfi = self.gfi.add(state["gfi"], self._localized(table, "alpha_iou", len(self.config.alphas), ranks=1))
        own = self.start()
        self._add_masks(own, table)
        held = table.filter(pc.equal(table["split"], self.config.eval_split))
        for index, method in enumerate(self.config.methods):
            self._add_scalars(own["scalars"][index], held, method)
        missing = held["unanswered"].to_pylist()
        own["unanswered"] += [*(sum(m in names for names in missing) for m in self.config.methods), len(missing)]
        for index, method in enumerate((*self.config.methods, "center")):
            self._add_points(own["pointing"], held, index, method)
        self._add_classes(own, table)
        own |= {"chip": chip, "gfi": gfi}
        return self._sum(state, own) | {"chip": chip, "gfi": gfi}

    def merge(self, left: State, right: State) -> State:
        both = {
            "chip": self.chip.merge(left["chip"], right["chip"]),
            "gfi": self.gfi.merge(left["gfi"], right["gfi"]),
        }
        return self._sum(left, right) | both

    @staticmethod
    def _sum(left: State, right: State) -> State:
        out: State = {name: left[name] + right[name] for name in _ARRAYS}
        for name in ("pointing", "classes"):
            classes = sorted({*left[name], *right[name]})
            parts = {c: [s[name][c] for s in (left, right) if c in s[name]] for c in classes}
            out[name] = {c: np.sum(found, axis=0) for c, found in parts.items()}
        return out

    def finish(self, block: Any, state: State) -> pa.Table:
        """A row per measure, method and rule, and per class where the measure has classes; see :attr:`schema`."""
        return pa.Table.from_pylist(comparison_table.rows(self, state), schema=self.schema)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        """Everything but the classes, as JSON."""
        return comparison_table.summary(table)

    def state_bytes(self, block: Any = "all") -> int:
        mine = self.start()
        arrays = [mine[name] for name in _ARRAYS]
        per_class = 8 * (3 * (1 + self.chip.width) + 8 * (len(self.config.methods) + 1))
        kept = self.chip.state_bytes() + self.gfi.state_bytes() + sum(a.nbytes for a in arrays)
        return kept + 1000 * per_class

    @property
    def schema(self) -> pa.Schema:
        number, grid = pa.float64(), pa.list_(pa.float64())
        return pa.schema(
            [
                column("measure", pa.string(), "what is measured; see stages.metrics.comparison_table.MEASURES"),
                column("method", pa.string(), "method; 'center' and 'whole_image' look at no map"),
                column("rule", pa.string(), "where the threshold comes from: tuned, halves, oracle; else empty"),
                column("class_id", pa.int32(), "null: all classes"),
                column("n", pa.int64(), "images (for pointing: images x classes) behind the value"),
                column("value", number, "share, overlap or correlation"),
                column("se", number, "its standard error"),
                column("low", number, "95 % interval: Wilson's for shares, else value - 1.96 se"),
                column("high", number, "its upper end"),
                column("thresholds", grid, "the threshold chosen; for 'halves' that of either half"),
                column("grid", grid, "thresholds of the curve"),
                column("curve", grid, "the value at each of them", shape="[grid]"),
            ]
        )

    def _localized(self, table: pa.Table, name: str, grid: int, ranks: int) -> pa.Table:
        """The table that `LocalizationMetrics` reads: the asked map's overlaps stand at the rank of the right class.

        Where the map is of another class, the right one has none. They also stand at the first rank, which decides
        nothing where another class is right: so the mean overlap is of the asked class's box.
        """
        right = table["right"].to_pylist()
        known = [r is not None for r in right]
        labels = [0 if k else (0 if ranks == 1 else None) for k in known]
        # A class that is right has the number 0, all others 1; with one rank the class is given, so always right.
        place = [0 if ranks == 1 else (-1 if r is None or r >= ranks else r) for r in right]
        drawn = zip(table["classes"].to_pylist(), table["asked"].to_pylist(), strict=True)
        held = [p if p > 0 and classes[p] == asked[0] else 0 for p, (classes, asked) in zip(place, drawn, strict=True)]
        columns: dict[str, Any] = {
            "key": table["key"],
            "split": table["split"],
            "label": pa.array(labels, pa.int32()),
            "classes": pa.array([[int(i != p) for i in range(ranks)] for p in place], pa.list_(pa.int32())),
        }
        for fixed in ("center", "whole_image"):
            columns[f"iou/{fixed}"] = table[f"iou/{fixed}"]
        for method in self.config.methods:
            columns[f"iou/{method}"] = self._ranked(table[f"{name}/{method}"], held, grid, ranks)
        return pa.table(columns)

    @staticmethod
    def _ranked(overlaps: pa.ChunkedArray, held: list[int], grid: int, ranks: int) -> pa.Array:
        rows: list[list[float]] = []
        for values, at in zip(overlaps.to_pylist(), held, strict=True):
            if not values:
                rows.append([])
                continue
            filled = np.full((ranks, grid), -1.0, np.float32)
            filled[0] = values
            filled[at] = values
            rows.append(filled.ravel().tolist())
        return pa.array(rows, pa.list_(pa.float32()))

    def _add_masks(self, own: State, table: pa.Table) -> None:
        from stages.metrics.localization import _lengths, _matrix, _tally

        group = self.chip._groups(table)
        for index, method in enumerate(self.config.methods):
            name, span = f"mask_iou/{method}", self.chip.spans[index]
            if not (drawn := _lengths(table, name) > 0).any():
                continue
            ious = np.nan_to_num(_matrix(table.filter(pa.array(drawn)), name).astype(np.float64))
            mine, unit = group[drawn], comparison_table.UNIT
            own["masked"][:, index] += np.bincount(mine, minlength=3)
            _tally(own["mask_iou"][:, span.slice], mine, np.rint(ious * unit))
            _tally(own["mask_squared"][:, span.slice], mine, np.rint(ious**2 * unit))
            _tally(own["mask_best"][:, index], mine, np.rint(ious.max(axis=1) * unit))

    def _add_scalars(self, target: NDArray[np.int64], table: pa.Table, method: str) -> None:
        rows = np.full((table.num_rows, len(SCALARS)), np.nan)
        for i, values in enumerate(table[f"salient/{method}"].to_pylist()):
            if values:
                rows[i, : len(SALIENT)] = values
        for at, name in ((4, "deletion"), (5, "insertion")):
            if self.config.curves:
                for i, values in enumerate(table[f"{name}/{method}"].to_pylist()):
                    rows[i, at] = area_under(values) if values else np.nan
        if self.config.attack:
            ranks = table[f"attack_rank/{method}"].to_pylist()
            rows[:, 6] = [np.nan if r is None else np.clip(r, -1, 1) for r in ranks]
        target += moments(rows)

    def _add_points(self, target: dict[int, NDArray[np.int64]], table: pa.Table, index: int, method: str) -> None:
        shape = (len(self.config.methods) + 1, len(TOLERANCES), 2, 2)
        for classes, misses in zip(table["truth"].to_pylist(), table[f"miss/{method}"].to_pylist(), strict=True):
            for c, pair in zip(classes, np.reshape(misses or [], (-1, 2)), strict=False):
                counts = target.setdefault(int(c), np.zeros(shape, np.int64))
                for kind, gap in enumerate(pair):
                    if not np.isnan(gap):
                        counts[index, :, kind, 0] += 1
                        counts[index, :, kind, 1] += gap <= np.array(TOLERANCES)

    def _add_classes(self, own: State, table: pa.Table) -> None:
        """Wrong under CHIP's protocol by class of the truth, and what an attack changed."""
        group = self.chip._groups(table)
        right, labels = table["right"].to_pylist(), table["judged"].to_pylist()
        spans = [s for s in self.chip.spans if s.method in self.config.methods]
        clean = {s.method: table[f"iou/{s.method}"].to_pylist() for s in spans}
        moved = {s.method: table[f"attack_iou/{s.method}"].to_pylist() for s in spans} if self.config.attack else {}
        still = table["attack_right"].to_pylist() if self.config.attack else []
        for i, label in enumerate(labels):
            if label is None or right[i] is None or not clean[spans[0].method][i]:
                continue
            counts = own["classes"].setdefault(int(label), np.zeros((3, 1 + self.chip.width), np.int64))
            counts[group[i], 0] += 1
            for span in spans:
                wrong = ~(np.array(clean[span.method][i]) >= self.config.iou) | (right[i] != 0)  # NaN is wrong
                counts[group[i], 1:][span.slice] += wrong
                if moved and moved[span.method][i]:
                    after = ~(np.array(moved[span.method][i]) >= self.config.iou) | (still[i] != 0)
                    own["attacked"][0, group[i], span.slice] += after & ~wrong
                    own["attacked"][1, group[i], span.slice] += wrong & ~after
