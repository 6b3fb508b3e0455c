"""What CHIP's fit needs from a sweep: per layer and class the weighted Gram matrix and its fellows, summed over images.

CHIP's fit of class c minimises 1/2 sum_{s,n} h(d_n) f^c(X_s) (w_c z_{s,n} - g^c(X_s, d_n))^2 + lambda ||w_c||_1
with z = d * a, d the gates of the sample and a the pooled activation of the image. The sums G = sum h f z z',
b = sum h f g z and gg = sum h f g^2 do not know lambda, and are enough for every lambda.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from stages.chip import sums
from stages.chip.gates import checksums, draw_gates, gate_seeds
from stages.chip.sums import State
from stages.schema import column

Block = tuple[str, int, int]  # layer, first and one past the last class (places in the increasing list of class ids)


@dataclass(frozen=True)
class StatisticsConfig:
    """``layers``, ``gates``, ``seed`` and ``shared_gates`` as in the sweep; ``channels`` per layer, in the same order.

    ``classes`` is the number of classes of the network, ``only`` a subset of their ids. ``sigma2`` None means K/4.
    ``holdout`` is the share of images kept from the fit, ``block_mb`` the most megabytes the state of a block may take
    (a block holds one class at least).
    """

    layers: tuple[str, ...]
    channels: tuple[int, ...]
    classes: int
    gates: int = 100
    seed: int = 0
    shared_gates: bool = False
    sigma2: float | None = None
    holdout: float = 0.2
    only: tuple[int, ...] | None = None
    block_mb: float = 512.0

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.channels):
            raise ValueError(f"{len(self.layers)} layers but {len(self.channels)} channel counts: give one per layer")
        if self.sigma2 is not None and not self.sigma2 > 0:
            raise ValueError(f"sigma2 = {self.sigma2}: it must be positive (leave it out for K/4)")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout = {self.holdout}: it is a share of the images, from 0 to below 1")
        wrong = [c for c in self.only or () if not 0 <= c < self.classes]
        if wrong:
            raise ValueError(f"only: class {wrong[0]} does not exist, the network has classes 0 to {self.classes - 1}")


def held_out(keys: Sequence[str], share: float) -> np.ndarray:
    """Which images the fit does not see: bool [B], by a hash of the key alone."""
    limit = int(share * 2**64)
    hashes = (hashlib.blake2b(b"raylens holdout " + key.encode(), digest_size=8).digest() for key in keys)
    return np.array([int.from_bytes(h, "little") < limit for h in hashes], dtype=bool)


class ChipStatistics:
    """The reduction from sweep rows to one row of sums per layer and class; classes without an image have no row."""

    version = 1
    aligned = False
    accelerated = True  # takes a GPU where the cluster has one

    def __init__(self, config: StatisticsConfig) -> None:
        self.config = config
        self.ids = np.array(sorted(set(config.only)) if config.only is not None else range(config.classes), np.int64)
        self.columns: Sequence[str] = ["key", "split", "classes", "f"] + [
            f"{kind}/{layer}" for layer in config.layers for kind in ("a", "g", "gates")
        ]

    @property
    def schema(self) -> pa.Schema:
        f64, i64 = pa.float64(), pa.int64()
        fields = [
            column("layer", pa.string(), "layer as asked in the config"),
            column("class_id", pa.int32(), "class index of the network"),
        ]
        for prefix, part in (("", "fit"), ("heldout_", "held-out")):
            fields += [
                column(f"{prefix}images", i64, f"{part} images that list the class", unit="images"),
                column(f"{prefix}effective_images", f64, f"(sum f)^2 / sum f^2 over the {part} images", unit="images"),
                column(f"{prefix}samples", i64, f"perturbed networks of the {part} images", unit="samples"),
                column(f"{prefix}weight", f64, "sum h f"),
                column(f"{prefix}b", pa.list_(f64), "sum h f g z", shape="[channels]"),
                column(f"{prefix}gram", pa.list_(f64), "sum h f z z', upper triangle by rows", shape="[K(K+1)/2]"),
                column(f"{prefix}gg", f64, "sum h f g^2"),
                column(f"{prefix}g1", f64, "sum h f g"),
            ]
        return pa.schema(fields)

    def blocks(self) -> list[Block]:
        found: list[Block] = []
        for layer in self.config.layers:
            step = max(1, int(self.config.block_mb * 2**20 // self.state_bytes((layer, 0, 1))))
            found += [(layer, lo, min(lo + step, len(self.ids))) for lo in range(0, len(self.ids), step)]
        return found

    def state_bytes(self, block: Block) -> int:
        return sums.state_bytes(block[2] - block[1], self._channels(block[0]))

    def start(self, block: Block) -> State:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return State.zeros(block, self._channels(block[0]), device)

    def merge(self, left: State, right: State) -> State:
        return left.merge(right)

    def add(self, state: State, table: pa.Table) -> State:
        """Add a shard's rows. ValueError names the key whose gates or shapes do not fit this configuration."""
        device = state.b.device
        rows = _Rows(table, state.block, self.ids, self.config.gates, self._channels(state.block[0]))
        parts = held_out(rows.keys, self.config.holdout)
        size = 256 if device.type == "cuda" else 32  # images at a time: about 1 MB each, so that a panel stays in cache
        for part in (0, 1):
            for split in sorted(set(rows.splits)):
                wanted = np.flatnonzero((parts == part) & (rows.splits == split) & rows.used)
                for i in range(0, len(wanted), size):
                    self._add_images(state, part, split, rows, wanted[i : i + size])
        return state

    def _add_images(self, state: State, part: int, split: str, rows: _Rows, chunk: np.ndarray) -> None:
        device, layer = state.b.device, state.block[0]
        keys = [rows.keys[i] for i in chunk]
        gates = self._gates(layer, split, keys, device)
        found = checksums(gates)
        wrong = np.flatnonzero(np.broadcast_to(found, len(chunk)) != rows.gates[chunk])
        if len(wrong):
            raise ValueError(
                f"{keys[wrong[0]]} (split {split}, layer {layer}): the gates drawn here are not those of the sweep "
                f"({len(wrong)} of {len(chunk)} images differ). Give the seed ({self.config.seed}), gates "
                f"({self.config.gates}), shared_gates and the layer's name exactly as the sweep had them."
            )
        a, f, g, listed, classes = rows.dense(chunk)
        on = [torch.from_numpy(x).to(device) for x in (a, f, g, listed, classes)]
        sums.accumulate(state, part, gates, self._sigma2(layer), *on, shared=self.config.shared_gates)

    def _gates(self, layer: str, split: str, keys: Sequence[str], device: torch.device) -> torch.Tensor:
        shared = self.config.shared_gates
        seeds = gate_seeds(self.config.seed, split, keys[:1] if shared else keys, layer, shared=shared)
        return draw_gates(seeds, self.config.gates, self._channels(layer), device)

    def finish(self, block: Block, state: State) -> pa.Table:
        layer, lo, hi = block
        kept = np.flatnonzero(state.images.sum(0).cpu().numpy())
        shared = self._gates(layer, "", [""], state.b.device)[0] if self.config.shared_gates else None
        data: dict[str, Any] = {
            "layer": pa.array([layer] * len(kept), pa.string()),
            "class_id": pa.array(self.ids[lo:hi][kept], pa.int32()),
        }
        for part, prefix in enumerate(("", "heldout_")):
            totals = state.sums[part].cpu().numpy()[kept]
            images = state.images[part].cpu().numpy()[kept]
            packed = [sums.grams(state, part, int(place), shared, self._sigma2(layer)) for place in kept]
            data |= {
                f"{prefix}images": images,
                f"{prefix}effective_images": totals[:, 3] ** 2 / np.maximum(totals[:, 4], 1e-300),
                f"{prefix}samples": images * self.config.gates,
                f"{prefix}weight": totals[:, 0],
                f"{prefix}b": _lists(list(state.b[part].cpu().numpy()[kept])),
                f"{prefix}gram": _lists(packed),
                f"{prefix}gg": totals[:, 1],
                f"{prefix}g1": totals[:, 2],
            }
        return pa.table([data[name] for name in self.schema.names], schema=self.schema)

    def summary(self, table: pa.Table) -> dict[str, Any]:
        """Per layer: classes with a row, and the fewest, median and most fit images of a class."""
        found: dict[str, Any] = {}
        layers = np.array(table["layer"].to_pylist())
        images = table["images"].to_numpy()
        for layer in self.config.layers:
            here = images[layers == layer]
            if len(here):
                spread = {"min": int(here.min()), "median": float(np.median(here)), "max": int(here.max())}
                found[layer] = {"classes": len(here), "images_per_class": spread}
        return {"layers": found}

    def _channels(self, layer: str) -> int:
        return self.config.channels[self.config.layers.index(layer)]

    def _sigma2(self, layer: str) -> float:
        return self._channels(layer) / 4 if self.config.sigma2 is None else self.config.sigma2


