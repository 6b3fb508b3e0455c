"""A stage that looks at pixels, for tests that need images: importable by Ray's workers, as toys.py is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import steps
from pipeline.dataset import key_table
from stages.schema import column


@dataclasses.dataclass(frozen=True)
class MeansConfig:
    side: int = 8


class Means:
    """The mean colour of each image: enough to see whether it was read rightly."""

    version = 1
    wants = "pixels"

    def __init__(self, config: MeansConfig) -> None:
        self.config = config

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([column("mean", pa.list_(pa.float32()), "mean of each channel", shape="[3]")])

    def prepare(self, image: np.ndarray, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"mean": image.reshape(-1, 3).mean(axis=0).astype(np.float32)}

    def setup(self, device: Any, inputs: Any) -> None:
        pass

    def micro_batch(self, device: Any) -> int:
        return 4

    def __call__(self, batch: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"mean": mean} for mean, valid in zip(batch["mean"], batch["valid"], strict=True) if valid]


def folder_source(root: str) -> steps.Source:
    """The images of a folder, at any URL."""
    source = {"kind": "folder", "root": root}
    return steps.Source(source, lambda: key_table(source))
