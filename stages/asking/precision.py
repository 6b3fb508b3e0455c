"""How much of one class a question covers, against a segmentation: a measuring stage, and its table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from stages.asking.agent import UNetAgent, trained_agent
from stages.asking.means import Means, mean_columns, means
from stages.asking.process import process, turns_cost
from stages.asking.train import PIXELS
from stages.metrics.masks import union_mask
from stages.metrics.moments import moments
from stages.preprocess import Preprocess
from stages.schema import column
from stages.training_draws import row_seeds, uniform

_SALT = np.uint64(0x6D6F766564)  # other draws than those of random points
UNDRAWN = -1  # the label of what no mask covers
_LEFT_OUT = {"status": "filtered", "error": "the image has no mask: nothing can be said of classes"}


@dataclass(frozen=True)
class PrecisionConfig:
    """``networks``: names of the trained inputs. ``moves``: random places that each question is moved to."""

    preprocess: Preprocess = PIXELS
    hints: int = 4
    networks: tuple[str, ...] = ("asked", "exact")
    moves: int = 8
    seed: int = 0
    batch: int = field(default=0, metadata={"fingerprint": False})  # images in a call; 0 chooses by device

    def __post_init__(self) -> None:
        if self.hints < 1 or self.moves < 1 or not self.networks:
            raise ValueError(f"hints and moves are from 1 on, networks at least one; got {self}")


class Precision:
    """max over labels k of sum(Q M_k) / sum(Q), of each question; what no mask covers is a label too.

    Beside it the same for the question moved to random places (across the borders it comes in again on the other
    side): regions of the same area and shape that know nothing of the picture; and for the picture as a whole. A
    picture without any mask is filtered.
    """

    version = 2
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: PrecisionConfig) -> None:
        self.config = config
        self._agents: dict[str, UNetAgent] = {}

    @property
    def schema(self) -> pa.Schema:
        floats, steps = pa.list_(pa.float32()), "[T]"
        columns = [column("whole", pa.float32(), "the largest label's share of the picture")]
        for name in self.config.networks:
            columns += [
                column(f"precision/{name}", floats, "the largest label's share of a question; NaN: none", shape=steps),
                column(f"label/{name}", pa.list_(pa.int32()), f"that label; {UNDRAWN}: of no mask", shape=steps),
                column(f"moved/{name}", floats, "the same share where it is moved, mean over places", shape=steps),
            ]
        return pa.schema(columns)

    def prepare(self, image: NDArray[np.uint8], row: dict[str, Any]) -> dict[str, np.ndarray]:
        """uint8 [H, W, 3] -> pixels [3, h, w], labels int32 [h, w], and whether any class is drawn."""
        height, width, _ = image.shape
        labels = label_map(row.get("masks") or (), row.get("box_labels") or (), width, height, self.config.preprocess)
        drawn = np.array(labels is not None)
        if labels is None:
            labels = np.full(self.config.preprocess.size, UNDRAWN, np.int32)
        return {"pixels": self.config.preprocess.pixels(image), "labels": labels, "drawn": drawn}

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        self.device = device
        for name in self.config.networks:
            self.task, agent = trained_agent(inputs[name].facts, inputs[name].files)
            self._agents[name] = agent.to(device)

    def micro_batch(self, device: torch.device) -> int:
        return self.config.batch or (8 if device.type == "cpu" else 64)

    def cost(self) -> dict[str, float]:
        """Per row: a forward pass for each turn of each network."""
        if not self._agents:
            raise RuntimeError("the stage has no networks yet: call setup() first")
        turns, size = len(self.config.networks) * (self.config.hints + 1), self.config.preprocess.size
        return turns_cost(next(iter(self._agents.values())), self.task, size, self.device, turns)

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        if not self._agents:
            raise RuntimeError("the stage has no networks yet: call setup() first")
        pixels = torch.as_tensor(np.asarray(batch["pixels"])).to(self.device)
        labels, seeds = np.asarray(batch["labels"]), row_seeds(self.config.seed, 0, list(batch["key"]))
        valid = [at for at, given in enumerate(batch["valid"]) if given]
        rows: list[dict[str, Any]] = [{"whole": shares(np.ones(labels[at].shape), labels[at])[1]} for at in valid]
        for name, agent in self._agents.items():
            asked = process(agent, self.task, pixels, self.config.hints).questions.double().cpu().numpy()
            for row, at in zip(rows, valid, strict=True):
                found = [shares(question, labels[at]) for question in asked[at]]
                moved = _moved(asked[at], labels[at], seeds[at : at + 1], self.config.moves)
                row[f"precision/{name}"] = np.array([share for _, share in found], np.float32)
                row[f"label/{name}"] = np.array([label for label, _ in found], np.int32)
                row[f"moved/{name}"] = moved.astype(np.float32)
        return [row if batch["drawn"][at] else _LEFT_OUT for row, at in zip(rows, valid, strict=True)]


def shares(question: NDArray[np.floating], labels: NDArray[np.integer]) -> tuple[int, float]:
    """The label that a question [h, w] covers most of, and its share; (UNDRAWN, NaN) where it covers nothing."""
    known, of = np.unique(labels, return_inverse=True)
    weight = np.bincount(of.ravel(), question.ravel().astype(np.float64))
    if not weight.sum() > 0:
        return UNDRAWN, float("nan")
    return int(known[weight.argmax()]), float(weight.max() / weight.sum())


def label_map(
    masks: Sequence[Any], labels: Sequence[int], width: int, height: int, preprocess: Preprocess
) -> NDArray[np.int32] | None:
    """Masks in an image's own pixels -> the label of most of each pixel of the frame; UNDRAWN where none covers it.

    None where there is no mask; objects with a box alone (null) have none. ValueError where masks are without labels.
    """
    if all(mask is None for mask in masks):
        return None
    if len(masks) != len(labels):
        raise ValueError(f"{len(masks)} masks with {len(labels)} labels: give one label for each")
    objects = [(mask, label) for mask, label in zip(masks, labels, strict=True) if mask is not None]
    known = sorted({label for _, label in objects})
    parts = []
    for label in known:
        mask = union_mask([mask for mask, own in objects if own == label], width, height)
        grey = np.repeat((mask * np.uint8(255))[:, :, None], 3, axis=2)  # type: ignore[operator]
        parts.append(preprocess.pixels(grey)[0].astype(np.int32))
    drawn = np.stack(parts)
    rest = 255 - drawn.sum(0, keepdims=True)
    found = np.concatenate([drawn, rest]).argmax(0)
    return np.array([*known, UNDRAWN], np.int32)[found]


def _moved(
    questions: NDArray[np.floating], labels: NDArray[np.integer], seed: NDArray[np.uint64], moves: int
) -> NDArray[np.float64]:
    height, width = labels.shape
    places = (uniform(seed ^ _SALT, 2 * moves).reshape(moves, 2) * (height, width)).astype(np.int64)
    found = [[shares(np.roll(q, tuple(place), (0, 1)), labels)[1] for place in places] for q in questions]
    return np.array(found).mean(1)


class PrecisionTable(Means[PrecisionConfig]):
    """Reduction over these rows: a row for each network and question; question 0: each image's mean over questions."""

    version = 2

    @property
    def columns(self) -> Sequence[str]:
        return ("whole", *(f"{kind}/{n}" for n in self.config.networks for kind in ("precision", "moved")))

    @property
    def schema(self) -> pa.Schema:
        told = {"precision": "the question", "moved": "the question at random places", "whole": "the whole picture"}
        share = "the largest label's share of {}, mean over images"
        above = "mean over images of: the question's share minus that of it moved"
        return pa.schema(
            [
                column("network", pa.string(), "which network asks"),
                column("question", pa.int32(), "which question, from 1; 0: the mean over an image's questions"),
                column("n", pa.int64(), "images"),
                *(field for name, what in told.items() for field in mean_columns(name, share.format(what))),
                *mean_columns("above", above, differences=True),
            ]
        )

    def start(self, block: Any = "all") -> NDArray[np.int64]:
        """[networks, T + 1, 4, 3]: moments of the share, of it moved, of the whole, and of the difference."""
        return np.zeros((len(self.config.networks), self.config.hints + 1, 4, 3), np.int64)

    def counted(self, table: pa.Table) -> NDArray[np.int64]:
        found = []
        whole = np.repeat(table["whole"].to_numpy()[:, None], self.config.hints + 1, 1)
        for name in self.config.networks:
            own, moved = (_with_mean(table[f"{kind}/{name}"], self.config.hints) for kind in ("precision", "moved"))
            found.append(np.stack([own, moved, np.where(np.isnan(own), np.nan, whole), own - moved], -1))
        return moments(np.stack(found, 1))

    def rows(self, state: NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        for network, numbers in zip(self.config.networks, state, strict=True):
            for question, (precision, moved, whole, above) in enumerate(numbers):
                row = {"network": network, "question": question, "n": int(precision[0])}
                yield row | means(precision=precision, moved=moved, whole=whole, above=above)


def _with_mean(column: Any, hints: int) -> NDArray[np.float64]:
    """[rows, T + 1]: the mean over the questions that cover something, then each."""
    values = np.array(column.to_pylist(), np.float64)
    if values.ndim != 2 or values.shape[1] != hints:
        raise ValueError(f"rows are of {hints} questions: these are not")
    there = ~np.isnan(values)
    count = there.sum(1)
    mean = np.where(count, np.where(there, values, 0).sum(1) / np.maximum(count, 1), np.nan)
    return np.concatenate([mean[:, None], values], 1)
