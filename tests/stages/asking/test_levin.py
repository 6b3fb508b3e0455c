"""Levin et al.: against the text of their method, pixel by pixel, and what follows from it by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.asking.levin import Levin, weights


def naive(light: np.ndarray, known: np.ndarray, hints: np.ndarray) -> np.ndarray:
    """A dense system, one pixel after the other, as the authors' getColorExact fills it."""
    height, width = light.shape
    system, right = np.eye(light.size), np.zeros((light.size, len(hints)))
    for y in range(height):
        for x in range(width):
            at = y * width + x
            if known[y, x]:
                right[at] = hints[:, y, x]
                continue
            window = [
                (i, j)
                for i in range(max(0, y - 1), min(height, y + 2))
                for j in range(max(0, x - 1), min(width, x + 2))
                if (i, j) != (y, x)
            ]
            values = [float(light[i, j]) for i, j in window]
            own = float(light[y, x])
            mean = sum([*values, own]) / (len(values) + 1)
            spread = 0.6 * sum((v - mean) ** 2 for v in [*values, own]) / (len(values) + 1)
            nearest = min((v - own) ** 2 for v in values)
            spread = max(spread, -nearest / math.log(0.01), 0.000002)
            alike = [math.exp(-((v - own) ** 2) / spread) for v in values]
            for (i, j), weight in zip(window, alike, strict=True):
                system[at, i * width + j] -= weight / sum(alike)
    return np.linalg.solve(system, right).T.reshape(hints.shape)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_solves_the_system_of_the_paper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    light = rng.random((6, 5))
    light[3:, :2] = 0.25  # flat parts too: the least variance
    known = rng.random((6, 5)) < 0.15
    known[2, 2] = True
    hints = rng.normal(size=(2, 6, 5))
    assert np.allclose(Levin()(light, known, hints), naive(light, known, hints), atol=1e-9)


def test_on_a_line_of_one_lightness_colours_run_straight_from_hint_to_hint() -> None:
    known, hints = np.zeros((1, 9), bool), np.zeros((2, 1, 9))
    known[0, [1, 5]] = True
    hints[:, 0, 1], hints[:, 0, 5] = (0.2, -0.4), (0.6, 0.4)
    found = Levin()(np.full((1, 9), 0.5), known, hints)
    # Beyond the last hint there is nothing to run to.
    assert np.allclose(found[0, 0], [0.2, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6])
    assert np.allclose(found[1, 0], [-0.4, -0.4, -0.2, 0, 0.2, 0.4, 0.4, 0.4, 0.4])


def test_one_hint_colours_all_and_none_nothing() -> None:
    light = np.random.default_rng(2).random((7, 8))
    known, hints = np.zeros((7, 8), bool), np.zeros((2, 7, 8))
    assert not Levin()(light, known, hints).any()
    known[3, 4] = True
    hints[:, 3, 4] = 0.3, -0.1
    assert np.allclose(Levin()(light, known, hints), np.array([0.3, -0.1])[:, None, None])


def test_colours_stop_where_lightness_jumps() -> None:
    light = np.full((8, 8), 0.2)
    light[:, 4:] = 0.8
    known, hints = np.zeros((8, 8), bool), np.zeros((1, 8, 8))
    known[4, 1] = known[4, 6] = True
    hints[0, 4, 1], hints[0, 4, 6] = 1.0, -1.0
    found = Levin()(light, known, hints)[0]
    assert found[:, :4].min() > 0.9
    assert found[:, 4:].max() < -0.9


def test_weights_are_means_of_neighbours() -> None:
    found = weights(np.random.default_rng(3).random((4, 6)))
    assert np.allclose(found.sum(1), 1)
    assert not found.diagonal().any()
    counts = np.diff(found.indptr)
    assert (counts.min(), counts.max()) == (3, 8), "corners and the inside"
