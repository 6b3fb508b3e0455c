"""A user's own answers: told instead of the truth, to the question named, and the picture follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from asking_cases import SMALL, pictures, small_agent
from skimage.color import rgb2lab

from stages.asking.agent import new_agent
from stages.asking.paradigm import Task
from stages.asking.process import process
from stages.asking.steer import Answer, steer
from stages.asking.tasks import ColorDrawing, ColorNatural, Inpaint

RED = (0xC0 / 255, 0x30 / 255, 0x20 / 255)


def lab(rgb: tuple[float, ...]) -> np.ndarray:
    found: np.ndarray = rgb2lab(np.array(rgb).reshape(1, 1, 3))[0, 0]
    return found


@pytest.mark.parametrize("text", ["#c03020", " #C03020 ", "rgb(192, 48, 32)"])
def test_a_colour_is_told_in_cielab(text: str) -> None:
    answer = Answer.parse(text)
    assert answer.values == pytest.approx(lab(RED), abs=1e-3)
    assert answer.told(ColorNatural()).tolist() == pytest.approx(lab(RED)[1:] / 110, abs=1e-5)
    for task in (ColorDrawing(), Inpaint()):
        assert answer.told(task).tolist() == pytest.approx([2 * c - 1 for c in RED], abs=1e-5)


def test_a_colour_can_be_given_by_its_lab_or_as_the_task_has_it() -> None:
    assert Answer.parse("lab:50,22,-33").told(ColorNatural()).tolist() == pytest.approx([0.2, -0.3])
    assert Answer.parse("LAB: 50, 22, -33").values == (50, 22, -33)
    assert Answer.parse("y:0.2,-0.3").told(ColorNatural()).tolist() == [0.2, -0.3]
    assert Answer.parse("white").told(ColorDrawing()).tolist() == pytest.approx([1, 1, 1], abs=1e-4)


@pytest.mark.parametrize("task", [ColorNatural(hints=3), ColorDrawing(hints=3), Inpaint(hints=3)])
def test_what_is_told_is_the_users_and_the_rest_is_true(task: Task) -> None:
    agent, images = new_agent(task, SMALL, seed=1), pictures(2)
    plain = process(agent, task, images, 3)
    found = steer(agent, task, images, {2: "#c03020"})
    given = Answer.parse("#c03020").told(task).float()
    assert torch.equal(found.answers[:, 1], given.expand(2, -1))
    # Up to that answer nothing differs; from it on the picture does, and so may what is asked and truly answered.
    assert torch.equal(found.pictures[:, :2], plain.pictures[:, :2])
    assert torch.equal(found.questions[:, :2], plain.questions[:, :2])
    assert torch.equal(found.answers[:, 0], plain.answers[:, 0])
    assert not torch.equal(found.pictures[:, 2], plain.pictures[:, 2])
    assert not torch.equal(found.questions[:, 2], plain.questions[:, 2])
    truth = task.truth(images / 255)
    assert torch.allclose(found.answers[:, 2], task.rule.answer(found.questions[:, 2:], truth))


def test_the_true_answer_given_by_hand_changes_nothing() -> None:
    task, images = ColorNatural(hints=2), pictures(1)
    agent = small_agent(task).float()
    plain = process(agent, task, images, 2)
    numbers = ",".join(repr(value) for value in plain.answers[0, 0].tolist())
    found = steer(agent, task, images, {1: f"y:{numbers}"})
    assert torch.equal(found.pictures, plain.pictures)
    assert torch.equal(found.psnr, plain.psnr)


def test_where_nobody_knows_the_agents_own_guess_is_the_answer() -> None:
    """A grey picture: its truth is grey, the agent's guess is what it has under the question."""
    task = ColorNatural(hints=2)
    agent, images = new_agent(task, SMALL, seed=2), pictures(1)
    grey = images.float().mean(1, keepdim=True).expand(-1, 3, -1, -1).to(torch.uint8)
    told = steer(agent, task, grey, {1: "#c03020"}, others="guess")
    assert told.answers[0, 0].tolist() == pytest.approx(lab(RED)[1:] / 110, abs=1e-5)
    x = task.observe(grey / 255)
    zeros = [torch.zeros(1, c, *x.shape[2:]) for c in (1, 2, 2)]
    y, question = agent(x, *zeros)
    y, question = agent(x, question, task.rule.hint(question, told.answers[:, 0]), y)
    assert torch.allclose(told.answers[:, 1], task.rule.answer(question, y), atol=1e-6)
    assert steer(agent, task, grey, {}, others="truth").answers.abs().max() < 1e-4


def test_more_questions_than_in_the_training_can_be_answered() -> None:
    task = ColorNatural(hints=2)
    found = steer(new_agent(task, SMALL), task, pictures(1), {5: "red"}, hints=5)
    assert found.questions.shape[1] == 5


@dataclass(frozen=True)
class Loudness(ColorNatural):
    """Its answers are no colours."""

    name: str = "loudness"
    told = property()  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("own", "options", "words"),
    [
        ({1: "#c0302"}, {}, "answer to question 1: '#c0302' is no colour: give #c03020, a colour's name, lab:"),
        ({1: "reddish"}, {}, "'reddish' is no colour"),
        ({2: "lab:50,20"}, {}, "is no colour of CIELAB"),
        ({1: "lab:120,0,0"}, {}, "L is in 0..100"),
        ({1: "lab:50,nan,0"}, {}, "is no answer"),
        ({1: "y:"}, {}, "is no answer"),
        ({1: "y:0.1"}, {}, "task natural has 2 numbers, not 1"),
        ({0: "red"}, {}, "there is no question 0: they are 1 to 3"),
        ({4: "red"}, {}, "there is no question 4: they are 1 to 3; for more, give hints"),
        ({}, {"hints": 65}, "hints 65: give 1 to 64"),
        ({}, {"hints": -1}, "hints -1"),
        ({}, {"others": "liars"}, "'truth' or 'guess', not 'liars'"),
    ],
)
def test_mistakes_are_told_by_name(own: dict[int, str], options: dict[str, object], words: str) -> None:
    task = ColorNatural(hints=3)
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        steer(new_agent(task, SMALL), task, pictures(1), own, **options)  # type: ignore[arg-type]


def test_a_task_whose_answers_are_no_colours_takes_its_own_numbers() -> None:
    task = Loudness(hints=1)
    agent = new_agent(ColorNatural(), SMALL)
    with pytest.raises(ValueError, match=r"answers of task loudness are no colours: give 2 numbers as y:0\.2"):
        steer(agent, task, pictures(1), {1: "red"})
    assert steer(agent, task, pictures(1), {1: "y:0.5,0.25"}).answers.flatten().tolist() == [0.5, 0.25]
