"""What the asking job's page shows of single images: chosen once, for the sheets and for the part that answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from explorer_cases import drawn
from PIL import Image

from jobs.asking import AskingConfig, gather
from jobs.config import check
from jobs.sections import source
from pipeline.run import Run
from pipeline.slices import to_table
from pipeline.steps import row_schema
from stages.asking.agent import described, new_agent
from stages.asking.ask import Ask, AskConfig
from stages.asking.tasks import ColorNatural
from stages.asking.unet import UNetConfig

TASK, NET = ColorNatural(hints=2), UNetConfig(4, 2)
GONE, FAILED, TOTAL = "i3.png", "i5.png", 8


class Held:
    """Two shards; every look into one is noted."""

    def __init__(self, table: pa.Table) -> None:
        self.parts = [table.slice(0, 5), table.slice(5)]
        self.whole: list[int] = []

    def complete(self) -> tuple[dict[int, int], dict[int, str]]:
        return {1: 1, 0: 0}, {}

    def open(self, receipt: int, columns: Sequence[str] | None) -> pa.Table:
        if columns is None:
            self.whole.append(receipt)
            return self.parts[receipt]
        return self.parts[receipt].select(list(columns))


@pytest.fixture
def made(tmp_path: Path) -> tuple[Run, Path]:
    """A run that asked about eight images, of which one is gone since."""
    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(TOTAL):
        Image.fromarray(drawn(24, at)).save(folder / f"i{at}.png")
    run = Run(str(tmp_path / "run"))
    ask = config(folder).data.ask
    assert ask is not None
    run.freeze_keys("ask", source(ask))
    (folder / GONE).unlink()
    return run, folder


def config(folder: Path, keep: str = "all", examples: int = 3) -> AskingConfig:
    values = {
        "task": "ask",
        "data": {"train": {"kind": "folder", "root": "train"}, "ask": {"kind": "folder", "root": str(folder)}},
        "learn": {"size": [16, 12], "hints": 2},
        "ask": {"keep": keep, "map_size": 4},
        "report": {"examples": examples},
    }
    return check(AskingConfig, values, where="test")


def asked(given: AskingConfig) -> Held:
    """The rows of these images; one of them failed."""
    stage = Ask(AskConfig(given.preprocess, **given.ask.model_dump()))
    agent = SimpleNamespace(facts=described(TASK, NET), files=new_agent(TASK, NET, 1).to_files())
    stage.setup(torch.device("cpu"), {"agent": agent})
    pixels = np.stack([given.preprocess.pixels(drawn(24, at)) for at in range(TOTAL)])
    rows = stage({"pixels": pixels, "valid": [True] * TOTAL})
    for at, row in enumerate(rows):
        row |= {"key": f"i{at}.png", "status": "ok", "error": None}
    rows[5] = {"key": FAILED, "status": "failed", "error": "is torn"}
    return Held(to_table(rows, row_schema(stage), "test"))


def shown(run: Run, given: AskingConfig, held: Held) -> tuple[dict[str, np.ndarray], list[Any], list[str]]:
    notes: list[str] = []
    unit: Any = SimpleNamespace(shards=held)
    truth = gather._chosen(run, unit, given)
    return truth, gather._examples(unit, truth, given, notes), notes


def test_sheets_and_what_can_be_answered_are_of_the_same_images(made: tuple[Run, Path]) -> None:
    run, folder = made
    given = config(folder)
    held = asked(given)
    truth, sheets, notes = shown(run, given, held)
    assert len(truth) == 3
    assert not truth.keys() & {GONE, FAILED}
    assert [sheet.key for sheet in sheets] == list(truth)
    for sheet in sheets:
        own = given.preprocess.pixels(np.asarray(Image.open(folder / sheet.key)))
        assert np.array_equal(sheet.truth, own)
        assert np.array_equal(truth[sheet.key], own)
        assert len(sheet.pictures) == 3
    assert not notes
    assert held.whole == sorted({int(key[1]) // 5 for key in truth}), "shards without an example stay closed"


@pytest.mark.parametrize("keep", ["last", "none"])
def test_without_pictures_of_each_step_the_images_can_be_answered_all_the_same(
    made: tuple[Run, Path], keep: str
) -> None:
    run, folder = made
    given = config(folder, keep)
    held = asked(given)
    truth, sheets, notes = shown(run, given, held)
    assert list(truth) == list(shown(run, config(folder), asked(config(folder)))[0])
    assert sheets == []
    assert notes == ["Sheets need the pictures after every answer: set ask.keep to all"]
    assert not held.whole


def test_images_are_loaded_until_there_are_enough(made: tuple[Run, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run, folder = made
    loaded: list[str] = []
    load = gather.images.load

    def counted(uri: str, *more: Any) -> Any:
        loaded.append(uri)
        return load(uri, *more)

    monkeypatch.setattr(gather.images, "load", counted)
    truth, _, _ = shown(run, config(folder, examples=2), asked(config(folder)))
    assert len(truth) == 2
    assert len(loaded) == 2 + any(uri.endswith(GONE) for uri in loaded)
    loaded.clear()
    assert shown(run, config(folder, examples=0), asked(config(folder)))[:2] == ({}, [])
    assert not loaded
