"""Instances of any size as a key table: what it says of each image, and what it refuses or counts."""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sources.instances import INSTANCE_SCHEMA, InstancesSource, instances_table

COCO: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [
        {"id": 20, "file_name": "b.jpg", "width": 40, "height": 30},
        {"id": 10, "file_name": "a/ä.jpg", "width": 9, "height": 8},
        {"id": 30, "file_name": "c.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 20, "category_id": 18, "bbox": [1, 2, 10, 20], "area": 150.5, "iscrowd": 0},
        {"id": 2, "image_id": 20, "category_id": 1, "iscrowd": 1, "segmentation": {"counts": [3, 4], "size": [7, 1]}},
        {"id": 3, "image_id": 20, "category_id": 18, "segmentation": [[1, 1, 5, 1, 5, 6]]},
        {"id": 4, "image_id": 10, "category_id": 90, "iscrowd": 1},
        {"id": 5, "image_id": 20, "category_id": 18, "iscrowd": 1},
    ],
    "categories": [
        {"id": 90, "name": "brush", "supercategory": "indoor"},
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 18, "name": "dog"},
    ],
}


def write(folder: Path, content: Any = COCO, name: str = "instances.json") -> Path:
    path = folder / name
    data = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def read(path: Path | str, **more: Any) -> Any:
    return instances_table(InstancesSource(annotations=str(path), **more))


def noted(table: Any, name: str) -> Any:
    return json.loads(table.schema.metadata[name.encode()])


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    content = copy.deepcopy(COCO)
    place: Any = content
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


@pytest.mark.parametrize("name", ["instances.json", "instances.json.gz"])
def test_each_image_has_its_classes_with_objects_and_crowds_of_each(tmp_path: Path, name: str) -> None:
    table = read(write(tmp_path, name=name))
    assert table.schema.remove_metadata() == INSTANCE_SCHEMA
    a, b, c = table.to_pylist()
    assert (a["key"], a["uri"], a["image_id"], a["width"], a["height"]) == ("a/ä.jpg", "a/ä.jpg", 10, 9, 8)
    assert (a["labels"], a["names"], a["objects"], a["crowds"]) == ([2], ["brush"], [0], [1])
    assert (b["labels"], b["names"]) == ([0, 1], ["person", "dog"])
    assert (b["supercategories"], b["objects"], b["crowds"]) == (["person", ""], [0, 2], [1, 1])
    assert (c["labels"], c["width"], c["bad"], c["places"]) == ([], None, None, [])
    assert noted(table, "classes") == ["person", "dog", "brush"]
    assert noted(table, "entries") == {"images": 3, "annotations": 5, "categories": 3}
    text = json.dumps(COCO, ensure_ascii=False).encode()
    first, count = a["place"]
    assert json.loads(text[first : first + count]) == COCO["images"][1]
    spans = list(zip(b["places"][::2], b["places"][1::2], strict=True))
    assert [json.loads(text[p : p + n])["id"] for p, n in spans] == [1, 2, 3, 5]


def test_lvis_has_urls_for_file_names_and_no_crowds_or_supercategories(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 1, "coco_url": "http://images.cocodataset.org/val2017/000000397133.jpg"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 2}],
        "categories": [{"id": 2, "name": "aerosol_can", "synset": "aerosol.n.02", "frequency": "c"}],
    }
    (row,) = read(write(tmp_path, content)).to_pylist()
    assert (row["key"], row["names"], row["objects"]) == ("val2017/000000397133.jpg", ["aerosol_can"], [1])


