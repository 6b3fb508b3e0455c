"""Seconds per image of each method, on a few images.

These rows are the one place where a clock is what is measured. They stand in a step of their own, on which nothing
stands, so that all other rows stay the same whenever and wherever they are computed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch

from stages.baselines.compare import Compare, CompareConfig
from stages.baselines.query import Query
from stages.schema import column


class Speed:
    """Seconds per image and asked class, one class per image, batched as in the comparison.

    A method's passes are its own here: what methods share in a comparison is counted for each, and the network's plain
    forward stands apart. The first batch runs once unmeasured, to warm up.
    """

    version = 1
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: CompareConfig) -> None:
        self.config = config
        self.compare = Compare(config)
        self.warm = False

    @property
    def schema(self) -> pa.Schema:
        rows = [
            column("forward", pa.float32(), "one plain forward pass", unit="seconds"),
            column("batch", pa.int32(), "images at once"),
            column("device", pa.string(), "what it ran on"),
        ]
        rows += [
            column(f"seconds/{m}", pa.float32(), "one image, one class", unit="seconds") for m in self.config.methods
        ]
        return pa.schema(rows)

    def prepare(self, image: np.ndarray, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return self.compare.prepare(image, row)

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        self.compare.setup(device, inputs)
        self.device = device

    def micro_batch(self, device: torch.device) -> int:
        return self.compare.micro_batch(device)

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        pixels = torch.as_tensor(np.asarray(batch["pixels"])).to(self.device)
        x = self.config.preprocess.normalise(pixels)
        if not self.warm:
            self._times(x, tuple(batch["key"]))
            self.warm = True
        times = self._times(x, tuple(batch["key"]))
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        row = {"batch": len(x), "device": name, **{k: v / len(x) for k, v in times.items()}}
        return [dict(row) for valid in batch["valid"] if valid]

    def _times(self, x: torch.Tensor, keys: tuple[str, ...]) -> dict[str, float]:
        found = {}
        for name, method in self.compare.methods.items():
            query = self._query(x, keys)
            asked = query.asking(query.ranked[:, :1])
            began = self._clock()
            method.maps(asked)
            found[f"seconds/{name}"] = self._clock() - began
        began = self._clock()
        self._query(x, keys)
        return {"forward": self._clock() - began, **found}

    def _query(self, x: torch.Tensor, keys: tuple[str, ...]) -> Query:
        assert self.compare.cut is not None
        return Query(self.compare.cut, x, top=1, output=self.config.output, keys=keys, seed=self.config.seed)

    def _clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
