"""Importance figures on weights small enough to read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.chip.importance import channels_above, heatmap, overlap, sparsity, top_channels


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


@given(st.lists(st.sets(st.integers(0, 12)), min_size=1, max_size=3))
def test_venn_regions_are_disjoint_and_add_up(sets: list[set[int]]) -> None:
    named = dict(enumerate(sets))
    counts = overlap(named)
    assert sum(counts.values()) == len(set().union(*sets))
    for name, members in named.items():
        assert sum(n for region, n in counts.items() if name in region) == len(members)


def test_venn_counts_by_hand() -> None:
    counts = overlap({7: {1, 2, 3, 4}, 8: {3, 4, 5}, 9: {4, 6}})
    assert counts == {(7,): 2, (8,): 1, (9,): 1, (7, 8): 1, (7, 9): 0, (8, 9): 0, (7, 8, 9): 1}
    with pytest.raises(ValueError, match="4 classes"):
        overlap({i: set() for i in range(4)})


def test_sparsity_is_the_median_over_classes_at_each_lambda() -> None:
    def step(rel: float, n: int, r2: float | None) -> dict[str, float | int | None]:
        return {"lambda_rel": rel, "nonzeros": n, "r2_heldout": r2, "r2_heldout_centred": None}

    found = sparsity([[step(1.0, 0, 0.0), step(0.1, 4, 0.5)], [step(1.0, 0, None), step(0.1, 8, 0.7)], []])
    assert found["lambda_rel"].tolist() == [1.0, 0.1]
    assert found["nonzeros"].tolist() == [0.0, 6.0]
    assert found["r2_heldout"].tolist() == [0.0, 0.6]
    assert np.isnan(found["r2_heldout_centred"]).all()
