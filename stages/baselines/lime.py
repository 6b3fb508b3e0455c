"""LIME (Ribeiro, Singh, Guestrin 2016) on a regular grid: a weighted ridge fit of the probability to hidden cells.

Cells of a grid stand in for superpixels, so nothing but the grid decides what belongs together. All images of a batch
are fitted at once; one forward pass per sample serves every class asked.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

from stages.baselines.draws import generators
from stages.baselines.placement import AtImage
from stages.baselines.query import Query


class Lime(AtImage):
    """Coefficients of the grid's cells, signed, [B, R, grid, grid]; of the softmax probability, as in the paper.

    Each sample hides every cell with probability one half behind the mean colour (0 of the normalised input); the first
    sample hides none. Samples count sqrt(exp(-d^2 / width^2)), d the cosine distance to the whole image, as in the
    authors' image explainer; ``ridge`` is its penalty.
    """

    name = "lime"

    def __init__(self, *, grid: int = 8, samples: int = 256, width: float = 0.25, ridge: float = 1.0) -> None:
        if grid < 2 or samples < 2 or width <= 0 or ridge <= 0:
            raise ValueError(
                f"lime takes grid >= 2, samples >= 2, width > 0, ridge > 0; got {grid}, {samples}, {width}, {ridge}"
            )
        self.grid, self.samples, self.width, self.ridge = grid, samples, width, ridge
        self.passes = (float(samples), 0.0)

    def maps(self, query: Query) -> torch.Tensor:
        x, cells = query.x, self.grid**2
        draws = generators(query.seed, query.keys, self.name, len(x))
        shown = np.stack([draw.integers(0, 2, size=(self.samples, cells), dtype=np.int8) for draw in draws])
        shown[:, 0] = 1
        gates = torch.from_numpy(shown).to(x)  # [B, samples, cells]
        answers = []
        with torch.no_grad():
            for n in range(self.samples):
                mask = gates[:, n].view(len(x), 1, self.grid, self.grid)
                seen = x * interpolate(mask, size=x.shape[2:], mode="nearest-exact")
                answers.append(query.forward(seen).softmax(dim=1).gather(1, query.targets))
        fitted = weighted_ridge(gates.double(), torch.stack(answers, dim=1).double(), self.weights(gates), self.ridge)
        return fitted.transpose(1, 2).reshape(len(x), -1, self.grid, self.grid).to(x.dtype)

    def weights(self, gates: torch.Tensor) -> torch.Tensor:
        """[B, samples, cells] of 0 and 1 -> [B, samples]; a sample that shows nothing is at distance 1."""
        cosine = (gates.double().sum(dim=2) / gates.shape[2]).sqrt()  # of a 0/1 vector to the one of all ones
        return torch.exp(-((1 - cosine) ** 2) / self.width**2).sqrt()


def weighted_ridge(samples: torch.Tensor, answers: torch.Tensor, weights: torch.Tensor, penalty: float) -> torch.Tensor:
    """argmin_b sum_n w_n (y_n - b_0 - x_n b)^2 + penalty ||b||^2, without its free intercept b_0.

    ``samples`` [B, n, p], ``answers`` [B, n, R], ``weights`` [B, n] -> [B, p, R].
    """
    share = weights[..., None] / weights.sum(dim=1)[:, None, None]
    x = samples - (share * samples).sum(dim=1, keepdim=True)
    y = answers - (share * answers).sum(dim=1, keepdim=True)
    weighted = (weights[..., None] * x).transpose(1, 2)
    gram = weighted @ x
    gram = gram + penalty * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(gram, weighted @ y)
