"""The conversation: against one written out, on the tasks there are and on one that is made up here."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from asking_cases import ALL_TASKS, SMALL, pictures, small_agent
from torch import Tensor

from stages.asking.agent import UNetAgent, described, new_agent, question_of, trained_agent
from stages.asking.answers import truthful
from stages.asking.colour import to_unit
from stages.asking.paradigm import AnswerRule, Task, Turn, converse, own_question
from stages.asking.process import process
from stages.asking.tasks import TASKS, ColorNatural, task_of
from stages.asking.unet import UNet


def standard(plane: Tensor) -> Tensor:
    """As questions are made of logits: mean 0, deviation 1, where they are not all alike."""
    return (plane - plane.mean((2, 3), True)) / (plane.var((2, 3), correction=0, keepdim=True) + 1e-6).sqrt()


def talk(task: Task, agent: UNetAgent, rgb: Tensor, counts: list[int], **more: object) -> list[Turn]:
    answerer = truthful(task.rule, task.truth(rgb))
    return list(converse(agent, task, task.observe(rgb), counts, answerer, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: task.name)
def test_a_conversation_is_the_recursion_written_out(task: Task) -> None:
    agent, rgb = small_agent(task), to_unit(pictures(2)).double()
    turns = talk(task, agent, rgb, [3, 3])
    assert [turn.number for turn in turns] == [0, 1, 2, 3]
    x, truth = task.observe(rgb), task.truth(rgb)
    q, c, y = torch.zeros(2, 1, 12, 10), torch.zeros(2, task.answered, 12, 10), torch.zeros(2, task.produced, 12, 10)
    for turn in turns:
        out = agent.body(torch.cat([x, q, c, y], 1).double())
        painted = (1 - q) * y + c
        if task.name == "inpaint":  # nothing is painted over what is seen
            painted, inside = y.clone(), painted[:, :, 3:9, 2:7]
            painted[:, :, 3:9, 2:7] = inside
        y, logits = painted + out[:, : task.produced], out[:, task.produced :]
        deviation = (logits.var((2, 3), correction=0, keepdim=True) + 1e-6).sqrt()
        z = 3 * standard(logits - 0.7 * deviation * standard(q))
        q = 1 / (1 + torch.exp(z).mean((2, 3), True) * torch.exp(-z - 1))
        assert torch.allclose(turn.y, y, rtol=1e-12, atol=1e-12)
        assert torch.allclose(turn.question, q, rtol=1e-12, atol=1e-12)
        weight = q
        if task.name == "inpaint":
            weight = torch.zeros_like(q)
            weight[:, :, 3:9, 2:7] = q[:, :, 3:9, 2:7]
        a = (weight * truth).sum((2, 3)) / weight.sum((2, 3))
        c = q * a[:, :, None, None]
    assert turns[0].asked is None
    assert turns[0].answer is None
    assert torch.equal(turns[2].asked, turns[1].question)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: task.name)
def test_without_hints_the_agent_is_the_plain_unet(task: Task) -> None:
    agent, rgb = small_agent(task), to_unit(pictures(2)).double()
    (turn,) = talk(task, agent, rgb, [0, 0])
    # One that never heard of questions: it has x for input, y for output, and the weights that belong to them.
    plain = UNet(task.observed, task.produced, SMALL).double()
    weights = agent.body.state_dict()
    weights["down.0.0.weight"] = weights["down.0.0.weight"][:, : task.observed]
    for part in ("head.weight", "head.bias"):
        weights[part] = weights[part][: task.produced]
    plain.load_state_dict(weights)
    assert torch.allclose(turn.y, plain(task.observe(rgb)), rtol=1e-12, atol=1e-12)


def test_gradient_flows_into_the_question_through_the_answer() -> None:
    task = ColorNatural()
    agent, rgb = small_agent(task), to_unit(pictures(1)).double()
    turns = talk(task, agent, rgb, [1])
    question = turns[0].question
    (whole,) = torch.autograd.grad(turns[1].y.sum(), question, retain_graph=True)
    assert (whole != 0).any()
    (answer,) = torch.autograd.grad(turns[1].answer.sum(), question, retain_graph=True)  # type: ignore[union-attr]
    assert (answer != 0).any()
    # With the answer held fixed, the gradient is another: part of it came through what was answered.
    fixed = list(converse(agent, task, task.observe(rgb), [1], lambda q, n: turns[1].answer.detach()))  # type: ignore[union-attr]
    (without,) = torch.autograd.grad(fixed[1].y.sum(), fixed[0].question)
    assert torch.allclose(fixed[1].y, turns[1].y)
    assert not torch.allclose(whole, without, rtol=1e-3)


@pytest.mark.parametrize("back", [2, 3, None])
def test_truncated_back_propagation_ends_where_it_should(back: int | None) -> None:
    task = ColorNatural()
    agent, rgb = small_agent(task), to_unit(pictures(2)).double()
    turns = talk(task, agent, rgb, [4, 2], back=back)
    whole = talk(task, agent, rgb, [4, 2])
    for turn, other in zip(turns, whole, strict=True):
        assert torch.equal(turn.y, other.y), "what is computed is the same"
    for row, count in enumerate([4, 2]):
        for turn in turns[:count]:
            turn_grad = torch.autograd.grad(
                turns[count].y[row].sum(), turn.question, retain_graph=True, allow_unused=True
            )[0]
            reached = turn_grad is not None and bool((turn_grad[row] != 0).any())
            # The last `back` turns are count - back + 1 .. count.
            assert reached == (back is None or turn.number >= count - back + 1), (row, turn.number)


def test_rows_leave_when_they_have_their_answers_and_do_not_matter_to_others() -> None:
    task = ColorNatural()
    agent, rgb = small_agent(task), to_unit(pictures(4)).double()
    turns = talk(task, agent, rgb, [3, 1, 1, 0])
    assert [len(turn.y) for turn in turns] == [4, 3, 1, 1]
    for row, count in enumerate([3, 1, 1, 0]):
        alone = talk(task, agent, rgb[row : row + 1], [count])
        assert len(alone) == count + 1
        for turn, single in zip(turns, alone, strict=False):
            assert torch.allclose(turn.y[row], single.y[0], rtol=1e-9, atol=1e-9)
            assert torch.allclose(turn.question[row], single.question[0], rtol=1e-9, atol=1e-9)
    for wrong in ([1, 2, 0, 0], [1, 1, 1], [0, 0, 0, -1]):
        with pytest.raises(ValueError, match="4 rows need as many counts"):
            talk(task, agent, rgb, wrong)


def test_somebody_else_may_ask_and_somebody_else_may_answer() -> None:
    task = ColorNatural()
    agent, rgb = small_agent(task), to_unit(pictures(1)).double()
    corner = torch.zeros(1, 1, 12, 10).double()
    corner[:, :, :4, :4] = 1
    turns = talk(task, agent, rgb, [2], question=lambda turn: corner)
    assert torch.equal(turns[1].asked, corner)  # type: ignore[arg-type]
    assert torch.allclose(turns[2].answer, task.truth(rgb)[:, :, :4, :4].mean((2, 3)))  # type: ignore[arg-type]
    red = torch.tensor([[0.7, 0.5]]).double()
    told = list(converse(agent, task, task.observe(rgb), [1], lambda q, n: red))
    assert torch.equal(told[1].answer, red)  # type: ignore[arg-type]
    assert not torch.allclose(told[1].y, talk(task, agent, rgb, [1])[1].y)


@dataclass(frozen=True)
class _Count:
    """How much ink there is under the question: not a mean, and told as one number about three channels."""

    def answer(self, question: Tensor, truth: Tensor) -> Tensor:
        return (question * truth.sum(1, keepdim=True)).sum((1, 2, 3))[:, None]

    def hint(self, question: Tensor, answer: Tensor) -> Tensor:
        return answer[:, :, None, None].expand(-1, -1, *question.shape[2:])

    def paint(self, y: Tensor, question: Tensor, hint: Tensor) -> Tensor:
        return y


@dataclass(frozen=True)
class _Dim(ColorNatural):
    """A task of a user's own: brighten a dim picture, and ask how much light there is."""

    name: str = "dim"
    observed = 3
    produced = 3
    answered = 1

    @property
    def rule(self) -> AnswerRule:
        return _Count()

    def observe(self, rgb: Tensor) -> Tensor:
        return rgb * 0.1

    def truth(self, rgb: Tensor) -> Tensor:
        return rgb

    def picture(self, x: Tensor, y: Tensor) -> Tensor:
        return y.clamp(0, 1)

    def seen(self, x: Tensor) -> Tensor:
        return x

    def colour(self, x: Tensor, question: Tensor, answer: Tensor) -> Tensor:
        return answer.sigmoid().expand(-1, 3)


