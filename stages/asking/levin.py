"""Colorization using optimization (Levin, Lischinski, Weiss 2004): neighbours of like lightness get like colours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

_LEAST, _SHARE, _FALL = 2e-6, 0.6, 0.01  # the authors' code: least variance, its share, least of the nearest's weights


@dataclass(frozen=True)
class Levin:
    """Every pixel without a hint is the mean of its 8 neighbours, weighted by how like their lightness is to its own.

    w_rs ~ exp(-(L_r - L_s)^2 / s_r), summing to 1, s_r 0.6 times the variance of the window of 3 x 3: constants as in
    the authors' code.
    """

    def __call__(self, light: NDArray[np.floating], known: NDArray[np.bool_], hints: NDArray[np.floating]) -> NDArray:
        """Lightness [H, W] in 0..1, where there are hints [H, W], and those [K, H, W] -> [K, H, W] float64.

        Without any hint nothing says what the colours are: 0.
        """
        if not known.any():
            return np.zeros(hints.shape)
        told = known.ravel()
        system = sparse.eye(light.size, format="csr") - sparse.diags((~told).astype(float)) @ weights(light)
        given = np.where(told, hints.reshape(len(hints), -1), 0.0).astype(np.float64)
        return splu(system.tocsc()).solve(given.T).T.reshape(hints.shape)


def weights(light: NDArray[np.floating]) -> sparse.csr_matrix:
    """w_rs of a picture of lightness [H, W]: [H W, H W], rows sum to 1, nothing on the diagonal."""
    height, width = light.shape
    values = np.pad(light.astype(np.float64), 1, constant_values=np.nan)
    number = np.pad(np.arange(light.size).reshape(height, width), 1, constant_values=-1)
    steps = [(dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1)]
    near = np.stack([values[dy : dy + height, dx : dx + width].ravel() for dy, dx in steps], 1)
    where = np.stack([number[dy : dy + height, dx : dx + width].ravel() for dy, dx in steps], 1)
    own = light.astype(np.float64).reshape(-1, 1)
    apart = (near - own) ** 2
    spread = _SHARE * np.nanvar(np.concatenate([near, own], 1), axis=1)
    # However far the nearest neighbour is, it keeps a weight: no pixel is cut off.
    spread = np.maximum(np.maximum(spread, -np.nanmin(apart, axis=1) / np.log(_FALL)), _LEAST)
    found = np.where(np.isnan(apart), 0.0, np.exp(-apart / spread[:, None]))
    found = found / found.sum(1, keepdims=True)
    rows = np.repeat(np.arange(light.size), len(steps)).reshape(where.shape)
    there = where >= 0
    return sparse.csr_matrix((found[there], (rows[there], where[there])), shape=(light.size, light.size))
