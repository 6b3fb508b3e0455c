"""Configs of the asking job: mistakes are told, and a fingerprint has nothing in it that is not used."""

from __future__ import annotations

import json
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

INDEX = {"root": "masks", "kind": "index"}


def folder(root: str, **more: Any) -> dict[str, Any]:
    return {"kind": "folder", "root": root, **more}


def config(task: str = "evaluate", segmented: str = "drawn", **sections: Any) -> asking.AskingConfig:
    values: dict[str, Any] = {
        "task": task,
        "data": {
            "train": folder("train"),
            "tune": folder("tune"),
            "ask": folder("ask"),
            "segmented": {"images": folder(segmented), "masks": INDEX},
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
        ({"data": {"segmented": {"images": folder("drawn")}}}, "a folder source has no masks of its own: give masks"),
        (
            {"data": {"segmented": {"images": folder("drawn"), "masks": {"root": "masks"}}}},
            "masks of kind binary say where something is, not of which class",
        ),
    ],
)
def test_mistakes_are_told(sections: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        config(**sections)


def shares(first: list[float] | None, second: list[float] | None, **more: Any) -> dict[str, Any]:
    return {"train": folder("one", share=first), "tune": folder("one", share=second, **more)}


@pytest.mark.parametrize(
    ("data", "two"),
    [
        (shares([0, 0.9], [0.8, 1]), "train and tune"),
        (shares(None, [0.9, 1]), "train and tune"),
        (shares([0.2, 0.4], None), "train and tune"),
        (shares([0, 1], [0.5, 0.6], sample=10), "train and tune"),  # drawn from what is learnt from
        (shares([0, 0.5], [0.5, 1]) | {"ask": folder("one", share=[0.7, 0.8], labelled=False)}, "tune and ask"),
        ({"train": folder("one"), "ask": folder("one", limit=3)}, "train and ask"),
    ],
)
def test_shares_of_one_source_are_apart(data: dict[str, Any], two: str) -> None:
    with pytest.raises(UsageError, match=f"{two} hold the same pictures, and train, tune and ask are three splits"):
        config(data=data)


def test_sources_that_are_apart_are_taken() -> None:
    assert config(data=shares([0, 0.5], [0.5, 1]) | {"ask": folder("two", share=[0, 1])})
    assert config(data=shares([0.5, 1], [0, 0.5]))
    assert config(data=shares(None, None, keys=["a", "b"])), "what a list of keys takes is known to those who wrote it"


@pytest.mark.parametrize("share", [None, [0.1, 0.2], [0.5, 1]])
def test_no_class_is_drawn_on_what_was_learnt_from(share: list[float] | None) -> None:
    given = {"train": folder("one", share=[0, 0.3]), "tune": folder("one", share=[0.3, 0.6])}
    drawn = {"images": folder("one", share=share), "masks": INDEX}
    with pytest.raises(UsageError, match="neither train nor tune"):
        config(data=given | {"segmented": drawn})
    assert config(data=given | {"segmented": drawn | {"images": folder("one", share=[0.6, 0.9])}})


def test_pictures_none_of_which_has_a_mask_are_refused_when_they_are_listed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}
    file = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "cat"}]}

    def listed(**more: Any) -> int:
        (tmp_path / "instances.json").write_text(json.dumps(file | {"annotations": [entry | more]}))
        images = {"kind": "coco", "annotations": str(tmp_path / "instances.json"), "images": str(tmp_path)}
        given = config(data={"segmented": {"images": images}})
        return int(asking.build(given).sources["segmented"].list().num_rows)

    assert listed(segmentation=[[0, 0, 2, 0, 2, 2]]) == 1
    with pytest.raises(UsageError, match=r"data\.segmented: none of its 1 pictures has a mask"):
        listed()


def test_an_exact_network_is_trained_only_where_there_is_noise_to_leave_out() -> None:
    noisy, quiet = config(), config(learn={"noise": 0.0})
    assert list(trainings(noisy)) == ["train", "train_random", "train_none", "train_exact"]
    assert trainings(noisy)["train_exact"] == trainings(quiet)["train"]
    assert list(trainings(quiet)) == ["train", "train_random", "train_none"]
    job = asking.build(quiet)
    assert "asked_exact" not in job.step("contest").stage.config.methods  # type: ignore[union-attr]
    assert job.step("precision").stage.config.networks == ("asked",)  # type: ignore[union-attr]
    assert "exact" not in job.step("contest").trained  # type: ignore[union-attr]
    assert "exact" not in job.step("precision").trained  # type: ignore[union-attr]


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