def test_a_task_with_another_kind_of_answer_needs_no_change_of_the_loop() -> None:
    task = _Dim()
    agent = new_agent(task, SMALL)
    found = process(agent, task, pictures(3), 2)
    assert found.answers.shape == (3, 2, 1)
    assert found.pictures.shape == (3, 3, 3, 12, 10)
    rgb = to_unit(pictures(3))
    expected = (found.questions[:, 1] * rgb.sum(1)).sum((1, 2))
    assert torch.allclose(found.answers[:, 1, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", list(TASKS))
def test_an_agent_comes_back_from_what_is_kept_of_it(name: str) -> None:
    task = TASKS[name](hints=3)
    agent = new_agent(task, SMALL, seed=5)
    facts = described(task, SMALL)
    again_task, again = trained_agent(facts, agent.to_files())
    assert again_task == task
    ours, theirs = process(agent, task, pictures(2), 3), process(again, again_task, pictures(2), 3)
    for field in dataclasses.fields(ours):
        assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name))
    with pytest.raises(ValueError, match="of another network"):
        trained_agent(facts | {"unet": facts["unet"] | {"width": 8}}, agent.to_files())
    for other in (
        {k: v for k, v in facts.items() if k != "question"},
        facts | {"question": facts["question"] | {"form": 1}},
    ):
        with pytest.raises(ValueError, match="another formula for its questions: train again"):
            trained_agent(other, agent.to_files())
    with pytest.raises(LookupError, match="there is no task 'sing': the tasks are natural, drawing, inpaint"):
        task_of({"name": "sing"})


