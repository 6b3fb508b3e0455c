"""ADMM for many classes at once: what a GPU is good at (on one CPU core the working sets of stages.chip.admm win)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from stages.chip.admm import Admm
from stages.chip.lasso import LADDER, RIDGE, Solution, least_squares, solve_path

_LOOSE, _CHECK, _MOST = 30, 30, 3000  # iterations on a rung, between two polishes, and at most on a lambda asked for


class GramProblem(Protocol):
    """What is read of a problem: b float64 [K] and the full G float64 [K, K]."""

    @property
    def gram(self) -> np.ndarray: ...

    @property
    def b(self) -> np.ndarray: ...


def batched_path(
    problems: Sequence[GramProblem],
    lambdas: Sequence[Sequence[float]],
    admm: Admm,
    tolerance: float,
    device: torch.device,
    batch: int = 0,
) -> list[list[Solution]]:
    """As lasso.solve_path for each problem, many at a time (``batch`` 0: as many as half of the free memory holds).

    All problems have the same K. Every solution is polished and meets ``tolerance`` on the KKT conditions; problems
    that do not get there within the iterations allowed are solved one by one instead.
    """
    solved: list[list[Solution]] = []
    if not batch:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 2**31
        batch = max(1, int(free * 0.5 / (6 * 8 * len(problems[0].b) ** 2)))
    for i in range(0, len(problems), batch):
        chunk = problems[i : i + batch]
        grid = np.array(lambdas[i : i + batch])
        solver = _Batch(chunk, admm, tolerance, device)
        columns = [solver.at(grid[:, j]) if grid[:, j].any() else None for j in range(grid.shape[1])]
        for row, problem in enumerate(chunk):
            path = [
                Solution(0.0, least_squares(problem.gram, problem.b), 0, False) if column is None else column[row]
                for column in columns
            ]
            if any(s is None for s in path):
                path = list(solve_path(problem.gram, problem.b, list(grid[row]), admm, tolerance))
            solved.append([s for s in path if s is not None])
    return solved


class _Batch:
    """The iterates of B problems: m, q [B, K], rho [B] and (G + rho I)^-1 [B, K, K]."""

    def __init__(self, problems: Sequence[GramProblem], admm: Admm, tolerance: float, device: torch.device) -> None:
        self.G = torch.stack([torch.from_numpy(p.gram) for p in problems]).to(device)
        self.b = torch.stack([torch.from_numpy(np.array(p.b)) for p in problems]).to(device)
        self.over, self.tolerance = admm.over_relaxation, tolerance
        self.scale = self.G.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-300)
        self.top = self.b.abs().amax(1)
        self.rel = 1.0  # where on the ladder the iterates stand
        self.rho = admm.rho_rel * self.scale
        self.m, self.q = torch.zeros_like(self.b), -self.b / self.rho[:, None]
        self.inverse = _inverse(self.G, self.rho)

    def at(self, lambdas: np.ndarray) -> list[Solution | None]:
        """The solutions at one lambda per problem, None where the iterations allowed did not do."""
        target = torch.from_numpy(lambdas).to(self.b)
        rel = float((target / self.top.clamp_min(1e-300)).max())
        while self.rel * LADDER > rel * 1.2:
            self.rel *= LADDER
            self._iterate(self.rel * self.top, _LOOSE)
        self.rel = rel
        w = torch.zeros_like(self.b)
        counts = np.zeros(len(w), np.int64)
        left = torch.arange(len(w), device=w.device)
        trivial = target >= self.top
        left = left[~trivial]
        for count in range(_CHECK, _MOST + 1, _CHECK):
            if not len(left):
                break
            self._iterate(target, _CHECK)
            exact, good = self._polish(left, target)
            w[left[good]] = exact[good]
            counts[left[good].cpu().numpy()] = count
            left = left[~good]
        failed, host = set(left.tolist()), w.cpu().numpy()
        polished = (~trivial).tolist()
        return [
            None if i in failed else Solution(float(lambdas[i]), host[i], int(counts[i]), polished[i])
            for i in range(len(host))
        ]

    def _iterate(self, lam: torch.Tensor, iterations: int) -> None:
        """Eqs. 16 to 20 with over-relaxation; at the end rho moves where the residuals lie apart."""
        rho = self.rho[:, None]
        threshold = lam[:, None] / rho
        before = w = self.m
        for _ in range(iterations):
            w = torch.bmm(self.inverse, (self.b + rho * (self.m + self.q))[:, :, None])[:, :, 0]
            relaxed = self.over * w + (1 - self.over) * self.m
            before = self.m
            v = relaxed - self.q
            self.m = v.sign() * (v.abs() - threshold).clamp_min(0)
            self.q = self.q - (relaxed - self.m)
        primal, dual = (w - self.m).abs().amax(1), (self.m - before).abs().amax(1)
        ratio = ((primal + 1e-300) / (dual + 1e-300)).sqrt().clamp(0.1, 10)
        moved = torch.nonzero((ratio < 0.3) | (ratio > 3))[:, 0]
        if len(moved):
            self.rho[moved] *= ratio[moved]
            self.q[moved] /= ratio[moved, None]
            self.inverse[moved] = _inverse(self.G[moved], self.rho[moved])

    def _polish(self, rows: torch.Tensor, lam: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Solve on the supports of ``rows``: (w, which of them keep their signs and meet the KKT conditions)."""
        G, b, lam = self.G[rows], self.b[rows], lam[rows, None]
        signs = self.m[rows].sign()
        on = signs.abs()
        square = G * on[:, :, None] * on[:, None, :]
        diagonal = square.diagonal(dim1=1, dim2=2)
        diagonal += torch.where(on > 0, RIDGE * self.scale[rows, None], self.scale[rows, None])
        factor, info = torch.linalg.cholesky_ex(square)
        w = torch.zeros_like(b)
        for _ in range(3):  # the first solve, and two refinements
            right = (b - torch.bmm(G, w[:, :, None])[:, :, 0] - lam * signs) * on
            w = w + torch.cholesky_solve(right[:, :, None], factor)[:, :, 0]
        c = b - torch.bmm(G, w[:, :, None])[:, :, 0]
        violation = torch.where(on > 0, (c - lam * signs).abs(), (c.abs() - lam).clamp_min(0)).amax(1)
        kept = ((w * signs > 0) | (on == 0)).all(1)
        return w, kept & (violation <= self.tolerance * lam[:, 0]) & (info == 0)


def _inverse(G: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
    shifted = G.clone()
    shifted.diagonal(dim1=1, dim2=2).add_(rho[:, None])
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))
