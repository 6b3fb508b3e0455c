"""From a run folder to the asking job's page: reads receipts, never the memory of a driver."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image

from jobs.asking.config import ANSWERED, ASK, TRAIN, AskingConfig
from jobs.asking.gather_evaluate import evaluated
from jobs.asking.page import Steering, steering
from jobs.asking.report import AskingReportData, asking_page
from jobs.asking.sheet import Conversation
from jobs.config import config_of
from jobs.report.parts import report_folder
from jobs.report.totals import step_totals
from pipeline import images
from pipeline.checkpoints import DamagedError, read_one
from pipeline.learnt import read_trained
from pipeline.receipts import Receipt
from pipeline.run import Run
from pipeline.sources.selection import key_shares
from pipeline.units import Unit, units
from stages.asking.agent import trained_agent
from stages.asking.colour import to_bytes, to_unit

_STEERED = 6  # images that a reader may answer about
_TRIES = 2  # candidates for each picture: some images may have gone since


def write_report(run_url: str) -> str:
    """Write RUN/report/<fingerprint8>/index.html and return where it lies."""
    run = Run(run_url)
    described = run.describe()
    folder = report_folder(run, described)
    data = gather(run, described)
    for name, content in (data.steering.scripts or {}).items():
        folder.write(name, content)
    folder.write("index.html", asking_page(data).bytes())
    return folder.path("index.html")


def gather(run: Run, described: Mapping[str, Any]) -> AskingReportData:
    """Everything on the page that the run holds; what is missing is told there in a sentence."""
    config = config_of(AskingConfig, run, described)
    marks = {step["name"]: str(step["fingerprint"]) for step in described["steps"]}
    held = {u.step: u for u in units(run, described) if u.plan and u.plan.fingerprint == marks.get(u.step)}
    notes: list[str] = []
    facts = None
    try:
        told = read_one(run.step_folder(TRAIN).child("result"), "facts.json")
        facts = None if told is None else json.loads(told)
    except DamagedError as error:
        notes.append(f"The training is damaged: {error}")
    asked, answered = held.get(ASK), held.get(ANSWERED)
    shown = {} if asked is None else _chosen(run, asked, config)
    return AskingReportData(
        run=run.url,
        config=described["config"],
        provenance=described.get("provenance", {}),
        facts=facts,
        psnr=[] if answered is None else [row for table in answered.shards.tables() for row in table.to_pylist()],
        examples=[] if asked is None else _examples(asked, shown, config, notes),
        steering=_steering(run, shown, notes),
        evaluated=evaluated(run, marks, held, config.learn.noise > 0, notes) if config.task == "evaluate" else None,
        totals=[step_totals(unit) for unit in held.values() if unit.kind == "measure"],
        notes=notes,
    )


def _steering(run: Run, shown: Mapping[str, np.ndarray], notes: list[str]) -> Steering:
    """The first of the images, to be answered otherwise on the page itself; why there are none is told in ``notes``."""
    try:
        trained = read_trained(run.step_folder(TRAIN)) if shown else None
    except DamagedError:  # told already
        trained = None
    if trained is None:
        return Steering()
    try:
        task, agent = trained_agent(trained.facts, trained.files)
    except ValueError as error:
        notes.append(f"The network cannot be answered on this page: {error}")
        return Steering()
    return steering(run.url, task, agent, dict(list(shown.items())[:_STEERED]))


def _chosen(run: Run, unit: Unit, config: AskingConfig) -> dict[str, np.ndarray]:
    """Images drawn by key hash from those that have rows: uint8 [3, h, w] by key, as the network is shown them."""
    tables = [unit.shards.open(receipt, ["key", "status"]) for receipt in _receipts(unit)]
    found = [table.column("key").filter(pc.equal(table.column("status"), "ok")) for table in tables]
    keys = pa.chunked_array([chunk for keys in found for chunk in keys.chunks], pa.string()).combine_chunks()
    order = np.argsort(key_shares(keys, "example"), kind="stable")[: _TRIES * config.report.examples]
    listed = run.key_table("ask").table()
    uris = dict(zip(listed["key"].to_pylist(), listed["uri"].to_pylist(), strict=True))
    shown: dict[str, np.ndarray] = {}
    for key in keys.take(pa.array(order)).to_pylist():
        if len(shown) == config.report.examples:
            break
        image = images.load(uris[key], config.images)
        if not isinstance(image, images.DecodeError):
            shown[key] = config.preprocess.pixels(image.pixels)
    return shown


def _examples(
    unit: Unit, shown: Mapping[str, np.ndarray], config: AskingConfig, notes: list[str]
) -> list[Conversation]:
    """The process of these images as the paper's Fig. 1 shows it, where their pictures are kept."""
    if config.ask.keep != "all":
        notes.append("Sheets need the pictures after every answer: set ask.keep to all")
        return []
    rows: dict[str, dict[str, Any]] = {}
    for receipt in _receipts(unit):
        inside = pc.is_in(unit.shards.open(receipt, ["key"]).column("key"), pa.array(list(shown), pa.string()))
        if pc.any(inside).as_py():  # pictures are large: shards without an example stay closed
            rows |= {row["key"]: row for row in unit.shards.open(receipt, None).filter(inside).to_pylist()}
    return [_example(key, rows[key], truth, config) for key, truth in shown.items()]


def _receipts(unit: Unit) -> list[Receipt]:
    return [receipt for _, receipt in sorted(unit.shards.complete()[0].items())]


def _example(key: str, row: Mapping[str, Any], truth: np.ndarray, config: AskingConfig) -> Conversation:
    task = config.problem
    seen = to_bytes(task.seen(task.observe(to_unit(torch.from_numpy(truth)[None]))))[0].numpy()
    shown = [np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1) for data in row["pictures"]]
    questions = np.array(row["questions"], np.float32).reshape(row["hints"], *row["question_shape"])
    colours = np.array(row["answer_rgb"], np.uint8).reshape(row["hints"], 3)
    return Conversation(key, seen, np.stack(shown), questions, colours, truth, row["psnr"])
