"""The answer rule against sums written out, and the draws of a training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.asking.answers import MeanAnswer, drawn, truthful
from stages.asking.tasks import ColorDrawing, ColorNatural, Inpaint, hole_of
from stages.training_draws import row_seeds

RULE = MeanAnswer()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6).filter(lambda q: sum(q) > 0),
    st.tuples(*[st.floats(-1, 1, width=32)] * 2),
)
def test_a_constant_image_answers_its_own_colour_for_any_question(weights: list[float], colour: tuple[float]) -> None:
    question = torch.tensor(weights).view(1, 1, 2, 3)
    truth = torch.tensor(colour).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    assert RULE.answer(question, truth)[0].tolist() == pytest.approx(colour, abs=1e-6)


@pytest.mark.parametrize("task", [ColorNatural(), ColorDrawing(), Inpaint()])
def test_a_picture_of_one_colour_answers_it_in_every_task(task: ColorNatural) -> None:
    rgb = torch.tensor([0.8, 0.3, 0.1]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    question = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    answer = task.rule.answer(question, task.truth(rgb))
    shown = task.colour(task.observe(rgb), question, answer)
    assert shown[0].tolist() == pytest.approx([0.8, 0.3, 0.1], abs=1e-5)


def test_the_mean_rule_is_the_sum_written_out() -> None:
    rng = np.random.default_rng(0)
    question, truth = rng.random((3, 1, 4, 5)), rng.normal(size=(3, 2, 4, 5))
    found = RULE.answer(torch.from_numpy(question), torch.from_numpy(truth)).numpy()
    hint = RULE.hint(torch.from_numpy(question), torch.from_numpy(found)).numpy()
    for image in range(3):
        for channel in range(2):
            above = below = 0.0
            for row in range(4):
                for column in range(5):
                    above += question[image, 0, row, column] * truth[image, channel, row, column]
                    below += question[image, 0, row, column]
            assert found[image, channel] == pytest.approx(above / below, rel=1e-12)
            laid = question[image, 0] * above / below
            assert np.allclose(hint[image, channel], laid, rtol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-30, 1e-44])
def test_only_the_shape_of_a_question_matters(scale: float) -> None:
    question = torch.tensor([0.0, 1.0, 1.0, 0.0]).view(1, 1, 2, 2) * scale
    truth = torch.tensor([5.0, 1.0, 3.0, 7.0]).view(1, 1, 2, 2)
    assert RULE.answer(question, truth).item() == pytest.approx(2.0)


def test_a_question_about_nothing_is_answered_with_nothing_and_teaches_nothing() -> None:
    question = torch.zeros(1, 1, 2, 2, requires_grad=True)
    answer = RULE.answer(question, torch.ones(1, 3, 2, 2))
    answer.sum().backward()
    assert answer.tolist() == [[0.0, 0.0, 0.0]]
    assert question.grad is not None
    assert torch.isfinite(question.grad).all()


def test_the_gradient_of_an_answer_flows_into_the_question() -> None:
    rng = np.random.default_rng(1)
    question = torch.from_numpy(rng.uniform(0.1, 1, (2, 1, 3, 3))).requires_grad_()
    truth = torch.from_numpy(rng.normal(size=(2, 2, 3, 3)))
    assert torch.autograd.gradcheck(lambda q: RULE.answer(q, truth), question)
    RULE.answer(question, truth)[0, 0].backward()
    total, answer = question[0].sum(), (question[0, 0] * truth[0, 0]).sum() / question[0].sum()
    assert question.grad is not None
    assert torch.allclose(question.grad[0, 0], ((truth[0, 0] - answer) / total).detach())
    assert (question.grad[1] == 0).all(), "another image's question has no part in it"


def test_behind_a_hole_only_what_is_hidden_is_told() -> None:
    task = Inpaint(hole=0.5)
    truth = torch.zeros(1, 3, 8, 8)
    truth[:, :, 2:6, 2:6] = 1.0
    truth[:, :, 4, 4] = 3.0
    answer = task.rule.answer(torch.ones(1, 1, 8, 8), truth)
    assert answer[0].tolist() == pytest.approx([(15 + 3) / 16] * 3)


def test_holes_lie_in_the_middle() -> None:
    assert hole_of(torch.zeros(1, 3, 4, 6), 0.5)[0, 0].int().tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    assert hole_of(torch.zeros(1, 3, 4, 6), 1.0).min() == 1
    with pytest.raises(ValueError, match=r"hole 1\.5"):
        Inpaint(hole=1.5)


def test_noise_is_added_to_the_answer_of_its_own_number() -> None:
    truth = torch.arange(8.0).view(2, 1, 2, 2)
    noise = torch.tensor([[[0.5], [0.25]], [[-1.0], [0.0]]])
    exact, noisy = truthful(RULE, truth), truthful(RULE, truth, noise)
    question = torch.ones(2, 1, 2, 2)
    for number in (0, 1):
        difference = noisy(question, number) - exact(question, number)
        assert difference[:, 0].tolist() == pytest.approx(noise[:, number, 0].tolist())
    assert torch.equal(noisy(question[:1], 1), exact(question[:1], 1) + 0.25)


def test_draws_are_uniform_and_normal_and_each_rows_own() -> None:
    seeds = row_seeds(3, 0, [f"{i}.png" for i in range(6000)])
    hints, noise = drawn(seeds, 4, 2)
    assert noise.shape == (6000, 4, 2)
    counts = np.bincount(hints, minlength=5)
    assert len(counts) == 5, "0 and T are both drawn"
    assert np.abs(counts / 6000 - 0.2).max() < 4 * np.sqrt(0.2 * 0.8 / 6000)
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)
    assert noise.std() == pytest.approx(1, abs=0.02)
    assert np.abs(np.corrcoef(noise.reshape(6000, 8).T) - np.eye(8)).max() < 0.06
    some = np.array([5, 17, 4000])
    again = drawn(seeds[some], 4, 2)
    assert np.array_equal(again[0], hints[some])
    assert np.array_equal(again[1], noise[some])
