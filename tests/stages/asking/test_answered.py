"""PSNR by answers over a dataset: numpy's means, in whatever order rows come."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from stages.asking.answered import Answered, AnsweredConfig

RNG = np.random.default_rng(0)
PSNR = np.sort(RNG.uniform(15, 40, (30, 4)), axis=1)
PSNR[7, 3] = math.inf


def table(rows: np.ndarray) -> pa.Table:
    return pa.table({"psnr": pa.array([row.tolist() for row in rows], pa.list_(pa.float32()))})


def told(parts: list[np.ndarray]) -> list[dict]:
    reduction = Answered(AnsweredConfig(3))
    state = reduction.start()
    for part in parts:
        state = reduction.merge(state, reduction.add(reduction.start(), table(part)))
    return reduction.finish("all", state).to_pylist()


def test_means_gains_and_their_errors_are_numpys() -> None:
    rows = told([PSNR])
    capped = np.minimum(PSNR, 100)
    assert [row["answers"] for row in rows] == [0, 1, 2, 3]
    assert [row["exact"] for row in rows] == [0, 0, 0, 1]
    for t, row in enumerate(rows):
        assert row["n"] == 30
        assert row["psnr"] == pytest.approx(capped[:, t].mean(), abs=1e-5)
        assert row["psnr_se"] == pytest.approx(capped[:, t].std(ddof=1) / math.sqrt(30), abs=1e-4)
        if t:
            gains = capped[:, t] - capped[:, t - 1]
            assert row["gain"] == pytest.approx(gains.mean(), abs=1e-5)
            assert row["gain_se"] == pytest.approx(gains.std(ddof=1) / math.sqrt(30), abs=1e-4)
    assert rows[0]["gain"] is None


def test_one_image_has_no_standard_error() -> None:
    last = told([PSNR[:1]])[-1]
    assert (last["n"], last["psnr"]) == (1, pytest.approx(PSNR[0, 3], abs=1e-5))
    assert (last["psnr_se"], last["gain_se"]) == (None, None)


def test_any_split_in_any_order_adds_up_to_the_same() -> None:
    order = RNG.permutation(30)
    assert told([PSNR]) == told([PSNR[order[:11]], PSNR[order[11:12]], PSNR[order[12:]], PSNR[:0]])
    assert told([]) == []


def test_rows_of_another_number_of_answers_are_refused() -> None:
    reduction = Answered(AnsweredConfig(2))
    with pytest.raises(ValueError, match=r"after 0\.\.2 answers"):
        reduction.add(reduction.start(), table(PSNR))
    with pytest.raises(ValueError, match="at least 0"):
        AnsweredConfig(-1)
