"""A small classifier and drawn images whose classes are colours: bright, dark (coarse) and which channel (fine)."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stages.preprocess import Preprocess
from stages.semantic.labels import targets
from stages.semantic.network import TwoLevelConfig
from stages.semantic.train import TwoLevelTraining, train_two_level
from stages.training import Progress, TensorData, TrainingConfig
from stages.training_augment import AugmentConfig

SIZE = 16
FINE = ("red light", "green light", "red night", "green night")
COARSE = ("light", "night")
PREPROCESS = Preprocess(size=(SIZE, SIZE))


class Toy(nn.Module):
    """With everything that has a state in training: batch norm and dropout."""

    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 12, 3), nn.ReLU()
        )
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Linear(12, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def backbone(seed: int = 0) -> Toy:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Toy().eval()


def drawn(rows: int, seed: int = 0, size: int = SIZE) -> tuple[np.ndarray, list[list[int]], list[int]]:
    """uint8 [rows, 3, size, size], fine ids and coarse ids; an image shows one colour or both."""
    generator = np.random.default_rng(seed)
    images = np.zeros((rows, 3, size, size), np.uint8)
    fine, coarse = [], []
    for i in range(rows):
        night = int(generator.integers(2))
        shown = [[0], [1], [0, 1]][int(generator.integers(3))]
        level = 60 if night else 160
        images[i] = generator.integers(0, 30, (3, size, size)) + level
        for channel in shown:
            images[i, channel, :, :] += 60
        fine.append([channel + 2 * night for channel in shown])
        coarse.append(night)
    return images, fine, coarse


def album(rows: int, seed: int = 0, size: int = SIZE, people_only: int = 0) -> TensorData:
    """The drawn images as training data; the last ``people_only`` have no labels."""
    images, fine, coarse = drawn(rows, seed, size)
    known: list[int | None] = list(coarse)
    for i in range(rows - people_only, rows):
        fine[i], known[i] = [], None
    labels = targets(fine, known, len(FINE), len(COARSE))
    return TensorData([f"image-{seed}-{n}" for n in range(rows)], image=torch.from_numpy(images), **labels)


RECIPE = TrainingConfig(epochs=6, batch=16, optimizer="adamw", lr=0.02, warmup=0.2, clip=5.0, monitor="ia", mode="max")


def setting(**changes: Any) -> TwoLevelTraining:
    """A training on the toy; fields of the model, of the recipe and of the training itself by name."""
    model, recipe = TwoLevelConfig(len(FINE), len(COARSE)), RECIPE
    model = replace(model, **{k: changes.pop(k) for k in list(changes) if hasattr(model, k)})
    recipe = replace(recipe, **{k: changes.pop(k) for k in list(changes) if hasattr(recipe, k)})
    return TwoLevelTraining(model, recipe, PREPROCESS, **{"augment": AugmentConfig(scale=(0.5, 1.0)), **changes})


class Saved:
    """Checkpoints as files of a folder, each renamed into place when it is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, epoch: int, files: Mapping[str, bytes]) -> None:
        part = self.folder / f"part-{os.getpid()}"
        part.mkdir()
        for name, data in files.items():
            (part / name).write_bytes(data)
        part.rename(self.folder / f"{epoch:04d}")

    def latest(self) -> tuple[int, dict[str, bytes]] | None:
        found = sorted(path for path in self.folder.iterdir() if path.name.isdigit())
        return (int(found[-1].name), {f.name: f.read_bytes() for f in found[-1].iterdir()}) if found else None


class Deadly(TensorData):
    """The album; asking for batch number ``last`` (from 1) kills the process, as a lost machine would."""

    in_memory = False

    def __init__(self, album: TensorData, last: int) -> None:
        super().__init__(album.keys(np.arange(len(album))), **album.tensors)
        self.last = last

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        self.last -= 1
        if self.last == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(rows)


def train_here(folder: Path, last: int = 0, progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
    """Fine-tunes the toy with augmentation, going on where ``folder`` says; its facts. 6 epochs of 6 batches."""
    torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # whatever a process starts with
    data = {"train": Deadly(album(96, size=18), last), "tune": album(40, seed=1)}
    return train_two_level(backbone(), data, setting(), Saved(folder), progress=progress)[1]


if __name__ == "__main__":
    torch.set_num_threads(1)
    facts = train_here(
        Path(sys.argv[1]), int(sys.argv[2]), lambda told: print(f"epoch {told.epoch}/{told.epochs}", flush=True)
    )
    print(json.dumps(facts), flush=True)
