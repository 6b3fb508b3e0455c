"""From scores to sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.semantic.rules import CASES, ORACLES, case_of, predicted, rules_for

SCORES = np.array([0.1, 0.5, 0.5, 0.8, 0.7], dtype=np.float32)


def test_each_rule_by_hand() -> None:
    assert predicted("oracle_k", SCORES, 1) == [3]
    assert predicted("oracle_k", SCORES, 3) == [1, 3, 4], "of the two halves the lower class is the better one"
    assert predicted("oracle_k", SCORES, 0) == []
    assert predicted("oracle_k", SCORES, None) is None, "without labels there is no k"
    assert predicted("threshold", SCORES, None, threshold=0.6) == [3, 4]
    assert predicted("threshold", SCORES, None, threshold=0.8) == [], "above, not at, the threshold"
    assert predicted("relative", SCORES, None, relative=0.625) == [1, 2, 3, 4], "at the share is enough"
    with pytest.raises(ValueError, match="best"):
        predicted("best", SCORES, 1)


scores = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=12).map(lambda v: np.array(v, np.float32))


@given(scores, st.data())
def test_what_is_predicted_scores_at_least_what_is_not(values: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, len(values)))
    for rule in ("oracle_k", "relative", "threshold"):
        found = predicted(rule, values, k)
        assert found is not None
        assert found == sorted(set(found))
        rest = sorted(set(range(len(values))) - set(found))
        if found and rest:
            assert values[found].min() >= values[rest].max()
    assert len(predicted("oracle_k", values, k) or []) == k
    assert int(values.argmax()) in (predicted("relative", values, None) or [])
    strict = set(predicted("threshold", values, None, threshold=0.8) or [])
    assert strict <= set(predicted("threshold", values, None, threshold=0.3) or [])


def test_only_the_oracle_looks_at_labels() -> None:
    for rule in ("relative", "threshold"):
        assert rule not in ORACLES
        assert predicted(rule, SCORES, None) == predicted(rule, SCORES, 2)
    assert "oracle_k" in ORACLES
    assert rules_for("focal") == ("oracle_k", "relative")
    assert rules_for("bce") == ("threshold",)
    assert rules_for("bce", coarse_only=True) == ()


def test_cases_by_name() -> None:
    assert [case_of(f, c) for f in (True, False) for c in (True, False)] == list(CASES)
    assert CASES == ("FTCT", "FTCF", "FFCT", "FFCF")
