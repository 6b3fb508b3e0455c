"""Active-set Newton for the lasso in Gram form: guess the support and the signs, solve, correct the guess."""

from __future__ import annotations

import numpy as np

from stages.chip.lasso import newton_step

_GUESSES = 30  # semismooth steps before the slower descent takes over: they converge in a few or cycle


def newton(
    H: np.ndarray, b: np.ndarray, lam: float, w: np.ndarray, ridge: float, tolerance: float
) -> tuple[np.ndarray, int, bool]:
    """Minimise w'Hw/2 - b'w + lambda ||w||_1 from ``w``: (w, iterations, False); KKT violation / lambda <= tolerance.

    Semismooth Newton (primal-dual active set: Hintermueller, Ito, Kunisch 2003): solve on the supposed support with the
    supposed signs, drop what came out with the wrong sign, take in what violates |b - Hw| <= lambda. Where it cycles,
    a descent with exact line search along the piecewise quadratic takes over (feature-sign search: Lee et al. 2007).
    """
    allowed = tolerance * (lam if lam > 0 else float(np.abs(b).max(initial=0.0)))
    signs = np.sign(w)
    c = b - H @ w
    grow = (signs == 0) & (np.abs(c) > lam + allowed)
    signs[grow] = np.sign(c[grow])
    for step in range(1, _GUESSES + 1):
        active = np.flatnonzero(signs)
        s = signs[active]
        values = newton_step(H[np.ix_(active, active)], ridge, b[active] - lam * s)
        trial = np.zeros_like(w)
        trial[active] = values
        c = b - H @ trial
        kept = values * s > 0
        grow = np.abs(c) > lam + allowed
        grow[active] = False
        if kept.all() and not grow.any():
            off = c[active] - lam * s
            if np.abs(off).max(initial=0.0) > allowed:  # the ridge's bias, or a badly conditioned support
                trial[active] += newton_step(H[np.ix_(active, active)], ridge, off)
                c = b - H @ trial
                off = c[active] - lam * s
                grow = np.abs(c) > lam + allowed
                grow[active] = False
                if np.abs(off).max(initial=0.0) > allowed or grow.any() or np.any(trial[active] * s <= 0):
                    break
            return trial, step, False
        signs[active[~kept]] = 0
        signs[grow] = np.sign(c[grow])
    w, more = descend(H, b, lam, w, ridge, allowed)
    return w, _GUESSES + more, False


def descend(
    H: np.ndarray, b: np.ndarray, lam: float, w: np.ndarray, ridge: float, allowed: float
) -> tuple[np.ndarray, int]:
    """Feature-sign search: (w, iterations). Every step lowers the objective, so no support and signs come twice."""
    w, signs = w.copy(), np.sign(w)
    full_steps = 0  # in a row: after two, what is left of the gradient is rounding
    steps = 0
    for steps in range(1, 100 + 20 * len(b)):  # noqa: B007
        c = b - H @ w
        active = np.flatnonzero(signs)
        off = c[active] - lam * signs[active]
        if np.abs(off).max(initial=0.0) <= allowed or full_steps >= 2:
            outside = np.where(signs == 0, np.abs(c) - lam, -np.inf)
            worst = int(outside.argmax())
            if outside[worst] <= allowed:
                break
            signs[worst] = np.sign(c[worst])
            full_steps = 0
            continue
        square = H[np.ix_(active, active)]
        d = newton_step(square.copy(), ridge, off)
        t, zero = _line_minimum(float(d @ square @ d), c[active], lam, w[active], d)
        w[active] += t * d
        if zero is not None:
            w[active[zero]] = 0.0
        before, signs = signs, np.sign(w)
        full_steps = full_steps + 1 if np.array_equal(before, signs) else 0
    return w, steps


def _line_minimum(
    curvature: float, c: np.ndarray, lam: float, w: np.ndarray, d: np.ndarray
) -> tuple[float, int | None]:
    """The minimiser t >= 0 of the objective along w + t d, and the coordinate that is zero there, if one is.

    Each coordinate that changes its sign at t_i adds 2 lambda |d_i| to the slope.
    """
    slope = float(-c @ d) + lam * float(np.where(w != 0, np.sign(w) * d, np.abs(d)).sum())
    crossing = np.flatnonzero(w * d < 0)
    times = -w[crossing] / d[crossing]
    for i in np.argsort(times, kind="stable"):
        at = float(times[i])
        if slope + curvature * at >= 0:
            break
        slope += 2 * lam * float(np.abs(d[crossing[i]]))
        if slope + curvature * at >= 0:
            return at, int(crossing[i])
    return (-slope / curvature if curvature > 0 else 1.0), None
