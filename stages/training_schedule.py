"""How to train, and the learning rate that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    ``batch`` is over all workers together; the last rows of an epoch that do not fill a batch wait for the next
    shuffle. ``lr`` is the peak. ``warmup`` is the share of steps over which ``one_cycle`` rises to it (from lr/25, down
    to lr/1e4, both along a cosine). ``clip`` bounds the gradient's 2-norm. With ``monitor``, the weights of the best
    epoch are the result, and with ``patience`` training stops after so many epochs without a better one.
    """

    epochs: int = 10
    batch: int = 32
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    warmup: float = 0.3
    clip: float | None = None
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    channels_last: bool = True
    seed: int = 0
    monitor: str | None = None
    mode: Literal["min", "max"] = "min"
    patience: int | None = None
    checkpoint_every: int = field(default=1, metadata={"fingerprint": False})  # changes nothing that is learnt


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """The rate of one step: a function of its number, so a resumed training needs no scheduler state.

    ``one_cycle`` is torch's OneCycleLR (cosine, two phases) with its defaults div_factor 25, final_div_factor 1e4.
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
    turn = config.warmup * steps - 1
    low, final = config.lr / 25, config.lr / 25 / 1e4
    start, stop, part = low, config.lr, step / turn if turn > 0 else 1.0
    if part >= 1:
        start, stop, part = config.lr, final, (step - turn) / max(steps - 1 - turn, 1e-9)
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * part))
