"""The votes stage: its rows against maps of every class, one image at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stage_cases import SMALL, batch, input_of, network

from pipeline.slices import to_table
from pipeline.steps import row_schema
from stages.linear.classifier import View
from stages.linear.contributions import Contributing
from stages.linear.scope import freeze
from stages.linear.votes import Discussion
from stages.linear.votes_stage import VotesConfig, VotesStage


def stage(**options: Any) -> VotesStage:
    view = View(options.pop("attack", 0.0), "float64", SMALL)
    made = VotesStage(VotesConfig(view, **options))
    made.setup(torch.device("cpu"), {"network": network()})
    return made


def maps(x: torch.Tensor) -> torch.Tensor:
    return Discussion(Contributing(freeze(network(), x.detach())), x.detach()).maps(range(4))


def test_each_pixel_votes_for_what_it_says_most_for() -> None:
    b = batch()
    for i, row in enumerate(stage(top=2, chunk=3)(b)):
        said = maps(input_of(b, i))
        expected = said.argmax(0).numpy()
        assert row["size"] == [8, 8]
        assert (row["votes"].reshape(8, 8) == expected).all()
        counts = np.bincount(expected.ravel(), minlength=4)
        assert row["voted"] == (counts > 0).sum()
        assert sorted(counts)[::-1][:2] == [round(64 * s) for s in row["top_share"]]
        assert row["predicted_share"] == counts[row["predicted"]] / 64
        scores = network()(input_of(b, i)).detach()[0]
        assert row["top_score"] == pytest.approx(scores[row["top"].tolist()].tolist(), rel=1e-6)
        label = b["rows"][i]["label"]
        assert row["label_share"] == (None if label is None else counts[label] / 64)


def test_how_many_pixels_are_won_by_scaling_is_kept() -> None:
    b = batch()
    for i, row in enumerate(stage()(b)):
        x = input_of(b, i).detach()
        plain = Discussion(Contributing(freeze(network(), x)), x, scaling="none").maps(range(4)).sum(dim=(1, 2))
        factor = network()(x).detach()[0] / plain
        wild = ((factor < 0) | (factor > 2)).numpy()
        assert row["unsteady"] == wild[row["votes"]].mean()


def test_only_the_likeliest_stand_for_election() -> None:
    b = batch()
    for i, row in enumerate(stage(classes=2)(b)):
        scores = network()(input_of(b, i)).detach()[0]
        running = scores.topk(2).indices
        expected = running[maps(input_of(b, i))[running].argmax(0)]
        assert (row["votes"].reshape(8, 8) == expected.numpy()).all()
    every, as_many = stage()(b), stage(classes=4)(b)
    assert all((x["votes"] == y["votes"]).all() for x, y in zip(every, as_many, strict=True))


def test_an_image_does_not_know_its_batch() -> None:
    made = stage(attack=8)
    together = made(batch())
    for i in range(4):
        alone = made(batch((2, i), (False, True)))[0]
        for name, value in together[i].items():
            same = (alone[name] == value).all() if isinstance(value, np.ndarray) else alone[name] == value
            assert same, name


def test_the_attack_moves_the_votes() -> None:
    found = stage(attack=32)(batch())
    assert any((row["votes"] != row["attacked_votes"]).any() for row in found)
    rows = [{"key": key, "status": "ok", "error": None} | row for key, row in zip("abcd", found, strict=True)]
    assert to_table(rows, row_schema(stage(attack=32)), "votes")["votes"].type.value_type == "int16"


def test_an_answer_that_is_not_finite_fails_alone() -> None:
    made = stage()
    assert made.classifier is not None
    normalised = made.classifier.images

    def spoilt(pixels: Any) -> torch.Tensor:
        x = normalised(pixels)
        x[1] = torch.inf
        return x

    made.classifier.images = spoilt  # type: ignore[method-assign]
    found = made(batch())
    assert [row.get("status", "ok") for row in found] == ["ok", "failed", "ok", "ok"]
    assert "not finite" in found[1]["error"]


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk 0"):
        VotesConfig(chunk=0)
