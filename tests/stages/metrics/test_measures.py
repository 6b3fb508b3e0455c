"""Pointing, salient objects, GFI's boxes, deletion, robustness, moments: by hand, and what must always hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stages.metrics.boxes import box_of_mask
from stages.metrics.deletion import area_under, deletion_curves
from stages.metrics.mean_boxes import ALPHAS, mean_boxes
from stages.metrics.moments import mean_and_error, moments, wilson_interval
from stages.metrics.pointing import distance, middle, over_classes, peak
from stages.metrics.robustness import fgsm, rank_correlation
from stages.metrics.salient import f_measure, salient

VALUES = st.floats(-3, 3, width=32)
MAPS = arrays.arrays(np.float64, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=VALUES)


# GFI's boxes


@settings(max_examples=80, deadline=None)
@given(MAPS)
def test_mean_boxes_are_those_of_their_definition_and_alpha_0_is_the_whole_image(heat: np.ndarray) -> None:
    height, width = heat.shape
    found = mean_boxes(heat[None], ALPHAS)[0]
    assert found[0].tolist() == [0, 0, width - 1, height - 1]
    positive = np.maximum(heat, 0)
    for alpha, box in zip(ALPHAS, found, strict=True):
        expected = box_of_mask(positive >= alpha * positive.mean())
        assert box.tolist() == ([0, 0, width - 1, height - 1] if expected is None else expected.tolist())


def test_one_box_goes_around_everything_that_is_kept() -> None:
    heat = np.zeros((10, 10))
    heat[1, 2], heat[7, 8] = 1.0, 0.6  # two specks, far apart: the mean is 0.016
    boxes = mean_boxes(heat[None], [1.0, 50.0, 90.0])[0]
    assert boxes.tolist() == [[2, 1, 8, 7], [2, 1, 2, 1], [0, 0, 9, 9]]


# The pointing game


def test_a_point_is_on_a_box_up_to_its_last_pixel() -> None:
    box = [[10.0, 20.0, 30.0, 40.0]]
    assert distance([30, 40], box) == 0
    assert distance([30, 40], box, inclusive=False) == pytest.approx(math.sqrt(2))
    assert distance([33, 44], box) == 5  # 3 across, 4 down
    assert distance([0, 30], [*box, [2, 29, 4, 31]]) == 2  # the nearest of several
    assert distance([0, 0], np.zeros((0, 4))) == math.inf
    assert distance([0, 0], [[5, 5, 4, 4]]) == math.inf  # an empty box is no box
    assert distance(None, box) == math.inf


def test_the_peak_is_the_first_of_equals_and_never_a_nan() -> None:
    assert peak([[0, 3, 1], [3, 0, 0]]) == (1, 0)
    assert peak([[np.nan, 0.0], [np.nan, 2.0]]) == (1, 1)


def test_a_map_without_contrast_points_nowhere() -> None:
    for flat in (np.zeros((2, 3)), np.full((2, 3), -0.5), np.full((2, 3), np.nan)):
        assert peak(flat) is None


def test_the_middle_is_a_pixel_of_the_image() -> None:
    assert [middle(*size) for size in ((1, 1), (4, 3), (5, 6))] == [(0, 0), (2, 1), (2, 3)]


def test_a_mean_over_classes_has_the_error_of_their_spread() -> None:
    # One image a class, one hit of two: a binomial error of each class would be 0.
    value, error, low, high = over_classes([1, 0, 0], [1, 1, 0])
    assert (value, error) == (0.5, pytest.approx(0.5))  # sqrt((0.25 + 0.25) / 1) / sqrt(2)
    assert (low, high) == (0, 1)
    value, error, low, high = over_classes([9, 6, 6], [10, 10, 10])
    assert (value, error) == (pytest.approx(0.7), pytest.approx(math.sqrt(0.03 / 3)))
    assert (low, high) == (pytest.approx(0.7 - 1.96 * 0.1, abs=1e-4), pytest.approx(0.7 + 1.96 * 0.1, abs=1e-4))


def test_classes_that_all_hit_leave_an_interval_and_one_class_is_binomial() -> None:
    assert over_classes([3, 2], [3, 2]) == (1, 0, *wilson_interval(1.0, 5))
    assert over_classes([3], [4]) == (0.75, pytest.approx(math.sqrt(0.75 * 0.25 / 4)), *wilson_interval(0.75, 4))
    assert all(math.isnan(v) for v in over_classes([0, 0], [0, 0]))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 20), st.integers(0, 20), st.lists(st.tuples(*[st.integers(0, 20)] * 4), min_size=1, max_size=3))
def test_distance_is_that_to_the_nearest_pixel_of_a_box(x: int, y: int, boxes: list) -> None:
    pixels = [(u, v) for a, b, c, d in boxes for u in range(a, c + 1) for v in range(b, d + 1)]
    expected = min((math.hypot(u - x, v - y) for u, v in pixels), default=math.inf)
    assert distance([x, y], boxes) == pytest.approx(expected)


# Salient objects


def test_salient_scores_by_hand() -> None:
    heat = np.array([[4.0, 2.0], [1.0, -9.0]])  # scaled 1, 0.5, 0.25, 0; mean 0.4375; kept: >= 0.875
    got = salient(heat, [[True, True], [False, False]])
    assert (got.precision, got.recall) == (1.0, 0.5)
    assert got.f == pytest.approx(1.3 * 0.5 / (0.3 + 0.5))
    assert got.mae == pytest.approx((0 + 0.5 + 0.25 + 0) / 4)


def test_flat_and_empty_maps_keep_everything_and_an_empty_mask_has_no_recall() -> None:
    drawn = np.array([[True, False], [False, False]])
    for flat in (np.zeros((2, 2)), np.full((2, 2), 7.0), np.full((2, 2), -1.0)):
        got = salient(flat, drawn)
        assert (got.precision, got.recall) == (0.25, 1.0)
    assert salient(np.zeros((2, 2)), drawn).mae == 0.25
    nothing = salient(np.eye(2), np.zeros((2, 2), bool))
    assert (nothing.precision, nothing.recall, nothing.f) == (0, 0, 0)
    assert salient(drawn.astype(float), drawn) == salient(5 * drawn.astype(float), drawn)
    assert salient(drawn.astype(float), drawn).f == 1
    assert f_measure(0.5, 0.5) == pytest.approx(0.5)


# Deletion and insertion


def test_pixels_leave_in_the_order_of_the_map() -> None:
    start = torch.arange(1.0, 9.0).view(1, 1, 2, 4).expand(1, 3, 2, 4)
    heat = torch.tensor([[[0.1, 0.9, 0.0, 0.9], [0.5, 0.0, 0.0, 0.0]]])  # first pixel 1, then 3 (equal), then 4, then 0
    curve = deletion_curves(lambda x: x[:, 0].sum(dim=(1, 2)), start, torch.zeros_like(start), heat, 8)[0]
    gone = np.cumsum([0, 2, 4, 5, 1, 3, 6, 7, 8])
    assert curve.tolist() == (36 - gone).tolist()
    back = deletion_curves(lambda x: x[:, 0].sum(dim=(1, 2)), torch.zeros_like(start), start, heat, 8)[0]
    assert torch.allclose(curve + back, torch.full((9,), 36.0))  # what has not gone is what has not come
    assert area_under([0.0, 1.0, 1.0]) == pytest.approx(0.75)


def test_a_curve_depends_on_its_own_image_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    x, heat = torch.randn(3, 3, 5, 4, generator=generator), torch.randn(3, 5, 4, generator=generator)
    score = lambda v: v.square().mean(dim=(1, 2, 3))  # noqa: E731
    whole = deletion_curves(score, x, torch.zeros_like(x), heat, 6)
    for i in range(3):
        one = slice(i, i + 1)
        alone = deletion_curves(score, x[one], torch.zeros_like(x[one]), heat[one], 6)
        assert torch.allclose(whole[i], alone[0], atol=1e-6)
    assert torch.allclose(whole[:, 0], score(x))
    assert whole[:, -1].abs().max() == 0


# Robustness


def test_the_attack_moves_every_pixel_by_epsilon_against_the_label_and_stays_an_image() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16, 4)).double()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.rand(5, 3, 4, 4, dtype=torch.float64)
    x = (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    labels = torch.tensor([0, 1, 2, 3, 0])
    moved = fgsm(net, x, labels, 0.02, mean, std)
    after = moved * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1)
    assert after.min() >= -1e-7
    assert after.max() <= 1 + 1e-7
    inner = (pixels > 0.02) & (pixels < 0.98)
    assert torch.allclose((after - pixels).abs()[inner], torch.full((int(inner.sum()),), 0.02).double(), atol=1e-7)
    before, later = (net(v).softmax(1).gather(1, labels[:, None]) for v in (x, moved))
    assert (later < before).all()
    assert torch.allclose(fgsm(net, x[2:3], labels[2:3], 0.02, mean, std), moved[2:3])


def test_rank_correlation_is_scipys_and_does_not_see_a_monotone_change() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (6, 5)).astype(float), rng.normal(size=(6, 5))
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.ravel(), b.ravel()).statistic)
    assert rank_correlation(b, np.exp(3 * b)) == pytest.approx(1)
    assert rank_correlation(b, -b) == pytest.approx(-1)
    assert math.isnan(rank_correlation(a, np.ones((6, 5))))


# Moments


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(np.float64, st.tuples(st.integers(0, 9), st.just(2)), elements=st.floats(-1, 1)), st.integers(0, 9)
)
def test_moments_of_parts_add_up_in_any_order(values: np.ndarray, at: int) -> None:
    left, right, whole = moments(values[:at]), moments(values[at:]), moments(values)
    assert np.array_equal(left + right, whole)
    assert np.array_equal(right + left, moments(values[::-1]))
    assert np.array_equal(moments(values[:0]) + whole, whole)
    if len(values):
        n, mean, error = mean_and_error(whole[0])
        assert n == len(values)
        assert mean == pytest.approx(values[:, 0].mean(), abs=1e-8)
        expected = values[:, 0].std(ddof=1) / math.sqrt(n) if n > 1 else math.nan
        assert error == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_the_standard_error_by_hand() -> None:
    # 0.1 and 0.5: 0.2 to either side of 0.3, so the sample's variance is 2 * 0.04 / (2 - 1), and half of it is 0.04.
    assert mean_and_error(moments([[0.1], [0.5]])[0]) == (2, pytest.approx(0.3), pytest.approx(0.2))
    n, mean, error = mean_and_error(moments([[0.1]])[0])
    assert (n, mean) == (1, pytest.approx(0.1))
    assert math.isnan(error), "one value says nothing of how far others lie"


def test_missing_values_are_not_counted_and_unbounded_ones_are_refused() -> None:
    assert mean_and_error(moments([[0.5], [np.nan], [0.1]])[0])[:2] == (2, pytest.approx(0.3))
    assert math.isnan(mean_and_error(moments(np.zeros((0, 1)))[0])[1])
    with pytest.raises(ValueError, match=r"-1\.\.1"):
        moments([[2.0]])


def test_wilsons_interval_by_hand() -> None:
    low, high = wilson_interval(0.5, 100)
    assert (low, high) == (pytest.approx(0.40383, abs=1e-5), pytest.approx(0.59617, abs=1e-5))
    assert wilson_interval(0.0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson_interval(0.0, 10)[1] == pytest.approx(0.27754, abs=1e-4)
