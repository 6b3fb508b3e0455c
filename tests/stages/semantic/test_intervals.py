"""The indexes by hand and by brute force, their identities, and the bootstrap against the slow way."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.semantic.intervals import indexes, interval, over_batches, over_set, resampled, share
from stages.semantic.rules import CASES

cases = st.lists(st.sampled_from(CASES), min_size=1, max_size=60)


def counted(images: list[str]) -> np.ndarray:
    return np.array([images.count(case) for case in CASES])


def by_definition(images: list[str], a: float = 1.0) -> dict[str, Fraction | None]:
    """Image by image, in exact numbers; None for 0/0."""
    both = [i for i in images if i == "FTCT"]
    coarse_right = [i for i in images if i.endswith("CT")]
    fine_right = [i for i in images if i.startswith("FT")]
    ia = Fraction(len(both), len(images))
    ir = Fraction(len(both), len(coarse_right)) if coarse_right else None
    ip = Fraction(len(both), len(fine_right)) if fine_right else None
    if ir is None or ip is None or ir + ip == 0:
        return {"IA": ia, "IR": ir, "IP": ip, "IF": None}
    a2 = Fraction(a) ** 2
    return {"IA": ia, "IR": ir, "IP": ip, "IF": (a2 + 1) * ip * ir / (a2 * ip + ir)}


@given(cases, st.sampled_from([0.5, 1.0, 2.0]))
def test_indexes_are_those_of_the_definition(images: list[str], a: float) -> None:
    found, expected = indexes(counted(images), (a,)), by_definition(images, a)
    for name, key in (("IA", "IA"), ("IR", "IR"), ("IP", "IP"), (f"IF{a:g}", "IF")):
        if expected[key] is None:
            assert np.isnan(found[name]), name
        else:
            assert float(found[name]) == pytest.approx(float(expected[key]), abs=1e-15), name


@given(cases)
def test_identity_of_precision_recall_and_accuracies(images: list[str]) -> None:
    found = indexes(counted(images))
    fine = sum(i.startswith("FT") for i in images) / len(images)
    coarse = sum(i.endswith("CT") for i in images) / len(images)
    if found["IA"] > 0:
        assert 1 / found["IP"] + 1 / found["IR"] == pytest.approx((fine + coarse) / found["IA"])
        assert found["IF1"] == pytest.approx(2 * found["IA"] / (fine + coarse))  # harmonic mean of IP and IR
    # A fine set that is right more often than the class that follows from it: precision below recall.
    if found["IA"] > 0 and fine != coarse:
        assert (found["IP"] < found["IR"]) == (fine > coarse)


def test_the_printed_denominator_is_the_same_at_one_only() -> None:
    counts = np.array([6, 1, 3, 2])
    plain, printed = indexes(counts, (1.0, 2.0)), indexes(counts, (1.0, 2.0), literal=True)
    ip, ir = 6 / 7, 6 / 9
    assert float(printed["IF1"]) == float(plain["IF1"]) == pytest.approx(2 * ip * ir / (ip + ir))
    assert float(plain["IF2"]) == pytest.approx(5 * ip * ir / (4 * ip + ir))
    assert float(printed["IF2"]) == pytest.approx(5 * ip * ir / (ip + ir))


def test_nothing_over_nothing_is_undefined_not_zero() -> None:
    found = over_set(np.array([0, 0, 0, 5]), (1.0,), False, 100, 0.95, 0)
    assert found["IA"].value == 0.0
    assert (found["IR"].value, found["IR"].low) == (None, None)
    assert (found["IP"].value, found["IF1"].value) == (None, None)
    zero = over_set(np.array([0, 2, 3, 0]), (1.0,), False, 100, 0.95, 0)
    assert (zero["IR"].value, zero["IP"].value, zero["IF1"].value) == (0.0, 0.0, None)
    assert share(0, 0, 100, 0.95, 0).value is None


def test_the_bootstrap_draws_what_resampling_images_draws() -> None:
    counts, resamples = np.array([60, 10, 20, 10]), 20_000
    images = np.repeat(np.arange(4), counts)
    generator = np.random.default_rng(5)
    slow = np.stack([np.bincount(generator.choice(images, 100), minlength=4) for _ in range(4000)])
    fast = resampled(counts, resamples, seed=1)
    assert (fast.sum(1) == 100).all()
    # Means and covariances agree to five standard errors of the slower sample.
    assert np.abs(fast.mean(0) - slow.mean(0)).max() < 5 * np.sqrt(25 / 4000)
    assert np.abs(np.cov(fast.T) - np.cov(slow.T)).max() < 5 * 25 * np.sqrt(2 / 4000)


def test_intervals_hold_the_value_narrow_with_images_and_repeat_exactly() -> None:
    counts = np.array([60, 10, 20, 10])
    small, again = (over_set(counts, (1.0,), False, 2000, 0.95, 7) for _ in range(2))
    large = over_set(counts * 100, (1.0,), False, 2000, 0.95, 7)
    assert small == again
    for name, found in small.items():
        assert found.low <= found.value <= found.high, name
        wide, narrow = found.high - found.low, large[name].high - large[name].low
        assert wide / narrow == pytest.approx(10, rel=0.15), name
    # IA is a share: its interval is that of the binomial, +- 1.96 sqrt(p (1 - p) / N).
    assert large["IA"].high - large["IA"].low == pytest.approx(2 * 1.96 * np.sqrt(0.24 / 10_000), rel=0.1)
    assert share(60, 100, 2000, 0.95, 7).value == 0.6


def test_percentiles_skip_undefined_draws() -> None:
    found = interval(0.5, np.array([0.0, np.nan, 1.0, np.nan]), 0.5)
    assert (found.low, found.high) == (0.25, 0.75)
    assert interval(0.5, np.array([np.nan]), 0.5).low is None


def test_the_mean_over_batches_by_hand() -> None:
    batches = np.array([[3, 1, 0, 0], [1, 0, 1, 2], [0, 0, 0, 4]])
    found, undefined = over_batches(batches, (1.0,), False, 500, 0.95, 0)
    assert found["IA"].value == pytest.approx((3 / 4 + 1 / 4 + 0) / 3)
    assert found["IP"].value == pytest.approx((3 / 4 + 1) / 2)
    assert found["IR"].value == pytest.approx((1 + 1 / 2) / 2)
    assert undefined == {"IA": 0, "IR": 1, "IP": 1, "IF1": 1}
    assert found["IA"].low < found["IA"].value < found["IA"].high
    nothing, _ = over_batches(np.zeros((0, 4), np.int64), (1.0,), False, 10, 0.95, 0)
    assert nothing["IA"].value is None
