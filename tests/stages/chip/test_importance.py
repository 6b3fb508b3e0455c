"""Importance figures on weights small enough to read."""

from __future__ import annotations

import numpy as np

from stages.chip.importance import channels_above, heatmap, top_channels


def test_the_heatmap_scales_each_class_and_drops_unused_channels() -> None:
    shown = heatmap(np.array([[0.0, 4.0, 0.0, -2.0], [1.0, 0.5, 0.0, 0.0]]))
    assert shown.channels.tolist() == [1, 0, 3]  # channel 3 speaks for nobody, and least against class 1
    by_channel = dict(zip(shown.channels.tolist(), shown.values.T.tolist(), strict=True))
    assert by_channel == {1: [1.0, 0.5], 0: [0.0, 1.0], 3: [-0.5, 0.0]}


def test_the_heatmap_keeps_the_strongest_channels_and_puts_each_under_its_class() -> None:
    shown = heatmap(np.array([[0.0, 0.1, 1.0], [2.0, 0.1, 0.0]]), most=2)
    assert shown.channels.tolist() == [2, 0]
    assert shown.values.tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_classes_without_weights_stay_finite_and_empty() -> None:
    shown = heatmap(np.zeros((2, 3)))
    assert shown.values.shape == (2, 0)
    assert top_channels(np.zeros(3)) == channels_above(np.zeros(3)) == set()
    assert channels_above(np.array([-1.0, -2.0])) == set()


def test_top_channels_break_ties_by_index_and_leave_out_what_speaks_against() -> None:
    assert top_channels(np.array([1.0, 3.0, 1.0, -9.0]), 2) == {0, 1}
    assert top_channels(np.array([1.0, -3.0])) == {0}


def test_above_a_thousandth_is_strict() -> None:
    assert channels_above(np.array([1000.0, 1.0, 1.1, -1000.0])) == {0, 2}
