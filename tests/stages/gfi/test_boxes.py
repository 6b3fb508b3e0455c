"""GFI's box rule: one box around everything that reaches alpha times the mean."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.gfi.boxes import ALPHAS, distance, mean_box, mean_boxes, peak


def test_one_box_goes_around_all_kept_pixels() -> None:
    heat = np.zeros((6, 8), dtype=np.float32)
    heat[1, 2], heat[4, 6] = 1.0, 0.9  # two pieces, mean 1.9 / 48
    assert mean_box(heat, 1.0).tolist() == [2, 1, 6, 4]
    assert mean_box(heat, 24.0).tolist() == [2, 1, 2, 1]  # 0.95: only the first is left
    assert mean_box(heat, 26.0).tolist() == [0, 0, 7, 5]  # nothing is: the whole image


def test_alpha_zero_gives_the_whole_image() -> None:
    rng = np.random.default_rng(0)
    for heat in (rng.random((5, 7)), np.zeros((5, 7)), rng.random((5, 7)) - 0.5):
        assert mean_box(heat.astype(np.float32), 0.0).tolist() == [0, 0, 6, 4]


def test_the_fast_boxes_are_the_slow_ones() -> None:
    rng = np.random.default_rng(1)
    maps = rng.random((30, 17, 23)).astype(np.float32) ** rng.integers(1, 12, (30, 1, 1))
    maps[3], maps[4] = 0, 0.25
    maps[5, 2, 3] = np.nan
    maps[6] -= 0.3
    fast = mean_boxes(maps)
    for heat, boxes in zip(maps, fast, strict=True):
        for alpha, box in zip(ALPHAS, boxes, strict=True):
            assert box.tolist() == mean_box(heat, alpha).tolist()


def test_boxes_shrink_as_alpha_grows_until_nothing_is_kept() -> None:
    heat = np.random.default_rng(2).random((40, 40)).astype(np.float32) ** 6
    cut = np.array(ALPHAS) * heat.mean(dtype=np.float64)
    boxes = mean_boxes(heat[None])[0][cut <= heat.max()]
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    assert (np.diff(areas) <= 0).all()
    assert len(areas) > 3


def test_the_peak_is_the_first_largest_pixel_and_a_flat_map_has_none() -> None:
    heat = np.zeros((3, 4))
    heat[1, 2] = heat[2, 0] = 1
    assert peak(heat) == (2, 1)
    assert peak(np.full((3, 4), 0.5)) is None


def test_distance_to_the_nearest_box() -> None:
    boxes = [[10, 10, 20, 20], [50, 10, 60, 20]]
    assert distance((15, 20), boxes) == 0
    assert distance((23, 24), boxes) == 5
    assert distance((48, 15), boxes) == 2
    assert distance((20, 20), boxes, inclusive=False) == pytest.approx(math.sqrt(2))  # the far edge is outside
    assert distance(None, boxes) == math.inf
    assert math.isnan(distance((1, 1), []))
