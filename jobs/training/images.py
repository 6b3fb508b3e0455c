"""Images of a key table as rows of a training."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from pipeline import images
from pipeline.run import KeyTable
from pipeline.storage import UnreachableError
from stages.preprocess import Preprocess
from stages.training_data import RowError

HELD = 1 << 30  # bytes of decoded images that one worker keeps: what fits is decoded once, not in every epoch


class KeyTablePixels:
    """Images of a key table, decoded when asked for (stages.training_data.Data).

    Where all of them fit into ``held`` bytes, each is decoded once.
    """

    def __init__(
        self, keys: KeyTable, frame: Preprocess, limits: images.Limits, pool: ThreadPoolExecutor, held: int = HELD
    ) -> None:
        table = keys.table()
        self._keys: list[str] = table.column("key").to_pylist()
        self._uris: list[str] = table.column("uri").to_pylist()
        self._frame, self._limits, self._pool = frame, limits, pool
        fits = len(self._keys) * 3 * frame.size[0] * frame.size[1] <= held
        self._decoded: dict[int, np.ndarray] | None = {} if fits else None

    def __len__(self) -> int:
        return len(self._keys)

    def keys(self, rows: np.ndarray) -> Sequence[str]:
        return [self._keys[row] for row in rows.tolist()]

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """``image`` uint8 [B, 3, h, w], as the frame makes it."""
        pixels = np.stack(list(self._pool.map(self._pixels, rows.tolist())))
        return {"image": torch.from_numpy(pixels)}

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
