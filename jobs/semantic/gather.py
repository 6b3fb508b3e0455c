"""From a run folder to the semantic job's page: reads receipts, never the memory of a driver."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.config import config_of
from jobs.semantic.config import SemanticConfig
from jobs.semantic.data import counts_of
from jobs.semantic.report import semantic_page
from jobs.semantic.report_data import CASES, Path, Result, Rows, SemanticReportData, best
from jobs.semantic.variants import variants
from pipeline import images
from pipeline import plan as plans
from pipeline.checkpoints import DamagedError, read_one
from pipeline.run import Run
from pipeline.sources.selection import key_shares
from pipeline.status import failed_rows
from pipeline.units import Unit, units
from stages.semantic.rules import Judged, judge

_FAILURES = 20  # of a step and split
_TRIES = 4  # candidates for each picture: some images may be unreadable


def write_report(run_url: str) -> str:
    """Write RUN/report/<fingerprint8>/index.html and return where it lies."""
    run = Run(run_url)
    data = gather(run, run.describe())
    marks = "".join(step["fingerprint"] for step in data.described["steps"] if step["kind"] == "reduce")
    mark = hashlib.sha256(marks.encode()).hexdigest()[:8] if marks else "unfinished"
    folder = run.folder.child("report", mark)
    folder.write("index.html", semantic_page(data).bytes())
    return folder.path("index.html")


def gather(run: Run, described: Mapping[str, Any]) -> SemanticReportData:
    """Everything on the page that the run holds; what is missing is told there in a sentence."""
    config = config_of(SemanticConfig, run, described)
    marks = {step["name"]: str(step["fingerprint"]) for step in described["steps"]}
    notes: list[str] = []
    results = []
    fine: list[str] = []
    coarse: list[str] = []
    for variant in variants(config):
        facts, summary = None, None
        try:
            # The weights of all networks together may be gigabytes, and nothing on the page is made from them.
            told = read_one(run.step_folder(f"train_{variant.name}").child("result"), "facts.json")
            facts = None if told is None else json.loads(told)
        except DamagedError as error:
            notes.append(f"The training of {variant.name} is damaged: {error}")
        if mark := marks.get(f"indexes_{variant.name}"):
            folder = run.step_folder(f"indexes_{variant.name}", fingerprint=mark)
            plan = plans.load(folder)
            if plan is not None and folder.exists("metrics.json"):
                summary = json.loads(folder.read("metrics.json"))
                fine, coarse = plan.fields["config.fine_names"], plan.fields["config.coarse_names"]
        results.append(Result(variant, facts, summary))
    found = [u for u in units(run, described) if u.kind == "measure" and u.plan]
    found = [u for u in found if u.plan and u.plan.fingerprint == marks.get(u.step)]
    shown = best(results)
    return SemanticReportData(
        run=run.url,
        config=config,
        described=described,
        fine=fine,
        coarse=coarse,
        splits={split: _counts(run, split, coarse) for split in ("train", "tune", "eval") if split in run.splits()},
        results=results,
        rows=[_rows(unit) for unit in found],
        paths=_paths(run, config, shown, found, fine, coarse),
        shown=shown,
        notes=notes,
    )


def _counts(run: Run, split: str, coarse: list[str]) -> dict[str, Any]:
    table = run.key_table(split).table()
    labels = table.column("coarse").value_counts().to_pylist()
    counted = {entry["values"]: entry["counts"] for entry in labels}
    return counts_of(table.schema.metadata) | {
        "used": len(table),
        "people": counted.get(None, 0),
        "coarse": {name: counted.get(i, 0) for i, name in enumerate(coarse)},
    }


def _rows(unit: Unit) -> Rows:
    assert unit.plan is not None
    receipts = unit.shards.complete()[0]
    ok, failed = (sum(r.rows.get(name, 0) for r in receipts.values()) for name in ("ok", "failed"))
    failures = [(row.key, row.error) for row in failed_rows(unit, dict(receipts), _FAILURES)]
    return Rows(unit.step.removeprefix("rows_"), unit.split, unit.plan.keys, ok, failed, failures)


def _paths(
    run: Run, config: SemanticConfig, shown: Result | None, found: list[Unit], fine: list[str], coarse: list[str]
) -> list[Path]:
    """Images of each case, drawn by key hash from those evaluated."""
    if shown is None or not shown.variant.rules or not config.report.examples:
        return []
    rule = shown.variant.rules[0]
    unit = next((u for u in found if u.step == f"rows_{shown.variant.name}" and u.split == "eval"), None)
    if unit is None:
        return []
    names = ["key", "status", "true", "coarse_true", "fine_scores", "coarse", "coarse_scores", "path_fine"]
    names += ["path_score", "path_contribution", "path_rest", "path_bias"]
    receipts = sorted(unit.shards.complete()[0].items())
    if not receipts:  # they were damaged and taken back, or are being made again
        return []
    table = pa.concat_tables([unit.shards.open(receipt, names) for _, receipt in receipts])
    table = table.filter(pc.equal(table.column("status"), "ok")).combine_chunks()
    keys = run.key_table("eval").table().select(["key", "uri"])
    order = np.argsort(key_shares(table.column("key").combine_chunks(), "example"), kind="stable")
    judged = _judged(table, rule, config)
    paths = []
    for case in CASES:
        candidates = [(int(i), said) for i in order if (said := judged[i]) is not None and said.case == case]
        drawn: list[Path] = []
        for i, said in candidates[: _TRIES * config.report.examples]:
            if len(drawn) == config.report.examples:
                break
            row = table.slice(i, 1).to_pylist()[0]
            uri = keys.filter(pc.equal(keys.column("key"), row["key"])).column("uri")[0].as_py()
            image = images.load(uri, config.images)
            if not isinstance(image, images.DecodeError):
                drawn.append(_path(row, said, image.pixels, fine, coarse))
        paths += drawn
    return paths


def _judged(table: pa.Table, rule: str, config: SemanticConfig) -> list[Judged | None]:
    """Set and case of each image, as the indexes are counted from them; None where a label is missing."""
    asked = config.evaluation
    labels = table.select(["true", "coarse_true", "coarse"]).to_pylist()
    scores = (np.asarray(one.values, dtype=np.float32) for one in table.column("fine_scores"))
    return [
        None
        if row["true"] is None or row["coarse_true"] is None
        else judge(rule, mine, row["true"], row["coarse"] == row["coarse_true"], asked.threshold, asked.relative)
        for row, mine in zip(labels, scores, strict=True)
    ]


def _path(row: Mapping[str, Any], said: Judged, pixels: np.ndarray, fine: list[str], coarse: list[str]) -> Path:
    steps = zip(row["path_fine"], row["path_score"], row["path_contribution"], strict=True)
    scores = sorted(enumerate(row["coarse_scores"]), key=lambda item: (-item[1], item[0]))
    return Path(
        key=row["key"],
        pixels=pixels,
        case=said.case,
        true=[fine[i] for i in row["true"]],
        predicted=[fine[i] for i in said.predicted],
        coarse_true=coarse[row["coarse_true"]],
        coarse=coarse[row["coarse"]],
        fine=[(fine[i], score, added) for i, score, added in steps],
        rest=row["path_rest"],
        bias=row["path_bias"],
        coarse_scores=[(coarse[i], score) for i, score in scores[:5]],
    )
