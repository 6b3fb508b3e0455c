"""The solvers of CHIP's fit against scikit-learn's coordinate descent, the paper's plain iteration and the theory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from stages.chip import lasso
from stages.chip.admm import Admm, plain_admm
from stages.chip.admm_batched import batched_path
from stages.chip.lasso import Inner, certify, solve_path
from stages.chip.newton import descend, newton

SOLVERS: dict[str, Inner] = {"admm": Admm(), "newton": newton}
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Fit:
    """Weighted samples as CHIP makes them: z = d * a with sparse a, scores from few channels."""

    z: np.ndarray
    g: np.ndarray

    @property
    def gram(self) -> np.ndarray:
        return self.z.T @ self.z

    @property
    def b(self) -> np.ndarray:
        return self.z.T @ self.g

    @property
    def gg(self) -> float:
        return float(self.g @ self.g)

    @property
    def top(self) -> float:
        return float(np.abs(self.b).max())


def fit(seed: int, channels: int = 40, images: int = 6, gates: int = 20, noise: float = 0.1) -> Fit:
    rng = np.random.default_rng(seed)
    a = rng.gamma(0.7, size=(images, channels)) * (rng.random((images, channels)) < 0.8)
    a[:, 3] = 0.0  # a dead channel
    d = rng.random((images, gates, channels)) < rng.random((images, gates, 1))
    z = (d * a[:, None]).reshape(-1, channels)
    truth = np.where(rng.random(channels) < 0.2, rng.normal(size=channels), 0)
    g = np.tanh(z @ truth / 3) + noise * rng.normal(size=len(z))
    weight = np.sqrt(rng.random(len(z)) ** 3)
    return Fit(z * weight[:, None], g * weight)


def solve(problem: Fit, rel: float, inner: Inner) -> np.ndarray:
    (solution,) = solve_path(problem.gram, problem.b, [rel * problem.top], inner, TOLERANCE)
    return solution.w


def objective(problem: Fit, lam: float, w: np.ndarray) -> float:
    return float(0.5 * ((problem.z @ w - problem.g) ** 2).sum() + lam * np.abs(w).sum())


@pytest.mark.parametrize("name", SOLVERS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), rel=st.sampled_from([0.5, 0.1, 0.01, 0.001]), images=st.sampled_from([1, 4, 20]))
def test_weights_are_those_of_coordinate_descent(name: str, seed: int, rel: float, images: int) -> None:
    problem = fit(seed, images=images)
    lam = rel * problem.top
    w = solve(problem, rel, SOLVERS[name])
    certificate = certify(problem.gram, problem.b, problem.gg, lam, w)
    assert certificate.kkt <= 1e-8
    assert certificate.gap <= 1e-8
    peer = Lasso(alpha=lam / len(problem.g), fit_intercept=False, tol=1e-12, max_iter=100_000)
    peer.fit(problem.z, problem.g)
    assert objective(problem, lam, w) <= objective(problem, lam, peer.coef_) * (1 + 1e-9)
    # The fitted scores are unique even where the weights are not (fewer samples than channels).
    np.testing.assert_allclose(problem.z @ w, problem.z @ peer.coef_, atol=2e-4 * np.abs(problem.g).max())
    if images == 20 and rel >= 0.01:
        np.testing.assert_allclose(w, peer.coef_, atol=1e-3 * np.abs(w).max(initial=1e-3))


@pytest.mark.parametrize("rel", [0.2, 0.01])
@pytest.mark.parametrize("images", [2, 12])
def test_newton_is_admm(rel: float, images: int) -> None:
    for seed in range(5):
        problem = fit(seed, images=images)
        ours = [solve(problem, rel, inner) for inner in SOLVERS.values()]
        np.testing.assert_allclose(ours[0], ours[1], atol=1e-8 * np.abs(ours[0]).max())


@pytest.mark.parametrize("rho_rel", [1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("over", [1.0, 1.8])
def test_every_rho_and_relaxation_leads_to_the_same_optimum(rho_rel: float, over: float) -> None:
    problem = fit(1)
    expected = solve(problem, 0.02, newton)
    for polish, tolerance in ((True, 1e-8), (False, 1e-6)):
        w = solve(problem, 0.02, Admm(rho_rel, over, polish))
        np.testing.assert_allclose(w, expected, atol=tolerance * np.abs(expected).max())


def test_the_papers_plain_iteration_arrives_there_too() -> None:
    problem = fit(2, channels=15, images=20)
    lam = 0.05 * problem.top
    w = solve(problem, 0.05, Admm())
    for rho in (0.3, 3.0):
        scaled = rho * np.trace(problem.gram) / 15
        np.testing.assert_allclose(plain_admm(problem.gram, problem.b, lam, scaled, 6000), w, atol=1e-7)


@pytest.mark.parametrize("name", SOLVERS)
def test_lambda_from_max_b_on_gives_zero(name: str) -> None:
    problem = fit(3)
    assert not solve(problem, 1.0, SOLVERS[name]).any()
    assert not solve(problem, 7.0, SOLVERS[name]).any()
    just_below = solve(problem, 0.999, SOLVERS[name])
    assert np.flatnonzero(just_below).tolist() == [int(np.abs(problem.b).argmax())]


@pytest.mark.parametrize("name", SOLVERS)
def test_lambda_zero_is_least_squares(name: str) -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 12))
    problem = Fit(z, rng.normal(size=200))
    w = solve(problem, 0.0, SOLVERS[name])
    np.testing.assert_allclose(w, np.linalg.inv(problem.gram) @ problem.b, rtol=1e-10)
    singular = fit(4, images=1)  # 20 samples, 40 channels, one of them dead
    w = solve(singular, 0.0, SOLVERS[name])
    np.testing.assert_allclose(w, np.linalg.lstsq(singular.z, singular.g, rcond=1e-9)[0], atol=1e-6)
    assert w[3] == 0


@pytest.mark.parametrize("name", SOLVERS)
def test_one_channel_by_hand(name: str) -> None:
    """G = 2, b = 3: w = soft(3, lambda) / 2."""
    for lam, expected in ((1.0, 1.0), (2.5, 0.25), (3.0, 0.0), (0.0, 1.5)):
        (solution,) = solve_path(np.array([[2.0]]), np.array([3.0]), [lam], SOLVERS[name], TOLERANCE)
        assert solution.w[0] == pytest.approx(expected, abs=1e-12)
    certificate = certify(np.array([[2.0]]), np.array([3.0]), 10.0, 1.0, np.array([1.0]))
    assert certificate == lasso.Certificate(objective=5 - 3 + 1 + 1, kkt=0.0, gap=0.0)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_path_warm_started_is_each_lambda_from_cold(name: str) -> None:
    for images in (2, 15):
        problem = fit(5, images=images)
        rels = np.geomspace(1, 0.01, 20)
        warm = list(solve_path(problem.gram, problem.b, list(rels * problem.top), SOLVERS[name], TOLERANCE))
        for rel, solution in zip(rels, warm, strict=True):
            cold = solve(problem, float(rel), SOLVERS[name])
            np.testing.assert_allclose(solution.w, cold, atol=1e-8 * max(np.abs(cold).max(), 1e-6))


@pytest.mark.parametrize("name", SOLVERS)
def test_degenerate_statistics_stay_finite(name: str) -> None:
    nothing = np.zeros((6, 6))
    for b, rel in ((np.zeros(6), 0.01), (np.zeros(6), 0.0)):
        (solution,) = solve_path(nothing, b, [rel], SOLVERS[name], TOLERANCE)
        assert not solution.w.any()
        assert certify(nothing, b, 0.0, rel, solution.w) == lasso.Certificate(0.0, 0.0, 0.0)
    z = np.random.default_rng(0).random((50, 3))
    twins = Fit(np.hstack([z, z, np.zeros((50, 2))]), z @ [1.0, -1.0, 0.5])  # equal channels, dead channels
    w = solve(twins, 0.01, SOLVERS[name])
    assert np.isfinite(w).all()
    assert certify(twins.gram, twins.b, twins.gg, 0.01 * twins.top, w).kkt <= 1e-8
    assert not w[6:].any()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_scale_of_the_weights_h_f_does_not_matter(name: str, scale: float) -> None:
    problem = fit(6)
    scaled = Fit(problem.z * scale**0.5, problem.g * scale**0.5)
    expected = solve(problem, 0.01, SOLVERS[name])
    np.testing.assert_allclose(
        solve(scaled, 0.01, SOLVERS[name]), expected, rtol=1e-6, atol=1e-8 * np.abs(expected).max()
    )


def test_the_slow_descent_alone_reaches_the_optimum() -> None:
    """Newton falls back on it where the guesses cycle, which is rare: so it is tried by itself, from bad starts."""
    for seed in range(6):
        problem = fit(seed, channels=25, images=1 + 5 * (seed % 2))
        lam = 0.01 * problem.top
        ridge = lasso.RIDGE * float(np.trace(problem.gram)) / 25
        start = np.random.default_rng(seed).normal(size=25) * (seed % 3 > 0)
        start[3] = 0.0
        w, _ = descend(problem.gram, problem.b, lam, start, ridge, 1e-9 * lam)
        assert certify(problem.gram, problem.b, problem.gg, lam, w).kkt <= 1e-8
        best = objective(problem, lam, solve(problem, 0.01, newton))
        assert objective(problem, lam, w) == pytest.approx(best, rel=1e-10)


def test_the_gap_bounds_what_is_missing_to_the_optimum() -> None:
    problem = fit(7)
    lam = 0.05 * problem.top
    optimum = objective(problem, lam, solve(problem, 0.05, newton))
    rng = np.random.default_rng(0)
    for spread in (0.0, 1e-3, 0.1, 1.0):
        w = solve(problem, 0.05, newton) + spread * rng.normal(size=40)
        found = certify(problem.gram, problem.b, problem.gg, lam, w)
        assert found.objective == pytest.approx(objective(problem, lam, w), rel=1e-9)
        missing = objective(problem, lam, w) - optimum
        assert missing <= found.gap * found.objective + 1e-9
        residual = problem.g - problem.z @ w  # the dual value, from the samples themselves
        theta = residual * min(1.0, lam / np.abs(problem.z.T @ residual).max())
        dual = 0.5 * problem.g @ problem.g - 0.5 * ((problem.g - theta) ** 2).sum()
        assert found.gap == pytest.approx((found.objective - dual) / found.objective, abs=1e-9)


def test_a_violation_is_seen_on_and_off_the_support() -> None:
    G, b = np.eye(2), np.array([3.0, 0.5])
    assert certify(G, b, 10.0, 1.0, np.array([2.0, 0.0])).kkt == 0.0
    assert certify(G, b, 10.0, 1.0, np.array([1.5, 0.0])).kkt == pytest.approx(0.5)
    assert certify(G, b, 10.0, 1.0, np.array([0.0, 0.0])).kkt == pytest.approx(2.0)
    assert certify(G, b, 10.0, 1.0, np.array([2.0, -0.5])).kkt == pytest.approx(2.0)  # c = 1, sign -1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU"))])  # fmt: skip
def test_the_batched_form_gives_the_weights_of_the_single_one(device: str) -> None:
    problems = [fit(seed, images=1 + seed) for seed in range(6)]
    problems.append(Fit(np.zeros((2, 40)), np.zeros(2)))  # a class without signal among the others
    rels = [1.0, 0.3, 0.01, 0.0]
    grid = [[rel * p.top for rel in rels] for p in problems]
    batched = batched_path(problems, grid, Admm(), TOLERANCE, torch.device(device), batch=4)
    for problem, lambdas, path in zip(problems, grid, batched, strict=True):
        single = list(solve_path(problem.gram, problem.b, lambdas, Admm(), TOLERANCE))
        assert [s.lam for s in path] == lambdas
        for ours, theirs in zip(path, single, strict=True):
            np.testing.assert_allclose(ours.w, theirs.w, atol=1e-7 * max(np.abs(theirs.w).max(), 1e-9))
