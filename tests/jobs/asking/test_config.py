"""Configs of the asking job: mistakes are told, and a fingerprint has nothing in it that is not used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs import asking
from jobs.config import check
from jobs.demo.asking import asking_config
from jobs.demo.asking_full import evaluation_config
from pipeline.errors import UsageError
from pipeline.steps import Measure, Train
from stages.asking.train import AskingTraining


def folder(root: str) -> dict[str, str]:
    return {"kind": "folder", "root": root}


def config(task: str = "evaluate", segmented: str = "drawn", **sections: Any) -> asking.AskingConfig:
    values: dict[str, Any] = {
        "task": task,
        "data": {
            "train": folder("train"),
            "tune": folder("tune"),
            "ask": folder("ask"),
            "segmented": {"images": folder(segmented)},
        },
    }
    values["learn"] = {"size": [16, 12], "hints": 2}
    for name, given in sections.items():
        values[name] = values.get(name, {}) | given
    return check(asking.AskingConfig, values, where="mine.yaml")


def trainings(given: asking.AskingConfig) -> dict[str, AskingTraining]:
    steps = asking.build(given).steps
    return {step.name: step.trainer.config for step in steps if isinstance(step, Train)}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"learn": {"side": 500}}, "side 500: a hint is from 1 pixel on and no larger than the picture"),
        ({"learn": {"size": [0, 5]}}, "both at least 1"),
        ({"segmented": "train"}, "neither train nor tune"),
        ({"segmented": "tune"}, "neither train nor tune"),
    ],
)
def test_mistakes_are_told(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config(**sections)


def test_classes_may_be_drawn_on_what_is_asked_about() -> None:
    assert "segmented" in asking.build(config(segmented="ask")).sources


def test_what_a_training_does_not_use_is_not_in_it() -> None:
    plain, wide = trainings(config()), trainings(config(learn={"side": 5}))
    assert [name for name in plain if plain[name] != wide[name]] == ["train_random"], "the only one told in squares"
    assert wide["train_random"].side == 5
    for told in ("random", "none"):
        alone = trainings(config("train", learn={"told": told}))["train"]
        assert alone == plain[f"train_{told}"]
        noisy = config("train", learn={"told": told, "noise": 0.3, "smooth": 0.1, "back": 2})
        assert trainings(noisy)["train"] == alone
        squares = trainings(config("train", learn={"told": told, "side": 5}))["train"]
        assert (squares == alone) is (told == "none")


def test_a_contest_without_solves_does_not_hang_on_how_they_are_set() -> None:
    def contest(**given: Any) -> Any:
        return asking.build(config(evaluate=given)).step("contest").stage.config  # type: ignore[union-attr]

    other = {"bilateral": {"place": 9.0}}
    assert contest() != contest(**other)
    assert contest(classical=False) == contest(classical=False, **other)


def test_the_demo_in_full_goes_on_with_the_training_it_has_and_asks_about_the_same(tmp_path: Path) -> None:
    first, whole = (asking.build(made) for made in (asking_config(tmp_path, full=True), evaluation_config(tmp_path)))
    ours, theirs = first.step("train"), whole.step("train")
    assert isinstance(ours, Train)
    assert isinstance(theirs, Train)
    assert ours.trainer == theirs.trainer
    assert ours.splits == theirs.splits
    for name, given in first.sources.items():
        assert whole.sources[name].description == given.description
    ours, theirs = first.step("ask"), whole.step("ask")
    assert isinstance(ours, Measure)
    assert isinstance(theirs, Measure)
    assert ours.stage.config == theirs.stage.config
