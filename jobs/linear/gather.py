"""From a run folder to the page of residual, layers and votes: reads receipts, never the memory of a driver."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import config_of
from jobs.linear.config import LinearConfig
from jobs.linear.papers import same_weights
from jobs.linear.report import linear_page
from jobs.linear.report_data import Interpreted, LinearReportData, Row
from jobs.report.parts import report_folder
from jobs.report.totals import step_totals
from pipeline import images
from pipeline.errors import RaylensError
from pipeline.models import ModelSpec, class_names, preprocess_for
from pipeline.run import Run
from pipeline.units import Unit, units
from stages.preprocess import Preprocess


def write_report(run: Run, described: Mapping[str, Any]) -> str:
    """Write RUN/report/<fingerprint8>/index.html and return where it lies."""
    code_path = described.get("provenance", {}).get("code_path", [])
    sys.path[:0] = [folder for folder in code_path if folder not in sys.path]
    folder = report_folder(run, described)
    folder.write("index.html", linear_page(gather(run, described)).bytes())
    return folder.path("index.html")


def gather(run: Run, described: Mapping[str, Any]) -> LinearReportData:
    """Everything on the page that the run holds; what is missing is told there in a sentence."""
    config = config_of(LinearConfig, run, described)
    marks = {s["name"]: s["fingerprint"] for s in described["steps"]}
    held = {u.step: u for u in units(run, described) if u.plan and u.plan.fingerprint == marks.get(u.step)}
    notes: list[str] = []
    networks = []
    for name, spec in config.networks.items():
        measured, reduced = held.get(f"{config.task}_{name}"), held.get(f"summary_{name}")
        count = config.report.examples if config.task == "votes" else 0
        networks.append(
            Interpreted(
                name,
                spec.name,
                spec.weights or f"drawn with seed {spec.seed}",
                Preprocess(**preprocess_for(spec)),
                classes=_classes(spec, run, notes),
                same_weights=same_weights(spec),
                summary=_rows(reduced) if reduced is not None else [],
                examples=_examples(run, measured, count) if measured is not None and count else [],
            )
        )
    return LinearReportData(
        run=run.url,
        task=config.task,
        config=described["config"],
        provenance=described.get("provenance", {}),
        networks=networks,
        totals=[step_totals(u) for u in held.values() if u.kind == "measure"],
        load=_loader(config.images),
        notes=notes,
    )


def _classes(spec: ModelSpec, run: Run, notes: list[str]) -> list[str]:
    try:
        found = class_names(spec)
    except RaylensError as error:
        notes.append(f"Class names could not be read for this page: {error}")
        found = None
    return found or run.key_table("images").classes or []


def _rows(unit: Unit) -> list[dict[str, Any]]:
    receipts = sorted(unit.shards.complete()[0].items())
    return [row for _, receipt in receipts for row in unit.shards.open(receipt).to_pylist()]


def _answered(table: pa.Table) -> set[str]:
    return set(table.filter(pc.equal(table["status"], "ok"))["key"].to_pylist())


def _examples(run: Run, unit: Unit, count: int) -> list[tuple[Row, Row]]:
    """Rows of images spread evenly over those that have an answer, with their key rows."""
    receipts = [receipt for _, receipt in sorted(unit.shards.complete()[0].items())]
    held = [_answered(unit.shards.open(receipt, ["key", "status"])) for receipt in receipts]
    keys = sorted(key for some in held for key in some)
    chosen = [keys[i] for i in np.unique(np.linspace(0, len(keys) - 1, count).round().astype(int))] if keys else []
    wanted = pa.array(chosen, pa.string())
    rows: dict[str, Row] = {}
    for receipt, some in zip(receipts, held, strict=True):
        if not some.isdisjoint(chosen):  # maps are large: shards without an example stay closed
            table = unit.shards.open(receipt)
            rows |= {row["key"]: row for row in table.filter(pc.is_in(table["key"], wanted)).to_pylist()}
    listed = run.key_table("images").table()
    truth = {row["key"]: row for row in listed.filter(pc.is_in(listed["key"], wanted)).to_pylist()}
    return [(rows[key], truth[key]) for key in chosen]


def _loader(limits: images.Limits) -> Any:
    def load(row: Mapping[str, Any]) -> np.ndarray:
        found = images.load(row["uri"], limits)
        if isinstance(found, images.DecodeError):
            raise ValueError(found.reason)
        return found.pixels

    return load
