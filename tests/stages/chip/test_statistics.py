"""The factored sums of CHIP's fit against a slow reading of the formula, sample by sample."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from stages.chip import sums
from stages.chip.gates import checksums, draw_gates, gate_seeds
from stages.chip.statistics import ChipStatistics, StatisticsConfig, held_out

K, N, CLASSES, LAYER = 70, 6, 9, "features.3"  # more channels than one panel of the Gram matrix
CONFIG = StatisticsConfig(layers=(LAYER,), channels=(K,), classes=CLASSES, gates=N, seed=11, holdout=0.3)


def sweep(images: int, *, shared: bool = False, every_class: bool = False, seed: int = 0) -> pa.Table:
    """A sweep's rows with random scores: what the reduction reads, and nothing else."""
    rng = np.random.default_rng(seed)
    keys = [f"class/{i}.jpg" for i in range(images)]
    gates = draw_gates(gate_seeds(CONFIG.seed, "fit", keys, LAYER, shared=shared), N, K)
    counts = [CLASSES if every_class else int(rng.integers(0, 4)) for _ in keys]
    classes = [np.sort(rng.choice(CLASSES - 1 + every_class, n, replace=False)) for n in counts]
    a = rng.gamma(0.5, size=(images, K)) * (rng.random((images, K)) < 0.7)
    columns = {
        "key": pa.array(keys),
        "split": pa.array(["fit"] * images),
        "classes": pa.array(classes, pa.list_(pa.int32())),
        "f": pa.array([rng.random(n) for n in counts], pa.list_(pa.float32())),
        f"a/{LAYER}": pa.array(list(a), pa.list_(pa.float32())),
        f"g/{LAYER}": pa.array([rng.random(N * n) for n in counts], pa.list_(pa.float32())),
        f"gates/{LAYER}": pa.array(checksums(gates)),
    }
    return pa.table(columns)


def reduce(config: StatisticsConfig, shards: Sequence[pa.Table]) -> pa.Table:
    reduction = ChipStatistics(config)
    parts = []
    for block in reduction.blocks():
        state = reduction.start(block)
        for shard in shards:
            state = reduction.add(state, shard)
        parts.append(reduction.finish(block, state))
    return pa.concat_tables(parts)


def naive(config: StatisticsConfig, table: pa.Table) -> dict[int, dict[str, Any]]:
    """PROTOCOLS' formula term by term."""
    sigma2 = config.sigma2 or K / 4
    found: dict[int, dict[str, Any]] = {}
    for row in table.to_pylist():
        seeds = gate_seeds(config.seed, row["split"], [row["key"]], LAYER, shared=config.shared_gates)
        gates = draw_gates(seeds, N, K)[0].numpy().astype(float)
        prefix = "heldout_" if held_out([row["key"]], config.holdout)[0] else ""
        g = np.array(row[f"g/{LAYER}"]).reshape(N, len(row["classes"]))
        for j, c in enumerate(row["classes"]):
            into = found.setdefault(c, {})
            for name in ("gram", "b", "gg", "g1", "weight", "images"):
                into.setdefault(prefix + name, 0.0)
            into[prefix + "images"] += 1
            for n in range(N):
                z = gates[n] * np.array(row[f"a/{LAYER}"])
                weight = math.exp(-float(((gates[n] - 1) ** 2).sum()) / sigma2) * row["f"][j]
                into[prefix + "gram"] += weight * np.outer(z, z)
                into[prefix + "b"] += weight * g[n, j] * z
                into[prefix + "gg"] += weight * g[n, j] ** 2
                into[prefix + "g1"] += weight * g[n, j]
                into[prefix + "weight"] += weight
    return found


