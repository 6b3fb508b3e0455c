"""From a run folder to CHIP's page: reads receipts, never the memory of a driver."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.chip.config import ChipConfig
from jobs.chip.network import network_cut
from jobs.chip.report import ChipReportData, Layer, Solve, chip_page
from jobs.chip.report_pictures import example_keys
from jobs.config import config_of
from jobs.report.totals import step_totals
from jobs.sections import inclusive
from pipeline import images
from pipeline.errors import RaylensError
from pipeline.run import Run
from pipeline.shards import Receipt, digest
from pipeline.units import Unit, stale, units
from stages.preprocess import Preprocess

_CLASSES_SHOWN = 12  # in the heatmap, where the config names none


def write_report(run_url: str) -> str:
    """Write RUN/report/<fingerprint8>/index.html and return where it lies."""
    run = Run(run_url)
    described = run.describe()
    code_path = described.get("provenance", {}).get("code_path", [])
    sys.path[:0] = [folder for folder in code_path if folder not in sys.path]
    data = with_maps(run, described, gather(run, described))
    marks = {s["name"]: s["fingerprint"] for s in described["steps"]}
    mark = marks.get("metrics") or marks.get("solve") or marks.get("sweep") or "unfinished"
    folder = run.folder.child("report", mark[:8])
    folder.write("index.html", chip_page(data).bytes())
    return folder.path("index.html")


def gather(run: Run, described: Mapping[str, Any]) -> ChipReportData:
    """Everything on the page that the run holds; what is missing is told there in a sentence."""
    config = config_of(ChipConfig, run, described)
    held = _Held(run, described)
    notes: list[str] = []
    layers, network, preprocess, names = _network(config, notes)
    solves = held.solves()
    keys, localize, classes = None, None, names or []
    if "fit" in run.splits():
        classes = classes or run.key_table("fit").classes
    evaluated = held.current("localize", "eval")
    if evaluated is not None:
        keys, localize = run.key_table("eval").table(), held.table(evaluated, maps=False)
    shown = config.report.classes or _best_known(solves, layers)
    return ChipReportData(
        run=run.url,
        config=described["config"],
        provenance=described.get("provenance", {}),
        network=network,
        layers=layers,
        preprocess=preprocess,
        totals=[step_totals(unit) for unit in held.measured()],
        classes=classes,
        solves=solves,
        keys=keys,
        localize=localize,
        load=_loader(config.images),
        heatmap_classes=shown,
        venn_classes=config.report.venn or [shown[i : i + 3] for i in range(0, len(shown) - 1, 3)][:3],
        examples=config.report.examples,
        paper=config.report.paper,
        gates=config.sweep.gates,
        notes=notes,
        iou=config.localize.iou,
        inclusive=inclusive(config.localize.inclusive, config.data.tune, config.data.eval),
        boxes_in_input=config.localize.frame == "input",
    )


def with_maps(run: Run, described: Mapping[str, Any], data: ChipReportData) -> ChipReportData:
    """The same with the maps of the images that the page shows: those of all images can be gigabytes."""
    held = _Held(run, described)
    evaluated = held.current("localize", "eval")
    shown = {key for keys in example_keys(data).values() for key in keys}
    if evaluated is None or not shown:
        return data
    return dataclasses.replace(data, maps=held.table(evaluated, keys=shown))


class _Held:
    """What lies in the run, by its plans."""

    def __init__(self, run: Run, described: Mapping[str, Any]) -> None:
        self._described = described
        self._marks = {s["name"]: s["fingerprint"] for s in described["steps"]}
        self.units = units(run, described)
        self.receipts: dict[str, Mapping[int, Receipt]] = {u.name: u.shards.complete()[0] for u in self.units}

    def measured(self) -> list[Unit]:
        """Measuring steps of the present settings."""
        return [u for u in self.units if u.kind == "measure" and u.plan and self._present(u)]

    def current(self, step: str, split: str = "") -> Unit | None:
        """A step's folder in its present setting, if it holds anything."""
        for unit in self.units:
            if unit.step == step and unit.split == split and self._present(unit) and self.receipts[unit.name]:
                return unit
        return None

    def _present(self, unit: Unit) -> bool:
        return unit.plan is not None and unit.plan.fingerprint == self._marks.get(unit.step)

    def table(self, unit: Unit, *, maps: bool = True, keys: Collection[str] | None = None) -> pa.Table:
        """All rows of a unit, or those of ``keys``; without its maps if they are not wanted."""
        tables = []
        columns: list[str] | None = None
        for _, receipt in sorted(self.receipts[unit.name].items()):
            if not maps and columns is None:
                columns = [c for c in unit.shards.columns(receipt) if not c.startswith("map/")]
            table = unit.shards.open(receipt, columns)
            if keys is not None:
                table = table.filter(pc.is_in(table.column("key"), pa.array(sorted(keys), pa.string())))
            tables.append(table)
        return pa.concat_tables(tables)

    def solves(self) -> list[Solve]:
        """Every complete solve, the present one first, each with the metrics that stand on it."""
        found = [u for u in self.units if u.step == "solve" and u.plan and self.receipts[u.name]]
        found = [u for u in found if u.plan and len(self.receipts[u.name]) == u.plan.shards]
        found.sort(key=lambda u: (not self._present(u), u.setting))
        return [self._solve(unit) for unit in found]

    def _solve(self, unit: Unit) -> Solve:
        assert unit.plan is not None
        fields = unit.plan.fields
        return Solve(
            label=_label(unit) or unit.setting,
            table=self.table(unit),
            metrics=self._metrics_on(unit),
            fingerprint=unit.plan.fingerprint,
            lambda_rel=fields.get("config.lambda_rel"),
            sigma2=fields.get("config.statistics.sigma2"),
            stale=stale(unit, self.units, self.receipts),
            chose=bool(fields.get("config.choose")) and fields.get("config.statistics.holdout", 0) > 0,
        )

    def _metrics_on(self, solve: Unit) -> pa.Table | None:
        """The metrics rows whose localize pass used this solve."""
        mark = digest([("", r) for r in self.receipts[solve.name].values()])
        passes = [u for u in self.units if u.step == "localize" and u.plan and u.plan.fields["upstream.solve"] == mark]
        if not passes:
            return None
        rows = digest([(u.split, r) for u in passes for r in self.receipts[u.name].values()])
        for unit in self.units:
            if unit.step == "metrics" and unit.plan and unit.plan.fields["upstream.localize"] == rows:
                return self.table(unit) if self.receipts[unit.name] else None
        return None


