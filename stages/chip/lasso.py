"""What the solvers of CHIP's fit share: certificates, the lambda ladder, screening to a working set, the polish.

The problem of one class: minimise P(w) = gg/2 - b'w + w'Gw/2 + lambda ||w||_1, with G = sum h f z z' (K x K, positive
semi-definite, possibly singular), b = sum h f g z and gg = sum h f g^2 (stages.chip.statistics). All arrays float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RIDGE = 1e-13  # of trace/K: keeps a singular support's factor finite; refinement steps take its bias out again
LADDER = 0.5  # lambda falls by this factor from rung to rung
_KEEP = 0.8  # a rung starts with the channels whose correlation reaches this share of its lambda


@dataclass(frozen=True)
class Certificate:
    """How good a ``w`` is, computed from (G, b, gg, lambda) alone, whichever way ``w`` was found.

    ``kkt``: the largest violation of the optimality conditions, |c_k - lambda sign w_k| where w_k != 0 and
    max(|c_k| - lambda, 0) elsewhere with c = b - Gw, divided by lambda (by max|b| where lambda = 0).
    ``gap``: the duality gap divided by the objective; the dual point is the residual scaled until it is feasible.
    """

    objective: float
    kkt: float
    gap: float


def certify(G: np.ndarray, b: np.ndarray, gg: float, lam: float, w: np.ndarray) -> Certificate:
    """O(K^2). The gap is formed without cancellation: (1-s)^2 ||r||^2 / 2 + lambda ||w||_1 - s c'w."""
    Gw = G @ w
    c = b - Gw
    top = float(np.abs(c).max(initial=0.0))
    violation = float(violations(c, lam, w).max(initial=0.0))
    residual = max(gg - 2 * float(b @ w) + float(w @ Gw), 0.0)
    penalty, along = lam * float(np.abs(w).sum()), float(c @ w)
    objective = residual / 2 + penalty
    scale = lam if lam > 0 else float(np.abs(b).max(initial=0.0))
    if lam > 0:
        s = min(1.0, lam / top) if top > 0 else 1.0
        gap = (1 - s) ** 2 * residual / 2 + penalty - s * along
    else:
        gap = abs(along)  # only a zero gradient is dual feasible: complementarity stands in for the gap
    return Certificate(objective, _ratio(violation, scale), _ratio(max(gap, 0.0), objective))


def violations(c: np.ndarray, lam: float, w: np.ndarray) -> np.ndarray:
    """How far each coordinate is from optimal, in the units of b: c = b - Gw."""
    return np.where(w != 0, np.abs(c - lam * np.sign(w)), np.maximum(np.abs(c) - lam, 0))


def _ratio(value: float, scale: float) -> float:
    return value / scale if scale > 0 else (0.0 if value == 0 else float("inf"))


def newton_step(H: np.ndarray, ridge: float, right: np.ndarray) -> np.ndarray:
    """(H + ridge I)^-1 right for a symmetric H [s, s]; H is overwritten."""
    H.flat[:: len(H) + 1] += ridge
    return np.linalg.solve(H, right)


def polish(H: np.ndarray, b: np.ndarray, lam: float, w: np.ndarray, ridge: float) -> np.ndarray | None:
    """The minimiser on ``w``'s support and signs, as OSQP polishes: solve G_SS w_S = b_S - lambda sign(w_S).

    None where the solution leaves the signs, so that ``w``'s support is not the optimal one.
    """
    support = np.flatnonzero(w)
    signs = np.sign(w[support])
    square = H[np.ix_(support, support)]
    right = b[support] - lam * signs
    solution = newton_step(square.copy(), ridge, right)
    solution += newton_step(square.copy(), ridge, right - square @ solution)
    if np.any(solution * signs <= 0):
        return None
    polished = np.zeros_like(w)
    polished[support] = solution
    return polished


def least_squares(G: np.ndarray, b: np.ndarray) -> np.ndarray:
    """lambda = 0: G^-1 b, and for a singular G the shortest of the minimisers."""
    full, alive = np.zeros(len(b)), np.flatnonzero(G.diagonal() > 0)
    if not len(alive):
        return full
    G, b = G[np.ix_(alive, alive)], b[alive]
    values, vectors = np.linalg.eigh(G)
    kept = values > 1e-12 * float(values[-1])
    basis, inverse = vectors[:, kept], 1 / values[kept]
    w = basis @ (inverse * (b @ basis))
    full[alive] = w + basis @ (inverse * ((b - G @ w) @ basis))  # once refined
    return full


Inner = Callable[[np.ndarray, np.ndarray, float, np.ndarray, float, float], tuple[np.ndarray, int, bool]]
"""(H, b, lambda, w, ridge, tolerance) -> (w, iterations, polished) for a working set; tolerance x lambda bounds the KKT
violation."""


@dataclass(frozen=True)
class Solution:
    """``w`` [K] at ``lam``; ``iterations`` since the lambda before; ``polished`` as the inner solver says."""

    lam: float
    w: np.ndarray
    iterations: int
    polished: bool


def solve_path(
    G: np.ndarray,
    b: np.ndarray,
    lambdas: Sequence[float],
    inner: Inner,
    tolerance: float,
) -> Iterator[Solution]:
    """One solution for each of some falling lambdas, each started from the one before.

    Between two lambdas that lie far apart stand rungs solved loosely (continuation). Each rung works on few channels:
    the support and those that nearly correlate enough. A lambda asked for is checked over all K channels, and channels
    that violate the optimality conditions join until none does.
    """
    w, c = np.zeros(len(b)), b.copy()
    ridge = RIDGE * max(float(np.trace(G)) / max(len(b), 1), np.finfo(float).tiny)
    top = lam = float(np.abs(b).max(initial=0.0))
    for target in lambdas:
        if target >= top:
            yield Solution(target, np.zeros(len(b)), 0, False)
            continue
        if target <= 0:
            yield Solution(0.0, least_squares(G, b), 0, False)
            continue
        total = 0
        while lam * LADDER > target * 1.2:
            lam *= LADDER
            work = np.flatnonzero((w != 0) | (np.abs(c) >= _KEEP * lam))
            rows = G[work]
            w[work], count, _ = inner(rows[:, work], b[work], lam, w[work], ridge, 1e-2)
            c = b - w[work] @ rows
            total += count
        lam = target
        chosen = (w != 0) | (np.abs(c) >= _KEEP * lam)
        while True:
            work = np.flatnonzero(chosen)
            rows = G[work]
            w[work], count, polished = inner(rows[:, work], b[work], lam, w[work], ridge, tolerance)
            c = b - w[work] @ rows
            total += count
            joining = (np.abs(c) > lam * (1 + tolerance)) & ~chosen
            if not joining.any():
                break
            chosen |= joining
        yield Solution(lam, w.copy(), total, polished)
