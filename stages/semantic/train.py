"""Training the two-level network: the whole of it, or its heads on features that are computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from stages.preprocess import Preprocess
from stages.semantic.computed import computed, require_room
from stages.semantic.judge import Tally
from stages.semantic.losses import NO_LABEL
from stages.semantic.network import Heads, Outputs, TwoLevelConfig, TwoLevelNetwork, image_loss, new_network
from stages.semantic.rules import rules_for
from stages.training import Progress, TrainingConfig, fit, speaker
from stages.training_ahead import AHEAD, ahead
from stages.training_augment import AugmentConfig, crop_frame, vary, whole
from stages.training_data import Batch, Data, gains_from_ahead, readable, slices
from stages.training_device import autocast, tuned
from stages.training_state import Checkpoints
from stages.training_watch import learnt_epoch, require_measure, require_tune

RECIPE = TrainingConfig(
    epochs=20, batch=64, optimizer="adamw", lr=1e-3, weight_decay=1e-4, warmup=0.1, clip=5.0, schedule="one_cycle"
)
METRICS = ("tune_loss", "coarse_accuracy", "fine_exact", "ia")


@dataclass(frozen=True)
class TwoLevelTraining:
    """All that a training's result depends on, beside its data and its backbone.

    ``augment`` None trains on the plain images. A frozen backbone sees each training image in ``views`` fixed forms:
    the first is the plain image, the others are augmented once and for all. ``skip_unreadable`` leaves rows out that
    cannot be read, and lists them; without it the first such row ends the training.
    """

    model: TwoLevelConfig
    training: TrainingConfig = RECIPE
    preprocess: Preprocess = field(default_factory=Preprocess)
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    views: int = 1
    skip_unreadable: bool = False
    evaluate_batch: int = field(default=64, metadata={"fingerprint": False})

    def __post_init__(self) -> None:
        if self.views < 1 or (self.views > 1 and (self.augment is None or not self.model.freeze)):
            raise ValueError(f"views {self.views}: more than 1 needs a frozen backbone and augment")
        require_measure(self.training, METRICS)

    @property
    def judged_by(self) -> tuple[str, ...]:
        """The rule of the loss judges the fine sets of the tune split, with the protocol's numbers: what is learnt does
        not depend on the thresholds that a user tries afterwards."""
        return rules_for(self.model.loss, self.model.coarse_only)[:1]

    @property
    def varied(self) -> bool:
        """Are training images augmented at all?"""
        return self.augment is not None and (not self.model.freeze or self.views > 1)

    @property
    def train_frame(self) -> Preprocess:
        """How training images are best held: 8/7 of the input's size where crops are taken from them."""
        return crop_frame(self.preprocess) if self.varied else self.preprocess


