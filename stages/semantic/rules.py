"""From fine scores to the set of classes an image is said to show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CASES = ("FTCT", "FTCF", "FFCT", "FFCF")
MEANING = {
    "oracle_k": "the k best scores, k the image's true number of labels (ORACLE: it looks at the labels)",
    "relative": "scores of at least a share of the best one",
    "threshold": "scores above a threshold",
}
ORACLES = frozenset({"oracle_k"})
THRESHOLD, RELATIVE = 0.7, 0.5  # the protocol's threshold; the share of the best score that stands in for the oracle


def rules_for(loss: str, coarse_only: bool = False) -> tuple[str, ...]:
    """The protocol's rule for a loss first, then one that looks at no label.

    Softmax scores are predicted by the true number of labels, which nobody knows of a new image; as the focal loss
    drives the scores of all true classes to one value, a share of the best score stands in for it.
    """
    if coarse_only:
        return ()
    return ("oracle_k", "relative") if loss == "focal" else ("threshold",)


def check_rules(rules: Sequence[str]) -> None:
    unknown = [rule for rule in rules if rule not in MEANING]
    if unknown or len(set(rules)) != len(rules):
        raise ValueError(f"rules {list(rules)}: each at most once, of {', '.join(MEANING)}")


def predicted(
    rule: str, scores: NDArray[np.float32], count: int | None, threshold: float = THRESHOLD, relative: float = RELATIVE
) -> list[int] | None:
    """The predicted classes of one image, rising; ``scores`` [F] are in 0..1, ``count`` is its true number of labels.

    A threshold is compared in the scores' own precision, so scores that were kept as float32 give the same sets again.
    Of equal scores the lower class counts as the better one. None where ``oracle_k`` is asked and ``count`` unknown.
    """
    if rule == "threshold":
        return np.flatnonzero(scores > threshold).tolist()
    if rule == "relative":
        return np.flatnonzero(scores >= relative * scores.max()).tolist()
    if rule != "oracle_k":
        check_rules([rule])
    if count is None:
        return None
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def case_of(fine_right: bool, coarse_right: bool) -> str:
    """FTCT, FTCF, FFCT or FFCF: fine set exactly right or not, coarse class right or not."""
    return CASES[2 * (not fine_right) + (not coarse_right)]


class Judged(NamedTuple):
    """What a rule makes of one image's fine scores."""

    predicted: list[int]
    case: str


def judge(
    rule: str,
    scores: NDArray[np.float32],
    true: Sequence[int],
    coarse_right: bool,
    threshold: float = THRESHOLD,
    relative: float = RELATIVE,
) -> Judged:
    """The set that ``rule`` predicts for an image with the classes ``true`` (in any order), and the case that makes."""
    said = predicted(rule, scores, len(true), threshold, relative)
    assert said is not None  # only where the number of true classes is unknown
    return Judged(said, case_of(said == sorted(true), coarse_right))
