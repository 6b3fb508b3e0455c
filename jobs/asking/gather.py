"""From a run folder to the asking job's page: reads receipts, never the memory of a driver."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
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
    examples = [] if asked is None else _examples(run, asked, config, notes)
    return AskingReportData(
        run=run.url,
        config=described["config"],
        provenance=described.get("provenance", {}),
        facts=facts,
        psnr=[] if answered is None else [row for table in answered.shards.tables() for row in table.to_pylist()],
        examples=examples,
        steering=_steering(run, examples, notes),
        evaluated=evaluated(run, marks, held, config.learn.noise > 0, notes) if config.task == "evaluate" else None,
        totals=[step_totals(unit) for unit in held.values() if unit.kind == "measure"],
        notes=notes,
    )


def _steering(run: Run, examples: Sequence[Conversation], notes: list[str]) -> Steering:
    """The first examples, to be answered otherwise on the page itself; why there are none is told in ``notes``."""
    try:
        trained = read_trained(run.step_folder(TRAIN)) if examples else None
    except DamagedError:  # told already
        trained = None
    if trained is None:
        return Steering()
    try:
        task, agent = trained_agent(trained.facts, trained.files)
    except ValueError as error:
        notes.append(f"The network cannot be answered on this page: {error}")
        return Steering()
    return steering(run.url, task, agent, {e.key: e.truth for e in examples[:_STEERED]})


def _examples(run: Run, unit: Unit, config: AskingConfig, notes: list[str]) -> list[Conversation]:
    """Images drawn by key hash from those that have rows, with their process as the paper's Fig. 1 shows it."""
    if config.ask.keep != "all":
        notes.append("Sheets need the pictures after every answer: set ask.keep to all")
        return []
    receipts = [receipt for _, receipt in sorted(unit.shards.complete()[0].items())]
    found = [unit.shards.open(receipt, ["key"]).column("key").combine_chunks() for receipt in receipts]
    keys = pa.concat_arrays(found) if found else pa.array([], pa.string())
    order = np.argsort(key_shares(keys, "example"), kind="stable")[: _TRIES * config.report.examples]
    chosen = keys.take(pa.array(order))
    listed = run.key_table("ask").table()
    uris = dict(zip(listed["key"].to_pylist(), listed["uri"].to_pylist(), strict=True))
    rows: dict[str, dict[str, Any]] = {}
    for receipt, held in zip(receipts, found, strict=True):
        inside = pc.is_in(held, chosen)
        if pc.any(inside).as_py():  # pictures are large: shards without an example stay closed
            rows |= {row["key"]: row for row in unit.shards.open(receipt, None).filter(inside).to_pylist()}
    examples: list[Conversation] = []
    for key in chosen.to_pylist():
        image = images.load(uris[key], config.images)
        if rows[key]["status"] != "ok" or isinstance(image, images.DecodeError):
            continue
        if len(examples) < config.report.examples:
            examples.append(_example(key, rows[key], image.pixels, config))
    return examples


def _example(key: str, row: Mapping[str, Any], pixels: np.ndarray, config: AskingConfig) -> Conversation:
    truth = config.preprocess.pixels(pixels)
    task = config.problem
    seen = to_bytes(task.seen(task.observe(to_unit(torch.from_numpy(truth)[None]))))[0].numpy()
    shown = [np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1) for data in row["pictures"]]
    questions = np.array(row["questions"], np.float32).reshape(row["hints"], *row["question_shape"])
    colours = np.array(row["answer_rgb"], np.uint8).reshape(row["hints"], 3)
    return Conversation(key, seen, np.stack(shown), questions, colours, truth, row["psnr"])
