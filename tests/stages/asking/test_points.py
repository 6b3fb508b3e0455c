"""Hints at points: where they lie, what is told there, and a network that sees all of them at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from asking_cases import ALL_TASKS, pictures, small_agent

from stages.asking.answers import truthful
from stages.asking.colour import to_unit
from stages.asking.lesson import PointLesson, point_lesson_of
from stages.asking.paradigm import Task, Turn
from stages.asking.points import (
    AtLargestError,
    OnOneMap,
    at_random,
    laid_out,
    network,
    random_corners,
    side_of,
    squares,
)
from stages.asking.process import process
from stages.asking.tasks import ColorNatural
from stages.training_draws import row_seeds

KEYS = [f"{i}.png" for i in range(6)]


def test_a_square_is_where_its_corner_says() -> None:
    found = squares(torch.tensor([[[0, 1], [2, 3]]]), 2, 4, 5)
    assert found.shape == (1, 2, 4, 5)
    assert found[0, 0].nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert found[0, 1].nonzero().tolist() == [[2, 3], [2, 4], [3, 3], [3, 4]]
    assert [side_of(256, 300), side_of(128, 128), side_of(64, 64), side_of(48, 48), side_of(8, 8)] == [9, 5, 3, 3, 1]


def test_random_places_are_all_alike_likely_and_a_row_s_own() -> None:
    seeds = row_seeds(0, 0, [str(i) for i in range(6000)])
    corners = random_corners(seeds, 2, 3, 5, 4).numpy()
    assert corners.min() == 0
    assert corners[..., 0].max() == 2
    assert corners[..., 1].max() == 1
    counts = np.bincount(corners[:, 0, 0] * 2 + corners[:, 0, 1], minlength=6)
    assert abs(counts - 1000).max() < 150  # 5 standard deviations
    assert np.array_equal(random_corners(seeds[4:5], 2, 3, 5, 4).numpy(), corners[4:5])
    assert abs(np.corrcoef(corners[:, 0, 0], corners[:, 1, 0])[0, 1]) < 0.06


def turn(y: torch.Tensor) -> Turn:
    x = y.new_zeros(len(y), 1, *y.shape[2:])
    return Turn(0, x, y, x, None, None)


def test_the_largest_error_is_asked_first_then_the_next() -> None:
    truth = torch.zeros(2, 2, 5, 6)
    y = truth.clone()
    y[0, 0, 4, 5] = 3.0  # more than the block's sum of squares: a corner counts as much as the middle
    y[0, 1, 1:3, 1:3] = 1.0
    y[1, 0, 0, 2] = -1.0
    where = AtLargestError(truth, 2)
    first, second, third = where(turn(y)), where(turn(y)), where(turn(y))
    assert first[0, 0].nonzero().tolist() == [[3, 4], [3, 5], [4, 4], [4, 5]]
    assert second[0, 0].nonzero().tolist() == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert first[1, 0].nonzero()[0].tolist() == [0, 1], "the first of the two squares that hold it"
    assert third[0, 0].nonzero()[0].tolist() == [0, 0], "when nothing is wrong any more"


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: task.name)
def test_the_map_is_gathered_alike_in_training_and_hint_by_hint(task: Task) -> None:
    rgb = to_unit(pictures(6)).double()
    truth, side = task.truth(rgb), 3
    seeds = row_seeds(3, 0, KEYS)
    corners = random_corners(seeds, 4, side, *rgb.shape[2:])
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def looked(x: torch.Tensor, known: torch.Tensor, hints: torch.Tensor) -> torch.Tensor:
        seen.append((known, hints))
        return torch.zeros_like(truth)

    process(OnOneMap(looked), task, pictures(6), 4, question=at_random(seeds, 4, side))
    for n, (known, hints) in enumerate(seen):
        all_known, all_hints = laid_out(task, truth, corners, torch.full((6,), n), side)
        assert torch.equal(known.double(), all_known)
        assert torch.allclose(hints.double(), all_hints, atol=1e-6)


def test_a_hint_tells_the_mean_of_its_square() -> None:
    task = ColorNatural()
    truth = torch.arange(2 * 4 * 4, dtype=torch.float64).reshape(1, 2, 4, 4)
    known, hints = laid_out(task, truth, torch.tensor([[[0, 0], [1, 1]]]), torch.tensor([2]), 2)
    assert known[0, 0].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    # Means of (0, 1, 4, 5) and of (5, 6, 9, 10): the later one covers the earlier one.
    assert hints[0, 0].tolist() == [[2.5, 2.5, 0, 0], [2.5, 7.5, 7.5, 0], [0, 7.5, 7.5, 0], [0, 0, 0, 0]]
    assert torch.equal(hints[0, 1][known[0, 0] > 0], hints[0, 0][known[0, 0] > 0] + 16)


def test_counts_may_lie_where_the_pictures_lie() -> None:
    """As DistributedDataParallel lays them: another device than the CPU, here the one that computes shapes alone."""
    task = ColorNatural()
    truth, corners, counts = (
        torch.zeros(shape, dtype=kind, device="meta")
        for shape, kind in (((2, 2, 4, 5), torch.float32), ((2, 3, 2), torch.int64), ((2,), torch.int64))
    )
    known, hints = laid_out(task, truth, corners, counts, 2)
    assert (known.shape, hints.shape) == ((2, 1, 4, 5), (2, 2, 4, 5))


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: task.name)
def test_the_loss_of_each_image_is_the_error_after_its_own_hints(task: Task) -> None:
    agent, rgb = small_agent(task), to_unit(pictures(6)).double()
    batch = point_lesson_of(task, rgb, row_seeds(0, 0, KEYS), 4, 3)
    assert len(set(batch["hints"].tolist())) > 1
    lesson = PointLesson(agent, task, 3)
    with torch.no_grad():
        losses = lesson(batch)
        for row, loss in enumerate(losses.tolist()):
            one = slice(row, row + 1)
            known, hints = laid_out(task, batch["truth"][one], batch["corners"][one], batch["hints"][one], 3)
            y, _ = agent(batch["x"][one], known, hints, torch.zeros_like(batch["truth"][one]))
            assert loss == pytest.approx(float(((y - batch["truth"][one]) ** 2).mean()), rel=1e-9)
            assert lesson({name: part[one] for name, part in batch.items()}).item() == pytest.approx(loss, rel=1e-9)


def test_without_hints_it_is_the_plain_network_and_the_agent_s_first_turn() -> None:
    task = ColorNatural()
    agent, images = small_agent(task).float(), pictures(3)
    none = point_lesson_of(task, to_unit(images), row_seeds(0, 0, KEYS[:3]), 0, 3)
    assert none["hints"].tolist() == [0, 0, 0]
    told_nothing = process(OnOneMap(network(agent, task)), task, images, 0)
    asking = process(agent, task, images, 0)
    assert torch.equal(told_nothing.pictures, asking.pictures)
    with torch.no_grad():
        assert torch.allclose(PointLesson(agent, task, 3)(none), asking.error[:, 0])


def test_answers_at_points_are_the_rule_s() -> None:
    task, images = ColorNatural(), pictures(2)
    seeds = row_seeds(0, 0, KEYS[:2])
    found = process(
        OnOneMap(network(small_agent(task).float(), task)), task, images, 2, question=at_random(seeds, 2, 3)
    )
    truth = task.truth(to_unit(images))
    told = truthful(task.rule, truth)(found.questions[:, 1][:, None], 1)
    assert torch.allclose(found.answers[:, 1], told)
    assert found.questions.sum((2, 3)).tolist() == [[9, 9], [9, 9]]
