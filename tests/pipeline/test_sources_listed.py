"""CSV and Parquet lists: rows become images, several rows one image's boxes; every bad cell is told with its row."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset import KEY_SCHEMA, class_names, key_table
from pipeline.errors import RaylensError, UsageError
from stages.metrics.truth import Frame
from stages.preprocess import Preprocess


def listed(folder: Path, text: str, *, images: bool = False, **more: Any) -> dict[str, Any]:
    path = folder / "list.csv"
    path.write_text(text)
    return {"kind": "list", "path": str(path), "images": images, **more}


def rows(source: dict[str, Any]) -> list[dict[str, Any]]:
    return key_table(source).to_pylist()


def refused(source: dict[str, Any], *words: str) -> None:
    with pytest.raises(UsageError) as caught:
        key_table(source)
    message = str(caught.value)
    assert source["path"] in message
    for word in words:
        assert word in message, message
    assert caught.value.cure


def test_rows_of_one_image_become_its_boxes_in_the_order_of_the_list(tmp_path: Path) -> None:
    text = "uri,label,x0,y0,x1,y1\nb.jpg,7,1,2,3,4\na.jpg,3,0,0,9.5,9\nb.jpg,2,5,6,7,8\nc.jpg,1,,,,\nb.jpg,7,0,0,1,1\n"
    table = key_table(listed(tmp_path, text))
    assert table.schema.equals(KEY_SCHEMA)
    a, b, c = table.to_pylist()
    assert (a["key"], a["label"], a["labels"], a["boxes"]) == ("a.jpg", 3, [3], [[0, 0, 9.5, 9]])
    assert a["uri"] == str(tmp_path / "a.jpg")
    assert b["boxes"] == [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 1, 1]]
    assert b["box_labels"] == [7, 2, 7]
    assert (b["label"], b["labels"]) == (7, [7, 2])
    assert (c["boxes"], c["box_labels"], c["label"]) == ([], [], 1)


def test_boxes_of_a_list_without_labels_are_of_the_images_one_class(tmp_path: Path) -> None:
    table = key_table(listed(tmp_path, "uri,x0,y0,x1,y1\nb.jpg,1,2,3,4\na.jpg,0,0,9,9\nb.jpg,5,6,7,8\n"))
    assert table["boxes"].to_pylist() == [[[0, 0, 9, 9]], [[1, 2, 3, 4], [5, 6, 7, 8]]]
    assert table["box_labels"].to_pylist() == [None, None]
    frame = Frame(Preprocess((8, 8)), in_input=False)
    assert [frame.objects(row, {3}) for row in table.to_pylist()] == [[0], [0, 1]]


def test_keys_of_web_addresses_have_no_signatures(tmp_path: Path) -> None:
    """Signed anew, an image keeps its key; several rows of one image stay together."""
    text = "uri,label,x0,y0,x1,y1\nHTTPS://h/d/b.jpg?X-Sig=1,0,0,0,1,1\nhttps://h/a.jpg?X-Sig=2,0,0,0,1,1\n"
    text += "https://h/a.jpg?X-Sig=2,0,1,1,2,2\ns3://b/what?.jpg,1,,,,\n"
    found = rows(listed(tmp_path, text))
    assert [row["key"] for row in found] == ["HTTPS://h/d/b.jpg", "https://h/a.jpg", "s3://b/what?.jpg"]
    assert found[0]["uri"] == "HTTPS://h/d/b.jpg?X-Sig=1"
    assert len(found[1]["boxes"]) == 2
    below = rows(listed(tmp_path, "uri\nhttps://h/d/a.jpg?s=1\nhttps://h/d/b.jpg?s=2\n", root="https://h/d"))
    assert [row["key"] for row in below] == ["a.jpg", "b.jpg"]


def test_a_query_that_tells_images_apart_stays_in_their_keys(tmp_path: Path) -> None:
    found = rows(listed(tmp_path, "uri\nhttps://h/image?id=1\nhttps://h/image?id=2\nhttps://h/a.jpg?sig=x\n"))
    assert [row["key"] for row in found] == ["https://h/a.jpg?sig=x", "https://h/image?id=1", "https://h/image?id=2"]


def test_a_list_without_boxes_or_labels(tmp_path: Path) -> None:
    assert rows(listed(tmp_path, "uri,label\nx.jpg,4\ny.jpg,\n"))[0]["boxes"] is None
    assert [r["label"] for r in rows(listed(tmp_path, "uri,label\nx.jpg,4\ny.jpg,\n"))] == [4, None]
    assert [r["labels"] for r in rows(listed(tmp_path, "uri,label\nx.jpg,4\ny.jpg,\n"))] == [[4], []]
    assert [r["label"] for r in rows(listed(tmp_path, "uri\nx.jpg\n"))] == [None]


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet", "memory"])
def test_every_form_of_a_list_says_the_same(tmp_path: Path, form: str) -> None:
    frame = pd.DataFrame(
        {
            "uri": ["d/b.jpg", "a.jpg", "a.jpg"],
            "label": [1, 0, 0],
            "x0": [0.5, 1, 2],
            "y0": [0.0, 1, 2],
            "x1": [5.0, 6, 7],
            "y1": [5.0, 6, 7],
            "width": [10, 20, 20],
            "height": [11, 21, 21],
            "another": ["x", "y", "z"],
        }
    )
    path = str(tmp_path / f"l.{form}")
    if form == "parquet":
        frame.to_parquet(path)
    elif form == "csv.gz":
        Path(path).write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    elif form == "csv":
        frame.to_csv(path, index=False)
    else:
        path = "memory://raylens-lists/l.csv"
        fsspec.filesystem("memory").pipe(path, frame.to_csv(index=False).encode())
    a, b = rows({"kind": "list", "path": path, "images": False})
    assert (a["key"], a["boxes"], a["width"], a["height"]) == ("a.jpg", [[1, 1, 6, 6], [2, 2, 7, 7]], 20, 21)
    assert (b["key"], b["boxes"], b["label"]) == ("d/b.jpg", [[0.5, 0, 5, 5]], 1)
    assert b["uri"] == path.rpartition("/")[0] + "/d/b.jpg"


def test_uris_keys_and_roots(tmp_path: Path) -> None:
    text = "uri\n./i//a.jpg\n/data/b.jpg\ns3://bucket/c.jpg\n/root/d/e.jpg\n"
    found = {r["key"]: r["uri"] for r in rows(listed(tmp_path, text, root="/root"))}
    assert found == {
        "i/a.jpg": "/root/i/a.jpg",
        "/data/b.jpg": "/data/b.jpg",
        "s3://bucket/c.jpg": "s3://bucket/c.jpg",
        "d/e.jpg": "/root/d/e.jpg",
    }


def test_words_are_looked_up_in_classes_and_numbers_checked_against_them(tmp_path: Path) -> None:
    classes = ["cat", "dog", "fire truck"]
    table = key_table(listed(tmp_path, "uri,label\na.jpg,dog\nb.jpg,fire truck\n", classes=classes))
    assert table["label"].to_pylist() == [1, 2]
    assert class_names(table) == classes
    assert rows(listed(tmp_path, "uri,label\na.jpg, 2 \n", classes=classes))[0]["label"] == 2
    refused(listed(tmp_path, "uri,label\na.jpg,dog\nb.jpg,dgo\n", classes=classes), "row 3", "label", "'dog'")
    refused(listed(tmp_path, "uri,label\na.jpg,3\n", classes=classes), "row 2", "3", "from 0")
    refused(listed(tmp_path, "uri,label\na.jpg,dog\n"), "row 2", "'dog'", "classes")


def test_columns_may_have_other_names_and_uris_no_suffix(tmp_path: Path) -> None:
    source = listed(tmp_path, "image_id,class\nx,5\n", columns={"uri": "image_id", "label": "class"}, suffix=".JPEG")
    assert [(r["key"], r["label"]) for r in rows(source)] == [("x.JPEG", 5)]
    refused(source | {"columns": {"uri": "image_id", "label": "klass"}}, "klass")
    with pytest.raises(UsageError, match="columns"):
        key_table(source | {"columns": {"url": "image_id"}})


BAD = {
    "no header": ("", []),
    "no rows": ("uri,label\n", ["no rows"]),
    "no uri": ("url,label\na.jpg,1\n", ["'uri'", "url, label"]),
    "ragged": ("uri,label\na.jpg,1\nb.jpg\n", ["parsed"]),
    "label word": ("uri,label\na.jpg,1\nb.jpg,x\n", ["row 3", "label", "'x'"]),
    "label float": ("uri,label\na.jpg,1.5\n", ["row 2", "label", "'1.5'"]),
    "label negative": ("uri,label\na.jpg,-1\n", ["row 2", "-1"]),
    "label huge": ("uri,label\na.jpg,99999999999\n", ["row 2", "99999999999"]),
    "empty uri": ("uri,label\na.jpg,1\n,2\n", ["row 3", "uri"]),
    "climbs": ("uri,label\na.jpg,1\n../../etc/passwd,2\n", ["row 3", "../../etc/passwd", "inside"]),
    "climbs within": ("uri,label\nd/../../x.jpg,1\n", ["row 2", "inside"]),
    "backslashes": ("uri,label\n..\\x.jpg,1\n", ["row 2", "inside"]),
    "chained": ("uri,label\nsimplecache::http://h/x.jpg,1\n", ["row 2", "::"]),
    "NaN corner": ("uri,label,x0,y0,x1,y1\na.jpg,1,0,0,nan,1\n", ["row 2", "finite"]),
    "infinite corner": ("uri,label,x0,y0,x1,y1\na.jpg,1,0,0,inf,1\n", ["row 2", "finite"]),
    "x1 < x0": ("uri,label,x0,y0,x1,y1\na.jpg,1,0,0,1,1\nb.jpg,1,5,0,4,1\n", ["row 3", "x1 < x0"]),
    "corner word": ("uri,label,x0,y0,x1,y1\na.jpg,1,0,?,4,1\n", ["row 2", "y0", "'?'"]),
    "half a box": ("uri,label,x0,y0,x1,y1\na.jpg,1,0,0,4,\n", ["row 2", "empty"]),
    "three corners": ("uri,label,x0,y0,x1\na.jpg,1,0,0,4\n", ["'y1'"]),
    "twice without boxes": ("uri,label\na.jpg,1\nb.jpg,1\n./a.jpg,1\n", ["'a.jpg'", "row 4"]),
    "twice the same column": ("uri,uri\na.jpg,b.jpg\n", ["two columns"]),
    "width zero": ("uri,width,height\na.jpg,0,5\n", ["row 2", "width"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lists_name_file_row_field_and_cure(tmp_path: Path, case: str) -> None:
    text, words = BAD[case]
    refused(listed(tmp_path, text), *words)


def test_bad_parquet_and_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "l.parquet"
    path.write_bytes(b"PAR1 this is not one")
    refused({"kind": "list", "path": str(path)}, "parsed")
    pa.parquet.write_table(pa.table({"uri": ["a.jpg"], "label": [0.5]}), path)
    refused({"kind": "list", "path": str(path), "images": False}, "label", "double")
    pa.parquet.write_table(pa.table({"uri": ["a.jpg"], "x0": [0.0], "y0": [0.0], "x1": [np.nan], "y1": [1.0]}), path)
    refused({"kind": "list", "path": str(path), "images": False}, "row 1", "finite")
    pa.parquet.write_table(pa.table({"uri": [3]}), path)
    refused({"kind": "list", "path": str(path), "images": False}, "uri", "int64")
    refused({"kind": "list", "path": str(tmp_path / "l.txt")}, "l.txt")
    refused({"kind": "list", "path": str(tmp_path / "none.csv")}, "no such file")
    broken = tmp_path / "l.csv.gz"
    broken.write_bytes(gzip.compress(b"uri\na.jpg\n" * 99)[:-20])
    refused({"kind": "list", "path": str(broken)}, "parsed")


def test_a_list_whose_images_are_elsewhere_is_told_before_the_run(tmp_path: Path) -> None:
    source = listed(tmp_path, "uri\nx/a.jpg\nx/b.jpg\n", images=True)
    refused(source, str(tmp_path / "x/a.jpg"), "root")
    # One missing image is that row's failure, later; it does not stop the others.
    (tmp_path / "x").mkdir()
    (tmp_path / "x/b.jpg").write_bytes(b"x")
    assert len(rows(source)) == 2


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet='au/,.\n"01-é\\:', max_size=60), header=st.booleans())
def test_any_text_is_a_list_or_a_usage_error(tmp_path_factory: pytest.TempPathFactory, text: str, header: bool) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        table = key_table(listed(folder, ("uri,label,x0,y0,x1,y1\n" if header else "") + text))
    except RaylensError:
        return
    keys = table.column("key").to_pylist()
    assert keys == sorted(set(keys))
    assert not any(
        part == ".." for key in keys if not key.startswith("/") and "://" not in key for part in key.split("/")
    )


def test_real_boxes(real_data: Path) -> None:
    table = key_table({"kind": "list", "path": str(real_data / "ilsvrc_val/boxes.csv")})
    frame = pd.read_csv(real_data / "ilsvrc_val/boxes.csv")
    assert len(table) == 500
    assert sum(len(boxes) for boxes in table["boxes"].to_pylist()) == len(frame)
    for row in table.slice(0, 50).to_pylist():
        mine = frame[frame.uri == row["key"]]
        np.testing.assert_allclose(row["boxes"], mine[["x0", "y0", "x1", "y1"]].to_numpy(), rtol=1e-6)
        assert set(mine.label) == {row["label"]}
        assert Path(row["uri"]).is_file()


def test_real_boxes_of_all_validation_images(real_data: Path) -> None:
    source = {
        "kind": "list",
        "path": str(real_data / "ilsvrc_val/boxes_all50000.csv.gz"),
        "columns": {"uri": "image_id", "label": "class"},
        "suffix": ".JPEG",
        "images": False,
    }
    table = key_table(source)
    assert len(table) == 50_000
    assert np.bincount(table["label"].to_numpy()).tolist() == [50] * 1000
    assert table["width"].null_count == 0
