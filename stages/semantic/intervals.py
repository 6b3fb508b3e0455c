"""IA, IR, IP, IF from how often each case came up, and how sure they are.

Cases are counted in the order of `stages.semantic.rules.CASES`: FTCT, FTCF, FFCT, FFCF. An index that is 0/0 is NaN
here and null in tables: undefined, not 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Interval:
    """A value and its percentile bootstrap interval; all None where the value is undefined."""

    value: float | None
    low: float | None
    high: float | None


def if_name(a: float) -> str:
    """IF_a's name: IF1, IF0.5."""
    return f"IF{a:g}"


def indexes(counts: NDArray[np.generic], a: Sequence[float] = (1.0,), literal: bool = False) -> Values:
    """``counts`` [..., 4] -> IA, IR, IP and IF_a by name, each [...].

    IA = FTCT / N, IR = FTCT / (FTCT + FFCT), IP = FTCT / (FTCT + FTCF), IF_a = (a^2 + 1) IP IR / (a^2 IP + IR);
    ``literal`` is the denominator as printed, without a^2.
    """
    ftct, ftcf, ffct, ffcf = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    found = {
        "IA": _ratio(ftct, ftct + ftcf + ffct + ffcf),
        "IR": _ratio(ftct, ftct + ffct),
        "IP": _ratio(ftct, ftct + ftcf),
    }
    recall, precision = found["IR"], found["IP"]
    for weight in a:
        below = (1.0 if literal else weight**2) * precision + recall
        found[if_name(weight)] = _ratio((weight**2 + 1) * precision * recall, below)
    return found


def resampled(counts: NDArray[np.int64], resamples: int, seed: int) -> NDArray[np.int64]:
    """Bootstrap of the images: [resamples, cases]. What N draws with replacement count is multinomial, exactly."""
    total = int(counts.sum())
    generator = np.random.Generator(np.random.Philox(seed))
    return generator.multinomial(total, counts / max(1, total), size=resamples)


def interval(value: float, draws: NDArray[np.float64], confidence: float) -> Interval:
    """Percentiles of the draws where the index is defined; as wide as they say, without a correction."""
    if np.isnan(value):
        return Interval(None, None, None)
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return Interval(float(value), None, None)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high))


def over_set(
    counts: NDArray[np.int64], a: Sequence[float], literal: bool, resamples: int, confidence: float, seed: int
) -> dict[str, Interval]:
    """The indexes of the whole set."""
    values = indexes(counts, a, literal)
    draws = indexes(resampled(counts, resamples, seed), a, literal)
    return {name: interval(float(value), draws[name], confidence) for name, value in values.items()}


def over_batches(
    counts: NDArray[np.int64], a: Sequence[float], literal: bool, resamples: int, confidence: float, seed: int
) -> tuple[dict[str, Interval], dict[str, int]]:
    """The mean over batches of each batch's indexes, ``counts`` [batches, 4]; the interval resamples whole batches.

    A batch where an index is undefined is left out of that index's mean. Returns also how many were.
    """
    values = indexes(counts, a, literal)
    generator = np.random.Generator(np.random.Philox(seed))
    count = len(counts)
    found, undefined = {}, {}
    draws = (
        generator.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64) if count else None
    )
    for name, each in values.items():
        defined = ~np.isnan(each)
        undefined[name] = int((~defined).sum())
        if draws is None or not defined.any():
            found[name] = Interval(None, None, None)
            continue
        weights = draws[:, defined]
        means = _ratio(weights @ each[defined], weights.sum(1))
        found[name] = interval(float(each[defined].mean()), means, confidence)
    return found, undefined


def share(right: int, total: int, resamples: int, confidence: float, seed: int) -> Interval:
    """A share of images and its interval; undefined without images."""
    counts = np.array([right, total - right], dtype=np.int64)
    draws = resampled(counts, resamples, seed)[:, 0] / max(1, total)
    return interval(right / total if total else float("nan"), draws, confidence)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(below > 0, above / below, np.nan)
