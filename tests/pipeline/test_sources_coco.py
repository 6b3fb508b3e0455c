"""COCO: what an instances json says, and what it may not say."""

from __future__ import annotations

import copy
import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.dataset import class_names, key_table
from pipeline.errors import UsageError


def refused(source: dict[str, Any], *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        key_table(source)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert caught.value.cure
    assert caught.value.where


POLYGON = [[1.0, 1.0, 5.0, 1.0, 5.0, 6.0]]
RLE = {"counts": [3, 4, 5], "size": [3, 4]}
COCO: dict[str, Any] = {
    "images": [
        {"id": 20, "file_name": "b.jpg", "width": 40, "height": 30},
        {"id": 10, "file_name": "a/a.jpg", "width": 9, "height": 8},
        {"id": 30, "file_name": "c.jpg"},
    ],
    "categories": [
        {"id": 90, "name": "brush", "supercategory": "indoor"},
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 18, "name": "dog", "supercategory": "animal"},
    ],
    "annotations": [
        {"image_id": 20, "category_id": 18, "bbox": [1, 2, 10, 20], "area": 150, "iscrowd": 0, "segmentation": POLYGON},
        {"image_id": 20, "category_id": 1, "bbox": [0, 0, 40, 30], "area": 900, "iscrowd": 1, "segmentation": RLE},
        {"image_id": 20, "category_id": 90, "bbox": [3.5, 4, 2, 2], "area": 160, "iscrowd": 0},
        {"image_id": 10, "category_id": 1, "bbox": [0, 0, 9, 8], "area": 9, "iscrowd": 1, "segmentation": RLE},
    ],
}


def coco(folder: Path, content: Any = COCO, **more: Any) -> dict[str, Any]:
    (folder / "a").mkdir(exist_ok=True)
    for name in ("a/a.jpg", "b.jpg", "c.jpg"):
        (folder / name).write_bytes(b"")
    path = folder / "instances.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return {"kind": "coco", "annotations": str(path), "images": str(folder), **more}


def test_coco_ids_become_indexes_boxes_corners_and_the_largest_object_the_label(tmp_path: Path) -> None:
    table = key_table(coco(tmp_path))
    assert class_names(table) == ["person", "dog", "brush"]
    assert json.loads(table.schema.metadata[b"supercategories"]) == ["person", "animal", "indoor"]
    a, b, c = table.to_pylist()
    assert (b["key"], b["uri"], b["width"], b["height"]) == ("b.jpg", str(tmp_path / "b.jpg"), 40, 30)
    assert b["boxes"] == [[1, 2, 11, 22], [0, 0, 40, 30], [3.5, 4, 5.5, 6]]
    assert b["box_labels"] == [1, 0, 2]
    assert b["crowd"] == [False, True, False]
    assert b["labels"] == [0, 1, 2]
    # By area, not by box: the brush has 160, the dog 150; the crowd's 900 do not count beside objects.
    assert b["label"] == 2
    assert [m and json.loads(m) for m in b["masks"]] == [POLYGON, RLE, None]
    assert (a["key"], a["label"], a["crowd"]) == ("a/a.jpg", 0, [True])
    assert (c["label"], c["labels"], c["boxes"], c["masks"], c["width"]) == (None, [], [], [], None)


def test_coco_crowds_can_be_left_out(tmp_path: Path) -> None:
    a, b, _ = key_table(coco(tmp_path, crowds=False)).to_pylist()
    assert (b["labels"], b["box_labels"]) == ([1, 2], [1, 2])
    assert (a["label"], a["labels"], a["boxes"]) == (None, [], [])


def _changed(path: list[Any], value: Any) -> dict[str, Any]:
    content = copy.deepcopy(COCO)
    place: Any = content
    for step in path[:-1]:
        place = place[step]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


BAD_COCO: dict[str, tuple[Any, list[str]]] = {
    "truncated": (json.dumps(COCO)[:-9], ["JSON"]),
    "deep": ("[" * 100_000, ["JSON"]),
    "a list": ([1], ["images, annotations and categories"]),
    "captions": (_changed(["categories"], ...), ["categories"]),
    "climbs": (_changed(["images", 0, "file_name"], "../../etc/passwd"), ["images[0].file_name", "passwd"]),
    "absolute": (_changed(["images", 0, "file_name"], "/etc/passwd"), ["images[0].file_name", "passwd"]),
    "url": (_changed(["images", 0, "file_name"], "http://h/x.jpg"), ["images[0].file_name"]),
    "no name": (_changed(["images", 1, "file_name"], ...), ["images[1]", "file_name"]),
    "two of an id": (_changed(["images", 1, "id"], 20), ["20", "twice"]),
    "two of a name": (_changed(["images", 1, "file_name"], "b.jpg"), ["'b.jpg'"]),
    "bad width": (_changed(["images", 0, "width"], -4), ["images[0].width"]),
    "unknown image": (_changed(["annotations", 2, "image_id"], 77), ["annotations[2]", "77"]),
    "unknown category": (_changed(["annotations", 1, "category_id"], 2), ["annotations[1]", "category", "2"]),
    "no category id": (_changed(["categories", 0, "id"], ...), ["category"]),
    "two categories of an id": (_changed(["categories", 0, "id"], 1), ["share an id"]),
    "negative width of a box": (
        _changed(["annotations", 0, "bbox"], [1, 2, -3, 4]),
        ["annotations[0].bbox", "x1 < x0"],
    ),
    "NaN": (_changed(["annotations", 0, "bbox"], [1, 2, float("nan"), 4]), ["annotations[0].bbox", "finite"]),
    "three numbers": (_changed(["annotations", 0, "bbox"], [1, 2, 3]), ["annotations[0]", "bbox"]),
    "no box": (_changed(["annotations", 3, "bbox"], ...), ["annotations[3]", "bbox"]),
    "odd polygon": (_changed(["annotations", 0, "segmentation"], [[1, 2, 3, 4, 5]]), ["annotations[0].segmentation"]),
}


