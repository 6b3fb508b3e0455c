"""The training of a two-level network as a step of the job: images of a key table in, what was learnt out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jobs.semantic_screen import unreadable
from pipeline import images
from pipeline.provenance import cpu_count
from pipeline.run import KeyTable
from pipeline.storage import UnreachableError
from pipeline.train import Learnt, Worker
from stages.preprocess import Preprocess
from stages.semantic.labels import targets
from stages.semantic.train import TwoLevelTraining, train_two_level
from stages.training_data import RowError

_HELD = 1 << 30  # bytes of decoded images that one worker keeps: what fits is decoded once, not in every epoch


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
                unreadable=unreadable(worker, data) if self.config.skip_unreadable else None,
            )
        return Learnt(files, facts)


class KeyTableImages:
    """Images of a key table with ``fine`` and ``coarse``, decoded when asked for (stages.training_data.Data).

    Where all of them fit into a gigabyte, each is decoded once.
    """

    def __init__(
        self,
        keys: KeyTable,
        frame: Preprocess,
        limits: images.Limits,
        pool: ThreadPoolExecutor,
        fine: int,
        coarse: int,
        held: int = _HELD,
    ) -> None:
        table = keys.table()
        self._keys: list[str] = table.column("key").to_pylist()
        self._uris: list[str] = table.column("uri").to_pylist()
        self._targets = targets(table.column("fine").to_pylist(), table.column("coarse").to_pylist(), fine, coarse)
        self._frame, self._limits, self._pool = frame, limits, pool
        fits = len(self._keys) * 3 * frame.size[0] * frame.size[1] <= held
        self._decoded: dict[int, np.ndarray] | None = {} if fits else None

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self, rows: np.ndarray) -> Sequence[str]:
        return [self._keys[row] for row in rows.tolist()]

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        pixels = np.stack(list(self._pool.map(self._pixels, rows.tolist())))
        at = torch.from_numpy(np.ascontiguousarray(rows))
        return {"image": torch.from_numpy(pixels), **{name: label[at] for name, label in self._targets.items()}}

    def _pixels(self, row: int) -> np.ndarray:
        if self._decoded is not None and row in self._decoded:
            return self._decoded[row]
        image = images.load(self._uris[row], self._limits)
        if isinstance(image, images.DecodeError):
            if image.kind == "unreachable":  # the storage is away, which says nothing about the image
                raise UnreachableError(image.reason, where=self._uris[row])
            raise RowError(self._keys[row], image.reason)
        pixels = self._frame.pixels(image.pixels)
        if self._decoded is not None:
            self._decoded[row] = pixels
        return pixels