def test_the_refusal_pushes_away_from_the_last_question_alone() -> None:
    last, other = torch.zeros(2, 1, 1, 20, 20, dtype=torch.float64)
    last[..., :10], other[..., :10, :] = 1, 1  # each is half of the picture, and they are uncorrelated
    q = [question_of(0.7 * last + math.sqrt(1 - 0.49) * other, asked).flatten() for asked in (0 * last, last)]
    wish = [torch.corrcoef(torch.stack([(found / (1 - found)).log(), last.flatten()]))[0, 1].item() for found in q]
    assert wish == pytest.approx([0.7, 0.0], abs=1e-3), "a wish that correlates 0.7 with it comes out uncorrelated"
    torch.testing.assert_close(question_of(last, last), question_of(last, 0 * last), rtol=0, atol=1e-3)


def test_rounding_is_no_question() -> None:
    noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    question = question_of(1 + 1e-6 * noise, torch.zeros(1, 1, 32, 32))
    assert (question - 1 / (1 + math.exp(-1))).abs().max() < 0.01
    last = torch.zeros(1, 1, 32, 32)
    last[..., :8] = 1
    again = question_of(1 + 1e-6 * noise, last)
    assert again[..., :8].max() < 0.2 < 0.7 < again[..., 8:].min(), "what was not asked about yet"


def test_a_question_prefers_new_places_whatever_the_level_and_scale_of_its_logits() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 5.0]], dtype=torch.float64)[None, None]
    none, first = torch.zeros_like(logits), torch.tensor([[0.0, 0.0], [0.0, 1.0]], dtype=torch.float64)[None, None]
    z = 3 * (np.array([0, 1, 2, 5]) - 2) / math.sqrt(3.5)
    by_hand = 1 / (1 + np.exp(z).mean() * np.exp(-z - 1))
    assert question_of(logits, none).flatten().tolist() == pytest.approx(by_hand.tolist(), abs=1e-5)
    both = question_of(torch.cat([logits, 100 + 7 * logits]), torch.cat([first, first]))
    torch.testing.assert_close(both[1], both[0], rtol=0, atol=1e-6)
    again = question_of(logits, first)  # the last place was asked about: it is less wanted, and the others more
    assert again[..., 1, 1] < question_of(logits, none)[..., 1, 1]
    assert again[..., 1, 0] > question_of(logits, none)[..., 1, 0]
    peak = torch.zeros(1, 1, 20, 20).index_put(
        (*torch.zeros(2, 1, dtype=torch.long), *torch.full((2, 1), 7)), torch.ones(1)
    )
    alone = question_of(peak, torch.zeros_like(peak))
    assert alone.sum() - alone.max() < 0.01 * alone.max(), "one place of 400 can be asked about alone"
    flat = torch.full((1, 1, 3, 3), 4.0, requires_grad=True)
    question = question_of(flat, torch.zeros(1, 1, 3, 3))
    assert question.flatten().tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 9)
    question[0, 0, 1, 1].backward()
    assert flat.grad is not None
    assert flat.grad.isfinite().all()


def test_an_agents_start_follows_from_its_seed() -> None:
    one, same, other = (new_agent(ColorNatural(), SMALL, seed) for seed in (1, 1, 2))
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name])
    assert not torch.equal(one.body.head.weight, other.body.head.weight)
    assert own_question(Turn(0, *[torch.ones(1, 1, 1, 1)] * 3, None, None)).item() == 1
