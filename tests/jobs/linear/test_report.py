"""The page of residual, layers and votes from rows that stages gave, and from next to nothing. No Ray."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from jobs.linear import LinearConfig
from jobs.linear.report import linear_page
from jobs.linear.report_data import Interpreted, LinearReportData
from jobs.linear.report_votes import _coloured, _masked
from jobs.report.totals import StepTotals
from pipeline import slices
from pipeline.decode import stack
from pipeline.report.ink import PALETTE
from pipeline.steps import row_schema
from stages.linear.classifier import View
from stages.linear.contributions_stage import ContributionsConfig, ContributionsStage
from stages.linear.elections import Elections, ElectionsConfig
from stages.linear.shares import Shares, SharesConfig
from stages.linear.votes_stage import VotesConfig, VotesStage
from stages.preprocess import Preprocess

FRAME = Preprocess(size=(16, 16))
NAMES = ("cat, true cat", "<i>dog</i>", "cow", "", "elk")


def picture(row: Any) -> np.ndarray:
    return np.random.default_rng(int(row["key"])).integers(0, 256, (20, 26, 3)).astype(np.uint8)


def gone(row: Any) -> np.ndarray:
    raise OSError("the disk is away")


def page_data(task: str, **changes: Any) -> LinearReportData:
    """Five images of a small network."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(7), nn.Flatten(), nn.Linear(16, 5)).eval()
    view = View(attack=8, preprocess=FRAME)
    stage: Any = (
        VotesStage(VotesConfig(view)) if task == "votes" else ContributionsStage(ContributionsConfig(view=view))
    )
    reduction: Any = Elections(ElectionsConfig(True)) if task == "votes" else Shares(SharesConfig(True))
    stage.setup(torch.device("cpu"), {"network": network})
    rows = [{"key": str(i), "label": i} for i in range(5)]
    prepared = stack([stage.prepare(picture(row), row) for row in rows])
    table = slices.to_table(slices.run_slice(stage, "images", rows, prepared, 5), row_schema(stage), task)
    summary = reduction.finish("all", reduction.add(reduction.start(), table)).to_pylist()
    examples = list(zip(table.to_pylist(), rows, strict=True))[:2] if task == "votes" else []
    tiny = Interpreted("tiny", "squeezenet1_0", "mine.pth", FRAME, NAMES, False, summary, examples)
    config = LinearConfig(
        task=task,
        networks={"tiny": {"name": "squeezenet1_0", "seed": 0}},
        data={"images": {"kind": "folder", "root": "/x"}},
        classify={"attack": 8},
        report={"paper": True},
    )
    totals = [StepTotals(f"{task}_tiny", "images", 6, 5, failed=1, seconds=3.0, failures=[("<b>k</b>", "no picture")])]
    data = LinearReportData("runs/x", task, config.model_dump(mode="json"), {}, [tiny], totals, picture)
    return dataclasses.replace(data, **changes)


def test_residual_shares_stand_beside_the_papers_and_say_where_weights_differ() -> None:
    data = page_data("residual")
    text = linear_page(data).html()
    share = data.networks[0].found("share")
    assert share is not None
    assert f"{100 * share['mean']:.1f} ± {100 * share['std']:.1f}".replace("-", "−") in text
    assert "80.7 ±11.5" in text
    assert "other weights" in text
    same = dataclasses.replace(data.networks[0], same_weights=True)
    text = linear_page(dataclasses.replace(data, networks=[same])).html()
    assert "80.7 ±11.5" in text
    assert "other weights" not in text
    assert "Contributions of layers" not in text


def test_layers_are_told_as_bars_and_as_numbers_clean_and_attacked() -> None:
    data = page_data("layers")
    assert [t["name"] for t in data.networks[0].terms("attacked")] == ["input", "0", "4"]
    text = linear_page(data).html()
    assert "3 terms of tiny as numbers" in text
    assert "FGSM, 8 grey levels" in text
    assert "&lt;b&gt;k&lt;/b&gt;" in text
    assert "<b>k</b>" not in text


def test_votes_have_pictures_and_names() -> None:
    text = linear_page(page_data("votes")).html()
    assert text.count("data:image/jpeg") >= 2 * 2 * 3
    assert "&lt;i&gt;dog&lt;/i&gt;" in text
    assert "<i>dog" not in text
    assert "true cat" not in text  # the first word names a class


def test_pixels_won_by_scaling_are_told_where_maps_are_scaled() -> None:
    data = page_data("votes")
    row = data.networks[0].found("unsteady")
    assert row is not None
    assert f"of the other sign: tiny {100 * row['mean']:.1f} %." in linear_page(data).html()
    config = {**data.config, "classify": {**data.config["classify"], "scaling": "shift"}}
    text = linear_page(dataclasses.replace(data, config=config)).html()
    assert "of the other sign" not in text
    assert "the same added to every pixel" in text


def test_a_page_is_made_where_the_images_are_away() -> None:
    text = linear_page(page_data("votes", load=gone)).html()
    assert "no longer reachable: the disk is away" in text
    assert "data:image/jpeg" not in text


@pytest.mark.parametrize("task", ["residual", "layers", "votes"])
def test_a_run_without_answers_says_so(task: str) -> None:
    bare = Interpreted("tiny", "resnet18", "drawn with seed 0", FRAME)
    text = linear_page(page_data(task, networks=[bare], totals=[StepTotals("x", "images", 6, 2)])).html()
    assert "No image has an answer yet." in text
    assert "accounts for 2 of 6 planned rows" in text


def test_a_place_has_the_colour_of_what_is_voted_around_it() -> None:
    image = np.full((40, 40, 3), 100, np.uint8)
    votes = np.full((40, 40), 7)
    votes[:, 20:] = 3
    votes[10, 5] = 3  # one pixel among others is no place
    shown = _coloured(image, votes, [7, 3]).astype(int)
    blue, orange = (np.array([int(PALETTE[i][k : k + 2], 16) for k in (1, 3, 5)]) for i in (0, 1))
    near = [[np.abs(shown[y, x] - colour).sum() for colour in (blue, orange)] for y, x in ((20, 8), (10, 5), (20, 32))]
    assert [int(np.argmin(n)) for n in near] == [0, 0, 1]
    kept = _masked(image, votes == 3)
    assert (kept[:, 20:] == 100).all()
    assert (kept[0, :20] == 128).all()
