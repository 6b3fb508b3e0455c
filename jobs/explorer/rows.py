"""The rows of a filters or svd step as arrays, one image after another: no more than one image a network in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import RaylensError
from pipeline.units import Unit


@dataclass(frozen=True)
class Patches:
    """Rows, or columns, of F: for each place the weights of the picture's part that it touches."""

    places: np.ndarray  # int32 (n, 3): channel, y, x of the pixel that was asked about
    corners: np.ndarray  # int32 (n, 2): top, left of its patch in the other picture; may lie outside
    values: np.ndarray  # float32 (n, C, ph, pw)

    @property
    def peak(self) -> float:
        """The largest finite magnitude; 0 where there is none."""
        return peak(self.values)


@dataclass(frozen=True)
class Filters:
    """One image of a filters step."""

    input: np.ndarray  # float32 (C, H, W), what the network got
    output: np.ndarray  # float32 (K, h, w)
    residual: np.ndarray  # float32 (K, h, w)
    rows: Patches  # of the output's pixels, patches in the input
    columns: Patches  # of the input's pixels, patches in the output
    bounded: bool


@dataclass(frozen=True)
class Triplets:
    """One image of an svd step."""

    sigma: np.ndarray  # float64 (k)
    inputs: np.ndarray  # float32 (k, C, H, W)
    outputs: np.ndarray  # float32 (k, K, h, w)
    certificate: np.ndarray  # float64 (k), relative to the first sigma
    passes: int
    converged: bool


@dataclass(frozen=True)
class Answer:
    """What a step has for one image: ``found``, or the ``error`` its row carries."""

    key: str
    found: Filters | Triplets | None
    error: str = ""


def answers(unit: Unit) -> Iterator[Answer]:
    """Every committed row of a step, in the order of the keys."""
    for _, receipt in sorted(unit.shards.complete()[0].items()):
        name = receipt.files[0].name
        try:
            with unit.folder.open(name) as file:
                for batch in pq.ParquetFile(file).iter_batches(batch_size=1):
                    yield _answer(batch, unit)
        except FileNotFoundError as error:
            raise RaylensError("is missing", where=unit.folder.path(name), cure="run the job again") from error
        except pa.ArrowInvalid as error:
            raise RaylensError(
                f"cannot be read ({error})",
                where=unit.folder.path(name),
                cure="'raylens verify --repair RUN' and run the job again",
            ) from error


def peak(values: np.ndarray) -> float:
    """The largest finite magnitude; 0 where there is none."""
    size = np.abs(values)
    return float(size.max(initial=0.0, where=np.isfinite(size)))


def _answer(batch: pa.RecordBatch, unit: Unit) -> Answer:
    row = {name: batch.column(name)[0] for name in batch.schema.names}
    key = str(row["key"].as_py())
    if row["status"].as_py() != "ok":
        return Answer(key, None, str(row["error"].as_py() or row["status"].as_py()))
    try:
        return Answer(key, _triplets(row) if "sigma" in row else _filters(row))
    except (KeyError, ValueError) as error:
        raise RaylensError(
            f"the row of '{key}' is not one of a filters or svd step ({error})",
            where=unit.folder.url,
            cure="'raylens verify RUN' tells whether the shard is what its receipt says",
        ) from error


def _filters(row: Mapping[str, Any]) -> Filters:
    return Filters(
        input=_array(row, "input", _shape(row, "input")),
        output=_array(row, "output", _shape(row, "output")),
        residual=_array(row, "residual", _shape(row, "output")),
        rows=_patches(row, "row"),
        columns=_patches(row, "column"),
        bounded=bool(row["bounded"].as_py()),
    )


def _patches(row: Mapping[str, Any], kind: str) -> Patches:
    return Patches(
        places=_array(row, f"{kind}_places", (-1, 3)),
        corners=_array(row, f"{kind}_corner", (-1, 2)),
        values=_array(row, f"{kind}_values", (-1, *(int(s) for s in row[f"{kind}_patch_shape"].as_py()))),
    )


def _triplets(row: Mapping[str, Any]) -> Triplets:
    sigma = _array(row, "sigma", (-1,))
    return Triplets(
        sigma=sigma,
        inputs=_array(row, "inputs", (len(sigma), *_shape(row, "input"))),
        outputs=_array(row, "outputs", (len(sigma), *_shape(row, "output"))),
        certificate=_array(row, "certificate", sigma.shape),
        passes=int(row["passes"].as_py()),
        converged=bool(row["converged"].as_py()),
    )


def _shape(row: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return tuple(int(s) for s in row[f"{name}_shape"].as_py())


def _array(row: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = row[name].values
    if values is None:
        raise ValueError(f"{name} is empty")
    return values.to_numpy(zero_copy_only=False).reshape(shape)