# case -> content, words of the error, what "reject" counts it as (None: refused all the same)
BAD: dict[str, tuple[Any, list[str], str | None]] = {
    "truncated": (json.dumps(COCO).encode()[:-9], ["JSON"], None),
    "captions": (changed(["categories"], ...), ["categories"], None),
    "no classes": (changed(["categories"], []), ["categories"], None),
    "images an object": (changed(["images"], {}), ["'images' is no list"], None),
    "category without id": (changed(["categories", 0, "id"], ...), ["categories[0]"], None),
    "category id twice": (changed(["categories", 0, "id"], 1), ["share the id 1"], None),
    "category name twice": (changed(["categories", 0, "name"], "dog"), ["'dog'"], None),
    "no images": (changed(["images"], []) | {"annotations": []}, ["images is empty"], None),
    "climbs": (changed(["images", 0, "file_name"], "../../etc/passwd"), ["images[0]", "passwd"],
               "file name outside the image folder"),
    "absolute": (changed(["images", 0, "file_name"], "/etc/passwd"), ["images[0]"],
                 "file name outside the image folder"),
    "url": (changed(["images", 0, "file_name"], "http://h/x.jpg"), ["images[0]"], "file name outside the image folder"),
    "no name": (changed(["images", 1, "file_name"], ...), ["images[1]"], "image without a file name"),
    "image id a text": (changed(["images", 1, "id"], "10"), ["images[1]", "'10'"], "image without an id"),
    "image id true": (changed(["images", 1, "id"], True), ["images[1]"], "image without an id"),
    "two of an image id": (changed(["images", 1, "id"], 20), ["images[1]", "20", "twice"],
                        "image id that stands twice"),
    "two of a name": (changed(["images", 1, "file_name"], "./b.jpg"), ["images[1]", "twice"],
                      "file name that stands twice"),
    "bad width": (changed(["images", 0, "width"], -4), ["images[0]", "width"], "image with a wrong size"),
    "unknown image": (changed(["annotations", 2, "image_id"], 77), ["annotation 3", "77"],
                      "annotation of an unknown image"),
    "unknown category": (changed(["annotations", 1, "category_id"], 2), ["annotation 2", "category", "2"],
                         "annotation of an unknown category"),
    "two of an annotation id": (changed(["annotations", 1, "id"], 1), ["annotation id 1", "twice"],
                                "annotation id that stands twice"),
    "no annotation id": (changed(["annotations", 1, "id"], ...), ["annotations[1]"], "annotation without id"),
    "huge id": (changed(["annotations", 1, "id"], 2**70), ["annotations[1]"], "annotation without id"),
    "no image id": (changed(["annotations", 1, "image_id"], ...), ["annotations[1]"], "annotation without image_id"),
    "a number": (changed(["annotations", 1], 5), ["annotations[1]"], "annotation of a wrong type"),
    "crowd 2": (changed(["annotations", 1, "iscrowd"], 2), ["annotations[1]"], "annotation with a wrong iscrowd"),
    "three numbers": (changed(["annotations", 0, "bbox"], [1, 2, 3]), ["annotations[0]"],
                      "annotation with a wrong bbox"),
    "NaN": (changed(["annotations", 0, "bbox"], [1, 2, float("nan"), 4]), ["annotations[0]"],
            "annotation with a wrong bbox"),
    "area a text": (changed(["annotations", 0, "area"], "12"), ["annotations[0]"], "annotation with a wrong area"),
    "mask a text": (changed(["annotations", 0, "segmentation"], "x"), ["annotations[0]"],
                    "annotation with a wrong segmentation"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_refused_with_file_entry_and_cure(tmp_path: Path, case: str) -> None:
    content, words, _ = BAD[case]
    with pytest.raises(UsageError) as caught:
        read(write(tmp_path, content))
    assert caught.value.cure
    assert caught.value.where.startswith(str(tmp_path / "instances.json"))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("case", BAD)
def test_or_rejected_by_name_and_counted_and_nothing_is_dropped_in_silence(tmp_path: Path, case: str) -> None:
    content, words, kind = BAD[case]
    path = write(tmp_path, content)
    if kind is None:
        with pytest.raises(UsageError):
            read(path, bad="reject")
        return
    table = read(path, bad="reject")
    rejected = noted(table, "rejected")
    assert rejected[kind]["count"] == 1
    for word in words:
        assert word in rejected[kind]["first"][0]
    rows = table.to_pylist()
    images = sum(r["count"] for k, r in rejected.items() if k.startswith(("image", "file name")))
    assert len(rows) + images == len(content["images"])
    annotations = sum(r["count"] for k, r in rejected.items() if k.startswith("annotation"))
    assert sum(sum(r["objects"]) + sum(r["crowds"]) for r in rows) + annotations == len(content["annotations"])
    # An image that lost an annotation says so: its labels are not what the file meant.
    if kind.startswith("annotation") and "unknown image" not in kind and kind not in (
        "annotation without image_id", "annotation of a wrong type"
    ):  # fmt: skip
        assert [r["image_id"] for r in rows if r["bad"]] == [20]


def test_a_wrong_image_folder_is_told(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder, words in (("empty", "none of the images"), ("absent", "absent")):
        with pytest.raises(UsageError, match=words):
            read(path, images=str(tmp_path / folder))


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in _places(item, (*path, key)))]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(_places(COCO)[1:]), value=JSON_VALUES, bad=st.sampled_from(["refuse", "reject"]))
@example(place=("images", 0, "width"), value=True, bad="reject")
@example(place=("images", 0, "file_name"), value="\ud800", bad="reject")
def test_any_value_anywhere_is_read_refused_or_counted(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: Any, bad: str
) -> None:
    content = changed(list(place), value)
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_text(json.dumps(content))
    try:
        table = read(path, bad=bad)
    except UsageError:
        return
    rows, rejected = table.to_pylist(), noted(table, "rejected")
    assert bad == "reject" or not rejected
    taken = sum(sum(r["objects"]) + sum(r["crowds"]) for r in rows)
    assert taken + sum(r["count"] for k, r in rejected.items() if k.startswith("annotation")) == len(
        content["annotations"]
    )
    assert len(rows) + sum(r["count"] for k, r in rejected.items() if not k.startswith("annotation")) == len(
        content["images"]
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), parts=st.permutations(["info", "images", "annotations", "categories"]))
def test_the_order_of_entries_and_of_lists_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, seed: int, parts: list[str]
) -> None:
    rng = random.Random(seed)
    content = {part: copy.deepcopy(COCO[part]) for part in parts}
    for part in ("images", "annotations", "categories"):
        rng.shuffle(content[part])
    folder = tmp_path_factory.getbasetemp()
    shuffled = read(write(folder, content, "shuffled.json")).drop_columns(["place", "places"])
    assert shuffled.replace_schema_metadata(None).equals(
        read(write(folder)).drop_columns(["place", "places"]).replace_schema_metadata(None)
    )


