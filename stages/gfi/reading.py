"""Masks from rows: at full resolution they are a hundred times larger, so they are made when they are looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stages.gfi.mask import enlarge


def full_mask(row: Mapping[str, Any], target: int = 0) -> NDArray[np.float32]:
    """The mask [H, W] of a row's ``target``-th class over the network's input (the crop, where there was one).

    From the stored float16 mask, so good to about 5e-4 of its range. IndexError where the row has no such target.
    """
    height, width = row["mask_shape"]
    stored = np.asarray(row["mask"], dtype=np.float32).reshape(-1, height, width)
    if not -len(stored) <= target < len(stored):
        raise IndexError(f"the row explains {len(stored)} class(es), there is no number {target}")
    low = torch.from_numpy(stored[target][None].copy())
    size = (int(row["input_shape"][0]), int(row["input_shape"][1]))
    return enlarge(low, size, row["upsampling"])[0, 0].numpy()


def weights(row: Mapping[str, Any], target: int = 0) -> NDArray[np.float32]:
    """The channel weights [K] of a row's ``target``-th class."""
    counts = list(row["w_count"])
    first = sum(counts[:target])
    out = np.zeros(int(row["channels"]), dtype=np.float32)
    chosen = slice(first, first + counts[target])
    out[np.asarray(row["w_index"], dtype=np.int64)[chosen]] = np.asarray(row["w_value"], dtype=np.float32)[chosen]
    return out
