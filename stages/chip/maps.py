"""CHIP maps: channel weights times activations, for any image, class and layer, without touching the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from stages.baselines.guided import guided_gradient
from stages.baselines.query import Query
from stages.baselines.registry import Setting
from stages.chip.solve import NO_FIT
from stages.resize import upsample


def chip_map(activation: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """sum_k w_k A_k, signed: ``activation`` [B, K, h, w], ``weights`` [B, R, K] -> [B, R, h, w]."""
    if weights.shape[-1] != activation.shape[1]:
        raise ValueError(
            f"weights of {weights.shape[-1]} channels on a layer of {activation.shape[1]}: they were fitted on another"
        )
    return torch.einsum("brk,bkhw->brhw", weights.to(activation.dtype), activation)


def product(a: torch.Tensor, b: torch.Tensor, *, signed: bool = False) -> torch.Tensor:
    """a x b; each factor is clipped at 0 first unless ``signed``: two negatives are no evidence."""
    return a * b if signed else a.clamp(min=0) * b.clamp(min=0)


def refined(first: torch.Tensor, last: torch.Tensor, *, signed: bool = False) -> torch.Tensor:
    """Refined CHIP: map of the first convolution layer [B, R, H, W] x upsampled map of the last [B, R, h, w]."""
    return product(first, upsample(last, (first.shape[2], first.shape[3])), signed=signed)


def guided(gradient: torch.Tensor, chip: torch.Tensor, *, signed: bool = False) -> torch.Tensor:
    """Guided CHIP in colour [B, R, 3, H, W]: guided gradient, of that shape, x the upsampled CHIP map [B, R, h, w]."""
    heat = upsample(chip, (gradient.shape[3], gradient.shape[4]))
    return product(gradient, heat[:, :, None], signed=signed)


class ChannelWeights:
    """The fitted weights of one layer, by class id; NaN for a class without a fit, and so is its map."""

    def __init__(self, classes: Sequence[int], weights: np.ndarray) -> None:
        """``weights`` [classes, K]."""
        ids = np.asarray(classes, dtype=np.int64)
        if len(set(ids.tolist())) != len(ids):
            raise ValueError("a class has more than one fit: choose one solve, and in it one row per class")
        rows = np.concatenate([weights, np.full((1, weights.shape[1]), np.nan)]).astype(np.float32)
        self._rows = torch.from_numpy(rows)
        row_of = np.full(int(ids.max(initial=-1)) + 2, len(ids))  # the last entry stands for every larger id
        row_of[ids] = np.arange(len(ids))
        self._row_of = torch.from_numpy(row_of)

    @classmethod
    def from_table(cls, table: pa.Table, layer: str) -> ChannelWeights:
        """From solve rows (columns layer, class_id, w, and flag where there is one).

        Weights that are zero for want of images or of any signal are no fit. LookupError when the layer was not fitted.
        """
        table = table.select([name for name in ("layer", "class_id", "w", "flag") if name in table.column_names])
        rows = table.filter(pc.equal(table["layer"], layer))
        if rows.num_rows == 0:
            fitted = ", ".join(sorted(set(table["layer"].to_pylist()))) or "none"
            raise LookupError(
                f"no class has weights for layer {layer!r} (fitted: {fitted}): add it to the sweep's layers"
            )
        classes, weights = rows["class_id"].to_numpy(), np.array(rows["w"].to_pylist(), dtype=np.float64)
        if "flag" in rows.column_names:
            fit = ~np.isin(rows["flag"].to_pylist(), NO_FIT)
            classes, weights = classes[fit], weights[fit]
        return cls(classes.tolist(), weights)

    def of(self, targets: torch.Tensor) -> torch.Tensor:
        """[B, R] class ids -> [B, R, K]."""
        if self._rows.device != targets.device:
            self._rows, self._row_of = self._rows.to(targets.device), self._row_of.to(targets.device)
        return self._rows[self._row_of[targets.clamp(max=len(self._row_of) - 1)]]


class Chip:
    """The CHIP map of one layer, by default the last; signed, at the layer's resolution."""

    passes = (0.0, 0.0)

    def __init__(self, layer: str, weights: ChannelWeights) -> None:
        self.layer, self.weights = layer, weights
        self.layers: tuple[str, ...] = (layer,)

    @classmethod
    def layers_for(cls, layer: str | None, setting: Setting) -> tuple[str, ...]:
        return (setting.layer(layer),)

    @classmethod
    def build(cls, layer: str | None, setting: Setting) -> Chip:
        found = setting.layer(layer)
        return cls(found, ChannelWeights.from_table(setting.tables["solve"], found))

    def maps(self, query: Query) -> torch.Tensor:
        return chip_map(query.activation(self.layer), self.weights.of(query.targets))


class RefinedChip:
    """CHIP of the first layer x upsampled CHIP of the last, at the first layer's resolution.

    ``refined_chip:<layer>`` takes another layer for the first.
    """

    passes = (0.0, 0.0)

    def __init__(self, first: Chip, last: Chip, signed: bool) -> None:
        self.first, self.last, self.signed = first, last, signed
        self.layers: tuple[str, ...] = (first.layer, last.layer)

    @classmethod
    def layers_for(cls, layer: str | None, setting: Setting) -> tuple[str, ...]:
        if layer is None and len(setting.layers) < 2:
            raise ValueError(
                "refined_chip multiplies the maps of two layers: list two, for instance first_conv, last_conv"
            )
        return (setting.layers[0] if layer is None else layer, setting.layer(None))

    @classmethod
    def build(cls, layer: str | None, setting: Setting) -> RefinedChip:
        first, last = cls.layers_for(layer, setting)
        return cls(Chip.build(first, setting), Chip.build(last, setting), setting.signed)

    def maps(self, query: Query) -> torch.Tensor:
        return refined(self.first.maps(query), self.last.maps(query), signed=self.signed)


class GuidedChip:
    """Guided backpropagation x CHIP, in each pixel its largest colour channel, at the input's resolution."""

    passes = (1.0, 1.0)

    def __init__(self, chip: Chip, signed: bool) -> None:
        self.chip, self.signed = chip, signed
        self.layers: tuple[str, ...] = chip.layers

    @classmethod
    def layers_for(cls, layer: str | None, setting: Setting) -> tuple[str, ...]:
        return (setting.layer(layer),)

    @classmethod
    def build(cls, layer: str | None, setting: Setting) -> GuidedChip:
        return cls(Chip.build(layer, setting), setting.signed)

    def maps(self, query: Query) -> torch.Tensor:
        colours = guided(guided_gradient(query), self.chip.maps(query), signed=self.signed)
        return colours.gather(2, colours.abs().argmax(dim=2, keepdim=True)).squeeze(2)
