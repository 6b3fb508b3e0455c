"""Rows of what an agent asks: the process of each image, and of no other."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from asking_cases import SMALL, pictures
from PIL import Image

from stages.asking.agent import described, new_agent
from stages.asking.ask import Ask, AskConfig
from stages.asking.paradigm import Task
from stages.asking.process import process
from stages.asking.tasks import ColorDrawing, ColorNatural
from stages.preprocess import Preprocess

FRAME = Preprocess((12, 10), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def stage(task: Task, **changes: Any) -> Ask:
    agent = new_agent(task, SMALL, seed=3)
    trained = SimpleNamespace(facts=described(task, SMALL), files=agent.to_files())
    found = Ask(AskConfig(**{"preprocess": FRAME, "map_size": 4} | changes))
    found.setup(torch.device("cpu"), {"agent": trained})
    return found


def rows_of(asked: Ask, images: torch.Tensor, valid: list[bool] | None = None) -> list[dict[str, Any]]:
    prepared = [asked.prepare(image.permute(1, 2, 0).numpy(), {})["pixels"] for image in images]
    batch = {"pixels": np.stack(prepared), "valid": valid or [True] * len(images), "rows": [{}] * len(images)}
    return asked(batch)


@pytest.mark.parametrize("task", [ColorNatural(hints=3), ColorDrawing(hints=2)])
def test_a_row_is_the_process_of_its_image(task: Task) -> None:
    asked, images = stage(task), pictures(3)
    rows = rows_of(asked, images)
    table = pa.Table.from_pylist(rows, asked.schema).to_pylist()
    found = process(asked.agent, task, images, task.hints)  # type: ignore[arg-type]
    for at, row in enumerate(table):
        assert row["hints"] == task.hints
        assert row["psnr"] == pytest.approx(found.psnr[at].tolist(), rel=1e-6)
        assert row["answers"] == pytest.approx(found.answers[at].ravel().tolist(), abs=1e-6)
        assert row["answer_rgb"] == found.colours[at].ravel().tolist()
        assert row["question_shape"] == [4, 4]
        shown = [np.asarray(Image.open(io.BytesIO(data))) for data in row["pictures"]]
        assert np.array_equal(np.stack(shown).transpose(0, 3, 1, 2), found.pictures[at].numpy())
        # A question of 12 x 10 kept at 4 x 4: rows by threes; the mean of all of it stays.
        kept = np.array(row["questions"]).reshape(-1, 4, 4)
        whole = found.questions[at].numpy()
        assert kept.shape == (task.hints, 4, 4)
        assert kept[0, 0, 0] == pytest.approx(whole[0, 0:3, 0:3].mean(), rel=1e-3)
        assert kept[-1, 3, 3] == pytest.approx(whole[-1, 9:12, 7:10].mean(), rel=1e-3)


def test_padding_has_no_row_and_batch_mates_do_not_matter() -> None:
    asked, images = stage(ColorNatural()), pictures(4)
    whole = rows_of(asked, images)
    padded = rows_of(asked, images, [True, False, True, False])
    assert len(padded) == 2
    for row, other in zip(padded, [whole[0], whole[2]], strict=True):
        assert row["pictures"] == other["pictures"]
        assert np.array_equal(row["questions"], other["questions"])
    (alone,) = rows_of(asked, images[2:3])
    assert alone["psnr"].tolist() == pytest.approx(whole[2]["psnr"].tolist(), rel=1e-4)
    assert alone["answers"].tolist() == pytest.approx(whole[2]["answers"].tolist(), abs=1e-5)


@pytest.mark.parametrize(("keep", "count"), [("all", 5), ("last", 1), ("none", 0)])
def test_so_many_pictures_are_kept_as_asked(keep: str, count: int) -> None:
    (row,) = rows_of(stage(ColorNatural(), keep=keep), pictures(1))
    (full,) = rows_of(stage(ColorNatural()), pictures(1))
    assert row["pictures"] == full["pictures"][5 - count :]
    assert len(row["psnr"]) == 5


def test_cost_counts_a_forward_pass_for_every_turn() -> None:
    few, many = (stage(ColorNatural(hints=h)).cost() for h in (1, 3))
    assert many["forwards_per_row"] == 4
    assert many["flops_per_row"] == pytest.approx(2 * few["flops_per_row"])
    assert few["flops_per_row"] > 0


def test_without_an_agent_or_with_settings_that_make_no_sense_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="call setup"):
        Ask(AskConfig())({"pixels": []})
    for wrong in ({"map_size": 0}, {"keep": "some"}):
        with pytest.raises(ValueError, match="keep is all, last or none"):
            AskConfig(**wrong)  # type: ignore[arg-type]


def test_an_image_that_leads_to_no_number_is_an_error() -> None:
    asked = stage(ColorNatural())
    with torch.no_grad():
        asked.agent.body.head.bias.fill_(float("nan"))  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="not finite"):
        rows_of(asked, pictures(1))