def test_object_stores(tmp_path: Path) -> None:
    base = "memory://raylens-instances"
    fs = fsspec.filesystem("memory")
    fs.pipe(f"{base}/x.json.gz", gzip.compress(json.dumps(COCO).encode()))
    fs.pipe(f"{base}/i/b.jpg", b"x")
    fs.pipe(f"{base}/i/c.jpg", b"x")
    table = read(f"{base}/x.json.gz", images=f"{base}/i")
    assert table["uri"].to_pylist()[1] == f"{base}/i/b.jpg"


@pytest.mark.parametrize("subset", ["tiny", "mini"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_reads_the_same_from_real_coco(real_data: Path, subset: str, split: str) -> None:
    from pycocotools.coco import COCO as Oracle  # noqa: N811

    path = real_data / f"coco/{subset}/annotations/instances_{split}2017.json"
    table = read(path, images=str(real_data / f"coco/{subset}/{split}2017"))
    oracle = Oracle(str(path))
    assert sorted(table["image_id"].to_pylist()) == sorted(oracle.getImgIds())
    for row in table.to_pylist():
        annotations = oracle.loadAnns(oracle.getAnnIds(imgIds=[row["image_id"]]))
        counts = Counter((oracle.cats[a["category_id"]]["name"], bool(a["iscrowd"])) for a in annotations)
        for name, objects, crowds in zip(row["names"], row["objects"], row["crowds"], strict=True):
            assert (objects, crowds) == (counts[(name, False)], counts[(name, True)])
        assert set(row["names"]) == {name for name, _ in counts}
