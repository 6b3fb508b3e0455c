"""The reduction: equal to counting image by image, however rows are split, ordered and merged."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.semantic.indexes import SemanticIndexes, SemanticIndexesConfig
from stages.semantic.rules import CASES, case_of

FINE, COARSE = ("cup", "fork", "cat", "dog"), ("kitchen", "animal", "never")
CONFIG = SemanticIndexesConfig(("oracle_k", "relative"), FINE, COARSE, (1.0, 2.0), batch=4, resamples=50)


def row(key: str, true: list[int], coarse_true: int | None, coarse: int, scores: list[float]) -> dict:
    return {"key": key, "true": true, "coarse_true": coarse_true, "coarse": coarse, "fine_scores": scores}


def said_of(one: dict, rule: str, share: float = 0.5) -> list[int]:
    """The rules again, class by class and slowly; scores are sixteenths, which halve and compare exactly."""
    scores = one["fine_scores"]
    if rule == "oracle_k":
        return sorted(sorted(range(4), key=lambda f: (-scores[f], f))[: len(one["true"])])
    least = share * max(scores)
    return [f for f in range(4) if (scores[f] > share if rule == "threshold" else scores[f] >= least)]


def case_by(one: dict, rule: str, share: float = 0.5) -> str:
    return case_of(said_of(one, rule, share) == one["true"], one["coarse"] == one["coarse_true"])


sets = st.lists(st.integers(0, 3), unique=True, max_size=3).map(sorted)
ids = st.integers(0, 1)
scored = st.lists(st.integers(0, 16).map(lambda n: n / 16), min_size=4, max_size=4)
rows = st.lists(
    st.tuples(sets, st.one_of(st.none(), ids), ids, scored), min_size=1, max_size=30
).map(lambda several: [row(f"image-{i}", *one) for i, one in enumerate(several)])  # fmt: skip


def table(several: list[dict], split: str = "eval") -> pa.Table:
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("true", pa.list_(pa.int32())),
            ("coarse_true", pa.int32()),
            ("coarse", pa.int32()),
            ("fine_scores", pa.list_(pa.float32())),
            ("split", pa.string()),
        ]
    )
    return pa.Table.from_pylist([one | {"split": split} for one in several], schema=schema)


def reduced(*tables: pa.Table, config: SemanticIndexesConfig = CONFIG) -> tuple[pa.Table, dict[str, Any]]:
    reduction = SemanticIndexes(config)
    state = reduction.start()
    for part in tables:
        state = reduction.add(state, part)
    found = reduction.finish("all", state)
    assert found.schema.equals(reduction.schema)
    summary = reduction.summary(found)
    json.dumps(summary, allow_nan=False)
    return found, summary


@settings(max_examples=40, deadline=None)
@given(rows)
def test_counts_are_those_of_counting_image_by_image(several: list[dict]) -> None:
    _, summary = reduced(table(several))
    split = summary["eval"]
    judged = [one for one in several if one["coarse_true"] is not None]
    assert (split["images"], split["unlabelled"]) == (len(judged), len(several) - len(judged))
    right = sum(one["coarse"] == one["coarse_true"] for one in judged)
    assert split["coarse_accuracy"]["value"] == (pytest.approx(right / len(judged)) if judged else None)
    for i, true in enumerate(COARSE):
        mine = [one for one in judged if one["coarse_true"] == i]
        assert split["confusion"][i] == [sum(one["coarse"] == j for one in mine) for j in range(3)]
        assert split["coarse_classes"][true]["images"] == len(mine)
        expected = sum(one["coarse"] == i for one in mine) / len(mine) if mine else None
        assert split["coarse_classes"][true]["accuracy"] == expected
    for rule in CONFIG.rules:
        found = split["rules"][rule]
        assert found["oracle"] == (rule == "oracle_k")
        cases = [case_by(one, rule) for one in judged]
        assert found["cases"] == {case: cases.count(case) for case in CASES}
        for f, name in enumerate(FINE):
            shows = [f in one["true"] for one in judged]
            said = [f in said_of(one, rule) for one in judged]
            entry = found["fine_classes"][name]
            hits = sum(a and b for a, b in zip(shows, said, strict=True))
            agree = sum(a == b for a, b in zip(shows, said, strict=True))
            assert (entry["images"], entry["predicted"], entry["hits"]) == (sum(shows), sum(said), hits)
            assert entry["accuracy"] == (agree / len(judged) if judged else None)
            assert entry["recall"] == (hits / sum(shows) if any(shows) else None)
            assert entry["precision"] == (hits / sum(said) if any(said) else None)


@settings(max_examples=40, deadline=None)
@given(rows, st.integers(1, 15).map(lambda n: n / 16))
def test_another_threshold_is_another_reduction_of_the_same_rows(several: list[dict], share: float) -> None:
    rules = ("threshold", "relative")
    config = SemanticIndexesConfig(rules, FINE, COARSE, resamples=10, threshold=share, relative=share)
    split = reduced(table(several), config=config)[1]["eval"]
    judged = [one for one in several if one["coarse_true"] is not None]
    for rule in rules:
        cases = [case_by(one, rule, share) for one in judged]
        assert split["rules"][rule]["cases"] == {case: cases.count(case) for case in CASES}


def test_a_threshold_is_compared_in_the_precision_of_the_scores() -> None:
    # 0.7 as a float32 is below 0.7 as a double: at the threshold itself a score is not above it, in either.
    above = float(np.nextafter(np.float32(0.7), np.float32(1)))
    several = [row("at", [], 0, 0, [float(np.float32(0.7)), 0, 0, 0]), row("above", [0], 0, 0, [above, 0, 0, 0])]
    _, summary = reduced(table(several), config=SemanticIndexesConfig(("threshold",), FINE, COARSE))
    assert summary["eval"]["rules"]["threshold"]["cases"]["FTCT"] == 2


@settings(max_examples=40, deadline=None)
@given(rows, st.data())
def test_any_partition_in_any_order_gives_the_same_table(several: list[dict], data: st.DataObject) -> None:
    expected, _ = reduced(table(several))
    order = data.draw(st.permutations(several))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(several)), max_size=4)))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    reduction = SemanticIndexes(CONFIG)
    states = [reduction.add(reduction.start(), table(part)) for part in parts]
    left = states[0]
    for state in states[1:]:
        left = reduction.merge(left, state)
    right = states[-1]
    for state in reversed(states[:-1]):
        right = reduction.merge(state, right)
    for state in (left, right, reduction.merge(reduction.start(), left)):
        assert reduction.finish("all", state).equals(expected)


@settings(max_examples=40, deadline=None)
@given(rows)
def test_the_indexes_identity_holds_in_every_summary(several: list[dict]) -> None:
    split = reduced(table(several))[1]["eval"]
    for found in split["rules"].values():
        whole = found["set"]
        if whole["IA"]["value"]:
            accuracies = found["fine_exact"]["value"] + split["coarse_accuracy"]["value"]
            identity = 1 / whole["IP"]["value"] + 1 / whole["IR"]["value"]
            assert identity == pytest.approx(accuracies / whole["IA"]["value"])
            assert whole["IF"]["1"]["value"] == pytest.approx(2 * whole["IA"]["value"] / accuracies)


def test_batches_are_taken_by_the_hash_of_the_key() -> None:
    several = [row(f"image-{i}", [0], 0, int(i % 3 == 0), [1, 0.75, 0, 0]) for i in range(10)]
    found, summary = reduced(table(several))
    ordered = sorted(
        several, key=lambda one: int.from_bytes(hashlib.blake2b(one["key"].encode(), digest_size=8).digest(), "little")
    )
    values = []
    for start in (0, 4, 8):
        part = ordered[start : start + 4]
        values.append(np.mean([case_by(one, "oracle_k") == "FTCT" for one in part]))
    told = summary["eval"]["rules"]["oracle_k"]["batches"]
    assert told["IA"]["value"] == pytest.approx(np.mean(values))
    assert told["batches"] == 3
    assert summary["eval"]["rules"]["oracle_k"]["set"]["IA"]["value"] == pytest.approx(0.6)
    assert found["aggregate"].to_pylist() == ["set", "batches"] * 2
    # No fine set is right under the other rule: no precision in any batch.
    other = summary["eval"]["rules"]["relative"]["batches"]
    assert other["IP"]["value"] is None
    assert other["undefined"]["IP"] == 3
    without, _ = reduced(table(several), config=SemanticIndexesConfig(CONFIG.rules, FINE, COARSE, batch=0))
    assert without["aggregate"].to_pylist() == ["set", "set"]


def test_splits_are_kept_apart() -> None:
    a = [row("image-1", [0], 0, 0, [1, 0, 0, 0])]
    b = [row("image-1", [0], 0, 1, [0, 1, 0, 0])]
    _, summary = reduced(table(a, "tune"), table(b, "eval"))
    assert summary["tune"]["rules"]["oracle_k"]["cases"]["FTCT"] == 1
    assert summary["eval"]["rules"]["oracle_k"]["cases"]["FFCF"] == 1


def test_a_coarse_only_network_has_accuracies_alone() -> None:
    config = SemanticIndexesConfig((), FINE, COARSE)
    several = [row("a", [0], 0, 0, []), row("b", [2], 1, 0, []), row("c", [], None, 0, [])]
    found, summary = reduced(table(several), config=config)
    assert found["rule"].to_pylist() == [None]
    assert summary["eval"]["coarse_accuracy"]["value"] == 0.5
    assert summary["eval"]["rules"] == {}
    assert summary["eval"]["unlabelled"] == 1


def test_nothing_at_all_is_an_empty_table() -> None:
    found, summary = reduced()
    assert (found.num_rows, summary) == (0, {})


def test_classes_without_a_name_are_refused() -> None:
    with pytest.raises(ValueError, match="fine class 7, and 4 are named"):
        reduced(table([row("a", [7], 0, 0, [0.0] * 4)]))
    with pytest.raises(ValueError, match="coarse class 3, and 3 are named"):
        reduced(table([row("a", [0], 3, 0, [0.0] * 4)]))
    with pytest.raises(ValueError, match="5 fine scores, and 4 classes are named"):
        reduced(table([row("a", [0], 0, 0, [0.0] * 5)]))
    with pytest.raises(ValueError, match="confidence"):
        SemanticIndexesConfig((), FINE, COARSE, confidence=1.0)
    with pytest.raises(ValueError, match="relative 0"):
        SemanticIndexesConfig((), FINE, COARSE, relative=0)