@pytest.mark.parametrize("case", BAD_COCO)
def test_bad_coco_names_file_entry_and_cure(tmp_path: Path, case: str) -> None:
    content, words = BAD_COCO[case]
    refused(coco(tmp_path, content), "instances.json", *words)


def test_coco_with_the_wrong_image_folder(tmp_path: Path) -> None:
    source = coco(tmp_path)
    (tmp_path / "empty").mkdir()
    refused(source | {"images": str(tmp_path / "empty")}, "none of the images", "empty")
    refused(source | {"images": str(tmp_path / "absent")}, "absent")


def test_coco_may_be_compressed_and_have_its_lists_in_any_order(tmp_path: Path) -> None:
    source = coco(tmp_path)
    plain = key_table(source)
    turned = json.dumps(
        {part: COCO[part] for part in ("annotations", "categories", "images")} | {"info": {"year": 2017}}
    )
    (tmp_path / "turned.json.gz").write_bytes(gzip.compress(turned.encode()))
    table = key_table(source | {"annotations": str(tmp_path / "turned.json.gz")})
    assert table.equals(plain, check_metadata=True)


def test_coco_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    first = COCO["annotations"][0]
    many = [first | {"attributes": {"note": "x" * 4000}} for _ in range(12_000)]
    source = coco(tmp_path, COCO | {"annotations": many})
    size = (tmp_path / "instances.json").stat().st_size
    del many
    tracemalloc.start()
    table = key_table(source)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, table["boxes"].to_pylist())) == 12_000
    assert peak < 0.6 * size


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inside for place in _places(item, (*path, key)))]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(_places(COCO)[1:]), value=JSON_VALUES)
@example(place=("images", 0, "width"), value=True)
@example(place=("annotations", 0, "image_id"), value=[])
def test_any_value_anywhere_in_a_coco_file_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, place: tuple[Any, ...], value: Any
) -> None:
    source = coco(tmp_path_factory.getbasetemp(), _changed(list(place), value))
    try:
        table = key_table(source)
    except UsageError:
        return
    root = Path(source["images"])
    assert all(root in Path(uri).parents for uri in table["uri"].to_pylist())
    assert all(0 <= label < 3 for label in table["label"].drop_null().to_pylist())


def test_coco_is_read_from_object_stores() -> None:
    fs = fsspec.filesystem("memory")
    base = "memory://raylens-coco"
    fs.pipe(f"{base}/instances.json", json.dumps(COCO).encode())
    for name in ("a/a.jpg", "b.jpg", "c.jpg"):
        fs.pipe(f"{base}/i/{name}", b"x")
    table = key_table({"kind": "coco", "annotations": f"{base}/instances.json", "images": f"{base}/i"})
    assert table["uri"].to_pylist()[0] == f"{base}/i/a/a.jpg"


@pytest.mark.parametrize(
    ("subset", "split", "images"), [("tiny", "train", 80), ("tiny", "val", 80), ("mini", "val", 79)]
)
def test_real_coco(real_data: Path, subset: str, split: str, images: int) -> None:
    path = real_data / f"coco/{subset}/annotations/instances_{split}2017.json"
    source = {"kind": "coco", "annotations": str(path), "images": str(real_data / f"coco/{subset}/{split}2017")}
    table = key_table(source)
    content = json.loads(path.read_text())
    assert len(table) == images
    names = class_names(table)
    assert names is not None
    assert (len(names), names[0], names[79]) == (80, "person", "toothbrush")
    assert sum(map(len, table["boxes"].to_pylist())) == len(content["annotations"])
    assert sum(map(sum, table["crowd"].to_pylist())) == sum(a["iscrowd"] for a in content["annotations"])
    by_id = {c["id"]: c["name"] for c in content["categories"]}
    name_of = {i["file_name"]: i["id"] for i in content["images"]}
    for row in table.to_pylist():
        mine = [a for a in content["annotations"] if a["image_id"] == name_of[row["key"]]]
        assert sorted(names[i] for i in row["box_labels"]) == sorted(by_id[a["category_id"]] for a in mine)
        alone = [a for a in mine if not a["iscrowd"]] or mine
        if alone:
            assert names[row["label"]] == by_id[max(alone, key=lambda a: a["area"])["category_id"]]
