"""ADMM for CHIP's fit: the paper's iteration on a working set, and its plain form.

CHIP, eqs. 16 to 20: w = (b + rho (m + q)) (G + rho I)^-1; m = soft(w - q, lambda / rho); q = q - (w - m).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.chip.lasso import polish, violations

_CHECK = 10  # iterations between two looks at the residuals


@dataclass(frozen=True)
class Admm:
    """A solver for the problem on a working set: call it with (H, b, lambda, w, ridge, tolerance).

    rho starts at ``rho_rel`` x trace(H)/size and is moved where primal and dual residual lie apart. With ``polish`` the
    support and signs that the iteration settled on are solved for exactly; the result then counts only if it meets the
    tolerance on the KKT conditions. ``over_relaxation`` lies in [1, 2).
    """

    rho_rel: float = 0.1
    over_relaxation: float = 1.6
    polish: bool = True
    most: int = 20_000

    def __call__(
        self, H: np.ndarray, b: np.ndarray, lam: float, w: np.ndarray, ridge: float, tolerance: float
    ) -> tuple[np.ndarray, int, bool]:
        n = len(b)
        if not n:
            return w, 0, False
        allowed = tolerance * (lam if lam > 0 else float(np.abs(b).max()))
        rho = self.rho_rel * max(float(np.trace(H)) / n, ridge)
        m, q = w.copy(), (H @ w - b) / rho
        step = 0
        inverse = _inverse(H, rho)
        tried = np.zeros(0)
        for step in range(1, self.most + 1):
            w = inverse @ (b + rho * (m + q))
            relaxed = self.over_relaxation * w + (1 - self.over_relaxation) * m
            before = m
            v = relaxed - q
            m = np.sign(v) * np.maximum(np.abs(v) - lam / rho, 0)
            q = q - (relaxed - m)
            if step % _CHECK:
                continue
            signs = np.sign(m)
            if self.polish and not np.array_equal(signs, tried):
                tried = signs
                exact = polish(H, b, lam, m, ridge)
                if exact is not None and float(violations(b - H @ exact, lam, exact).max()) <= allowed:
                    return exact, step, True
            primal, dual = float(np.abs(w - m).max()), rho * float(np.abs(m - before).max())
            if dual <= allowed and float(violations(b - H @ m, lam, m).max()) <= allowed:
                break
            # Both residuals in the units of the problem: the primal one moves the gradient by rho times itself.
            ratio = np.sqrt((rho * primal + 1e-300) / (dual + 1e-300))
            if step % (2 * _CHECK) == 0 and not 0.3 < ratio < 3:
                factor = float(np.clip(ratio, 0.1, 10))
                rho, q = rho * factor, q / factor
                inverse = _inverse(H, rho)
        return m, step, False


def _inverse(H: np.ndarray, rho: float) -> np.ndarray:
    shifted = H.copy()
    shifted.flat[:: len(H) + 1] += rho
    return np.linalg.inv(shifted)


def plain_admm(G: np.ndarray, b: np.ndarray, lam: float, rho: float, iterations: int) -> np.ndarray:
    """The paper's iteration as printed, rho fixed, from zero: the slow reference of the tests. Returns m."""
    inverse = np.linalg.inv(G + rho * np.eye(len(b)))
    m, q = np.zeros_like(b), np.zeros_like(b)
    for _ in range(iterations):
        w = (b + rho * (m + q)) @ inverse
        m = np.sign(w - q) * np.maximum(np.abs(w - q) - lam / rho, 0)
        q = q - (w - m)
    return m
