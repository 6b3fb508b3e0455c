"""From sweep rows to weights: what must come out where the answer is known, and what a row says about itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.chip.gates import checksums, draw_gates, gate_seeds
from stages.chip.solve import ChipSolve, SolveConfig
from stages.chip.statistics import ChipStatistics, StatisticsConfig, held_out

K, CLASSES, GATES, LAYER = 12, 4, 25, "layer4.1.relu:1"
STATISTICS = StatisticsConfig((LAYER,), (K,), CLASSES, gates=GATES, seed=5, holdout=0.25)
HEAD = np.random.default_rng(42).normal(size=(CLASSES, K))  # the rows of a final linear layer


def logits(z: np.ndarray) -> np.ndarray:
    """GAP + linear without a bias: the score is linear in the pooled, gated activation."""
    return z @ HEAD.T


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sweep(images: int, score: Callable[[np.ndarray], np.ndarray], listed: int = CLASSES) -> pa.Table:
    """The rows a sweep would write for a network that ends in pooling and ``score``; classes 0 to ``listed`` - 1."""
    rng = np.random.default_rng(1)
    keys = [f"{i}.png" for i in range(images)]
    a = rng.gamma(0.8, size=(images, K)).astype(np.float32)
    gates = draw_gates(gate_seeds(STATISTICS.seed, "fit", keys, LAYER), GATES, K)
    z = gates.numpy() * a[:, None].astype(np.float64)
    return pa.table(
        {
            "key": keys,
            "split": ["fit"] * images,
            "classes": pa.array([range(listed)] * images, pa.list_(pa.int32())),
            "f": pa.array(list(softmax(logits(a.astype(np.float64)))[:, :listed]), pa.list_(pa.float32())),
            f"a/{LAYER}": pa.array(list(a), pa.list_(pa.float32())),
            f"g/{LAYER}": pa.array([g[:, :listed].ravel() for g in score(z)], pa.list_(pa.float32())),
            f"gates/{LAYER}": checksums(gates),
        }
    )


def statistics(table: pa.Table, config: StatisticsConfig = STATISTICS) -> list[pa.Table]:
    """The parts of the statistics, one per block."""
    reduction = ChipStatistics(config)
    return [reduction.finish(b, reduction.add(reduction.start(b), table)) for b in reduction.blocks()]


def solve(parts: list[pa.Table], config: SolveConfig) -> list[dict[str, Any]]:
    reduction = ChipSolve(config)
    assert len(reduction.blocks()) == len(parts)
    rows = []
    for block, part in zip(reduction.blocks(), parts, strict=True):
        table = reduction.finish(block, reduction.add(reduction.start(block), part))
        assert table.schema.equals(reduction.schema)
        rows += table.to_pylist()
    return rows


@pytest.mark.parametrize("solver", ["admm", "newton"])
def test_a_pooled_linear_head_gets_its_own_rows_back(solver: str) -> None:
    """GAP + linear, logits, zero bias, lambda = 0: w_c is the fc row, on fit and held-out images alike."""
    rows = solve(statistics(sweep(40, logits)), SolveConfig(STATISTICS, solver=solver, lambda_rel=0.0))  # type: ignore[arg-type]
    assert [row["class_id"] for row in rows] == list(range(CLASSES))
    for row in rows:
        np.testing.assert_allclose(row["w"], HEAD[row["class_id"]], atol=1e-5)  # scores are stored as float32
        for name in ("r2_fit", "r2_fit_centred", "r2_heldout", "r2_heldout_centred"):
            assert row[name] == pytest.approx(1, abs=1e-9)
        assert row["solver"] == "direct"
        assert row["kkt"] <= 1e-8


def test_with_softmax_each_class_correlates_best_with_its_own_row() -> None:
    rows = solve(statistics(sweep(60, lambda z: softmax(logits(z)))), SolveConfig(STATISTICS, lambda_rel=0.01))
    for row in rows:
        against = [np.corrcoef(row["w"], head)[0, 1] for head in HEAD]
        assert int(np.argmax(against)) == row["class_id"]


def test_r2_is_that_of_the_samples() -> None:
    table = sweep(30, lambda z: softmax(logits(z)))
    row = solve(statistics(table), SolveConfig(STATISTICS))[2]
    part = held_out(table["key"].to_pylist(), STATISTICS.holdout)
    assert 0 < part.sum() < 30
    gates = draw_gates(gate_seeds(5, "fit", table["key"].to_pylist(), LAYER), GATES, K).numpy()
    h = np.exp(-(K - gates.sum(-1)) / (K / 4))
    f = np.array(table["f"].to_pylist())[:, 2]
    g = np.array(table[f"g/{LAYER}"].to_pylist()).reshape(30, GATES, CLASSES)[:, :, 2]
    predicted = (gates * np.array(table[f"a/{LAYER}"].to_pylist())[:, None]) @ np.array(row["w"])
    for name, chosen in (("fit", ~part), ("heldout", part)):
        weight = (h * f[:, None])[chosen]
        y, error = g[chosen], (weight * (g - predicted)[chosen] ** 2).sum()
        mean = (weight * y).sum() / weight.sum()
        assert row[f"r2_{name}"] == pytest.approx(1 - error / (weight * y**2).sum(), abs=1e-10)
        assert row[f"r2_{name}_centred"] == pytest.approx(1 - error / (weight * (y - mean) ** 2).sum(), abs=1e-9)


@pytest.mark.parametrize("solver", ["admm", "newton"])
def test_rows_carry_certificates_and_counts(solver: str) -> None:
    for row in solve(statistics(sweep(30, lambda z: softmax(logits(z)))), SolveConfig(STATISTICS, solver=solver)):  # type: ignore[arg-type]
        assert row["kkt"] <= 1e-8
        assert 0 <= row["gap"] <= 1e-8
        assert row["polished"] == (solver == "admm")
        assert row["solver"] == solver
        assert row["nonzeros"] == np.count_nonzero(row["w"]) > 0
        assert row["samples"] == GATES * row["images"]
        assert not row["underdetermined"]
        assert row["flag"] == ""
        assert row["path"] == []


def test_a_path_is_the_solves_it_stands_for() -> None:
    parts = statistics(sweep(30, lambda z: softmax(logits(z))))
    rows = solve(parts, SolveConfig(STATISTICS, path=5))
    assert [step["lambda_rel"] for step in rows[0]["path"]] == pytest.approx([1, 10**-0.5, 0.1, 10**-1.5, 0.01])
    for i, step in enumerate(rows[0]["path"]):
        singles = solve(parts, SolveConfig(STATISTICS, lambda_rel=step["lambda_rel"]))
        for row, single in zip(rows, singles, strict=True):
            assert row["path"][i]["nonzeros"] == single["nonzeros"]
            assert row["path"][i]["r2_heldout_centred"] == pytest.approx(single["r2_heldout_centred"], abs=1e-7)
            assert row["path"][i]["kkt"] <= 1e-8
    assert rows[0]["path"][0]["nonzeros"] == 0
    assert [row["lambda_rel"] for row in rows] == [0.01] * CLASSES


def test_held_out_r2_chooses_on_request() -> None:
    parts = statistics(sweep(9, lambda z: softmax(logits(z))))
    config = SolveConfig(STATISTICS, path=15, choose=True, lambda_rel=1e-4)
    for row in solve(parts, config):
        best = max(row["path"], key=lambda step: step["r2_heldout"])
        assert row["lambda_rel"] == best["lambda_rel"]
        assert row["r2_heldout"] == best["r2_heldout"]
    (row,) = solve(statistics(sweep(9, logits), replace(STATISTICS, only=(0,), holdout=0.0)),
                   replace(config, statistics=replace(STATISTICS, only=(0,), holdout=0.0)))  # fmt: skip
    assert row["lambda_rel"] == 1e-4, "without held-out images nothing can choose"
    assert row["r2_heldout"] is None


@pytest.mark.parametrize("choose", [True, False])
def test_a_held_out_r2_that_chose_lambda_is_called_so(choose: bool) -> None:
    reduction = ChipSolve(SolveConfig(STATISTICS, path=5, choose=choose))
    (part,) = statistics(sweep(20, lambda z: softmax(logits(z))))
    found = reduction.summary(reduction.finish(reduction.blocks()[0], [part]))
    assert found["r2_heldout_chose_lambda"] is choose
    for name in ("r2_heldout", "r2_heldout_centred"):
        meaning = reduction.schema.field(name).metadata[b"meaning"].decode()
        assert ("they chose lambda, so it is too good" in meaning) is choose


def test_a_path_may_end_at_zero() -> None:
    (row, *_) = solve(statistics(sweep(40, logits)), SolveConfig(STATISTICS, path=6, lambda_rel=0.0))
    assert row["path"][-1]["lambda_rel"] == 0
    np.testing.assert_allclose(row["w"], HEAD[0], atol=1e-5)


def test_blocks_are_those_of_the_statistics() -> None:
    table = sweep(20, lambda z: softmax(logits(z)))
    small = replace(STATISTICS, block_mb=0.004)
    parts = statistics(table, small)
    assert len(parts) > 1
    assert ChipSolve.aligned
    by_block, at_once = solve(parts, SolveConfig(small)), solve(statistics(table), SolveConfig(STATISTICS))
    for one, other in zip(by_block, at_once, strict=True):
        np.testing.assert_allclose(one["w"], other["w"], atol=1e-9)


def test_a_class_subset_is_solved_alone() -> None:
    parts = statistics(sweep(20, logits))
    rows = solve(parts, SolveConfig(STATISTICS, classes=(3, 1)))
    assert [row["class_id"] for row in rows] == [1, 3]


def test_a_class_without_signal_or_images_is_flagged_and_finite() -> None:
    silent = sweep(20, lambda z: 0 * logits(z))
    for row in solve(statistics(silent), SolveConfig(STATISTICS, path=4)):
        assert row["flag"] == "no_signal"
        assert not any(row["w"])
        assert row["r2_fit"] is None
        assert (row["kkt"], row["gap"], row["lambda"]) == (0, 0, 0)
    table = sweep(12, logits)
    lone = table.filter(pa.array(held_out(table["key"].to_pylist(), STATISTICS.holdout)))
    for row in solve(statistics(lone), SolveConfig(STATISTICS)):
        assert row["flag"] == "no_fit_images"
        assert row["underdetermined"]
        assert not any(row["w"])


def test_too_few_images_are_called_underdetermined() -> None:
    config = replace(STATISTICS, holdout=0.0)
    table = sweep(1, logits)
    rows = solve(statistics(table, config), SolveConfig(config))
    assert all(row["effective_images"] == pytest.approx(1) for row in rows)
    assert not any(row["underdetermined"] for row in rows), "25 samples, 12 channels"
    rows = solve(statistics(table, config), SolveConfig(replace(config, gates=11)))
    assert all(row["underdetermined"] for row in rows), "11 samples, 12 channels"


def test_the_summary_is_plain_numbers() -> None:
    reduction = ChipSolve(SolveConfig(STATISTICS))
    (part,) = statistics(sweep(20, lambda z: softmax(logits(z))))
    block = reduction.blocks()[0]
    found = reduction.summary(reduction.finish(block, [part]))
    layer = found["layers"][LAYER]
    assert layer["classes"] == CLASSES
    assert layer["max_kkt"] <= 1e-8
    assert 0 < layer["median_r2_fit"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"solver": "cd"}, "admm, newton"),
        ({"lambda_rel": -1.0}, "lambda_rel"),
        ({"over_relaxation": 2.0}, "over_rel"),
        ({"classes": (1, 4)}, "class 4 does not exist, the network has classes 0 to 3"),
        ({"classes": ()}, "classes: the list is empty"),
    ],
)
def test_settings_that_make_no_sense_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SolveConfig(STATISTICS, **change)
