"""Boxes: overlaps computed by hand, and every threshold at once against the plain, slow reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.nn.functional import interpolate

from stages.metrics.boxes import (
    THRESHOLDS,
    best_iou,
    box_at,
    box_of_mask,
    center_box,
    iou,
    largest_component,
    threshold_boxes,
    threshold_levels,
    whole_image,
)

corner = st.integers(0, 40)
box = st.tuples(corner, corner, corner, corner).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


@pytest.mark.parametrize(
    ("a", "b", "inclusive", "expected"),
    [
        ((0, 0, 9, 9), (0, 0, 9, 9), True, 1.0),
        ((0, 0, 9, 9), (5, 0, 14, 9), True, 50 / 150),  # columns 5..9 of ten rows
        ((0, 0, 10, 10), (5, 0, 15, 10), False, 50 / 150),  # the same boxes as edges
        ((0, 0, 9, 9), (9, 9, 18, 18), True, 1 / 199),  # one common pixel
        ((0, 0, 9, 9), (9, 9, 18, 18), False, 0.0),  # as edges they only touch
        ((0, 0, 9, 9), (20, 20, 30, 30), True, 0.0),
        ((3, 3, 3, 3), (3, 3, 3, 3), True, 1.0),  # one pixel
        ((3, 3, 3, 3), (3, 3, 3, 3), False, 0.0),  # nothing
        ((5, 5, 4, 9), (0, 0, 9, 9), True, 0.0),  # empty
    ],
)
def test_iou_by_hand(a: tuple[int, ...], b: tuple[int, ...], inclusive: bool, expected: float) -> None:
    assert iou(a, b, inclusive=inclusive) == pytest.approx(expected, abs=1e-15)


@given(a=box, b=box, inclusive=st.booleans())
def test_iou_is_symmetric_and_a_share(a: tuple[int, ...], b: tuple[int, ...], inclusive: bool) -> None:
    there, back = iou(a, b, inclusive=inclusive), iou(b, a, inclusive=inclusive)
    assert there == back
    assert 0 <= there <= 1
    assert iou(a, a) == 1


@given(a=box, b=box)
def test_iou_counts_pixels(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    drawn = np.zeros((2, 90, 90), dtype=bool)
    for mask, (x0, y0, x1, y1) in zip(drawn, (a, b), strict=True):
        mask[y0 : y1 + 1, x0 : x1 + 1] = True
    assert iou(a, b) == pytest.approx((drawn[0] & drawn[1]).sum() / (drawn[0] | drawn[1]).sum())


def test_best_iou_takes_the_best_box_and_is_zero_without_any() -> None:
    truths = [(0, 0, 9, 9), (5, 0, 14, 9)]
    assert best_iou([(0, 0, 9, 9), (5, 0, 14, 9), (50, 50, 60, 60)], truths).tolist() == [1, 1, 0]
    assert best_iou([(0, 0, 9, 9)], []).tolist() == [0]
    with pytest.raises(ValueError, match="four numbers"):
        iou([0, 0, 1], [0, 0, 1])


def test_center_box_by_hand() -> None:
    assert center_box(10, 20, 0.7).tolist() == [1, 3, 7, 16]  # 7 of 10 columns, 14 of 20 rows
    assert center_box(100, 50, 1.0).tolist() == whole_image(100, 50).tolist() == [0, 0, 99, 49]
    assert center_box(3, 3, 0.1).tolist() == [1, 1, 1, 1]  # never less than a pixel
    with pytest.raises(ValueError, match="share"):
        center_box(10, 10, 0.0)


def test_a_diagonal_holds_together_and_the_larger_component_wins() -> None:
    mask = np.eye(5, dtype=bool)
    mask[0, 3:5] = True
    assert largest_component(mask).tolist() == np.eye(5, dtype=bool).tolist()  # 5 pixels touching at corners against 2
    assert box_of_mask(mask[:1]).tolist() == [0, 0, 4, 0]  # type: ignore[union-attr]
    assert box_of_mask(np.zeros((3, 3))) is None
    assert not largest_component(np.zeros((3, 3))).any()


def test_of_equal_components_the_first_in_reading_order_is_kept() -> None:
    heat = np.zeros((3, 5), dtype=np.float32)
    heat[0, 4] = heat[2, 0] = 1  # the upper right pixel is read before the lower left one
    assert box_at(heat, 0.5).tolist() == [4, 0, 4, 0]
    assert threshold_boxes(heat[None], [0.5]).tolist() == [[[4, 0, 4, 0]]]


def test_pixels_equal_to_the_threshold_stay() -> None:
    heat = np.array([[[0.5, 1.0, 0.49]]], dtype=np.float32)
    assert threshold_boxes(heat, [0.5]).tolist() == [[[0, 0, 1, 0]]]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_a_map_without_a_positive_finite_value_gives_the_whole_image(value: float) -> None:
    heat = np.full((1, 4, 6), value, dtype=np.float32)
    boxes = threshold_boxes(heat)
    assert (boxes == whole_image(6, 4)).all()
    assert all((box_at(heat[0], t) == whole_image(6, 4)).all() for t in THRESHOLDS)


def test_a_constant_positive_map_and_threshold_zero_give_the_whole_image() -> None:
    assert (threshold_boxes(np.full((1, 4, 6), 0.3, dtype=np.float32)) == whole_image(6, 4)).all()
    signed = np.array([[[-3.0, 1.0], [-2.0, 0.0]]], dtype=np.float32)
    assert threshold_boxes(signed, [0.0, 0.5]).tolist() == [[[0, 0, 1, 1], [1, 0, 1, 0]]]


def test_a_threshold_nothing_reaches_gives_the_whole_image() -> None:
    heat = np.array([[[0.1, 1.0]]], dtype=np.float32)
    assert threshold_boxes(heat, [0.5, 2.0]).tolist() == [[[1, 0, 1, 0], [0, 0, 1, 0]]]


def test_thresholds_are_checked() -> None:
    heat = np.ones((1, 2, 2), dtype=np.float32)
    for wrong in ([], [0.5, 0.1], [-0.1], [float("nan")]):
        with pytest.raises(ValueError, match="ascending"):
            threshold_boxes(heat, wrong)
    with pytest.raises(ValueError, match="height"):
        threshold_levels(heat[0])


def reference(maps: np.ndarray, thresholds: tuple[float, ...]) -> np.ndarray:
    return np.array([[box_at(heat, t) for t in thresholds] for heat in maps])


# Few distinct values on few pixels: ties, flat areas, corner contacts and runs to the border are the rule.
@settings(max_examples=300, deadline=None)
@given(
    maps=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7),
        elements=st.sampled_from([np.nan, -1.0, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0]),
    )
)
def test_all_thresholds_at_once_are_the_slow_reference_on_small_maps(maps: np.ndarray) -> None:
    thresholds = (0.0, 0.1, 0.25, 0.25, 0.6, 1.0)
    assert threshold_boxes(maps, thresholds).tolist() == reference(maps, thresholds).tolist()


@pytest.mark.parametrize(("side", "size"), [(7, (61, 83)), (14, (75, 100)), (40, (64, 50)), (60, (60, 60))])
def test_all_thresholds_at_once_are_the_slow_reference_on_upsampled_maps(side: int, size: tuple[int, int]) -> None:
    low = torch.randn(1, 6, side, side, generator=torch.Generator().manual_seed(side))
    maps = interpolate(low, size=size, mode="bilinear", align_corners=False)[0].numpy()
    assert threshold_boxes(maps).tolist() == reference(maps, THRESHOLDS).tolist()


def test_levels_are_the_masks() -> None:
    maps = np.random.default_rng(0).random((3, 20, 30), dtype=np.float32)
    levels = threshold_levels(maps)
    for i, t in enumerate(THRESHOLDS):
        cuts = (np.float64(t) * maps.max(axis=(1, 2)).astype(np.float64)).astype(np.float32)
        assert ((levels > i) == (maps >= cuts[:, None, None])).all()
