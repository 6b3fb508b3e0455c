"""From a run folder to the comparison's page: reads receipts, never the memory of a driver."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.compare.config import CompareJobConfig, truth_classes
from jobs.compare.report_data import CompareReportData, table_rows
from jobs.compare.report_pictures import example_keys
from jobs.config import config_of
from jobs.report.totals import step_totals
from pipeline import images
from pipeline.models import class_names, preprocess_for
from pipeline.run import Run
from pipeline.units import Unit, units
from stages.preprocess import Preprocess


def gather(run_url: str) -> tuple[Run, str, CompareReportData]:
    """The run, the fingerprint its report is named by, and everything on the page."""
    run = Run(run_url)
    described = run.describe()
    code_path = described.get("provenance", {}).get("code_path", [])
    sys.path[:0] = [folder for folder in code_path if folder not in sys.path]
    config = config_of(CompareJobConfig, run, described)
    marks = {s["name"]: s["fingerprint"] for s in described["steps"]}
    held = [u for u in units(run, described) if u.plan and u.plan.fingerprint == marks.get(u.step)]
    seconds, device = _seconds(_table(held, "speed", "speed"), config.methods)
    truth = truth_classes(config)
    names = class_names(config.model) or []
    evaluated = next((u for u in held if u.step == "compare" and u.split == "eval"), None)
    keys = run.key_table("eval") if evaluated is not None else None
    truth_names = list(truth.names) if truth is not None else (keys.classes if keys is not None else []) or names
    preprocess = Preprocess(**preprocess_for(config.model))
    frame = config.measure.frame
    data = CompareReportData(
        run=run.url,
        config=described["config"],
        provenance=described.get("provenance", {}),
        methods=config.methods,
        network=config.model.name,
        preprocess=preprocess,
        totals=[step_totals(u) for u in held if u.kind == "measure"],
        metrics=table_rows(_table(held, "metrics", "")),
        seconds=seconds,
        device=device,
        shown=[] if evaluated is None else _shown(evaluated, keys, config),
        load=_loader(config.images),
        names=names or truth_names,
        truth_names=truth_names,
        papers=config.report.papers,
        classes=config.report.classes,
        picked=bool(config.report.keys),
        inclusive=config.inclusive,
        in_input=frame == "input" or (frame == "auto" and preprocess.frame == "crop"),
    )
    return run, marks.get("metrics") or marks.get("compare") or "unfinished", data


def _table(held: list[Unit], step: str, split: str) -> pa.Table | None:
    for unit in held:
        if unit.step == step and unit.split == split and (receipts := unit.shards.complete()[0]):
            return pa.concat_tables([unit.shards.open(r, None) for _, r in sorted(receipts.items())])
    return None


def _seconds(table: pa.Table | None, methods: tuple[str, ...]) -> tuple[dict[str, tuple[float, float, int]], str]:
    """Median over images, and half the distance of the quartiles."""
    rows = [r for r in table_rows(table) if r["status"] == "ok"]
    found = {}
    for method in methods:
        values = [r[f"seconds/{method}"] for r in rows if r.get(f"seconds/{method}") is not None]
        if values:
            low, middle, high = np.percentile(values, [25, 50, 75])
            found[method] = (float(middle), float(high - low) / 2, len(values))
    device = f"{rows[0]['device']}, {rows[0]['batch']} images at once" if rows else ""
    return found, device


def _shown(unit: Unit, keys: Any, config: CompareJobConfig) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Rows with maps of the images that the page shows: those of all images can be gigabytes."""
    receipts = sorted(unit.shards.complete()[0].items())
    done: list[str] = []
    for _, receipt in receipts:
        table = unit.shards.open(receipt, ["key", "status"])
        done += table.filter(pc.equal(table["status"], "ok"))["key"].to_pylist()
    wanted = example_keys(done, config.report.keys, config.report.examples)
    found: dict[str, dict[str, Any]] = {}
    for _, receipt in receipts:
        table = unit.shards.open(receipt, None)
        chosen = table.filter(pc.is_in(table["key"], pa.array(wanted, pa.string())))
        found |= {row["key"]: row for row in chosen.to_pylist()}
    truth = keys.table()
    truth = truth.filter(pc.is_in(truth["key"], pa.array(wanted, pa.string())))
    of = {row["key"]: row for row in truth.to_pylist()}
    return [(found[key], of[key]) for key in wanted if key in found]


def _loader(limits: images.Limits) -> Any:
    def load(row: Mapping[str, Any]) -> np.ndarray:
        found = images.load(row["uri"], limits)
        if isinstance(found, images.DecodeError):
            raise ValueError(found.reason)
        return found.pixels

    return load
