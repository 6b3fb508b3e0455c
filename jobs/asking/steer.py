"""``raylens answer``: one image, a trained network that asks about it, and answers of the user's own."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from jobs.asking.config import TRAIN, AskingConfig
from jobs.asking.sheet import Conversation, decibels, film
from jobs.asking.train import AskingTrainer
from jobs.config import config_of
from pipeline import images
from pipeline.checkpoints import CommittedCheckpoints, read_committed
from pipeline.errors import RaylensError, UsageError
from pipeline.learnt import read_trained
from pipeline.report.blocks import Facts, Section
from pipeline.report.page import Page
from pipeline.run import Run
from stages.asking.agent import WEIGHTS, UNetAgent, described, trained_agent
from stages.asking.paradigm import Task
from stages.asking.process import Process, process
from stages.asking.steer import MOST, Others, steer
from stages.asking.unet import UNetConfig
from stages.training_state import State

_FORMS = (".png", ".html")
_OTHERS = {"truth": "true", "guess": "its own guess"}


@dataclass(frozen=True)
class Asked:
    """``answers``: texts like ``2=#c03020``. ``checkpoint``: of this epoch; 0: the finished training's network."""

    image: str
    answers: Sequence[str] = ()
    hints: int = 0
    others: Others = "truth"
    checkpoint: int = 0


@dataclass(frozen=True)
class Answered:
    """The steered conversation, and the one with true answers; ``key`` names the image, ``truth`` is [3, h, w]."""

    run: str
    asked: Asked
    key: str
    own: dict[int, str]
    found: Process
    plain: Process
    truth: np.ndarray

    def conversation(self, which: str = "found") -> Conversation:
        found: Process = getattr(self, which)
        pictures, questions, colours = (part[0].numpy() for part in (found.pictures, found.questions, found.colours))
        own = tuple(self.own) if which == "found" else ()
        seen, psnr = found.seen[0].numpy(), found.psnr[0].tolist()
        return Conversation(self.key, seen, pictures, questions, colours, self.truth, psnr, own)

    def lines(self) -> list[str]:
        """What was told and what came of it, for a terminal."""
        psnr, rest = [decibels(value) for value in self.found.psnr[0].tolist()], _OTHERS[self.asked.others]
        told = [f"without answers  {psnr[0]}"]
        for number, rgb in enumerate(self.found.colours[0].tolist(), 1):
            whose = "yours" if number in self.own else rest
            told.append(f"answer {number}  #{bytes(rgb).hex()} ({whose})  {psnr[number]}")
        return told


def answer(run_url: str, asked: Asked) -> Answered:
    """Asks the trained network of a run about an image, and answers.

    Raises:
        UsageError: no such run, training, checkpoint, image, question or colour; says what there is.
    """
    own = _numbered(asked.answers)
    if asked.others not in _OTHERS:
        cure = f"give one of {', '.join(_OTHERS)}"
        raise UsageError(
            f"others are answered by 'truth' or 'guess', not '{asked.others}'", where="--others", cure=cure
        )
    if not 0 <= asked.hints <= MOST:
        raise UsageError(f"there are no {asked.hints} questions", where="--hints", cure=f"give 1 to {MOST}")
    run = Run(run_url)
    told = run.describe()
    if told.get("job") != "asking":
        raise UsageError(f"is a run of '{told.get('job')}'", where=run_url, cure="give a run of 'raylens asking'")
    config = config_of(AskingConfig, run, told)
    if config.learn.told != "asked":
        raise UsageError(
            f"its network was trained with learn.told {config.learn.told}: its questions mean nothing",
            where=run_url,
            cure="give a run with learn.told asked",
        )
    task, agent = _agent(run, config, asked.checkpoint)
    key, pixels = _image(run, config, asked.image)
    shown = torch.from_numpy(pixels)[None]
    try:
        found = steer(agent, task, shown, own, hints=asked.hints, others=asked.others)
    except ValueError as error:
        raise UsageError(str(error), where="--answer", cure="see 'raylens answer --help'") from None
    plain = process(agent, task, shown, asked.hints or task.hints) if own or asked.others != "truth" else found
    return Answered(run_url, asked, key, own, found, plain, pixels)


def form(out: str) -> str:
    """The form of a file by its name, .png or .html; UsageError where it is neither."""
    found = Path(out).suffix.lower()
    if found not in _FORMS:
        cure = f"name a file that ends in {' or '.join(_FORMS)}"
        raise UsageError(f"there is no form '{found}'", where=out, cure=cure)
    return found


