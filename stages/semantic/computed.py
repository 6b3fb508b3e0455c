"""The features of a frozen backbone, computed once: what its heads are then trained on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stages.semantic.network import TwoLevelNetwork
from stages.training import row_seeds
from stages.training_ahead import ahead
from stages.training_augment import vary, whole
from stages.training_data import Data, TensorData
from stages.training_device import autocast

if TYPE_CHECKING:
    from stages.semantic.train import TwoLevelTraining

HELD = 16 << 30  # bytes of float32 features that one process may hold


def require_room(
    data: Mapping[str, Data], views: int, width: int, say: Callable[[str], None], held: int = HELD
) -> None:
    """Says how large the features will be; ValueError where that is more than ``held`` bytes."""
    rows = {split: len(found) * views_of(split, views) for split, found in data.items()}
    size = 4 * width * sum(rows.values())
    told = f"{sum(rows.values()):,} rows of {width:,} features, {size / 1e9:.1f} GB in memory"
    if size > held:
        raise ValueError(f"{told}, and at most {held / 1e9:.1f} GB are held: lower views, or train without freeze")
    say(told)


def views_of(split: str, views: int) -> int:
    """Only what is trained on is shown in several forms."""
    return views if split == "train" else 1


@torch.no_grad()
def computed(
    network: TwoLevelNetwork,
    split: str,
    data: Data,
    config: TwoLevelTraining,
    device: torch.device,
    say: Callable[[str], None],
) -> TensorData:
    """The features of all rows, view by view; their keys name the view."""
    began, views, total = time.perf_counter(), views_of(split, config.views), len(data)
    network.eval()
    network.features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = torch.empty(
        views, total, network.width
    )  # as one piece from the start: joining parts would hold them twice
    labels: dict[str, Tensor] = {}
    keys: list[str] = []
    slices = [np.arange(at, min(at + config.evaluate_batch, total)) for at in range(0, total, config.evaluate_batch)]
    with ahead(data.batch, slices) as batches:
        for rows, batch in zip(slices, batches, strict=True):
            here, named = slice(int(rows[0]), int(rows[-1]) + 1), list(data.keys(rows))
            keys += named
            for name in ("fine", "coarse"):
                label = batch[name]
                labels.setdefault(name, label.new_empty((total, *label.shape[1:])))[here] = label
            image = batch["image"].to(device)
            for view in range(views):
                shown = whole(image, config.preprocess.size)
                if view and config.augment is not None:
                    seeds = row_seeds(config.training.seed, view, named)
                    shown = vary(image, seeds, config.augment, config.preprocess.size)
                pixels = config.preprocess.normalise(shown).contiguous(memory_format=torch.channels_last)
                with autocast(config.training.precision, device):
                    features[view, here] = network.features(pixels).float().cpu()
    seconds = time.perf_counter() - began
    say(f"features of {total} images of {split} x {views} ({seconds:.1f} s)")
    names = [f"{key}#{view}" for view in range(views) for key in keys]
    repeated = {name: label.repeat(views, *[1] * (label.ndim - 1)) for name, label in labels.items()}
    return TensorData(names, features=features.view(views * total, network.width), **repeated)
