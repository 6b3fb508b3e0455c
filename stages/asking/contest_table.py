"""Tables of a contest: PSNR after 0..T hints of every method, and the order in which questions are asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.asking.contest import ASKED, NONE
from stages.asking.means import Means, mean_columns, means
from stages.asking.psnr import LARGEST
from stages.metrics.moments import moments
from stages.schema import column

_PARTS = 3  # PSNR, what the last hint gave, how far the network that asks is ahead
_GAIN = "mean over images of what the last hint gave; null without one"
_BEHIND = "mean over images of: asked, after as many answers, minus this"
_ABOVE = "mean over images of: error minus the picture's mean error"
_SCALE = 2.0  # y is in -1..1, so an error is rarely beyond this; what is beyond counts as this


@dataclass(frozen=True)
class ContestTableConfig:
    """``methods`` of the contest, and T, its ``hints``."""

    methods: tuple[str, ...]
    hints: int


class ContestTable(Means[ContestTableConfig]):
    """Reduction over the rows of stages.asking.contest: a row for each method and number of hints.

    Of a picture that some method colours without any error, PSNR says nothing: the solves leave a grey photograph as
    it is. Means are over the pictures of which no method's, after any number of hints, is exact.
    """

    version = 2

    @property
    def columns(self) -> Sequence[str]:
        return tuple(f"psnr/{name}" for name in self.config.methods)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(
            [
                column("method", pa.string(), "who colours, told where"),
                column("answers", pa.int32(), "hints given"),
                column("n", pa.int64(), "images that means are of"),
                column("exact", pa.int64(), "images without any error after so many hints"),
                column("left_out", pa.int64(), "images left out of all means: some method's is exact"),
                *mean_columns("psnr", "mean over images", "dB"),
                *mean_columns("gain", _GAIN, "dB", differences=True),
                *mean_columns("behind", _BEHIND, "dB", differences=True),
            ]
        )

    def start(self, block: Any = "all") -> NDArray[np.int64]:
        """[methods, T + 1, 11]: moments of these parts, exact images, and those that are left out."""
        return np.zeros((len(self.config.methods), self.config.hints + 1, 3 * _PARTS + 2), np.int64)

    def counted(self, table: pa.Table) -> NDArray[np.int64]:
        found = np.full((len(self.config.methods), table.num_rows, self.config.hints + 1), np.nan)
        for at, name in enumerate(self.config.methods):
            values = np.array(table[f"psnr/{name}"].to_pylist(), np.float64)
            wanted = 1 if name == NONE else self.config.hints + 1
            if values.shape != (table.num_rows, wanted):
                raise ValueError(f"rows have PSNR of {name} after 0..{wanted - 1} hints: these have not")
            found[at, :, :wanted] = values
        exact = np.isinf(found)
        left_out = np.logical_or.reduce(exact, axis=(0, 2))
        shares = np.where(left_out[:, None], np.nan, np.minimum(found, LARGEST) / LARGEST)
        gains = np.diff(shares, axis=2, prepend=np.nan)
        behind = shares[self.config.methods.index(ASKED)] - shares
        parts = moments(np.stack([shares, gains, behind], -1).swapaxes(0, 1))
        counts = np.stack([exact.sum(1), np.full(parts.shape[:2], left_out.sum())], -1)
        return np.concatenate([parts.reshape(*parts.shape[:2], -1), counts], 2)

    def rows(self, state: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        for method, numbers in zip(self.config.methods, state, strict=True):
            for answers, of in enumerate(numbers[: 1 if method == NONE else None]):
                psnr, gain, behind = of[:-2].reshape(_PARTS, 3)
                row = {"method": method, "answers": answers, "n": int(psnr[0])}
                row |= {"exact": int(of[-2]), "left_out": int(of[-1])}
                yield row | means(LARGEST, psnr=psnr, gain=gain, behind=behind)


@dataclass(frozen=True)
class OrderConfig:
    """``hints``: T, questions to an image. ``bins`` of the distribution of errors from 0 to ``limit`` (units of y)."""

    hints: int
    bins: int = 60
    limit: float = 0.6

    def __post_init__(self) -> None:
        if self.hints < 1 or self.bins < 1 or not 0 < self.limit <= _SCALE:
            raise ValueError(f"hints and bins are from 1 on, limit above 0 and at most {_SCALE:g}; got {self}")


class QuestionOrder(Means[OrderConfig]):
    """Reduction over the rows of stages.asking.contest: how wrong a network that is told nothing is where is asked.

    Row 0 is the mean over the picture, row t what is under question t. A question that covers nothing is left out.
    """

    version = 2
    columns: Sequence[str] = ("question_error", "mean_error")

    @property
    def schema(self) -> pa.Schema:
        unit, upto = "units of y", f"0..{self.config.limit:g}"
        return pa.schema(
            [
                column("question", pa.int32(), "which question, from 1; 0: no question, the whole picture"),
                column("n", pa.int64(), "images"),
                *mean_columns("error", "sum(E Q) / sum(Q), mean over images; row 0: mean(E)", unit),
                *mean_columns("above", _ABOVE, unit, differences=True),
                column("counts", pa.list_(pa.int64()), f"images by error, {upto}; the last holds what is beyond"),
            ]
        )

    def start(self, block: Any = "all") -> NDArray[np.int64]:
        """[T + 1, 6 + bins]: moments of errors and of their distance to the mean, and the distribution."""
        return np.zeros((self.config.hints + 1, 6 + self.config.bins), np.int64)

    def counted(self, table: pa.Table) -> NDArray[np.int64]:
        under = np.array(table["question_error"].to_pylist(), np.float64)
        if under.shape != (table.num_rows, self.config.hints):
            raise ValueError(f"rows are of {self.config.hints} questions: these are not")
        errors = np.concatenate([table["mean_error"].to_numpy()[:, None], under], 1)
        clipped = np.clip(errors, 0, _SCALE)
        above = (clipped - clipped[:, :1]) / _SCALE
        above[:, 0] = np.nan
        bins, limit = self.config.bins, self.config.limit
        counts = []
        for values in errors.T:
            place = np.minimum(values[~np.isnan(values)] / limit * bins, bins - 1).astype(np.int64)
            counts.append(np.bincount(place, minlength=bins))
        return np.concatenate([moments(clipped / _SCALE), moments(above), np.stack(counts)], axis=1)

    def rows(self, state: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        for question, numbers in enumerate(state):
            row = {"question": question, "n": int(numbers[0]), "counts": numbers[6:].tolist()}
            yield row | means(_SCALE, error=numbers[:3], above=numbers[3:6])

    def summary(self, table: pa.Table) -> dict[str, Any]:
        return {"rows": table.drop_columns(["counts"]).to_pylist(), "limit": self.config.limit}
