"""Training an agent on pictures, and watching it on others: PSNR after 0, 1, ... T answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from stages.asking.agent import UNetAgent, described, new_agent
from stages.asking.colour import to_unit
from stages.asking.lesson import Lesson, LessonConfig, PointLesson, lesson_of, point_lesson_of
from stages.asking.points import OnOneMap, at_random, network, side_of
from stages.asking.process import Process, process
from stages.asking.psnr import LARGEST
from stages.asking.tasks import ColorNatural
from stages.asking.unet import UNetConfig
from stages.preprocess import Preprocess
from stages.training import Progress, TrainingConfig, fit, speaker
from stages.training_ahead import AHEAD, ahead
from stages.training_augment import AugmentConfig, crop_frame, vary
from stages.training_data import Batch, Data, gains_from_ahead, readable, slices
from stages.training_device import autocast, tuned
from stages.training_draws import row_seeds
from stages.training_state import Checkpoints
from stages.training_watch import learnt_epoch, require_measure, require_tune

RECIPE = TrainingConfig(
    epochs=20, batch=32, optimizer="adamw", lr=1e-3, weight_decay=1e-4, warmup=0.1, clip=1.0, schedule="one_cycle"
)
PIXELS = Preprocess((128, 128), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # only size and frame are used

Sample = Callable[[int, Process, Tensor], None]  # (epoch, process, the pictures uint8 [B, 3, H, W])


@dataclass(frozen=True)
class AskingTraining:
    """All that a training's result depends on, beside its pictures.

    ``augment`` None trains on the plain pictures. ``skip_unreadable`` leaves out those that cannot be read, and lists
    them; without it the first such row ends the training. The first ``samples`` pictures of the tune split are shown
    after every ``sample_every`` epochs and after the last; none where it is 0.

    ``hints``: who says where something is told. ``asked``: the network; ``random``: chance, in squares of ``side``
    pixels (stages.asking.points: the rest of ``lesson`` is not used); ``none``: nothing is told.
    """

    task: Any = field(default_factory=ColorNatural)  # stages.asking.paradigm.Task, a frozen dataclass
    unet: UNetConfig = field(default_factory=UNetConfig)
    lesson: LessonConfig = field(default_factory=LessonConfig)
    training: TrainingConfig = RECIPE
    preprocess: Preprocess = PIXELS
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    skip_unreadable: bool = False
    hints: Literal["asked", "random", "none"] = "asked"
    side: int | None = None  # absent: stages.asking.points.side_of
    evaluate_batch: int = field(default=32, metadata={"fingerprint": False})
    samples: int = field(default=4, metadata={"fingerprint": False})
    sample_every: int = field(default=1, metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        if self.side is not None and not 1 <= self.side <= min(self.preprocess.size):
            raise ValueError(f"side {self.side}: a hint is from 1 pixel on and no larger than the picture")
        require_measure(self.training, self.metrics)

    @property
    def metrics(self) -> tuple[str, ...]:
        """What is measured on the tune split: the mean loss over 0..T answers, and PSNR after each number of them."""
        return ("tune_loss", *(f"psnr_{n}" for n in range(self.told + 1)))

    @property
    def told(self) -> int:
        """T: the most hints that are given."""
        return 0 if self.hints == "none" else int(self.task.hints)

    @property
    def square(self) -> int:
        """The side of a hint at a point, in pixels."""
        return self.side or side_of(*self.preprocess.size)

    @property
    def train_frame(self) -> Preprocess:
        """How training pictures are best held: 8/7 of the network's size where crops are taken from them."""
        return self.preprocess if self.augment is None else crop_frame(self.preprocess)