def train_two_level(
    backbone: nn.Module,
    data: Mapping[str, Data],
    config: TwoLevelTraining,
    checkpoints: Checkpoints | None = None,
    *,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
    log: Callable[[str], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
    within: Callable[[float], None] | None = None,
    unreadable: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Trains on ``data["train"]``, watches ``data["tune"]`` where there is one; goes on from ``checkpoints``.

    Args:
        backbone: a classifier in eval mode; a copy of it is trained.
        data: batches of ``image`` uint8 [B, 3, h, w] (train: as `TwoLevelTraining.train_frame` makes them; tune: at
            the input's size), ``fine`` multi-hot [B, F] and ``coarse`` int64 [B] (-1: none).
        log: hears of the features and of what is left out. progress, within: see ``fit``. All on rank 0 only.
        unreadable: {split: {key: reason}}, if it is known which rows cannot be read; else ``skip_unreadable`` reads
            all of them to find out. Several workers need it: they must not find different ones.
        wrap: puts the network on the device and, with ``world`` > 1, into DistributedDataParallel.

    Returns:
        The files of the trained network, and facts: model, preprocess, features, history, best_epoch, metrics (of the
        best epoch), rows, unreadable, rules.

    Raises:
        ValueError: too few rows, a row that cannot be read, a monitor without a tune split, and what ``fit`` raises.
    """
    device = torch.device(device)
    say = speaker(log, rank)
    data, left_out = readable(data, unreadable, skip=config.skip_unreadable, world=world, say=say)
    require_tune(config.training, METRICS, data)
    if "tune" in data:
        _require_labels(data["tune"], config.evaluate_batch)
    network = new_network(backbone, config.model, config.preprocess.size, config.training.seed).to(device)
    say(f"features: {network.described['layer']} ({network.described['width']}), {network.described['why']}")
    counted = {split: len(rows) for split, rows in data.items()}
    learner: nn.Module = network
    forward: Callable[[nn.Module, Batch], Outputs] = partial(_from_pixels, config.preprocess)
    augment: Callable[[Batch, np.ndarray], Batch] | None = partial(_augmented, config)
    with tuned(device):
        if config.model.freeze:
            require_room(data, config.views, network.width, say)
            data = {split: computed(network, split, rows, config, device, say) for split, rows in data.items()}
            learner, forward, augment = network.heads, _from_features, None
        if config.training.channels_last:  # before it is wrapped: DistributedDataParallel keeps the layout it meets
            learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        tune = data.get("tune")
        history = fit(
            wrap(learner) if wrap is not None else learner,
            data["train"],
            config.training,
            checkpoints,
            loss=lambda model, batch: image_loss(forward(model, batch), batch, config.model).mean(),
            evaluate=None if tune is None else lambda model: measure(model, tune, config, forward, device),
            augment=augment,
            progress=progress,
            within=within,
            device=device,
            rank=rank,
            world=world,
        )
    facts = {
        "model": asdict(config.model),
        "preprocess": asdict(config.preprocess),
        "features": network.described,
        **learnt_epoch(history, config.training),
        "rows": counted,
        "unreadable": left_out,
        "rules": list(config.judged_by),
    }
    return network.to_files(), facts


@torch.no_grad()
def measure(
    model: nn.Module,
    data: Data,
    config: TwoLevelTraining,
    forward: Callable[[nn.Module, Batch], Outputs],
    device: torch.device,
) -> dict[str, float]:
    """Mean loss, and the shares of images right: coarse class, fine set, both (``ia``)."""
    tally = Tally(config.judged_by)
    total = torch.zeros((), dtype=torch.float64, device=device)
    depth = AHEAD if gains_from_ahead(data, device.type == "cuda") else 0
    with ahead(data.batch, slices(len(data), config.evaluate_batch), depth) as batches:
        for batch in batches:
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast(config.training.precision, device):
                outputs = forward(model, batch)
            total += image_loss(outputs, batch, config.model).double().sum()
            heads = model if isinstance(model, Heads) else cast(TwoLevelNetwork, model).heads
            scores = None if outputs.fine is None else heads.scores(outputs.fine).cpu().numpy()
            tally.add(scores, outputs.coarse.float().cpu().numpy(), batch["fine"].cpu(), batch["coarse"].cpu())
    return {"tune_loss": float(total) / max(1, len(data)), **tally.shares()}


def _from_pixels(preprocess: Preprocess, model: nn.Module, batch: Batch) -> Outputs:
    pixels = preprocess.normalise(batch["image"])
    return model(pixels.contiguous(memory_format=torch.channels_last))


def _from_features(model: nn.Module, batch: Batch) -> Outputs:
    return model(batch["features"])


def _augmented(config: TwoLevelTraining, batch: Batch, seeds: np.ndarray) -> Batch:
    size, image = config.preprocess.size, batch["image"]
    return batch | {"image": whole(image, size) if config.augment is None else vary(image, seeds, config.augment, size)}


def _require_labels(data: Data, batch: int) -> None:
    """ValueError where nothing can be judged; reads up to the first image with a coarse label."""
    if not any(bool((data.batch(rows)["coarse"] != NO_LABEL).any()) for rows in slices(len(data), batch)):
        raise ValueError("no image of the tune split has a coarse label, so nothing can be judged: give labelled ones")
