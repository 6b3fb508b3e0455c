"""The bilateral solver: against a dense reference with loops, its own objective, and what follows by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stages.asking.bilateral import BilateralSolver, bistochastic, grid

SOLVER = BilateralSolver(place=2.0, light=0.25, strength=4.0)


def case(seed: int, known: float = 0.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((6, 7)), rng.random((6, 7)) < known, rng.normal(size=(2, 6, 7))


def dense(light: np.ndarray, known: np.ndarray, hints: np.ndarray, solver: BilateralSolver) -> dict[str, np.ndarray]:
    """Cells in a dictionary, every pair of them compared."""
    cells: dict[tuple[int, int, int], int] = {}
    of = []
    for (y, x), value in np.ndenumerate(light):
        cell = round(y / solver.place), round(x / solver.place), round(float(value) / solver.light)
        of.append(cells.setdefault(cell, len(cells)))
    splat = np.zeros((len(cells), light.size))
    splat[of, range(light.size)] = 1
    blur = np.zeros((len(cells), len(cells)))
    for a, i in cells.items():
        for b, j in cells.items():
            apart = sum(abs(p - q) for p, q in zip(a, b, strict=True))
            blur[i, j] = 6 if apart == 0 else 1 if apart == 1 else 0
    mass = splat.sum(1)
    scale = np.ones(len(mass))
    for _ in range(10):
        scale = np.sqrt(scale * mass / (blur @ scale))
    mass = scale * (blur @ scale)
    trust = np.where(known.ravel(), 1.0, 1e-6)
    target = np.where(known, hints, 0).reshape(2, -1)
    laplace = np.diag(mass) - np.diag(scale) @ blur @ np.diag(scale)
    system = solver.strength * laplace + np.diag(splat @ trust)
    y = np.linalg.solve(system, splat @ (trust * target).T)
    return {"x": (splat.T @ y).T.reshape(hints.shape), "y": y, "splat": splat, "laplace": laplace, "trust": trust}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_dense_solve(seed: int) -> None:
    light, known, hints = case(seed)
    assert np.allclose(SOLVER(light, known, hints), dense(light, known, hints, SOLVER)["x"], atol=1e-8)


def test_nothing_else_on_the_grid_costs_less() -> None:
    light, known, hints = case(4)
    found = dense(light, known, hints, SOLVER)
    target = np.where(known, hints, 0).reshape(2, -1)

    def cost(y: np.ndarray) -> float:
        x = found["splat"].T @ y
        smooth = SOLVER.strength * float(np.sum(y * (found["laplace"] @ y)))
        return smooth + float(np.sum(found["trust"][:, None] * (x - target.T) ** 2))

    rng = np.random.default_rng(0)
    ours = np.linalg.lstsq(found["splat"].T, SOLVER(light, known, hints).reshape(2, -1).T, rcond=None)[0]
    least = cost(ours)
    for size in (1e-3, 1e-1, 1.0):
        assert cost(ours + size * rng.normal(size=ours.shape)) > least


def test_by_hand_two_pixels_in_two_cells() -> None:
    # Two pixels of one lightness in cells that touch: B = [[6, 1], [1, 6]], mass 1 each, so scale = 1 / sqrt(7) and
    # the Laplacian is [[1, -1], [-1, 1]] / 7. Told t on the left, the right one is pulled to it by 128 / 7.
    solver = BilateralSolver(place=1.0, light=1.0, strength=128.0)
    found = solver(np.full((1, 2), 0.3), np.array([[True, False]]), np.array([[[0.5, 9.0]]]))
    pull, free = 128 / 7, 1e-6
    right = pull / (pull + free)
    left = 0.5 / (1 + pull - pull * right)
    assert found.ravel() == pytest.approx([left, left * right], rel=1e-9)


def test_the_grid_keeps_a_picture_of_one_colour() -> None:
    splat, blur = grid(case(5)[0], 2.0, 0.25)
    scale, mass = bistochastic(splat, blur)
    assert np.allclose(scale * (blur @ scale), mass)
    assert (splat.sum(0) == 1).all(), "each pixel is in one cell"
    assert abs(blur - blur.T).max() == 0
    light, _, _ = case(5)
    same = SOLVER(light, np.ones(light.shape, bool), np.full((1, *light.shape), 0.4))
    assert np.allclose(same, 0.4)


def test_what_no_hint_reaches_is_grey_and_with_none_all_is() -> None:
    light = np.full((6, 12), 0.1)
    light[:, 6:] = 0.9
    known, hints = np.zeros((6, 12), bool), np.zeros((1, 6, 12))
    assert not BilateralSolver()(light, known, hints).any()
    known[2, 2] = True
    hints[0, 2, 2] = 0.7
    found = BilateralSolver(place=2.0)(light, known, hints)[0]
    assert np.allclose(found[:, :6], 0.7, atol=1e-3)
    assert np.allclose(found[:, 6:], 0.0)
    with pytest.raises(ValueError, match="above 0"):
        BilateralSolver(strength=0.0)
