"""Class precision: the largest label's share of a question, of it moved, and of the picture."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from asking_cases import SMALL, pictures

from stages.asking.agent import described, new_agent
from stages.asking.precision import UNDRAWN, Precision, PrecisionConfig, PrecisionTable, label_map, shares
from stages.asking.process import process
from stages.asking.tasks import ColorNatural
from stages.preprocess import Preprocess

TASK = ColorNatural(hints=2)
FRAME = Preprocess((12, 10), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
CONFIG = PrecisionConfig(FRAME, hints=2, networks=("asked",), moves=3)


def rectangle(x0: int, y0: int, x1: int, y1: int) -> list[list[int]]:
    """A COCO polygon."""
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def test_by_hand() -> None:
    labels = np.array([[7, 7, -1], [3, 3, -1]])
    question = np.array([[0.5, 0.5, 0.25], [1.0, 0.25, 0.0]])
    assert shares(question, labels) == (3, pytest.approx(1.25 / 2.5))
    assert shares(np.ones((2, 3)), labels)[1] == pytest.approx(1 / 3)
    label, share = shares(np.zeros((2, 3)), labels)
    assert label == UNDRAWN
    assert np.isnan(share)


def test_masks_become_labels_of_the_frame_and_the_rest_is_of_none() -> None:
    masks, own = [rectangle(0, 0, 20, 12), rectangle(0, 12, 10, 24)], [4, 9]
    found = label_map(masks, own, 20, 24, FRAME)
    assert found is not None
    assert (found[:6] == 4).all()
    assert (found[6:, :5] == 9).all()
    assert (found[6:, 5:] == UNDRAWN).all()
    both = label_map([*masks, rectangle(10, 12, 20, 24)], [4, 9, 4], 20, 24, FRAME)
    assert both is not None
    assert (both[6:, 5:] == 4).all(), "a label's masks are one"
    boxed = label_map([*masks, None], [4, 9, 7], 20, 24, FRAME)
    assert boxed is not None
    assert np.array_equal(boxed, found), "an object with a box alone is not drawn"
    assert label_map([], [], 20, 24, FRAME) is None
    assert label_map([None, None], [4, 9], 20, 24, FRAME) is None
    with pytest.raises(ValueError, match="1 labels"):
        label_map(masks, [4], 20, 24, FRAME)


def test_rows_are_of_the_agent_s_questions_and_their_own() -> None:
    agent = new_agent(TASK, SMALL, 0)
    stage = Precision(CONFIG)
    stage.setup(torch.device("cpu"), {"asked": SimpleNamespace(facts=described(TASK, SMALL), files=agent.to_files())})
    assert stage.cost()["forwards_per_row"] == 3
    assert stage.cost()["flops_per_row"] > 0
    image = np.zeros((24, 20, 3), np.uint8)
    row = {"masks": [rectangle(0, 0, 20, 6)], "box_labels": [4]}
    prepared = stage.prepare(image, row)
    labels = prepared["labels"]
    assert prepared["drawn"]
    pixels = pictures(3)
    batch: dict[str, Any] = {"pixels": pixels.numpy(), "labels": np.stack([labels] * 3), "drawn": np.ones(3, bool)}
    rows = stage(batch | {"key": ["a", "b", "c"], "valid": [True, False, True]})
    assert len(rows) == 2
    asked = process(agent, TASK, pixels, 2).questions.double().numpy()
    for at, found in zip((0, 2), rows, strict=True):
        assert found["whole"] == pytest.approx(0.75)
        top = asked[at][:, :3].sum((1, 2)) / asked[at].sum((1, 2))
        assert found["precision/asked"] == pytest.approx(np.maximum(top, 1 - top), rel=1e-5)
        assert found["label/asked"].tolist() == [4 if share > 0.5 else UNDRAWN for share in top]
    alone = stage({name: part[2:] for name, part in batch.items()} | {"key": ["c"], "valid": [True]})[0]
    assert alone["moved/asked"] == pytest.approx(rows[1]["moved/asked"], rel=1e-5)
    # Of a picture without a mask nothing is said: it is left out, and the others are as they were.
    none = stage.prepare(image, {"masks": [], "box_labels": []})
    batch["labels"][0], batch["drawn"][0] = none["labels"], none["drawn"]
    left, kept = stage(batch | {"key": ["a", "b", "c"], "valid": [True, False, True]})
    assert (left["status"], left["error"]) == ("filtered", "the image has no mask: nothing can be said of classes")
    assert kept["precision/asked"] == pytest.approx(rows[1]["precision/asked"], rel=1e-5)


def test_a_question_that_follows_a_class_is_above_itself_moved() -> None:
    labels = np.full((8, 8), UNDRAWN)
    labels[:4, :4] = 2
    stage = Precision(PrecisionConfig(Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3), 1, ("asked",), moves=64))
    stage.task, stage.device = TASK, torch.device("cpu")

    class Follows(torch.nn.Module):
        def forward(self, x: torch.Tensor, q: Any, c: Any, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros_like(y), torch.from_numpy((labels == 2).astype(np.float32)).expand(len(x), 1, 8, 8)

    stage._agents = {"asked": Follows()}  # type: ignore[dict-item]
    pixels = np.zeros((1, 3, 8, 8), np.uint8)
    (row,) = stage({"pixels": pixels, "labels": labels[None], "drawn": [True], "key": ["a"], "valid": [True]})
    assert row["precision/asked"] == pytest.approx([1.0])
    assert row["label/asked"].tolist() == [2]
    assert row["whole"] == pytest.approx(0.75)
    # A 4 x 4 square at a random place: the mean of max(k, 16 - k) / 16 over all 64 places, by enumeration.
    area = np.array([[max(0, 4 - min(i, 8 - i)) * max(0, 4 - min(j, 8 - j)) for j in range(8)] for i in range(8)])
    expected = float((np.maximum(area, 16 - area) / 16).mean())
    assert row["moved/asked"][0] == pytest.approx(expected, abs=0.06)


def test_the_table_is_numpy_s_in_any_order() -> None:
    rng = np.random.default_rng(1)
    own, moved, whole = rng.random((30, 2)), rng.random((30, 2)), rng.random(30)
    own[0, 1] = moved[0, 1] = np.nan  # a question that covers nothing
    table = pa.table({"whole": whole, "precision/asked": own.tolist(), "moved/asked": moved.tolist()})
    reduction = PrecisionTable(CONFIG)
    state = reduction.add(reduction.start(), table)
    split = reduction.add(reduction.add(reduction.start(), table.slice(11)), table.slice(0, 11))
    assert np.array_equal(state, split)
    overall, first, second = reduction.finish("all", state).to_pylist()
    means = np.nanmean(own, 1)
    assert (overall["question"], overall["n"], overall["precision"]) == (0, 30, pytest.approx(means.mean()))
    assert overall["precision_se"] == pytest.approx(means.std(ddof=1) / np.sqrt(30), rel=1e-5)
    assert overall["above"] == pytest.approx((means - np.nanmean(moved, 1)).mean())
    assert first["moved"] == pytest.approx(moved[:, 0].mean())
    assert (second["n"], second["precision"]) == (29, pytest.approx(np.nanmean(own[:, 1])))
    assert second["whole"] == pytest.approx(whole[1:].mean())
