"""FT against its definition, pixel by pixel, with another library's colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stages.baselines.query import Query
from stages.baselines.registry import Setting, build
from stages.network import cut
from stages.preprocess import Preprocess

PREPROCESS = Preprocess(size=(9, 12), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
BINOMIAL = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256


def query(rgb: np.ndarray) -> Query:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    net = net.double().eval().requires_grad_(False)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (PREPROCESS.mean, PREPROCESS.std))
    x = (torch.from_numpy(rgb).permute(0, 3, 1, 2) - mean) / std
    return Query(cut(net, ("1",), x[:1]), x, torch.zeros(len(x), 2, dtype=torch.int64))


def maps(rgb: np.ndarray) -> np.ndarray:
    return build("ft", Setting(("1",), preprocess=PREPROCESS)).maps(query(rgb)).numpy()


def test_it_is_the_distance_of_the_smoothed_colour_from_the_mean_colour() -> None:
    color = pytest.importorskip("skimage.color")
    rgb = np.random.default_rng(0).uniform(size=(2, 9, 12, 3))
    found = maps(rgb)
    assert found.shape == (2, 2, 9, 12)
    for picture, (one, other) in zip(rgb, found, strict=True):
        lab = color.rgb2lab(picture)
        middle = lab.mean(axis=(0, 1))
        expected = np.zeros((9, 12))
        for y in range(9):
            for x in range(12):
                smooth = np.zeros(3)
                for dy in range(-2, 3):
                    for dx in range(-2, 3):
                        smooth += BINOMIAL[dy + 2, dx + 2] * lab[min(max(y + dy, 0), 8), min(max(x + dx, 0), 11)]
                expected[y, x] = np.sqrt(((smooth - middle) ** 2).sum())
        assert one == pytest.approx(expected, abs=1e-6)
        assert np.array_equal(one, other), "it knows no class"


def test_what_stands_out_in_colour_is_found_and_a_flat_image_has_nothing() -> None:
    rgb = np.full((2, 9, 12, 3), 0.5)
    rgb[0, 3:6, 4:8] = (0.9, 0.1, 0.1)
    found = maps(rgb)[:, 0]
    assert found[0, 4, 5] > 3 * found[0, 0, 0]
    assert found[1] == pytest.approx(np.zeros((9, 12)), abs=1e-9)
