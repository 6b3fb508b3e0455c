"""VOC and ILSVRC: what their annotation files say, and what they may not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset import class_names, key_table
from pipeline.errors import UsageError
from pipeline.sources.xml import parse_annotation


def refused(source: dict[str, Any], *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        key_table(source)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert caught.value.cure
    assert caught.value.where


# --- VOC ---


def voc_xml(*objects: tuple[str, tuple[float, ...], int], size: str = "<width>50</width><height>40</height>") -> str:
    def item(name: str, box: tuple[float, ...], difficult: int) -> str:
        corners = "".join(f"<{c}>{v}</{c}>" for c, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
        return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{corners}</bndbox>{part}</object>"

    return f"<annotation><size>{size}</size>{''.join(item(*o) for o in objects)}</annotation>"


def voc(root: Path, xml: str | None = None, listing: str = "000002\n000001\n") -> dict[str, Any]:
    for folder in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (root / "VOC2007" / folder).mkdir(parents=True, exist_ok=True)
    year = root / "VOC2007"
    (year / "ImageSets/Main/trainval.txt").write_text(listing)
    (year / "Annotations/000001.xml").write_text(
        xml or voc_xml(("dog", (1, 1, 10, 10), 0), ("cat", (1, 1, 50, 40), 1), ("person", (5, 6, 20, 20), 0))
    )
    (year / "Annotations/000002.xml").write_text(voc_xml(("cat", (2, 3, 4, 5), 1)))
    for name in ("000001", "000002"):
        (year / f"JPEGImages/{name}.jpg").write_bytes(b"")
    return {"kind": "voc", "root": str(root), "years": ["VOC2007"]}


def test_voc_boxes_count_from_zero_and_difficult_objects_are_flagged(tmp_path: Path) -> None:
    table = key_table(voc(tmp_path))
    one, two = table.to_pylist()
    assert one["key"] == "VOC2007/JPEGImages/000001.jpg"
    assert one["boxes"] == [[0, 0, 9, 9], [0, 0, 49, 39], [4, 5, 19, 19]]
    assert one["difficult"] == [False, True, False]
    assert (one["width"], one["height"]) == (50, 40)
    names = class_names(table)
    assert names is not None
    assert [names[i] for i in one["box_labels"]] == ["dog", "cat", "person"]
    # The person's 16 x 15 pixels are more than the dog's 100; the difficult cat counts only where it is alone.
    assert names[one["label"]] == "person"
    assert names[two["label"]] == "cat"
    assert one["crowd"] is None


def test_voc_difficult_objects_can_be_left_out_and_a_year_can_be_the_root(tmp_path: Path) -> None:
    source = voc(tmp_path) | {"years": [], "root": str(tmp_path / "VOC2007"), "difficult": False}
    one, two = key_table(source).to_pylist()
    assert one["key"] == "JPEGImages/000001.jpg"
    assert len(one["boxes"]) == 2
    assert (two["label"], two["boxes"]) == (None, [])


BAD_XML = {
    "truncated": (voc_xml(("dog", (1, 1, 2, 2), 0))[:-20], ["XML"]),
    "unknown class": (voc_xml(("dgo", (1, 1, 2, 2), 0)), ["'dgo'", "'dog'"]),
    "entities": ('<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>', ["document type"]),
    "not a number": (voc_xml(("dog", ("x", 1, 2, 2), 0)), ["object 0, xmin", "'x'"]),  # type: ignore[arg-type]
    "inverted": (voc_xml(("dog", (5, 1, 2, 2), 0)), ["object 0", "x1 < x0"]),
    "NaN": (voc_xml(("dog", (1, 1, float("nan"), 2), 0)), ["object 0", "finite"]),
    "no box": ("<annotation><object><name>dog</name></object></annotation>", ["bndbox"]),
    "negative size": (voc_xml(size="<width>-1</width>"), ["size/width"]),
}


@pytest.mark.parametrize("case", BAD_XML)
def test_bad_xml_names_file_field_and_cure(tmp_path: Path, case: str) -> None:
    xml, words = BAD_XML[case]
    refused(voc(tmp_path, xml), "000001.xml", *words)


def test_bad_voc_layouts(tmp_path: Path) -> None:
    refused(voc(tmp_path, listing="../../etc/passwd\n"), "line 1", "trainval.txt")
    refused(voc(tmp_path, listing="000009\n"), "000009.xml", "no such file")
    refused(voc(tmp_path, listing="\n"), "no image")
    refused(voc(tmp_path) | {"image_set": "../x"}, "image_set")
    refused(voc(tmp_path) | {"years": ["VOC2012"]}, "VOC2012")
    assert len(key_table(voc(tmp_path, listing="000001 -1\n000002  1\n"))) == 2


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 400), flip=st.integers(0, 400), byte=st.integers(0, 255))
def test_damaged_xml_is_an_annotation_or_a_usage_error(cut: int, flip: int, byte: int) -> None:
    content = bytearray(voc_xml(("dog", (1, 1, 10, 10), 0), ("cat", (1, 1, 50, 40), 1)).encode())
    content[flip % len(content)] = byte
    try:
        found = parse_annotation(bytes(content[: len(content) - cut % len(content)]), "x.xml")
    except UsageError:
        return
    assert found.corners.shape == (len(found.names), 4)


# --- ILSVRC ---

WNIDS = ["n00000003", "n00000001", "n00000002"]


def train(root: Path) -> dict[str, Any]:
    for wnid, name in (("n00000001", "a"), ("n00000001", "b"), ("n00000003", "c")):
        for tree, suffix in (("Data", "JPEG"), ("Annotations", "xml")):
            folder = root / tree / "CLS-LOC/train" / wnid
            folder.mkdir(parents=True, exist_ok=True)
            if (tree, name) != ("Annotations", "b"):
                (folder / f"{name}.{suffix}").write_text(voc_xml((wnid, (0, 2, 30, 40), 0)) if suffix == "xml" else "")
    return {"kind": "ilsvrc", "root": str(root), "split": "train", "classes": WNIDS}


def val(root: Path) -> dict[str, Any]:
    for tree in ("Data", "Annotations"):
        (root / tree / "CLS-LOC/val").mkdir(parents=True, exist_ok=True)
    for i, wnid in enumerate(("n00000002", "n00000003"), 1):
        (root / f"Data/CLS-LOC/val/v_{i}.JPEG").write_bytes(b"")
        boxes = [(wnid, (1, 2, 3, 4), 0)] * i
        (root / f"Annotations/CLS-LOC/val/v_{i}.xml").write_text(voc_xml(*boxes))
    return {"kind": "ilsvrc", "root": str(root), "split": "val", "classes": WNIDS}


def test_ilsvrc_train_takes_labels_from_folders_and_boxes_where_there_is_xml(tmp_path: Path) -> None:
    a, b, c = key_table(train(tmp_path)).to_pylist()
    assert (a["key"], a["label"], a["boxes"], a["width"]) == ("n00000001/a.JPEG", 1, [[0, 2, 30, 40]], 50)
    # No XML: the boxes are unknown, which is not "no object".
    assert (b["label"], b["boxes"], b["width"]) == (1, None, None)
    assert (c["label"], c["box_labels"]) == (0, [0])


def test_ilsvrc_labels_are_never_ranks_of_the_folders_present(tmp_path: Path) -> None:
    source = train(tmp_path)
    del source["classes"]
    refused(source, "2 wnid folders", "LOC_synset_mapping.txt")
    (tmp_path / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} some name\n" for wnid in WNIDS))
    table = key_table(source)
    assert table["label"].to_pylist() == [1, 1, 0]
    assert class_names(table) == ["some name"] * 3


def test_ilsvrc_val_takes_labels_and_boxes_from_xml(tmp_path: Path) -> None:
    one, two = key_table(val(tmp_path)).to_pylist()
    assert (one["label"], one["boxes"]) == (2, [[1, 2, 3, 4]])
    assert (two["label"], two["box_labels"]) == (0, [0, 0])


@pytest.mark.parametrize(
    "lines", ["v_1.JPEG 2\nv_2.JPEG 0\n", "v_2 n00000003\nv_1 n00000002\n", "n00000002\nn00000003\n"]
)
def test_ilsvrc_ground_truth_lists(tmp_path: Path, lines: str) -> None:
    source = val(tmp_path) | {"boxes": False, "ground_truth": str(tmp_path / "truth.txt")}
    (tmp_path / "truth.txt").write_text(lines)
    table = key_table(source)
    assert table["label"].to_pylist() == [2, 0]
    assert table["boxes"].null_count == 2


def test_the_solution_file_has_labels_and_boxes(tmp_path: Path) -> None:
    path = tmp_path / "LOC_val_solution.csv"
    path.write_text("ImageId,PredictionString\nv_2,n00000003 1 2 3 4 n00000003 5 6 7 8 \nv_1,n00000002 0 0 9 9 \n")
    source = val(tmp_path) | {"ground_truth": str(path)}
    one, two = key_table(source).to_pylist()
    assert (one["label"], one["boxes"]) == (2, [[0, 0, 9, 9]])
    assert (two["label"], two["boxes"]) == (0, [[1, 2, 3, 4], [5, 6, 7, 8]])
    path.write_text("ImageId,PredictionString\nv_2,n00000003 1 2 3\n")
    refused(source, "line 2")


def test_bad_ilsvrc_names_the_place(tmp_path: Path) -> None:
    source = val(tmp_path) | {"ground_truth": str(tmp_path / "truth.txt")}
    for lines, words in (
        ("1\n2\n", ["ILSVRC2012_IDs"]),  # the devkit's ids: another order, and silently wrong
        ("n00000002\n", ["1 lines for 2 images"]),
        ("v_1 3\nv_2 0\n", ["line 1", "3 is no class"]),
        ("v_1 0\n", ["v_2.JPEG"]),
        ("v_1 n00000009\nv_2 0\n", ["line 1", "n00000009"]),
        ("a b c\n", ["line 1"]),
    ):
        (tmp_path / "truth.txt").write_text(lines)
        refused(source, "truth.txt", *words)
    (tmp_path / "Annotations/CLS-LOC/val/v_2.xml").unlink()
    refused(val_without(source), "v_2.JPEG")
    refused(val_without(source) | {"boxes": False}, "2 images have no class")
    refused(val_without(source) | {"images": "Data/nowhere"}, "Data/nowhere")


def val_without(source: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in source.items() if name != "ground_truth"}


def test_xml_is_read_from_object_stores() -> None:
    fs = fsspec.filesystem("memory")
    base = "memory://raylens-ilsvrc"
    fs.pipe(f"{base}/Data/CLS-LOC/val/v_1.JPEG", b"x")
    fs.pipe(f"{base}/Annotations/CLS-LOC/val/v_1.xml", voc_xml(("n00000001", (1, 2, 3, 4), 0)).encode())
    table = key_table({"kind": "ilsvrc", "root": base, "split": "val", "classes": WNIDS})
    assert table["label"].to_pylist() == [1]


# --- real files ---


def test_real_voc(real_data: Path) -> None:
    source = {"kind": "voc", "root": str(real_data / "voc/VOCdevkit"), "years": ["VOC2007", "VOC2012"]}
    table = key_table(source)
    assert len(table) == 10
    names = class_names(table)
    assert names is not None
    first = table.to_pylist()[0]
    # 000001.jpg: a dog (48, 240, 195, 371) and a larger person (8, 12, 352, 498), counted from 1.
    assert first["boxes"] == [[47, 239, 194, 370], [7, 11, 351, 497]]
    assert names[first["label"]] == "person"
    assert (first["width"], first["height"]) == (353, 500)
