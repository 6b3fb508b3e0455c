"""The perturbed-network sweep: for each image, the network's answer under many random gates of one layer or several.

Nothing here is decided for good: sigma, lambda, the class subset and the metrics are reductions over these rows.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from stages.chip.gates import checksums, draw_gates, gate_seeds
from stages.network import Activations, Cut, cut
from stages.preprocess import Preprocess
from stages.schema import column

log = logging.getLogger("raylens.chip")

_CPU_BUDGET = 192 << 20  # bytes of gated copies at once on a CPU: enough rows for full speed, no more
_GPU_SHARE = 0.4  # of the memory this process may use


@dataclass(frozen=True)
class SweepConfig:
    """What to perturb and what to keep; see PROTOCOLS section 1 for the defaults of the paper."""

    layers: tuple[str, ...] = ("last_conv",)
    gates: int = 100  # perturbed networks for each image and layer
    seed: int = 0
    classes: Literal["coverage", "all"] = "coverage"
    min_share: float = 0.01  # coverage: classes with f >= min_share are kept,
    max_classes: int = 16  # at most so many, the label always among them
    output: Literal["softmax", "logits"] = "softmax"  # of g; f is always post-softmax
    shared_gates: bool = False  # one set of gates for all images
    preprocess: Preprocess = field(default_factory=Preprocess)
    # Autocast, or the network's own type. On SqueezeNet, first and last layer, bfloat16 moves g by 3 % of its spread
    # under the gates (0.06 at most), float16 by 0.3 % (0.004), float32 itself by 1e-6: tests/bench/precision.py.
    precision: Literal["network", "bfloat16", "float16"] = "network"
    channels_last: bool = True
    draft: bool = False  # JPEGs decoded at 1/2 to 1/8 of their size, not below the input: faster, f moves a little
    batch: int = field(default=0, metadata={"fingerprint": False})  # images a call; 0: chosen for the device
    copies: int = field(default=0, metadata={"fingerprint": False})  # gated copies at once; 0: sized from memory

    def __post_init__(self) -> None:
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ValueError(f"sweep.layers is {self.layers!r}: name at least one layer, each once")
        if self.gates < 1:
            raise ValueError(f"sweep.gates is {self.gates}: draw at least 1 perturbed network for each image")
        for name, known in (
            ("classes", ("coverage", "all")),
            ("output", ("softmax", "logits")),
            ("precision", ("network", "bfloat16", "float16")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"sweep.{name} is {getattr(self, name)!r}: it is one of {', '.join(known)}")
        if self.max_classes < 1 or not 0 <= self.min_share <= 1:
            raise ValueError("sweep.max_classes is at least 1, sweep.min_share between 0 and 1")


@dataclass(frozen=True)
class Measured:
    """One batch, as tensors in the network's type (float32 under autocast). M classes are kept for each image."""

    classes: torch.Tensor  # int64 (B, M), rising; the unused places of a row hold -1
    f: torch.Tensor  # (B, M) post-softmax
    lost: torch.Tensor  # (B,) 1 - sum of f
    pooled: dict[str, torch.Tensor]  # (B, K) for each layer
    g: dict[str, torch.Tensor]  # (B, N, M) for each layer
    checksums: dict[str, np.ndarray]  # uint64 (B,)


