"""PSNR after 0..T answers over a dataset, and what each answer gave: means with standard errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.asking.means import Means, mean_columns, means
from stages.asking.psnr import LARGEST
from stages.metrics.moments import moments
from stages.schema import column

_GAIN = "mean over images of what the last answer gave; null without one"


@dataclass(frozen=True)
class AnsweredConfig:
    """``hints``: T, answers to an image."""

    hints: int

    def __post_init__(self) -> None:
        if self.hints < 0:
            raise ValueError(f"hints {self.hints}: at least 0")


class Answered(Means[AnsweredConfig]):
    """Reduction over the rows of `stages.asking.ask`; one block, one row for each number of answers.

    An image without any error counts as 100 dB.
    """

    version = 2
    columns: Sequence[str] = ("psnr",)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                column("answers", pa.int32(), "answers given"),
                column("n", pa.int64(), "images"),
                column("exact", pa.int64(), "images whose picture is without any error"),
                *mean_columns("psnr", "mean over images", "dB"),
                *mean_columns("gain", _GAIN, "dB", differences=True),
            ]
        )

    def start(self, block: Any = "all") -> NDArray[np.int64]:
        """[T + 1, 7]: moments of PSNR, of gains, and the exact ones."""
        return np.zeros((self.config.hints + 1, 7), np.int64)

    def counted(self, table: pa.Table) -> NDArray[np.int64]:
        values = np.array(table["psnr"].to_pylist(), np.float64)
        if values.shape != (table.num_rows, self.config.hints + 1):
            raise ValueError(f"rows have PSNR after 0..{self.config.hints} answers: these have not")
        share = np.minimum(values, LARGEST) / LARGEST
        gains = np.diff(share, axis=1, prepend=np.nan)
        exact = np.isinf(values).sum(0, dtype=np.int64)
        return np.concatenate([moments(share), moments(gains), exact[:, None]], axis=1)

    def rows(self, state: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        for answers, numbers in enumerate(state):
            row = {"answers": answers, "n": int(numbers[0]), "exact": int(numbers[6])}
            yield row | means(LARGEST, psnr=numbers[:3], gain=numbers[3:6])
