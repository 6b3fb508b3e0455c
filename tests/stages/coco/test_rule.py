"""The rule: all classes but public ones share one coarse class."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.coco.filter import CocoFilter, CocoFilterConfig
from stages.coco.rule import READINGS, REASONS, Present, Reading, judge
from stages.coco.summary import CocoSummary, CocoSummaryConfig
from stages.coco.taxonomy import Taxonomy

TAXONOMY = Taxonomy(
    coarse=(("animal", ("dog", "cat")), ("vehicle", ("car",))),
    public=("person",),
    supercategories=(("food", "food"), ("fruit", "food")),
    rename=(("cat", "house cat"),),
    unlisted="filter",
)
CLASSES = [("person", "person"), ("dog", ""), ("cat", ""), ("car", ""), ("pear", "fruit"), ("ghost", "")]
DROPPED = Reading()


def present(*shown: tuple[str, int, int]) -> list[Present]:
    """(class, objects, crowds) -> what the rule sees."""
    names = [name for name, _ in CLASSES]
    parents = dict(CLASSES)
    return [
        Present(names.index(n), TAXONOMY.is_public(n), TAXONOMY.coarse_index(n, parents[n]), objects == 0)
        for n, objects, _ in shown
    ]


def row(shown: list[tuple[str, int, int]], key: str = "a.jpg", bad: str | None = None) -> dict[str, Any]:
    names = [name for name, _ in CLASSES]
    return {
        "key": key, "file_name": key, "image_id": 7, "width": 4, "height": 3, "classes": len(CLASSES), "bad": bad,
        "labels": [names.index(n) for n, _, _ in shown], "names": [n for n, _, _ in shown],
        "supercategories": [dict(CLASSES)[n] for n, _, _ in shown],
        "objects": [o for _, o, _ in shown], "crowds": [c for _, _, c in shown],
    }  # fmt: skip


IMAGES = st.lists(
    st.tuples(
        st.sampled_from([n for n, _ in CLASSES]), *[st.integers(0, 2)] * 2
    ).filter(lambda c: c[1] + c[2] > 0),
    max_size=6,
    unique_by=lambda c: c[0],
)  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "kept_under", "reason"),
    [
        ([], "", "no_objects"),
        ([("person", 1, 0)], "13", "people_only"),
        ([("person", 0, 1)], "1", "people_only"),
        ([("dog", 1, 0), ("cat", 1, 0), ("person", 2, 0)], "0123", None),
        ([("dog", 1, 0), ("car", 0, 1)], "23", "several_coarse"),
        ([("dog", 0, 1)], "01", None),
        ([("dog", 0, 1), ("person", 1, 0)], "013", None),
        ([("dog", 1, 0), ("car", 1, 0)], "", "several_coarse"),
        ([("pear", 1, 0)], "0123", None),
        ([("pear", 1, 0), ("ghost", 1, 0)], "", "unlisted_class"),
        ([("ghost", 0, 1), ("dog", 1, 0)], "23", "unlisted_class"),
    ],
)
def test_the_rule_by_hand(shown: list[tuple[str, int, int]], kept_under: str, reason: str | None) -> None:
    assert judge(present(*shown), DROPPED).reason == reason
    assert "".join(str(i) for i, r in enumerate(READINGS) if judge(present(*shown), r).reason is None) == kept_under


def test_readings_are_counted_in_this_order() -> None:
    assert [str(r) for r in READINGS] == [
        "crowds count, people-only dropped", "crowds count, people-only kept",
        "crowds do not count, people-only dropped", "crowds do not count, people-only kept",
    ]  # fmt: skip


@settings(deadline=None)
@given(shown=IMAGES, reading=st.sampled_from(READINGS), objects=st.integers(0, 2))
def test_adding_a_person_changes_no_label(shown: list[tuple[str, int, int]], reading: Reading, objects: int) -> None:
    without = [c for c in shown if c[0] != "person"]
    with_person = [*without, ("person", objects, 1)]
    a, b = judge(present(*without), reading), judge(present(*with_person), reading)
    assert (a.fine, a.coarse, a.coarse_present) == (b.fine, b.coarse, b.coarse_present)
    if a.reason != "no_objects":
        assert a.reason == b.reason


@settings(deadline=None)
@given(shown=IMAGES, reading=st.sampled_from(READINGS))
def test_rows_say_what_the_rule_says_and_labels_agree_with_each_other(
    shown: list[tuple[str, int, int]], reading: Reading
) -> None:
    stage = CocoFilter(CocoFilterConfig(TAXONOMY, reading))
    (found,) = stage({"rows": [row(shown), None]})
    assert set(found) - {"status", "error"} == set(stage.schema.names)
    assert np.flatnonzero(found["multi_hot"]).tolist() == list(found["fine"])
    assert len(found["multi_hot"]) == len(CLASSES)
    assert 0 not in found["fine"], "person labels nothing"
    assert found["kept"] == (found["reason"] is None) == found["readings"][READINGS.index(reading)]
    assert (found.get("status", "ok"), "error" in found) == (("ok", False) if found["kept"] else ("filtered", True))
    # Independently: the sets of coarse names of what is seen.
    groups = {"dog": "animal", "cat": "animal", "car": "vehicle", "pear": "food", "ghost": "?"}
    seen = {n for n, o, c in shown if o or (c and reading.crowds)}
    coarse = {groups[n] for n in seen if n != "person"}
    kept = (len(coarse) == 1 and "?" not in coarse) or (reading.people_only and seen == {"person"})
    assert found["kept"] == kept
    assert found["coarse_name"] == (next(iter(coarse)) if kept and coarse else None)
    assert found["person"] == ("person" in seen)
    assert set(found["fine_names"]) == {"house cat" if n == "cat" else n for n in seen - {"person"}}


def test_an_image_whose_annotations_are_not_to_be_trusted_is_filtered_whatever_they_say() -> None:
    (found,) = CocoFilter(CocoFilterConfig(TAXONOMY, DROPPED))(
        {"rows": [row([("dog", 1, 0)], bad="annotations[3]: no category has the id 9")]}
    )
    assert (found["status"], found["reason"], found["coarse"]) == ("filtered", "bad_annotation", None)
    assert "annotations[3]" in found["error"]
    assert not any(found["readings"])


def test_errors_name_the_classes() -> None:
    stage = CocoFilter(CocoFilterConfig(TAXONOMY, DROPPED))
    several, unlisted = stage({"rows": [row([("dog", 1, 0), ("pear", 1, 0)]), row([("dog", 1, 0), ("ghost", 1, 0)])]})
    assert "animal, food" in several["error"]
    assert unlisted["error"].endswith("ghost")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "no coarse class"),
        ({"coarse": (("a", ("x",)), ("a", ("y",)))}, "coarse class 'a'"),
        ({"coarse": (("a", ("x",)), ("b", ("x",)))}, "fine class 'x'"),
        ({"coarse": (("a", ("x",)),), "public": ("x",)}, "fine class 'x'"),
        ({"coarse": (("a", ("x",)),), "supercategories": (("s", "a"), ("s", "b"))}, "supercategory 's'"),
    ],
)
def test_a_taxonomy_gives_every_class_one_place(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Taxonomy(**fields)


def test_coarse_indexes_have_the_order_of_the_file_and_a_class_goes_before_its_supercategory() -> None:
    assert TAXONOMY.coarse_names == ("animal", "vehicle", "food")
    assert [TAXONOMY.coarse_index("pear", s) for s in ("food", "fruit", "", "vehicle")] == [2, 2, None, None]
    assert TAXONOMY.coarse_index("dog", "food") == 0
    assert TAXONOMY.coarse_index("person", "food") is None
    assert TAXONOMY.unknown(CLASSES) == ["ghost"]


def table(images: list[list[tuple[str, int, int]]], reading: Reading, split: str) -> pa.Table:
    stage = CocoFilter(CocoFilterConfig(TAXONOMY, reading))
    rows = stage({"rows": [row(shown, f"{i:03d}.jpg") for i, shown in enumerate(images)]})
    rows = [{k: v for k, v in r.items() if k in stage.schema.names} | {"split": split} for r in rows]
    return pa.Table.from_pylist(rows, pa.schema([*stage.schema, pa.field("split", pa.string())]))


@settings(deadline=None)
@given(
    images=st.lists(IMAGES, min_size=1, max_size=12), reading=st.sampled_from(READINGS),
    cuts=st.lists(st.integers(0, 12), max_size=4), val=st.lists(IMAGES, max_size=4),
)  # fmt: skip
def test_counts_are_those_of_a_plain_count_whatever_the_shards(
    images: list[Any], reading: Reading, cuts: list[int], val: list[Any]
) -> None:
    reduction = CocoSummary(CocoSummaryConfig(TAXONOMY.coarse_names))
    whole = table(images, reading, "train")
    edges = sorted({0, len(images), *(c for c in cuts if c < len(images))})
    parts = [whole.slice(a, b - a) for a, b in itertools.pairwise(edges)]
    states = [reduction.add(reduction.start(), p) for p in [*parts, table(val, reading, "val")]]
    state = reduction.start()
    for other in states:
        state = reduction.merge(state, other)
    found = reduction.finish("all", state)
    together = reduction.add(reduction.add(reduction.start(), whole), table(val, reading, "val"))
    assert found.equals(reduction.finish("all", together))
    summary = reduction.summary(found)["train"]
    judged = [judge(present(*shown), reading) for shown in images]
    kept = sum(v.reason is None for v in judged)
    assert (summary["images"], summary["kept"]) == (len(images), kept)
    assert summary["filtered"] == Counter(v.reason for v in judged if v.reason)
    assert sum(summary["filtered"].values()) + kept == len(images)
    assert set(summary["filtered"]) <= set(REASONS)
    assert summary["readings"] == {
        str(r): sum(judge(present(*shown), r).reason is None for shown in images) for r in READINGS
    }
    coarse = Counter(v.coarse for v in judged if v.coarse is not None)
    assert {k: c["kept"] for k, c in summary.get("coarse", {}).items() if c["kept"]} == {
        TAXONOMY.coarse_names[i]: n for i, n in coarse.items()
    }


def test_splits_with_other_categories_are_refused() -> None:
    reduction = CocoSummary(CocoSummaryConfig(TAXONOMY.coarse_names))
    one = table([[("dog", 1, 0)]], DROPPED, "train")
    names = one.column("fine_names").to_pylist()
    other = table([[("dog", 1, 0)]], DROPPED, "val")
    at = other.column_names.index("fine_names")
    other = other.set_column(at, other.field("fine_names"), [[["wolf"] for _ in names]])
    state = reduction.add(reduction.add(reduction.start(), one), other)
    with pytest.raises(ValueError, match="'dog' in one split and 'wolf'"):
        reduction.finish("all", state)
