"""The fast bilateral solver (Barron and Poole 2016): colours that are smooth on a grid of places and lightness."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

_ROUNDS = 10  # of making the grid's weights sum to 1, as in the authors' code
_UNKNOWN = 1e-6  # how much a pixel without a hint is held to grey: parts of the grid that no hint reaches need it


@dataclass(frozen=True)
class BilateralSolver:
    """min (strength / 2) sum W_ij (x_i - x_j)^2 + sum c_i (x_i - t_i)^2 over x = S^T y, on the simplified grid.

    ``place``: a cell's side in pixels; ``light``: its depth as a share of the lightness; ``strength``: lambda.
    """

    place: float = 4.0
    light: float = 1 / 32
    strength: float = 128.0

    def __post_init__(self) -> None:
        if min(self.place, self.light, self.strength) <= 0:
            raise ValueError(f"place, light and strength are above 0; got {self}")

    def __call__(self, light: NDArray[np.floating], known: NDArray[np.bool_], hints: NDArray[np.floating]) -> NDArray:
        """Lightness [H, W] in 0..1, where there are hints [H, W], and those [K, H, W] -> [K, H, W] float64.

        Without any hint nothing says what the colours are: 0.
        """
        if not known.any():
            return np.zeros(hints.shape)
        splat, blur = grid(light, self.place, self.light)
        scale, mass = bistochastic(splat, blur)
        smooth = sparse.diags(mass) - sparse.diags(scale) @ blur @ sparse.diags(scale)
        trust = np.where(known.ravel(), 1.0, _UNKNOWN)
        target = np.where(known, hints, 0.0).reshape(len(hints), -1).astype(np.float64)
        system = self.strength * smooth + sparse.diags(splat @ trust)
        found = splu(system.tocsc()).solve(splat @ (trust * target).T)
        return np.asarray((splat.T @ found).T).reshape(hints.shape)


def grid(light: NDArray[np.floating], place: float, depth: float) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """The cells that pixels fall into, and how cells touch.

    Returns S [cells, pixels] of 0 and 1, each pixel in one cell, and B [cells, cells]: 2 on the diagonal for each of
    the three axes, 1 between cells that are next to each other along one of them.
    """
    height, width = light.shape
    down, across = np.mgrid[:height, :width]
    at = np.stack([np.rint(down / place), np.rint(across / place), np.rint(light / depth)], -1)
    at = at.reshape(-1, 3).astype(np.int64) + 1
    sides = at.max(0) + 2
    code = (at[:, 0] * sides[1] + at[:, 1]) * sides[2] + at[:, 2]
    cells, of = np.unique(code, return_inverse=True)
    pixels = len(code)
    splat = sparse.csr_matrix((np.ones(pixels), (of.ravel(), np.arange(pixels))), shape=(len(cells), pixels))
    blur = 6.0 * sparse.eye(len(cells), format="csr")
    for stride in (sides[1] * sides[2], sides[2], 1):
        next_to = np.minimum(np.searchsorted(cells, cells + stride), len(cells) - 1)
        touching = np.flatnonzero(cells[next_to] == cells + stride)
        step = sparse.csr_matrix((np.ones(len(touching)), (touching, next_to[touching])), shape=blur.shape)
        blur = blur + step + step.T
    return splat, blur.tocsr()


def bistochastic(splat: sparse.csr_matrix, blur: sparse.csr_matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Dn and Dm [cells], with which rows of Dn B Dn sum to Dm: nothing is smoothed in a picture of one colour."""
    mass = np.asarray(splat.sum(1)).ravel()
    scale = np.ones(len(mass))
    for _ in range(_ROUNDS):
        scale = np.sqrt(scale * mass / (blur @ scale))
    return scale, scale * (blur @ scale)
