"""Drawings: paper where nothing changes, ink on the dark side of edges, and scipy's Gaussians."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stages.asking.outline import Outline


def test_outlines_are_differences_of_scipys_gaussians() -> None:
    rng = np.random.default_rng(0)
    rgb, found = rng.random((2, 3, 15, 11)), Outline(sigma=0.9, ratio=1.8, strength=7.0, threshold=0.01)
    drawing = found(torch.from_numpy(rgb)).numpy()
    for image in range(2):
        light = 0.299 * rgb[image, 0] + 0.587 * rgb[image, 1] + 0.114 * rgb[image, 2]
        narrow, wide = (gaussian_filter(light, sigma, mode="nearest", truncate=4) for sigma in (0.9, 0.9 * 1.8))
        expected = 1 - np.tanh(7.0 * np.maximum(wide - narrow - 0.01, 0))
        assert np.allclose(drawing[image, 0], expected, atol=1e-12)


def test_paper_is_white_and_tones_are_not_drawn() -> None:
    outline = Outline()
    for level in (0.0, 0.3, 1.0):
        assert outline(torch.full((1, 3, 9, 9), level)).min() == 1
    picture = torch.full((1, 3, 16, 16), 0.2)
    picture[..., 8:] = 0.6
    drawing = outline(picture)
    assert torch.allclose(drawing, outline(picture + 0.3), atol=1e-4), "a brighter picture has the same outlines"
    ink = (1 - drawing[0, 0]).mean(0)
    assert int(ink.argmax()) == 7, "the dark side of the edge"
    assert ink[:4].max() == 0
    assert ink[12:].max() == 0


@pytest.mark.parametrize("wrong", [{"sigma": 0}, {"ratio": 1}, {"strength": 0}, {"threshold": -1}])
def test_settings_that_draw_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above"):
        Outline(**wrong)