class _Rows:
    """A shard's columns as arrays, and which of its images list a class of the block."""

    def __init__(self, table: pa.Table, block: Block, ids: np.ndarray, n: int, channels: int) -> None:
        layer, lo, hi = block
        self.n, self.width = n, hi - lo
        self.keys: list[str] = table["key"].to_pylist()
        self.splits = np.array(table["split"].to_pylist(), dtype=object)
        self.gates = table[f"gates/{layer}"].to_numpy()
        class_ids, self.counts = _flat(table["classes"])
        self.f, _ = _flat(table["f"])
        self.a, a_counts = _flat(table[f"a/{layer}"])
        self.g, g_counts = _flat(table[f"g/{layer}"])
        for i in np.flatnonzero((a_counts != channels) | (g_counts != n * self.counts))[:1]:
            raise ValueError(
                f"{self.keys[i]} (layer {layer}): the sweep's row holds {a_counts[i]} channels and {g_counts[i]} "
                f"scores, not {channels} and {n} gates x {self.counts[i]} classes. Set channels and gates as the "
                "sweep had them."
            )
        self.a = self.a.reshape(-1, channels)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        # The place of each listed class in the block, -1 outside it.
        places = np.searchsorted(ids[lo:hi], class_ids)
        inside = np.isin(class_ids, ids[lo:hi])
        self.places = np.where(inside, places, -1)
        per_row = np.concatenate([[0], np.cumsum(inside)])[self.starts]
        self.used = np.diff(per_row) > 0

    def dense(self, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """a [S, K], f [S, P], g [S, N, P], listed [S, P] and the P places that occur among these images."""
        spans = [slice(self.starts[i], self.starts[i + 1]) for i in chunk]
        classes = np.unique(np.concatenate([self.places[span] for span in spans]))
        classes = classes[classes >= 0]
        f = np.zeros((len(chunk), len(classes)))
        g = np.zeros((len(chunk), self.n, len(classes)))
        listed = np.zeros(f.shape, np.int64)
        for row, (i, span) in enumerate(zip(chunk, spans, strict=True)):
            scores = self.g[self.n * self.starts[i] : self.n * self.starts[i + 1]].reshape(self.n, -1)
            inside = np.flatnonzero(self.places[span] >= 0)
            to = np.searchsorted(classes, self.places[span][inside])
            f[row, to] = self.f[span][inside]
            g[row][:, to] = scores[:, inside]
            listed[row, to] = 1
        values = (self.a[chunk].astype(np.float64), f, g)
        for name, value in zip(("a", "f", "g"), values, strict=True):
            if not np.isfinite(value).all():
                bad = next(i for i, v in zip(chunk, value, strict=True) if not np.isfinite(v).all())
                raise ValueError(
                    f"{self.keys[bad]}: its {name} is not finite. The sweep should have marked this row as failed."
                )
        return (*values, listed, classes)


def _flat(lists: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The values of a list column end to end, and the length of each list."""
    array = lists.combine_chunks()
    return np.asarray(array.flatten()), np.asarray(array.value_lengths())


def _lists(rows: list[np.ndarray]) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int32)
    flat = np.concatenate(rows) if rows else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.float64()))
