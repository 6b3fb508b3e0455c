"""What the job keeps does not depend on shards or order, and follows the rule and the taxonomy."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from coco_cases import config, drawn, kept_by_force, loaded, put, through_the_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.coco.kept import filter_rows, write_kept
from jobs.coco.taxonomy import PAPER
from pipeline.errors import UsageError


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 30),
    rows=st.integers(1, 31),
    rule=st.fixed_dictionaries({"crowds": st.booleans(), "people_only": st.booleans()}),
)
def test_any_partition_into_shards_gives_the_same_output_and_the_rule_holds(
    tmp_path_factory: pytest.TempPathFactory, seed: int, images: int, rows: int, rule: dict[str, bool]
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    content = drawn(images, seed)
    given = config({"all": {"annotations": str(put(folder / "x.json", content))}}, rule=rule)
    one, other = (through_the_engine(given, folder / str(n), n) for n in (images, min(rows, images)))
    tables = [filter_rows(m, "all") for m in (one, other)]
    assert tables[0].equals(tables[1])
    written = [next(Path(m.url).glob("kept/*/instances_all.json")) for m in (one, other)]
    assert written[0].read_bytes() == written[1].read_bytes()
    summaries = [json.loads(next(Path(m.url).glob("kept/*/summary.json")).read_text()) for m in (one, other)]
    assert summaries[0] == summaries[1]
    truth = kept_by_force(content, **rule)
    found = json.loads(written[0].read_text())
    assert {i["id"] for i in found["images"]} == set(truth)
    assert found["annotations"] == [a for a in content["annotations"] if a["image_id"] in truth]
    assert [i["id"] for i in found["images"]] == [i["id"] for i in content["images"] if i["id"] in truth]
    assert found["info"] == content["info"]
    assert set(loaded(written[0]).getImgIds()) == set(truth)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), order=st.randoms(use_true_random=False))
def test_order_of_annotations_does_not_matter_and_people_change_no_label(
    tmp_path_factory: pytest.TempPathFactory, seed: int, order: random.Random
) -> None:
    folder = tmp_path_factory.mktemp("order")
    content = drawn(12, seed, people=False)
    shuffled = content | {"annotations": order.sample(content["annotations"], len(content["annotations"]))}
    person = {"image_id": content["images"][0]["id"], "category_id": 10, "id": 99_999}
    peopled = content | {"annotations": [*content["annotations"], person]}
    tables = []
    for name, value in (("a", content), ("b", shuffled), ("c", peopled)):
        given = config({"all": {"annotations": str(put(folder / f"{name}.json", value))}})
        tables.append(filter_rows(through_the_engine(given, folder / name, 5), "all"))
    assert tables[0].equals(tables[1])
    labels = ["key", "fine", "fine_names", "multi_hot", "coarse", "coarse_name", "kept"]
    assert tables[0].select(labels).equals(tables[2].select(labels))
    assert sum(tables[2].column("person").to_pylist()) == 1


def test_a_source_that_changed_under_the_run_is_refused_not_mixed(tmp_path: Path) -> None:
    path = put(tmp_path / "x.json", drawn(9, 3))
    given = config({"all": {"annotations": str(path)}})
    through_the_engine(given, tmp_path / "run", 4)
    for file in tmp_path.glob("run/kept/*/*"):
        file.unlink()
    path.write_text(path.read_text().replace('"area": 14.0', '"area": 15.0'))
    with pytest.raises(UsageError, match="has changed since"):
        write_kept(str(tmp_path / "run"), given, {"filter": "f" * 64, "summary": "0" * 64})
    assert not list(tmp_path.glob("run/kept/*/*.json"))


def test_another_taxonomy_is_a_file(tmp_path: Path) -> None:
    taxonomy = tmp_path / "mine.yaml"
    taxonomy.write_text("public: [car, bus]\nsupercategories: {animal: beast, person: human}\nrename: {dog: hound}\n")
    content = drawn(30, 8)
    given = config({"all": {"annotations": str(put(tmp_path / "x.json", content))}}, taxonomy=str(taxonomy))
    made = through_the_engine(given, tmp_path / "run", 7)
    rows = filter_rows(made, "all", ["coarse_name", "fine_names", "kept"]).to_pylist()
    assert {r["coarse_name"] for r in rows if r["kept"]} == {"beast", "human"}
    assert {n for r in rows for n in r["fine_names"]} == {"hound", "cat", "person"}
    categories = json.loads(next(tmp_path.glob("run/kept/*/instances_all.json")).read_text())["categories"]
    assert {c["name"]: (c["supercategory"], c["coarse_index"], c["public"]) for c in categories} == {
        "person": ("human", 1, False), "hound": ("beast", 0, False), "cat": ("beast", 0, False),
        "car": ("vehicle", None, True), "bus": ("vehicle", None, True),
    }  # fmt: skip


def test_classes_the_taxonomy_does_not_list_are_refused_by_name_or_filter_their_images(tmp_path: Path) -> None:
    content = drawn(30, 2)
    content["categories"][1]["name"] = "dgo"
    given = {"all": {"annotations": str(put(tmp_path / "x.json", content))}}
    with pytest.raises(UsageError, match="'dgo'"):
        through_the_engine(config(given), tmp_path / "refused", 7)
    taxonomy = tmp_path / "mine.yaml"
    taxonomy.write_text(PAPER.read_text().replace("unlisted: refuse", "unlisted: filter"))
    made = through_the_engine(config(given, taxonomy=str(taxonomy)), tmp_path / "run", 7)
    summary = json.loads(next(tmp_path.glob("run/kept/*/summary.json")).read_text())["all"]
    assert summary["filtered"]["unlisted_class"] > 0
    errors = filter_rows(made, "all", ["reason", "error"]).to_pylist()
    assert all(r["error"].endswith("dgo") for r in errors if r["reason"] == "unlisted_class")
