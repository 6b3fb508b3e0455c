"""The training of a two-level network as a step of the job: images of a key table in, what was learnt out."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.training.images import HELD, KeyTablePixels
from jobs.training.screen import unreadable
from pipeline import images
from pipeline.learnt import Learnt
from pipeline.provenance import cpu_count
from pipeline.run import KeyTable
from pipeline.train import Worker
from stages.preprocess import Preprocess
from stages.semantic.labels import targets
from stages.semantic.network import new_network
from stages.semantic.train import TwoLevelTraining, train_two_level


@dataclass(frozen=True)
class TwoLevelTrainer:
    """``config``'s training on the splits "train" and "tune", from the input "backbone"."""

    config: TwoLevelTraining
    version: int = 1

    def __call__(self, worker: Worker) -> Learnt:
        frames = {"train": self.config.train_frame, "tune": self.config.preprocess}
        model, threads = self.config.model, max(1, cpu_count() // worker.local_world)
        with ThreadPoolExecutor(threads) as pool:
            data = {
                split: KeyTableImages(keys, frames[split], worker.limits, pool, model.fine, model.coarse)
                for split, keys in worker.keys.items()
            }
            files, facts = train_two_level(
                worker.inputs["backbone"],
                data,
                self.config,
                worker.checkpoints,
                wrap=worker.wrap,
                device=worker.device,
                rank=worker.rank,
                world=worker.world,
                log=worker.log,
                progress=worker.tell,
                within=worker.within,
                unreadable=unreadable(worker, data) if self.config.skip_unreadable else None,
            )
        return Learnt(files, facts)

    def untrained(self, inputs: Mapping[str, Any]) -> Learnt:
        """The network as its training begins: as fast as a trained one."""
        model = self.config.model
        network = new_network(inputs["backbone"], model, self.config.preprocess.size, self.config.training.seed)
        return Learnt(network.to_files(), {"model": asdict(model)})


class KeyTableImages(KeyTablePixels):
    """Images of a key table with ``fine`` and ``coarse``."""

    def __init__(
        self,
        keys: KeyTable,
        frame: Preprocess,
        limits: images.Limits,
        pool: ThreadPoolExecutor,
        fine: int,
        coarse: int,
        held: int = HELD,
    ) -> None:
        super().__init__(keys, frame, limits, pool, held)
        table = keys.table()
        self._targets = targets(table.column("fine").to_pylist(), table.column("coarse").to_pylist(), fine, coarse)

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        at = torch.from_numpy(np.ascontiguousarray(rows))
        return super().batch(rows) | {name: label[at] for name, label in self._targets.items()}
