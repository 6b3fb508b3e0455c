"""A plain, resumable training loop: the same history whether it ran through or was killed and started again.

Everything random follows from (seed, epoch): the order of the rows, what augmentation draws for a row (with its key),
and PyTorch's own generators, which are seeded anew at each epoch, on each worker otherwise (dropout). The learning rate
is a function of the step. So the state to keep is small: weights, optimiser, scaler, history and the position. A
background thread makes the next two batches, so that the device does not wait for decoding; what is computed is the
same without it.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.training_ahead import AHEAD, ahead
from stages.training_data import Batch, Data, RowError, Subset, TensorData, gains_from_ahead, screen
from stages.training_device import autocast
from stages.training_draws import epoch_order, number, row_seeds, uniform
from stages.training_schedule import TrainingConfig, learning_rate
from stages.training_state import Checkpoints, State
from stages.training_watch import Epoch, best_epoch, is_stopped

__all__ = [
    "Checkpoints",
    "Data",
    "Progress",
    "RowError",
    "Subset",
    "TensorData",
    "TrainingConfig",
    "best_epoch",
    "epoch_order",
    "fit",
    "learning_rate",
    "row_seeds",
    "screen",
    "speaker",
    "uniform",
]

WITHIN_S = 2.0


@dataclass(frozen=True)
class Progress:
    """Where a training stands, for a progress line: not part of its result."""

    epoch: int  # from 1
    epochs: int
    metrics: Epoch
    seconds: float  # of this epoch


def fit(
    model: nn.Module,
    data: Data,
    config: TrainingConfig,
    checkpoints: Checkpoints | None = None,
    *,
    loss: Callable[[nn.Module, Batch], Tensor],
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    augment: Callable[[Batch, np.ndarray], Batch] | None = None,
    progress: Callable[[Progress], None] | None = None,
    within: Callable[[float], None] | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> list[Epoch]:
    """Trains ``model`` in place, from the newest checkpoint where there is one.

    Args:
        model: on ``device`` already; with ``world`` > 1 wrapped in DistributedDataParallel.
        loss: ``loss(model, batch)`` is the mean over the batch, a scalar.
        evaluate: called after each epoch with the bare model in eval mode, without gradients, on rank 0.
        augment: ``augment(batch, seeds)`` on the device; ``seeds`` is uint64 [rows], one per row from (seed, epoch,
            key), to be spent with ``uniform``; so a row is augmented alike in whatever batch it comes.
        progress, within: hear on rank 0 of each epoch, and every two seconds how many are done (3.25: a quarter of the
            fourth).
        checkpoints: rank 0 saves every ``checkpoint_every`` epochs and at the end; all ranks resume from the latest.
        rank, world: which share of each batch this process takes. Needs torch.distributed when ``world`` > 1. Another
            ``world`` rounds otherwise and draws other dropout; batch norm must be synchronised to be that of the batch.

    Returns:
        One dict per epoch: ``epoch`` (from 1), ``loss`` (mean over its steps), ``lr`` (of its last step) and what
        ``evaluate`` said.

    Raises:
        ValueError: a checkpoint of another config, model or rows, too few rows, an unknown monitor; RowError (one, too)
            where ``data`` meets a row that it cannot read: ``screen`` finds such rows, and ``Subset`` leaves them out.
        FloatingPointError: the loss is no longer finite.
    """
    _check(config, data, evaluate is not None, world)
    device = torch.device(device)
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(bare, config)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    steps = len(data) // config.batch
    depth = AHEAD if gains_from_ahead(data, device.type == "cuda") else 0
    made_with = {} if checkpoints is None else _made_with(config, data)
    state = _resume(checkpoints, bare, optimizer, scaler, made_with)
    history: list[Epoch] = state.meta["history"]
    spoke = time.perf_counter()

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        for epoch in range(len(history), config.epochs):
            if is_stopped(history, config):
                break
            began = time.perf_counter()
            torch.manual_seed(number(config.seed, "torch", epoch, rank) % 2**63)
            model.train()
            total = torch.zeros((), device=device)
            order = epoch_order(len(data), config.seed, epoch)
            rows = [order[i * config.batch : (i + 1) * config.batch][rank::world] for i in range(steps)]
            prepare = partial(_prepared, data, config.seed, epoch, augment is not None, device.type == "cuda")
            with ahead(prepare, rows, depth) as batches:
                for step, (batch, seeds) in enumerate(batches):
                    rate = learning_rate(epoch * steps + step, config.epochs * steps, config)
                    for group in optimizer.param_groups:
                        group["lr"] = rate
                    batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
                    if augment is not None:
                        batch = augment(batch, seeds)
                    total += _step(model, batch, loss, optimizer, scaler, config, device)
                    if within is not None and rank == 0 and time.perf_counter() - spoke >= WITHIN_S:
                        spoke = time.perf_counter()
                        within(epoch + (step + 1) / steps)
            metrics = {"epoch": epoch + 1, "loss": _mean_over_workers(total / steps, world), "lr": rate}
            if not math.isfinite(metrics["loss"]):
                raise FloatingPointError(
                    f"the loss is {metrics['loss']} in epoch {epoch + 1}: lower lr (now {config.lr}) or set clip"
                )
            metrics |= _evaluated(bare, evaluate, rank, world)
            history.append(metrics)
            if config.monitor and best_epoch(history, config) == epoch:
                state.keep_best(bare)
            last = epoch + 1 == config.epochs or is_stopped(history, config)
            if checkpoints is not None and rank == 0 and (last or (epoch + 1) % config.checkpoint_every == 0):
                state.take(bare, optimizer, scaler, made_with, history)
                checkpoints.save(epoch + 1, state.to_files())
            if progress is not None and rank == 0:
                progress(Progress(epoch + 1, config.epochs, metrics, time.perf_counter() - began))
    if config.monitor:
        state.restore_best(bare)
    bare.eval()
    return history


def speaker(log: Callable[[str], None] | None, rank: int) -> Callable[[str], None]:
    """``log`` on rank 0; elsewhere, or where there is none, nothing is said."""
    return log if log is not None and rank == 0 else lambda _: None


def _prepared(
    data: Data, seed: int, epoch: int, augmented: bool, pinned: bool, rows: np.ndarray
) -> tuple[Batch, np.ndarray]:
    """A batch, and what augmentation may draw from for its rows; in pinned memory for a GPU to copy from."""
    batch = data.batch(rows)
    if pinned:
        batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    seeds = row_seeds(seed, epoch, data.keys(rows)) if augmented else np.zeros(0, np.uint64)
    return batch, seeds


def _step(
    model: nn.Module,
    batch: Batch,
    loss: Callable[[nn.Module, Batch], Tensor],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    config: TrainingConfig,
    device: torch.device,
) -> Tensor:
    with autocast(config.precision, device):
        value = loss(model, batch)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(value).backward()
    if config.clip is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), config.clip)
    scaler.step(optimizer)
    scaler.update()
    return value.detach().float()


def _optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    # Norms and biases are not decayed: shrinking them towards 0 has no meaning.
    learnt = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learnt if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def _made_with(config: TrainingConfig, data: Data) -> dict[str, Any]:
    """What a checkpoint is worth nothing without: the settings, and which rows in which order."""
    named = [f.name for f in fields(config) if f.metadata.get("fingerprint", True)]
    keys = hashlib.sha256()
    for key in data.keys(np.arange(len(data))):
        keys.update(key.encode() + b"\0")
    return {
        "config": {name: value for name, value in asdict(config).items() if name in named},
        "rows": len(data),
        "keys": keys.hexdigest(),
    }


def _resume(
    checkpoints: Checkpoints | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    made_with: Mapping[str, Any],
) -> State:
    found = checkpoints.latest() if checkpoints is not None else None
    if found is None:
        return State({}, {"history": []})
    state = State.from_files(found[1])
    then, now = state.meta["config"], made_with["config"]
    changed = [f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in then | now if then.get(k) != now.get(k)]
    if changed:
        raise ValueError(
            f"the checkpoint of epoch {found[0]} was made with another config ({'; '.join(changed)}): "
            "set the fields back, or train into another folder"
        )
    if state.meta["keys"] != made_with["keys"]:  # an epoch is an order of all rows: none of them may come or go
        raise ValueError(
            f"the checkpoint of epoch {found[0]} was made on other rows ({state.meta['rows']} then, "
            f"{made_with['rows']} now, or others among them): bring them back, or train into another folder"
        )
    state.give(model, optimizer, scaler)
    return state


def _mean_over_workers(value: Tensor, world: int) -> float:
    if world > 1:
        torch.distributed.all_reduce(value)
    return float(value) / world


def _evaluated(
    model: nn.Module, evaluate: Callable[[nn.Module], Mapping[str, float]] | None, rank: int, world: int
) -> Epoch:
    if evaluate is None:
        return {}
    told: list[Epoch] = [{}]
    if rank == 0:
        model.eval()
        with torch.no_grad():
            told = [{name: float(value) for name, value in evaluate(model).items()}]
    if world > 1:  # one answer for all, or early stopping could part the workers
        torch.distributed.broadcast_object_list(told, src=0)
    return told[0]


def _check(config: TrainingConfig, data: Data, evaluated: bool, world: int) -> None:
    if config.batch % world:
        raise ValueError(f"batch {config.batch} does not divide among {world} workers: use a multiple of {world}")
    if len(data) < config.batch:
        raise ValueError(f"{len(data)} rows do not fill one batch of {config.batch}: lower batch or add rows")
    if config.patience is not None and config.monitor is None:
        raise ValueError("patience needs a monitor: name the metric to watch, e.g. monitor='loss'")
    if config.monitor not in (None, "loss") and not evaluated:
        raise ValueError(f"monitor {config.monitor!r} comes from evaluate, and there is none: pass evaluate=")
