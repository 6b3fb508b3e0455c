"""Shares over a dataset: plain numpy over all rows at once, and parts that add up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stages.linear.elections import Elections, ElectionsConfig
from stages.linear.shares import Shares, SharesConfig
from stages.linear.spread import Spread

NAMES = ["conv", "norm", "head"]


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        row: dict[str, Any] = {"label": None if i % 5 == 4 else int(rng.integers(3)), "layer_names": NAMES}
        row |= {"activation_bytes": 300, "keep_bytes": 20, "stream_bytes": 100}
        for start in ("", "attacked_"):
            own, layers = rng.normal(), rng.normal(size=3)
            score = float(own + layers.sum())
            row |= {f"{start}predicted": int(rng.integers(3)), f"{start}input": own, f"{start}layers": layers}
            row |= {f"{start}residual": layers.sum(), f"{start}score": score, f"{start}probability": rng.random()}
            row |= {f"{start}share": layers.sum() / score, f"{start}magnitude": rng.random(), f"{start}gap": 1e-7}
        found.append(row)
    return found


def table(rows: list[dict[str, Any]]) -> pa.Table:
    plain = [{k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in row.items()} for row in rows]
    return pa.Table.from_pylist(plain)


def finished(reduction: Any, *parts: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    state = reduction.start()
    for part in parts:
        state = reduction.merge(state, reduction.add(reduction.start(), table(part)))
    return {(r["view"], r["name"]): r for r in reduction.finish("all", state).to_pylist()}


def test_means_and_spreads_are_numpys() -> None:
    all_rows = rows(23)
    found = finished(Shares(SharesConfig(attack=True)), all_rows)
    for view, start in (("clean", ""), ("attacked", "attacked_")):
        share = np.array([r[f"{start}share"] for r in all_rows])
        told = found[view, "share"]
        assert told["n"] == 23
        assert told["mean"] == pytest.approx(share.mean())
        assert told["std"] == pytest.approx(share.std(ddof=1))
        assert told["se"] == pytest.approx(share.std(ddof=1) / np.sqrt(23))
        assert told["median"] == pytest.approx(np.median(share))
        for i, name in enumerate(NAMES):
            term = np.array([r[f"{start}layers"][i] / r[f"{start}score"] for r in all_rows])
            assert found[view, name]["mean"] == pytest.approx(term.mean())
            assert found[view, name]["std"] == pytest.approx(term.std(ddof=1))
        terms = [found[view, name]["mean"] for name in ("input", *NAMES)]
        assert sum(terms) == pytest.approx(1)
    labelled = [r for r in all_rows if r["label"] is not None]
    wrong = np.mean([r["label"] != r["predicted"] for r in labelled])
    assert found["clean", "class_error"]["mean"] == pytest.approx(wrong)
    assert found["clean", "class_error"]["n"] == len(labelled)
    changed = np.mean([r["predicted"] != r["attacked_predicted"] for r in all_rows])
    assert found["attacked", "changed"]["mean"] == pytest.approx(changed)
    assert [found["clean", k]["mean"] for k in ("activations", "keep", "stream")] == [300, 20, 100]


def test_parts_add_up_to_the_whole() -> None:
    all_rows = rows(12)
    whole = finished(Shares(SharesConfig()), all_rows)
    for cut in (1, 5, 11):
        parts = finished(Shares(SharesConfig()), all_rows[:cut], [], all_rows[cut:])
        assert parts.keys() == whole.keys()
        for place, row in whole.items():
            for name in ("n", "mean", "std", "median"):
                assert parts[place][name] == (None if row[name] is None else pytest.approx(row[name], rel=1e-12))


def test_an_image_whose_score_is_0_has_no_share() -> None:
    all_rows = rows(3)
    all_rows[1] |= {"score": 0.0, "share": None}
    found = finished(Shares(SharesConfig()), all_rows)
    told = found["clean", "share"]
    assert (told["n"], told["without"]) == (2, 1)
    assert told["mean"] == pytest.approx((all_rows[0]["share"] + all_rows[2]["share"]) / 2)
    assert (found["clean", "head"]["n"], found["clean", "head"]["without"]) == (2, 1)


def test_one_image_has_no_spread_and_none_has_no_rows() -> None:
    assert finished(Shares(SharesConfig()), rows(1))["clean", "share"]["std"] is None
    assert finished(Shares(SharesConfig())) == {}
    assert finished(Elections(ElectionsConfig())) == {}


def test_rows_of_two_networks_are_refused() -> None:
    other = [row | {"layer_names": ["a", "b", "c"]} for row in rows(2)]
    with pytest.raises(ValueError, match="of several"):
        finished(Shares(SharesConfig()), rows(2), other)
    with pytest.raises(ValueError, match="of several"):
        finished(Shares(SharesConfig()), rows(2) + other)


def test_spreads_of_large_values_keep_their_deviation() -> None:
    values = 1e8 + np.arange(10.0).reshape(10, 1)
    both = Spread.of(values[:3]) + Spread.of(values[3:])
    assert both.std[0] == pytest.approx(values.std(ddof=1), rel=1e-9)


def election(label: int | None, predicted: int, top: list[int], shares: list[float]) -> dict[str, Any]:
    own = {"predicted": predicted, "voted": len(top), "unsteady": shares[-1], "top": top, "top_share": shares}
    own |= {"predicted_share": dict(zip(top, shares, strict=True)).get(predicted, 0.0)}
    own |= {"label_share": None if label is None else dict(zip(top, shares, strict=True)).get(label, 0.0)}
    return {"label": label} | own | {f"attacked_{k}": v for k, v in (own | {"predicted": 9}).items()}


def test_elections_count_who_has_most_votes() -> None:
    cases = [
        election(1, 1, [1, 2], [0.75, 0.25]),
        election(2, 1, [2, 1], [0.5, 0.5]),
        election(None, 3, [3], [1.0]),
    ]
    found = finished(Elections(ElectionsConfig(attack=True)), cases[:1], cases[1:])
    told = {name: found["clean", name]["mean"] for view, name in found if view == "clean"}
    assert told["first_is_predicted"] == pytest.approx(2 / 3)
    assert told["first_is_label"] == 1.0
    assert told["class_error"] == 0.5
    assert told["predicted_share"] == pytest.approx((0.75 + 0.5 + 1) / 3)
    assert told["label_share"] == pytest.approx(0.625)
    assert told["voted"] == pytest.approx(5 / 3)
    assert told["unsteady"] == pytest.approx((0.25 + 0.5 + 1) / 3)
    assert found["attacked", "changed"]["mean"] == 1.0
    assert ("clean", "changed") not in found
