"""A whole conversation as it is looked at afterwards: what was asked, answered and made of it, step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from stages.asking.answers import truthful
from stages.asking.colour import to_bytes, to_unit
from stages.asking.losses import squared_error, total_variation
from stages.asking.paradigm import Agent, Answerer, QuestionFunction, Task, converse, own_question
from stages.asking.psnr import psnr


@dataclass(frozen=True)
class Process:
    """Of a batch, with T answers for each image."""

    seen: Tensor  # uint8 [B, 3, H, W]: what the agent saw, for people
    questions: Tensor  # float [B, T, H, W] in 0..1
    answers: Tensor  # float [B, T, K], in the task's units
    colours: Tensor  # uint8 [B, T, 3]: the answers, for people
    pictures: Tensor  # uint8 [B, T + 1, 3, H, W]: after 0..T answers
    psnr: Tensor  # float64 [B, T + 1], against the picture
    error: Tensor  # float [B, T + 1]: squared error of y
    variation: Tensor  # float [B, T]: total variation of the questions


@torch.no_grad()
def process(
    agent: Agent,
    task: Task,
    pixels: Tensor,
    hints: int,
    *,
    answerer: Answerer | None = None,
    question: QuestionFunction = own_question,
) -> Process:
    """Shows the agent uint8 pictures [B, 3, H, W] and gives ``hints`` answers: the truth, unless ``answerer`` says
    otherwise (a user who wants another colour). No noise is added."""
    rgb = to_unit(pixels)
    x, truth = task.observe(rgb), task.truth(rgb)
    rows, _, height, width = pixels.shape
    questions, answers, colours, pictures, scores, errors, variation = ([] for _ in range(7))
    given = answerer or truthful(task.rule, truth)
    for turn in converse(agent, task, x, [hints] * rows, given, question=question):
        if turn.asked is not None and turn.answer is not None:
            questions.append(turn.asked[:, 0])
            answers.append(turn.answer)
            colours.append(to_bytes(task.colour(x, turn.asked, turn.answer)))
            variation.append(total_variation(turn.asked))
        picture = to_bytes(task.picture(x, turn.y))
        pictures.append(picture)
        scores.append(psnr(picture, pixels))
        errors.append(squared_error(turn.y, truth))

    def joined(parts: list[Tensor], *shape: int) -> Tensor:
        return torch.stack(parts, 1) if parts else x.new_zeros(rows, 0, *shape)

    return Process(
        to_bytes(task.seen(x)),
        joined(questions, height, width),
        joined(answers, task.answered),
        joined(colours, 3).to(torch.uint8),
        joined(pictures),
        joined(scores),
        joined(errors),
        joined(variation),
    )


def turns_cost(agent: Agent, task: Task, size: tuple[int, int], device: torch.device, turns: float) -> dict[str, float]:
    """Per row, as a stage's ``cost`` tells it: so many turns, a forward pass each."""
    pixels = torch.zeros(1, 3, *size, dtype=torch.uint8, device=device)
    with FlopCounterMode(display=False) as counted:
        process(agent, task, pixels, 0)
    flops = float(counted.get_total_flops()) * turns
    return {"forwards_per_row": float(turns), "flops_per_row": flops, "networks_per_row": 0.0}