class ChipSweep:
    """Measuring stage. Input: "network", an nn.Module in eval mode on the device; its memory layout may be changed."""

    version = 1
    wants: ClassVar[Literal["pixels"]] = "pixels"

    def __init__(self, config: SweepConfig) -> None:
        self.config = config
        self.cut: Cut | None = None
        self._fitting_copies: dict[str, int] = {}
        self._copies: dict[str, int] = {}
        self.notes: list[str] = []  # what went otherwise than planned since ``begin``; the shard's receipt keeps it

    @property
    def draft(self) -> tuple[int, int] | None:
        """(height, width) that a fast decoder must keep at least; None: the whole image is decoded."""
        return self.config.preprocess.least() if self.config.draft else None

    @property
    def schema(self) -> pa.Schema:
        floats = pa.list_(pa.float32())
        output = "logit" if self.config.output == "logits" else "post-softmax probability"
        fields = [
            column("label", pa.int32(), "true class id; null if unknown"),
            column("classes", pa.list_(pa.int32()), "ids of the classes stored, rising", shape="[classes]"),
            column("f", floats, "post-softmax probability, all gates open", shape="[classes]"),
            column("lost_mass", pa.float32(), "1 - sum of f: the probability of classes not stored"),
        ]
        for layer in self.config.layers:
            fields += [
                column(f"a/{layer}", floats, "spatial mean of the layer's activation", shape="[channels]"),
                column(f"g/{layer}", floats, f"{output} under each gate", shape="[gates, classes]"),
                column(f"gates/{layer}", pa.uint64(), "checksum of the gates drawn"),
            ]
        return pa.schema(fields)

    def prepare(self, image: np.ndarray, row: dict[str, Any]) -> dict[str, np.ndarray]:
        return {"pixels": self.config.preprocess.pixels(image)}

    def setup(self, device: torch.device, inputs: Mapping[str, Any]) -> None:
        network: nn.Module = inputs["network"]
        self.device = device
        self.dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        # oneDNN and cuDNN have channels_last kernels for these types only.
        self._last = self.config.channels_last and self.dtype != torch.float64
        if self._last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.cut = cut(network, self.config.layers, torch.zeros(1, 3, *self.config.preprocess.size, device=device))
        self._fitting_copies = {layer: self._fitting(layer) for layer in self.config.layers}
        self.begin()
        for layer in self.config.layers:
            log.info("%s; %d gated copies at once", self.cut.path(layer), self._copies[layer])

    def begin(self) -> None:
        """Before each shard: what one had no room for is tried again in the next, so no shard depends on another."""
        self._copies = dict(self._fitting_copies)
        self.notes = []

    def micro_batch(self, device: torch.device) -> int:
        if self.config.batch:
            return self.config.batch
        if device.type == "cpu":
            return 8
        return 128 if torch.cuda.get_device_properties(device).total_memory > 30e9 else 32

    def cost(self) -> dict[str, float]:
        """Per image: whole forward passes' worth of operations, operations, and perturbed networks."""
        network = self._network()
        flops = plain = 0.0
        for layer in self.config.layers:
            count = network.operations(layer)
            plain = count.plain
            flops += count.once + self.config.gates * min(count.each, count.suffix)
        flops += plain
        return {
            "forwards_per_row": flops / plain,
            "flops_per_row": flops,
            "networks_per_row": float(self.config.gates * len(self.config.layers)),
        }

    def __call__(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        labels = [None if row is None else row.get("label") for row in batch["rows"]]
        pixels = torch.as_tensor(np.asarray(batch["pixels"]))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        measured = self.measure(self.config.preprocess.normalise(pixels), batch["key"], batch["split"], labels)
        return self._rows(measured, labels, batch["valid"])

    @torch.no_grad()
    def measure(self, x: torch.Tensor, keys: list[str], split: str, labels: list[int | None] | None = None) -> Measured:
        """Normalised images (B, 3, h, w) -> what the rows are made of. Image i depends on x[i] and keys[i] only."""
        network, config = self._network(), self.config
        x = x.to(self.dtype)
        x = x.contiguous(memory_format=torch.channels_last) if self._last else x
        with self._autocast():
            activations = network.prefix(x)
            f = _softmax(network.logits(activations))
        classes = self._classes(f, labels)
        kept = f.gather(1, classes.clamp_min(0)) * (classes >= 0)
        pooled, g, sums = {}, {}, {}
        for layer, resolved in network.layers.items():
            seeds = gate_seeds(config.seed, split, keys, layer, shared=config.shared_gates)
            if config.shared_gates:
                gates = draw_gates(seeds[:1], config.gates, resolved.channels, self.device)
                sums[layer] = checksums(gates).repeat(len(keys))
                gates = gates.expand(len(keys), -1, -1)
            else:
                gates = draw_gates(seeds, config.gates, resolved.channels, self.device)
                sums[layer] = checksums(gates)
            pooled[layer] = activations.taps[layer].to(f.dtype).mean((2, 3))
            g[layer] = self._perturbed(layer, activations, gates, classes)
        return Measured(classes, kept, 1 - kept.sum(1), pooled, g, sums)

    def _perturbed(
        self, layer: str, activations: Activations, gates: torch.Tensor, classes: torch.Tensor
    ) -> torch.Tensor:
        """(B, N, M): the chosen classes' outputs under each gate, as many copies at once as fit."""
        images, count = gates.shape[:2]
        out: torch.Tensor | None = None
        image = gate = 0
        while image < images:
            copies = self._copies[layer]
            wide = max(1, min(copies // count, images - image)) if gate == 0 else 1
            # Gates of one image in chunks of one size, rather than full chunks and a small rest.
            deep = count if copies >= count else math.ceil(count / math.ceil(count / copies))
            deep = min(deep, count - gate)
            try:
                with self._autocast():
                    logits = self._network().gated(
                        layer, activations.rows(image, image + wide), gates[image : image + wide, gate : gate + deep]
                    )
            except torch.OutOfMemoryError:
                if copies == 1:
                    raise
                self._copies[layer] = min(copies, wide * deep) // 2 or 1
                self.notes.append(f"out of memory at {layer}: {self._copies[layer]} gated copies at once, not {copies}")
                log.warning(self.notes[-1])
                torch.cuda.empty_cache()
                continue
            values = _softmax(logits) if self.config.output == "softmax" else _wide(logits)
            chosen = classes[image : image + wide].clamp_min(0)
            part = values.gather(2, chosen.unsqueeze(1).expand(-1, deep, -1))
            if out is None:
                out = part.new_zeros(images, count, classes.shape[1])
            out[image : image + wide, gate : gate + deep] = part
            gate += deep
            if gate == count:
                image, gate = image + wide, 0
        assert out is not None
        return out * (classes >= 0).unsqueeze(1)

    def _classes(self, f: torch.Tensor, labels: list[int | None] | None) -> torch.Tensor:
        """Class ids (B, M), rising, -1 where fewer are kept. The label always, else the likeliest class at least."""
        images, total = f.shape
        if self.config.classes == "all":
            return torch.arange(total, device=f.device).expand(images, -1)
        rank = f.clone()
        for i, label in enumerate(labels or []):
            if label is not None:
                if not 0 <= label < total:
                    raise ValueError(f"label {label} of a network with {total} classes: is this another label set?")
                rank[i, label] = 2.0  # above every probability
        if not labels or any(label is None for label in labels):
            unknown = torch.tensor([not labels or labels[i] is None for i in range(images)], device=f.device)
            top = f.argmax(1)
            rank[unknown, top[unknown]] = 2.0
        value, index = rank.topk(min(self.config.max_classes, total), dim=1)
        index = torch.where(value >= self.config.min_share, index, total).sort(1).values
        return torch.where(index == total, -1, index)

    def _rows(self, measured: Measured, labels: list[int | None], valid: np.ndarray) -> list[dict[str, Any]]:
        classes, f = measured.classes.cpu().numpy(), _numpy(measured.f)
        lost = _numpy(measured.lost)
        g = {layer: _numpy(v) for layer, v in measured.g.items()}
        pooled = {layer: _numpy(v) for layer, v in measured.pooled.items()}
        rows = []
        for i in np.flatnonzero(valid):
            kept = classes[i] >= 0
            row: dict[str, Any] = {
                "label": labels[i],
                "classes": classes[i][kept].astype(np.int32),
                "f": f[i][kept],
                "lost_mass": float(lost[i]),
            }
            finite = np.isfinite(f[i]).all()
            for layer in self.config.layers:
                row[f"a/{layer}"] = pooled[layer][i]
                row[f"g/{layer}"] = g[layer][i][:, kept].reshape(-1)
                row[f"gates/{layer}"] = int(measured.checksums[layer][i])
                finite = finite and np.isfinite(row[f"g/{layer}"]).all() and np.isfinite(row[f"a/{layer}"]).all()
            if not finite:
                row = {
                    "status": "failed",
                    "error": f"the network's output is not finite (precision: {self.config.precision})",
                }
            rows.append(row)
        return rows

    def _fitting(self, layer: str) -> int:
        """Gated copies at once: a power of two, so that a little more or less free memory changes nothing."""
        if self.config.copies:
            return self.config.copies
        network = self._network()
        head = network.push_down(layer)
        width = 2 if self.config.precision != "network" else torch.finfo(self.dtype).bits // 8
        values = network.peak_values(layer) + (head.table_values / self.config.gates if head is not None else 0.0)
        budget: float = _CPU_BUDGET
        if self.device.type == "cuda":
            # Of this process's share of all memory, not of what is free: the same on every attempt.
            total = torch.cuda.get_device_properties(self.device).total_memory
            budget = total * torch.cuda.get_per_process_memory_fraction(self.device) * _GPU_SHARE
        return 1 << max(0, int(math.log2(max(1.0, budget / (values * width)))))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "network":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.config.precision))

    def _network(self) -> Cut:
        if self.cut is None:
            raise RuntimeError("the sweep has no network yet: call setup() first")
        return self.cut


def _wide(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return _wide(logits).softmax(-1)


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()
