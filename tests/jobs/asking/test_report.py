"""Sentences of the asking job's page: each says what is so in this run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.asking import AskingConfig
from jobs.asking.config import TRAIN
from jobs.asking.evaluate import EXACT, RANDOM
from jobs.asking.gather_evaluate import evaluated
from jobs.asking.report import AskingReportData, asking_page
from jobs.asking.report_evaluate import Evaluated
from jobs.config import check
from pipeline.checkpoints import commit
from pipeline.run import Run

MEASURED = [
    {"network": network, "question": question, "n": 2, **{f"{name}{end}": 0.5 for name in names for end in ("", "_se")}}
    for network in ("asked", "exact")
    for question in (0, 1)
    for names in [("precision", "moved", "above", "whole")]
]


def text(
    folder: Path,
    learn: dict[str, Any] | None = None,
    augment: bool = True,
    tune: bool = True,
    segmented: bool = True,
    found: Evaluated | None = None,
) -> str:
    images = {"kind": "folder", "root": "images"}
    told = (learn or {}).get("told", "asked")
    values = {
        "task": "evaluate" if found is not None else "train",
        "data": {"train": images, "ask": {"kind": "folder", "root": "others"}},
        "learn": learn or {},
        "training": {} if augment else {"augment": None},
    }
    if segmented:
        values["data"]["segmented"] = {  # type: ignore[index]
            "images": {"kind": "folder", "root": "drawn"},
            "masks": {"root": "masks", "kind": "index"},
        }
    config = check(AskingConfig, values, where="mine.yaml").model_dump(mode="json")
    measured = {"loss": 0.1} | ({"tune_loss": 0.2, "psnr_0": 20.0} if tune else {})
    facts = {
        "lesson": {"noise": config["learn"]["noise"], "smooth": 0.1},
        "hints": told,
        "history": [{"epoch": epoch, **measured} for epoch in (1, 2)],
        "best_epoch": 2,
        "rows": {"train": 5},
        "unet": config["network"],
        "unreadable": {},
    }
    data = AskingReportData(run="runs/mine", config=config, provenance={}, facts=facts, evaluated=found)
    return asking_page(data).write(folder / "index.html").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "of augmented images with noisy answers, as many as were drawn for each; the tune loss of plain images"),
        ({"augment": False}, "of plain images with noisy answers"),
        ({"learn": {"noise": 0.0}}, "of augmented images with exact answers"),
        (
            {"learn": {"told": "random"}},
            "of augmented images with exact hints, as many as were drawn for each; the tune",
        ),
        ({"learn": {"told": "none"}}, "of augmented images without hints; the tune loss of plain images."),
        ({"tune": False}, "of augmented images with noisy answers, as many as were drawn for each.<"),
    ],
)
def test_losses_are_of_what_was_trained_on(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    assert words in text(tmp_path, **given)


def test_answers_without_noise_are_said_to_be_so(tmp_path: Path) -> None:
    quiet = text(tmp_path, {"noise": 0.0}, found=Evaluated(classes=MEASURED, noisy=False))
    assert "no noise" in quiet
    assert "Trained with learn.noise 0" in quiet
    assert "Trained with noise on answers" not in quiet
    assert "Trained with noise on answers" in text(tmp_path, found=Evaluated(classes=MEASURED))


def contest(n: int, left_out: int, **more: Any) -> list[dict[str, Any]]:
    told = {"n": n, "left_out": left_out, "exact": 0, "psnr": None, "psnr_se": None, "behind": None, "behind_se": None}
    if n:
        told |= {"psnr": 23.456, "behind": 1.25}
    return [{"method": m, "answers": a, **told, **more} for m in ("asked", "levin_random") for a in (0, 1)]


def test_images_that_some_method_has_without_error_are_said_to_be_left_out(tmp_path: Path) -> None:
    sentence = "3 images that some method colours without any error"
    found = text(tmp_path, found=Evaluated(contest(7, 3, exact=3, psnr_se=0.5, behind_se=0.25)))
    assert sentence in found
    assert "mean over 7 images" in found
    assert "Without error" in found
    assert "without any error" not in text(tmp_path, found=Evaluated(contest(7, 0)))
    none = text(tmp_path, found=Evaluated(contest(0, 4)))
    assert "Some method colours each of the 4 images without any error: there is nothing to compare." in none


def test_means_of_one_image_stand_without_an_error(tmp_path: Path) -> None:
    order = [{"question": q, "n": 1, "error": 0.2, "error_se": None, "above": None, "counts": [0, 1]} for q in (0, 1)]
    order[1] |= {"above": 0.1, "above_se": None}
    classes = [row | {name: None for name in row if name.endswith("_se")} for row in MEASURED]
    found = text(tmp_path, found=Evaluated(contest(1, 0), order, 1.0, classes))
    for words in ("23.46", "Class precision of each question", "Distribution of the error"):
        assert words in found, words
    assert "±–" not in found
    assert "±nan" not in found


def test_classes_that_are_not_measured_yet_are_not_said_to_be_missing(tmp_path: Path) -> None:
    missing = "No pictures with drawn classes were given"
    assert missing in text(tmp_path, segmented=False, found=Evaluated())
    there = text(tmp_path, found=Evaluated())
    assert missing not in there
    assert "Class precision is not measured yet." in there


def test_only_trainings_of_the_run_as_it_is_now_are_shown(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    for name in (TRAIN, RANDOM, EXACT):
        commit(run.step_folder(name).child("result"), {"facts.json": json.dumps({"of": name}).encode()})
    notes: list[str] = []
    found = evaluated(run, {TRAIN, RANDOM}, {}, True, notes)
    assert dict(found.networks) == {"asks, noise on answers": {"of": TRAIN}, "told at random points": {"of": RANDOM}}
    assert list(evaluated(run, {TRAIN}, {}, False, notes).networks) == ["asks, learn.noise 0"]
    assert not notes
