"""What an image teaches: the loss of each against a conversation of its own."""

from __future__ import annotations

import pytest
import torch
from asking_cases import ALL_TASKS, pictures, small_agent

from stages.asking.answers import MeanAnswer
from stages.asking.colour import to_unit
from stages.asking.lesson import Lesson, LessonConfig, lesson_of
from stages.asking.paradigm import Task
from stages.asking.process import process
from stages.asking.tasks import ColorNatural
from stages.training_draws import row_seeds

KEYS = [f"{i}.png" for i in range(7)]


def by_hand(task: Task, agent: torch.nn.Module, rgb: torch.Tensor, noise: torch.Tensor, config: LessonConfig) -> float:
    """One image, one turn after the other, with as many answers as there is noise."""
    x, truth, (height, width) = task.observe(rgb), task.truth(rgb), rgb.shape[2:]
    q, c, y = (torch.zeros(1, n, height, width).double() for n in (1, task.answered, task.produced))
    loss = 0.0
    for answer in range(len(noise) + 1):
        y, q = agent(x, q, c, y)
        if answer < len(noise):
            a = task.rule.answer(q, truth) + config.noise * noise[answer]
            c = q * a[:, :, None, None]
            plane = q[0, 0].numpy()
            changes = sum(abs(plane[i + 1, j] - plane[i, j]) for i in range(height - 1) for j in range(width))
            changes += sum(abs(plane[i, j + 1] - plane[i, j]) for i in range(height) for j in range(width - 1))
            loss += config.smooth * float(changes) / (height * width)
    return loss + float(((y - truth) ** 2).mean())


@pytest.mark.parametrize("task", ALL_TASKS, ids=lambda task: task.name)
def test_the_loss_of_each_image_is_that_of_its_own_conversation(task: Task) -> None:
    agent, config = small_agent(task), LessonConfig(noise=0.3, smooth=0.7)
    rgb = to_unit(pictures(7)).double()
    batch = lesson_of(task, rgb, row_seeds(0, 0, KEYS))
    assert len(set(batch["hints"].tolist())) > 2, "images with few and with many answers"
    lesson = Lesson(agent, task, config)
    with torch.no_grad():
        losses = lesson(batch)
        for row, loss in enumerate(losses.tolist()):
            noise = batch["noise"][row][: int(batch["hints"][row])]
            assert loss == pytest.approx(by_hand(task, agent, rgb[row : row + 1], noise, config), rel=1e-9)
            alone = lesson({name: tensor[row : row + 1] for name, tensor in batch.items()})
            assert alone.item() == pytest.approx(loss, rel=1e-9), "its batch mates have no part in it"


def test_gradients_of_a_batch_are_those_of_its_images() -> None:
    task, config = ColorNatural(), LessonConfig(smooth=0.5)
    agent = small_agent(task)
    batch = lesson_of(task, to_unit(pictures(5)).double(), row_seeds(1, 0, KEYS[:5]))
    lesson = Lesson(agent, task, config)

    def gradients(part: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        agent.zero_grad()
        lesson(part).sum().backward()
        return [p.grad.clone() for p in agent.parameters() if p.grad is not None]

    whole = gradients(batch)
    singles = [gradients({k: v[row : row + 1] for k, v in batch.items()}) for row in range(5)]
    for at, gradient in enumerate(whole):
        assert torch.allclose(gradient, sum(single[at] for single in singles), rtol=1e-9, atol=1e-12)  # type: ignore[arg-type]


def test_truncation_changes_gradients_and_no_losses() -> None:
    task = ColorNatural()
    agent = small_agent(task)
    batch = lesson_of(task, to_unit(pictures(4)).double(), row_seeds(1, 0, KEYS[:4])) | {"hints": torch.full((4,), 4)}
    found = {}
    for back in (2, 5, None):
        agent.zero_grad()
        losses = Lesson(agent, task, LessonConfig(back=back))(batch)
        losses.sum().backward()
        found[back] = losses.detach(), agent.body.head.weight.grad.clone()
    assert torch.equal(found[2][0], found[None][0])
    assert not torch.allclose(found[2][1], found[None][1], rtol=1e-3)
    assert torch.equal(found[5][1], found[None][1]), "five turns are all there are"


def test_evaluation_adds_no_noise_and_names_the_same_errors() -> None:
    task = ColorNatural()
    agent, images = small_agent(task).float(), pictures(3)
    found = process(agent, task, images, 2)
    batch = lesson_of(task, to_unit(images), row_seeds(0, 0, KEYS[:3])) | {"hints": torch.full((3,), 2)}
    silent = Lesson(agent, task, LessonConfig(noise=0.0, smooth=0.25))(batch)
    assert torch.allclose(silent, found.error[:, 2] + 0.25 * found.variation.sum(1), rtol=1e-5)
    told = MeanAnswer().answer(found.questions[:, 1][:, None], task.truth(to_unit(images)))
    assert torch.allclose(found.answers[:, 1], told, atol=1e-6)
    assert found.psnr.shape == (3, 3)
    mean = ((found.pictures[0, 1].double() - images[0].double()) ** 2).mean()
    assert found.psnr[0, 1].item() == pytest.approx(float(10 * torch.log10(255**2 / mean)))


@pytest.mark.parametrize("wrong", [{"noise": -0.1}, {"smooth": -1}, {"back": 1}])
def test_settings_that_teach_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="at least"):
        LessonConfig(**wrong)  # type: ignore[arg-type]
