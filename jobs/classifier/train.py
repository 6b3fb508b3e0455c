"""The step of a classifier job: its labelled images, its training, and what was learnt."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from jobs.training.images import KeyTablePixels
from jobs.training.screen import unreadable
from pipeline.checkpoints import read_one
from pipeline.images import Limits
from pipeline.learnt import Learnt
from pipeline.provenance import cpu_count
from pipeline.run import KeyTable, Run
from pipeline.train import Worker
from stages.classifier.train import ClassifierTraining, train_last_layer
from stages.preprocess import Preprocess
from stages.training_data import Data, readable

STEP = "learn"


class LabelledImages(KeyTablePixels):
    """Images of a key table with ``labels``, uint8 multi-hot [B, classes]."""

    def __init__(
        self, keys: KeyTable, frame: Preprocess, limits: Limits, pool: ThreadPoolExecutor, classes: int
    ) -> None:
        super().__init__(keys, frame, limits, pool)
        self._labels = torch.zeros(len(self), classes, dtype=torch.uint8)
        for row, mine in enumerate(keys.table().column("learnt").to_pylist()):
            self._labels[row, mine] = 1

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        return super().batch(rows) | {"labels": self._labels[torch.from_numpy(np.ascontiguousarray(rows))]}


@dataclass(frozen=True)
class ClassifierTrainer:
    """``config``'s training on the splits "train" and "tune", from the input "network"."""

    config: ClassifierTraining
    skip_unreadable: bool = False
    version: int = 1

    def __call__(self, worker: Worker) -> Learnt:
        config = self.config
        with ThreadPoolExecutor(max(1, cpu_count() // worker.local_world)) as pool:
            data: dict[str, Data] = {
                split: LabelledImages(keys, config.preprocess, worker.limits, pool, config.classes)
                for split, keys in worker.keys.items()
            }
            known = unreadable(worker, data) if self.skip_unreadable else {}
            data, left_out = readable(data, known, skip=False, world=worker.world, say=worker.log)
            files, facts = train_last_layer(
                worker.inputs["network"],
                data,
                config,
                worker.checkpoints,
                device=worker.device,
                wrap=worker.wrap,
                rank=worker.rank,
                world=worker.world,
                progress=worker.tell,
                within=worker.within,
            )
        return Learnt(files, facts | {"unreadable": left_out})


def learnt(run: Run) -> tuple[dict[str, Any], bytes] | None:
    """Facts and weights of the run's training; None while it is not finished."""
    folder = run.step_folder(STEP).child("result")
    told, weights = read_one(folder, "facts.json"), read_one(folder, "network.safetensors")
    return None if told is None or weights is None else (json.loads(told), weights)