def train_asking(
    data: Mapping[str, Data],
    config: AskingTraining,
    checkpoints: Checkpoints | None = None,
    *,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    log: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    within: Callable[[float], None] | None = None,
    sample: Sample | None = None,
    unreadable: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Trains on ``data["train"]``, watches ``data["tune"]`` where there is one; goes on from ``checkpoints``.

    Args:
        data: batches of ``image`` uint8 [B, 3, h, w] (train: as ``AskingTraining.train_frame`` makes them; tune: at
            the network's size).
        wrap: puts the network on the device and, with ``world`` > 1, into DistributedDataParallel.
        log, progress, within, sample: heard on rank 0 only.
        unreadable: {split: {key: reason}}, if it is known which rows cannot be read; else ``skip_unreadable`` reads
            all of them to find out. Several workers need it: they must not find different ones.

    Returns:
        The files of the trained agent, and facts: task, unet, question, lesson, hints, side, preprocess, history,
        best_epoch, metrics (of the best epoch), rows, unreadable.

    Raises:
        ValueError: a split without a row, too few rows, a row that cannot be read, a monitor without a tune split, and
            what ``fit`` raises.
    """
    device = torch.device(device)
    say = speaker(log, rank)
    data, left_out = readable(data, unreadable, skip=config.skip_unreadable, world=world, say=say)
    require_tune(config.training, config.metrics, data)
    tune = data.get("tune")
    agent = new_agent(config.task, config.unet, config.training.seed).to(device)
    if config.hints == "asked":
        lesson: nn.Module = Lesson(agent, config.task, config.lesson)
    else:
        lesson = PointLesson(agent, config.task, config.square)
    if config.training.channels_last:  # before it is wrapped: DistributedDataParallel keeps the layout it meets
        lesson.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def told(done: Progress) -> None:
        if progress is not None:
            progress(done)
        last = done.epoch == done.epochs
        if sample is None or tune is None or not config.samples:
            return
        if last or done.epoch % config.sample_every == 0:
            rows = np.arange(min(config.samples, len(tune)))
            shown = tune.batch(rows)["image"]
            agent.eval()
            sample(done.epoch, conversation(agent, shown.to(device), tune.keys(rows), config), shown)

    with tuned(device):
        history = fit(
            wrap(lesson) if wrap is not None else lesson,
            data["train"],
            config.training,
            checkpoints,
            loss=lambda model, batch: model(batch).mean(),
            evaluate=None if tune is None else lambda _: measure(agent, tune, config, device),
            augment=lambda batch, seeds: _lesson(config, batch, seeds),
            progress=told,
            within=within,
            device=device,
            rank=rank,
            world=world,
        )
    facts = {
        **described(config.task, config.unet),
        "lesson": asdict(config.lesson),
        "hints": config.hints,
        "side": config.square,
        "preprocess": asdict(config.preprocess),
        **learnt_epoch(history, config.training),
        "rows": {split: len(rows) for split, rows in data.items()},
        "unreadable": left_out,
    }
    return agent.to_files(), facts


@torch.no_grad()
def measure(agent: UNetAgent, data: Data, config: AskingTraining, device: torch.device) -> dict[str, float]:
    """Means over the rows of ``AskingTraining.metrics``; answers are exact."""
    total, parts = dict.fromkeys(config.metrics, 0.0), slices(len(data), config.evaluate_batch)
    depth = AHEAD if gains_from_ahead(data, device.type == "cuda") else 0
    with ahead(data.batch, parts, depth) as batches:
        for rows, batch in zip(parts, batches, strict=True):
            with autocast(config.training.precision, device):
                found = conversation(agent, batch["image"].to(device), data.keys(rows), config)
            smooth = torch.cat([found.error.new_zeros(len(found.error), 1), found.variation.cumsum(1)], 1)
            losses = found.error + (config.lesson.smooth * smooth if config.hints == "asked" else 0)
            total["tune_loss"] += float(losses.double().mean(1).sum())
            for n, column in enumerate(found.psnr.clamp(max=LARGEST).unbind(1)):
                total[f"psnr_{n}"] += float(column.sum())
    return {name: value / len(data) for name, value in total.items()}


def conversation(agent: UNetAgent, pixels: Tensor, keys: Sequence[str], config: AskingTraining) -> Process:
    """As many exact hints as it is trained to take, where it is trained to be told them; random ones by key."""
    if config.hints == "asked":
        return process(agent, config.task, pixels, config.told)
    where = at_random(row_seeds(config.training.seed, 0, keys), config.told, config.square)
    told = OnOneMap(network(agent, config.task))
    return process(told, config.task, pixels, config.told, question=where)


def _lesson(config: AskingTraining, batch: Batch, seeds: np.ndarray) -> Batch:
    image, size = batch["image"], config.preprocess.size
    if config.augment is not None:
        image = vary(image, seeds, config.augment, size)
    if config.hints == "asked":
        return lesson_of(config.task, to_unit(image), seeds)
    return point_lesson_of(config.task, to_unit(image), seeds, config.told, config.square)
