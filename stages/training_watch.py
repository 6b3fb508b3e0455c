"""What is watched while training: a measure that chooses the best epoch, and may end the training."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from stages.training_schedule import TrainingConfig

Epoch = dict[str, float]


def best_epoch(history: Sequence[Epoch], config: TrainingConfig) -> int:
    """Index into ``history`` of the best epoch by ``config.monitor``; the earliest of equals."""
    values = [epoch[config.monitor or "loss"] for epoch in history]
    return values.index(min(values) if config.mode == "min" else max(values))


def is_stopped(history: Sequence[Epoch], config: TrainingConfig) -> bool:
    """Whether ``config.patience`` epochs have passed without a better one."""
    if not history or config.patience is None:
        return False
    return len(history) - 1 - best_epoch(history, config) >= config.patience


def learnt_epoch(history: Sequence[Epoch], config: TrainingConfig) -> dict[str, Any]:
    """Facts of a finished training: ``history``, and of the epoch whose weights it ends with, ``best_epoch`` (from 1)
    and ``metrics``."""
    best = best_epoch(history, config) if config.monitor else len(history) - 1
    return {"history": list(history), "best_epoch": best + 1, "metrics": history[best]}


def require_measure(config: TrainingConfig, metrics: Iterable[str]) -> None:
    """ValueError where the monitor is none of the ``metrics`` of the tune split, and not the loss."""
    known = tuple(metrics)
    if config.monitor not in (None, "loss", *known):
        raise ValueError(f"monitor {config.monitor!r} is not measured: it is loss or one of {', '.join(known)}")


def require_tune(config: TrainingConfig, metrics: Container[str], splits: Mapping[str, Any]) -> None:
    """ValueError where the monitor is measured on the tune split and there is none."""
    if "tune" not in splits and config.monitor in metrics:
        raise ValueError(f"monitor {config.monitor!r} is measured on the tune split: give one, or no monitor")
