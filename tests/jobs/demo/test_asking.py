"""The demo's network that asks: a config that a user could have written, on scenes the network never saw."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.asking import build
from jobs.asking.config import training_of
from jobs.asking.page import too_large
from jobs.demo.asking import HINTS, asking_config
from jobs.demo.run import PARTS, reports
from stages.asking.agent import new_agent


@pytest.mark.parametrize("full", [False, True])
def test_it_asks_about_scenes_it_never_saw_and_its_page_can_be_answered(tmp_path: Path, full: bool) -> None:
    config = asking_config(tmp_path, full=full)
    train, ask = config.data.train, config.data.ask
    assert ask is not None
    assert train.images != ask.images
    assert config.problem.hints == HINTS
    assert (train.sample > 600) is full
    assert (ask.sample is None) is full
    assert [step.name for step in build(config).steps][:3] == ["train", "ask", "answered"]
    agent = new_agent(config.problem, training_of(config).unet)
    assert too_large(config.problem, agent, config.learn.size) == ""


def test_of_a_run_that_went_on_the_newest_report_is_opened(tmp_path: Path) -> None:
    for at, name in enumerate(("asking/report/ffff", "chip/report/1111", "asking/report/0000")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "index.html").touch()
        os.utime(tmp_path / name / "index.html", (at, at))
    assert reports(tmp_path) == [tmp_path / "chip/report/1111/index.html", tmp_path / "asking/report/0000/index.html"]


def test_it_is_a_part_of_the_demo() -> None:
    assert any("asks for the colours" in name for name, _ in PARTS[3:])
