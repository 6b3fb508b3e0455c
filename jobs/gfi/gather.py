"""From a run folder to GFI's page: reads receipts, never the memory of a driver."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.chip.report_pictures import choose_examples
from jobs.config import config_of
from jobs.gfi.config import GfiConfig
from jobs.gfi.network import inspect
from jobs.gfi.report import gfi_page
from jobs.gfi.report_data import GfiReportData, Paths, Row, chosen_alpha
from jobs.report.totals import step_totals
from pipeline import images
from pipeline.errors import RaylensError
from pipeline.models import preprocess_for
from pipeline.run import Run
from pipeline.units import Unit, units
from stages.gfi.config import GfiConfig as StageConfig
from stages.preprocess import Preprocess


def write_report(run_url: str) -> str:
    """Write RUN/report/<fingerprint8>/index.html and return where it lies."""
    run = Run(run_url)
    described = run.describe()
    code_path = described.get("provenance", {}).get("code_path", [])
    sys.path[:0] = [folder for folder in code_path if folder not in sys.path]
    marks = {s["name"]: s["fingerprint"] for s in described["steps"]}
    mark = marks.get("metrics") or marks.get("gfi") or "unfinished"
    folder = run.folder.child("report", mark[:8])
    folder.write("index.html", gfi_page(gather(run, described)).bytes())
    return folder.path("index.html")


def gather(run: Run, described: Mapping[str, Any]) -> GfiReportData:
    """Everything on the page that the run holds; what is missing is told there in a sentence."""
    config = config_of(GfiConfig, run, described)
    marks = {s["name"]: s["fingerprint"] for s in described["steps"]}
    held = [u for u in units(run, described) if u.plan and u.plan.fingerprint == marks.get(u.step)]
    notes: list[str] = []
    network, stage, names = _network(config, notes)
    evaluated = next((u for u in held if u.step == "gfi" and u.split == "eval"), None)
    reduced = next((u for u in held if u.step == "metrics"), None)
    metrics = _rows(reduced) if reduced is not None else []
    examples: dict[str, list[tuple[Row, Row]]] = {}
    paths = Paths()
    if evaluated is not None:
        examples = _examples(run, evaluated, metrics, stage, config.report.examples)
        paths = _paths(evaluated, stage)
        names = names or run.key_table("eval").classes
    return GfiReportData(
        run=run.url,
        config=described["config"],
        provenance=described.get("provenance", {}),
        network=network,
        stage=stage,
        totals=[step_totals(u) for u in held if u.kind == "measure"],
        metrics=metrics,
        paths=paths,
        examples=examples,
        load=_loader(config.images),
        classes=names or [],
        paper=config.report.paper,
        notes=notes,
    )


def _network(config: GfiConfig, notes: list[str]) -> tuple[dict[str, Any], StageConfig, list[str] | None]:
    """Layers as they resolve today; where the network can no longer be loaded, what the config says of it."""
    described: dict[str, Any] = {
        "name": config.model.name,
        "weights": config.model.weights or f"seed {config.model.seed}",
    }
    try:
        found = inspect(config)
    except RaylensError as error:
        notes.append(f"The network could not be loaded for this page: {error}")
        return described, config.stage_config(Preprocess(**preprocess_for(config.model))), None
    described |= {"inversion_layer": found.inversion_layer, "mask_layer": found.mask_layer, "classes": found.classes}
    return described, found.stage, found.names


def _tables(unit: Unit, columns: list[str] | None) -> Iterator[pa.Table]:
    """Shard by shard: masks and paths of all images are more than belongs in memory at once."""
    for _, receipt in sorted(unit.shards.complete()[0].items()):
        yield unit.shards.open(receipt, columns)


def _rows(unit: Unit) -> list[dict[str, Any]]:
    return [row for table in _tables(unit, None) for row in table.to_pylist()]


def _examples(
    run: Run, unit: Unit, metrics: list[dict[str, Any]], stage: StageConfig, count: int
) -> dict[str, list[tuple[Row, Row]]]:
    """Rows of good, median and bad images by the overlap of the first class's box at the chosen alpha."""
    overlaps: dict[str, float] = {}
    for table in _tables(unit, ["key", "status", "iou/mean"]):
        for row in table.to_pylist():
            if row["status"] == "ok":
                overlaps[row["key"]] = row["iou/mean"][chosen_alpha(metrics, stage.alphas, row["key"])]
    groups = choose_examples(overlaps, count)
    wanted = pa.array([key for keys in groups.values() for key in keys], pa.string())
    rows = {
        row["key"]: row
        for table in _tables(unit, None)
        for row in table.filter(pc.is_in(table["key"], wanted)).to_pylist()
    }
    keys = run.key_table("eval").table()
    truth = {row["key"]: row for row in keys.filter(pc.is_in(keys["key"], wanted)).to_pylist()}
    return {name: [(rows[key], truth[key]) for key in chosen] for name, chosen in groups.items()}


def _paths(unit: Unit, stage: StageConfig) -> Paths:
    """Means over images of the first class's trajectories."""
    inversion, of_class = stage.recipe.steps
    totals = np.zeros(inversion), np.zeros(of_class), np.zeros(of_class)
    count = 0
    for table in _tables(unit, ["status", "loss", "kept_path", "removed_path"]):
        for row in table.to_pylist():
            if row["status"] != "ok":
                continue
            loss = np.asarray(row["loss"][:inversion])
            count += 1
            totals[0][:] += loss / (loss[0] or 1.0) if inversion else 0.0
            totals[1][:] += row["kept_path"][:of_class]
            totals[2][:] += row["removed_path"][:of_class]
    return Paths(count, *(list(total / max(1, count)) for total in totals))


def _loader(limits: images.Limits) -> Any:
    def load(row: Mapping[str, Any]) -> np.ndarray:
        found = images.load(row["uri"], limits)
        if isinstance(found, images.DecodeError):
            raise ValueError(found.reason)
        return found.pixels

    return load
