"""The training of an agent that asks as a step of the job: images of a key table in, what was learnt out."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from jobs.training.images import KeyTablePixels
from jobs.training.screen import unreadable
from pipeline.learnt import Learnt
from pipeline.provenance import cpu_count
from pipeline.storage import Folder
from pipeline.train import Worker
from stages.asking.agent import described, new_agent
from stages.asking.process import Process
from stages.asking.sheet import sheet, stacked
from stages.asking.train import AskingTraining, train_asking


@dataclass(frozen=True)
class AskingTrainer:
    """``config``'s training on the splits "train" and, where there is one, "tune".

    Sample sheets are written while it trains: RUN/<training>/samples/epoch-<n>.png.
    """

    config: AskingTraining
    version: int = 6

    def __call__(self, worker: Worker) -> Learnt:
        frames = {"train": self.config.train_frame, "tune": self.config.preprocess}
        with ThreadPoolExecutor(max(1, cpu_count() // worker.local_world)) as pool:
            data = {
                split: KeyTablePixels(keys, frames[split], worker.limits, pool) for split, keys in worker.keys.items()
            }
            files, facts = train_asking(
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
                sample=_sampler(worker),
                unreadable=unreadable(worker, data) if self.config.skip_unreadable else None,
            )
        return Learnt(files, facts)

    def untrained(self, inputs: Mapping[str, Any]) -> Learnt:
        """The agent as its training begins: it asks and paints as fast as a trained one."""
        config = self.config
        agent = new_agent(config.task, config.unet, config.training.seed)
        return Learnt(agent.to_files(), {**described(config.task, config.unet), "side": config.square})


def _sampler(worker: Worker) -> Callable[[int, Process, Tensor], None]:
    training = Folder(worker.checkpoints.folder.url.rpartition("/")[0])

    def written(epoch: int, found: Process, truth: Tensor) -> None:
        sink = io.BytesIO()
        Image.fromarray(sheets(found, truth.numpy())).save(sink, "PNG")
        training.child("samples").write(f"epoch-{epoch:04d}.png", sink.getvalue())

    return written


def sheets(found: Process, truth: np.ndarray) -> np.ndarray:
    """Every image of a batch, one below the other: uint8 [rows, columns, 3]; ``truth`` uint8 [B, 3, h, w]."""
    parts = [part.cpu().numpy() for part in (found.seen, found.pictures, found.questions, found.colours)]
    return stacked([sheet(*image) for image in zip(*parts, truth, strict=True)])