def write(answered: Answered, out: str) -> None:
    """``out``: the picture after all answers (.png), or the whole conversation beside that of true answers (.html)."""
    path = Path(out)
    if form(out) == ".html":
        _page(answered).write(path)
        return
    sink = io.BytesIO()
    picture = answered.found.pictures[0, -1].numpy().transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(picture)).save(sink, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sink.getvalue())
    except OSError as error:
        raise RaylensError(
            f"cannot be written: {error.strerror or error}", where=out, cure="choose a folder you may write to"
        ) from error


def _page(answered: Answered) -> Page:
    note = "Above: the colour that was told, and whose it is. Below: what was asked next. PSNR is against the image."
    sections = [Section("The conversation", [film(answered.conversation())], note)]
    if answered.plain is not answered.found:
        sections.append(Section("With true answers alone", [film(answered.conversation("plain"))]))
    asked = answered.asked
    facts = [("run", answered.run), ("image", asked.image), ("other answers", _OTHERS[asked.others])]
    facts += [("checkpoint of epoch", str(asked.checkpoint))] * bool(asked.checkpoint)
    facts += [(f"answer {number}", text) for number, text in sorted(answered.own.items())]
    return Page(
        title=f"{answered.key}, answered",
        subtitle="What a network that asks was told, and what it made of it",
        kicker="Raylens · asking networks",
        sections=sections,
        provenance=[Facts(facts)],
    )


def _numbered(answers: Sequence[str]) -> dict[int, str]:
    """``2=#c03020`` -> {2: "#c03020"}."""
    found: dict[int, str] = {}
    for text in answers:
        number, equals, colour = text.partition("=")
        if not equals or not number.strip().isdecimal() or not colour.strip():
            raise UsageError(
                f"'{text}' is no answer",
                where="--answer",
                cure="give QUESTION=COLOUR, the first question is 1: 1=#c03020",
            )
        if int(number) in found:
            raise UsageError(f"question {int(number)} is answered twice", where="--answer", cure="answer it once")
        found[int(number)] = colour.strip()
    return found


def _agent(run: Run, config: AskingConfig, epoch: int) -> tuple[Task, UNetAgent]:
    try:
        return trained_agent(*_kept(run, config, epoch))
    except ValueError as error:
        cure = f"'raylens asking CONFIG --run ANOTHER' with the configuration of {run.url}"
        raise UsageError(str(error), where=run.url, cure=cure) from None


def _kept(run: Run, config: AskingConfig, epoch: int) -> tuple[Mapping[str, Any], Mapping[str, bytes]]:
    """Facts and files of the finished training, or of the checkpoint of ``epoch``."""
    folder = run.step_folder(TRAIN)
    kept = CommittedCheckpoints(folder.child("checkpoints"))
    if epoch:
        found = read_committed(kept.folder.child(f"{epoch:04d}"))
        if found is None:
            there = ", ".join(map(str, sorted(kept.epochs()))) or "none"
            raise UsageError(f"there is no checkpoint {epoch}", where=kept.folder.url, cure=f"those kept: {there}")
        state = State.from_files(found.files).tensors
        start = "model/agent."
        weights = {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}
        facts: dict[str, Any] = described(config.problem, UNetConfig(**config.network.model_dump()))
        if json.loads(folder.read("training.json"))["version"] != AskingTrainer.version:
            del facts["question"]  # a checkpoint does not tell of it
        return json.loads(json.dumps(facts)), {WEIGHTS: safetensors.torch.save(weights)}
    trained = read_trained(folder)
    if trained is None:
        newest = kept.newest()
        other = f"; or take its newest checkpoint: --checkpoint {newest}" if newest else ""
        cure = f"'raylens asking CONFIG --run {run.url}' finishes it{other}"
        raise UsageError("its training is not finished", where=run.url, cure=cure)
    return trained.facts, trained.files


def _image(run: Run, config: AskingConfig, image: str) -> tuple[str, np.ndarray]:
    """From a path or URL, or from the key of an image that the run asked about: its name, and [3, h, w]."""
    found = images.load(image, config.images)
    if isinstance(found, images.DecodeError) and found.kind == "missing" and "ask" in run.splits():
        listed = run.key_table("ask").table()
        uris = dict(zip(listed["key"].to_pylist(), listed["uri"].to_pylist(), strict=True))
        if image in uris:
            found = images.load(uris[image], config.images)
    if isinstance(found, images.DecodeError):
        raise UsageError(found.reason, where=image, cure="give an image's path or URL, or a key of the run's data.ask")
    return image.rpartition("/")[2], config.preprocess.pixels(found.pixels)