def assert_same(table: pa.Table, expected: dict[int, dict[str, Any]]) -> None:
    assert table["class_id"].to_pylist() == sorted(expected)
    for row in table.to_pylist():
        for name, value in expected[row["class_id"]].items():
            got = np.array(row[name])
            wanted = value[np.triu_indices(K)] if name.endswith("gram") else value
            np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-15, err_msg=name)
        for prefix in ("", "heldout_"):
            assert row[f"{prefix}samples"] == N * row[f"{prefix}images"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("every_class", [False, True])
@pytest.mark.parametrize("sigma2", [None, 30.0])
def test_factored_sums_equal_the_formula(shared: bool, every_class: bool, sigma2: float | None) -> None:
    config = replace(CONFIG, shared_gates=shared, sigma2=sigma2)
    table = sweep(12, shared=shared, every_class=every_class)
    assert_same(reduce(config, [table]), naive(config, table))


def test_small_blocks_give_the_same_rows() -> None:
    table = sweep(40)
    whole = reduce(CONFIG, [table])
    config = replace(CONFIG, block_mb=0.15)
    blocks = ChipStatistics(config).blocks()
    assert len(blocks) == 5
    assert max(ChipStatistics(config).state_bytes(block) for block in blocks) <= 0.15 * 2**20
    assert reduce(config, [table])["class_id"].to_pylist() == whole["class_id"].to_pylist()
    assert_same(reduce(config, [table]), naive(config, table))


def test_shards_merge_in_any_order() -> None:
    table = sweep(30)
    reduction = ChipStatistics(CONFIG)
    (block,) = reduction.blocks()
    cuts = [table.slice(0, 3), table.slice(3, 20), table.slice(23)]
    expected = naive(CONFIG, table)
    for order in ((0, 1, 2), (2, 0, 1)):
        left, middle, right = (reduction.add(reduction.start(block), cuts[i]) for i in order)
        assert_same(reduction.finish(block, reduction.merge(left, reduction.merge(middle, right))), expected)
    left, middle, right = (reduction.add(reduction.start(block), cut) for cut in cuts)
    empty = reduction.add(reduction.start(block), table.slice(0, 0))
    joined = reduction.merge(reduction.merge(empty, reduction.merge(left, middle)), right)
    assert_same(reduction.finish(block, joined), expected)


def test_the_same_shards_give_the_same_bytes() -> None:
    table = sweep(20)
    assert reduce(CONFIG, [table]).equals(reduce(CONFIG, [table]))


def test_a_state_survives_a_journey_and_is_as_large_as_said() -> None:
    reduction = ChipStatistics(CONFIG)
    (block,) = reduction.blocks()
    state = reduction.add(reduction.start(block), sweep(5))
    back = pickle.loads(pickle.dumps(state))
    assert reduction.finish(block, back).equals(reduction.finish(block, state))
    tensors = [*back.panels, back.b, back.sums, back.images]
    assert sum(t.numel() * t.element_size() for t in tensors) == reduction.state_bytes(block)


def test_a_thousand_classes_of_512_channels_stay_within_the_memory_asked_for() -> None:
    reduction = ChipStatistics(StatisticsConfig(("last_conv",), (512,), 1000))
    blocks = reduction.blocks()
    assert max(reduction.state_bytes(block) for block in blocks) <= 512 * 2**20
    assert [b[1] for b in blocks[1:]] == [b[2] for b in blocks[:-1]]
    assert (blocks[0][1], blocks[-1][2]) == (0, 1000)


def test_a_class_subset_is_those_rows() -> None:
    table = sweep(30)
    whole = reduce(CONFIG, [table])
    some = reduce(replace(CONFIG, only=(6, 2)), [table])
    assert some["class_id"].to_pylist() == [2, 6]
    kept = [i for i, c in enumerate(whole["class_id"].to_pylist()) if c in (2, 6)]
    for name in ("gram", "b", "images", "heldout_gg"):
        assert np.allclose(
            np.hstack(some[name].to_pylist()), np.hstack(whole.take(kept)[name].to_pylist()), rtol=1e-13, atol=0
        )


def test_fit_and_held_out_images_make_up_the_whole() -> None:
    table = sweep(60)
    parts, whole = reduce(CONFIG, [table]), reduce(replace(CONFIG, holdout=0.0), [table])
    assert sum(parts["heldout_images"].to_pylist()) > 0
    assert sum(whole["heldout_images"].to_pylist()) == 0
    for name in ("images", "samples", "weight", "gg", "g1"):
        both = parts[name].to_numpy() + parts[f"heldout_{name}"].to_numpy()
        np.testing.assert_allclose(both, whole[name].to_numpy(), rtol=1e-12)


def test_the_held_out_share_is_by_key_alone() -> None:
    keys = [f"{i}.jpg" for i in range(4000)]
    chosen = held_out(keys, 0.2)
    assert abs(chosen.mean() - 0.2) < 5 * (0.16 / 4000) ** 0.5
    assert held_out(keys[7:8], 0.2)[0] == chosen[7]
    assert not np.any(chosen & ~held_out(keys, 0.4)), "a larger share keeps those of a smaller one"


def test_effective_images_count_equal_weights_fully() -> None:
    table = sweep(10, every_class=True)
    f = pa.array([np.full(CLASSES, 0.25)] * 9 + [np.full(CLASSES, 1e-9)], pa.list_(pa.float32()))
    rows = reduce(replace(CONFIG, holdout=0.0), [table.set_column(3, "f", f)])
    np.testing.assert_allclose(rows["effective_images"].to_numpy(), 9.0, rtol=1e-6)


def mean_outer(channels: int, sigma2: float) -> np.ndarray:
    """E[h d d'] in closed form: m is uniform, and i, j are both among m of K with probability m(m-1)/(K(K-1))."""
    m = np.arange(1, channels + 1)
    h = np.exp(-(channels - m) / sigma2)
    one = (h * m / channels).mean()
    two = (h * m * (m - 1) / (channels * max(channels - 1, 1))).mean()
    return np.full((channels, channels), two) + (one - two) * np.eye(channels)


def test_the_closed_form_is_the_mean_over_every_subset() -> None:
    channels, sigma2 = 6, 1.5
    total = np.zeros((channels, channels))
    for m in range(1, channels + 1):
        subsets = list(combinations(range(channels), m))
        gates = torch.zeros(len(subsets), channels, dtype=torch.bool)
        for row, subset in enumerate(subsets):
            gates[row, list(subset)] = True
        h = sums.gate_weights(gates, sigma2).numpy()
        d = gates.numpy().astype(float)
        total += (h[:, None] * d).T @ d / len(subsets) / channels
    np.testing.assert_allclose(total, mean_outer(channels, sigma2), rtol=1e-13)


def test_gram_matrices_of_drawn_gates_approach_the_closed_form() -> None:
    """All activations and f equal to 1: the Gram matrix over the samples is the mean of h d d'."""
    channels, gates, images = 5, 400, 100
    config = StatisticsConfig((LAYER,), (channels,), 1, gates=gates, seed=2, sigma2=2.0, holdout=0.0)
    keys = [str(i) for i in range(images)]
    drawn = draw_gates(gate_seeds(2, "fit", keys, LAYER), gates, channels)
    table = pa.table(
        {
            "key": keys,
            "split": ["fit"] * images,
            "classes": pa.array([[0]] * images, pa.list_(pa.int32())),
            "f": pa.array([[1.0]] * images, pa.list_(pa.float32())),
            f"a/{LAYER}": pa.array([[1.0] * channels] * images, pa.list_(pa.float32())),
            f"g/{LAYER}": pa.array([[1.0] * gates] * images, pa.list_(pa.float32())),
            f"gates/{LAYER}": pa.array(checksums(drawn)),
        }
    )
    row = reduce(config, [table]).to_pylist()[0]
    mean = sums.unpack(np.array(row["gram"]), channels) / (gates * images)
    expected = mean_outer(channels, 2.0)
    assert np.abs(mean - expected).max() < 5 * 0.5 / (gates * images) ** 0.5
    np.testing.assert_allclose(row["b"], np.diag(mean) * gates * images, rtol=1e-12)  # g = 1, and d d = d


def test_other_gates_than_the_sweeps_are_refused_by_key() -> None:
    table = sweep(4, every_class=True)
    key = table["key"][int(np.flatnonzero(~held_out(table["key"].to_pylist(), 0.3))[0])].as_py()
    for wrong in (replace(CONFIG, seed=12), replace(CONFIG, shared_gates=True)):
        with pytest.raises(ValueError, match=f"{key}.*gates drawn here are not those of the sweep"):
            reduce(wrong, [table])


def test_rows_of_another_shape_or_not_finite_are_refused_by_key() -> None:
    table = sweep(4, every_class=True)
    with pytest.raises(ValueError, match=r"class/0.jpg.*not 70 and 7 gates"):
        reduce(replace(CONFIG, gates=7), [table])
    values = np.asarray(table[f"a/{LAYER}"].combine_chunks().flatten()).reshape(-1, K).copy()
    values[2, 3] = np.nan
    at = table.column_names.index(f"a/{LAYER}")
    broken = table.set_column(at, f"a/{LAYER}", pa.array(list(values), pa.list_(pa.float32())))
    with pytest.raises(ValueError, match=r"class/2.jpg: its a is not finite"):
        reduce(CONFIG, [broken])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sigma2": 0.0}, "sigma2"),
        ({"holdout": 1.0}, "holdout"),
        ({"only": (9,)}, "class 9 does not exist"),
        ({"channels": (1, 2)}, "one per layer"),
    ],
)
def test_settings_that_make_no_sense_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_the_schema_says_what_each_column_holds() -> None:
    reduction = ChipStatistics(CONFIG)
    assert reduce(CONFIG, [sweep(3)]).schema.equals(reduction.schema)
    assert all(f.metadata[b"meaning"] for f in reduction.schema)
    assert reduction.summary(reduce(CONFIG, [sweep(30)]))["layers"][LAYER]["classes"] == CLASSES - 1