def _label(unit: Unit) -> str:
    try:
        return str(json.loads(unit.folder.read("label.json"))["label"])
    except (FileNotFoundError, ValueError, KeyError):
        return ""


def _network(config: ChipConfig, notes: list[str]) -> tuple[list[Layer], dict[str, Any], Preprocess, list[str] | None]:
    """Layers as they resolve today; where the network can no longer be loaded, what the config says of it."""
    described: dict[str, Any] = {
        "name": config.model.name,
        "weights": config.model.weights or f"seed {config.model.seed}",
    }
    try:
        found, classes, preprocess, names = network_cut(config)
    except RaylensError as error:
        notes.append(f"The network could not be loaded for this page: {error}")
        return [Layer(name, name, 0, 0, 0) for name in config.layers], described, Preprocess(), None
    described |= {"classes": classes, "input": "{} x {}".format(*preprocess.size)}
    layers = [
        Layer(asked, layer.name, layer.channels, layer.height, layer.width, found.path(asked))
        for asked, layer in ((a, found.layers[a]) for a in config.layers)
    ]
    return layers, described, preprocess, names


def _best_known(solves: Sequence[Solve], layers: Sequence[Layer]) -> list[int]:
    """The classes with the most images behind their fit, in the order of their ids."""
    if not solves or not layers:
        return []
    rows = solves[0].table.select(["layer", "class_id", "images"]).to_pylist()
    rows = [r for r in rows if r["layer"] == layers[-1].asked]
    rows.sort(key=lambda r: (-r["images"], r["class_id"]))
    return sorted(r["class_id"] for r in rows[:_CLASSES_SHOWN])


def _loader(limits: images.Limits) -> Any:
    def load(row: Mapping[str, Any]) -> np.ndarray:
        found = images.load(row["uri"], limits)
        if isinstance(found, images.DecodeError):
            raise ValueError(found.reason)
        return found.pixels

    return load
