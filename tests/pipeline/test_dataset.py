"""Folders of images, and the selection every kind of source shares."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from pipeline.dataset import KEY_SCHEMA, class_names, key_shares, key_table, parse_source
from pipeline.errors import UsageError


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def keys(table: Any) -> list[str]:
    return table.column("key").to_pylist()


def refused(source: dict[str, Any], *words: str) -> str:
    """The message a source is refused with: it has every one of the words, and a cure."""
    with pytest.raises(UsageError) as caught:
        key_table(source)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert caught.value.cure
    assert caught.value.where
    return message


@pytest.fixture
def many(tmp_path: Path) -> dict[str, Any]:
    put(tmp_path, *(f"{c}/{i:03d}.jpg" for c in "ab" for i in range(200)))
    return {"kind": "folder", "root": str(tmp_path)}


def test_class_folders_give_labels_in_the_order_of_their_names(tmp_path: Path) -> None:
    put(
        tmp_path,
        "zebra/1.jpg",
        "ant/2.PNG",
        "ant/deep/1.jpeg",
        "bee/x.webp",
        "bee/notes.txt",
        ".git/y.jpg",
        "bee/.z.jpg",
    )
    table = key_table({"kind": "folder", "root": str(tmp_path)})
    assert table.schema.equals(KEY_SCHEMA)
    assert keys(table) == ["ant/2.PNG", "ant/deep/1.jpeg", "bee/x.webp", "zebra/1.jpg"]
    assert table["label"].to_pylist() == [0, 0, 1, 2]
    assert table["labels"].to_pylist() == [[0], [0], [1], [2]]
    assert table["uri"].to_pylist() == [str(tmp_path / key) for key in keys(table)]
    assert class_names(table) == ["ant", "bee", "zebra"]
    assert table["boxes"].null_count == 4


def test_a_relative_root_becomes_an_absolute_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "images/a.jpg")
    monkeypatch.chdir(tmp_path)
    table = key_table({"kind": "folder", "root": "images"})
    assert table["uri"].to_pylist() == [str(tmp_path / "images/a.jpg")]
    assert key_table({"kind": "folder", "root": f"file://{tmp_path}/images/"}).equals(table)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    table = key_table({"kind": "folder", "root": str(put(tmp_path, "b.jpg", "a.jpg"))})
    assert keys(table) == ["a.jpg", "b.jpg"]
    assert table["label"].null_count == table["labels"].null_count == 2
    assert class_names(table) is None


def test_a_label_pattern_takes_the_class_from_the_name(tmp_path: Path) -> None:
    root = put(tmp_path / "i", "n02_cat_1.jpg", "n01_dog_7.jpg", "n02_cat_2.jpg")
    source = {"kind": "folder", "root": str(root), "label_pattern": r"^(n\d+)_"}
    table = key_table(source)
    assert class_names(table) == ["n01", "n02"]
    assert table["label"].to_pylist() == [0, 1, 1]
    refused(source | {"label_pattern": "^(n01)_"}, "n02_cat_1.jpg", "label_pattern")


def test_the_order_of_the_classes_file_is_the_label_not_the_rank(tmp_path: Path) -> None:
    root = put(tmp_path / "i", "n00000003/a.jpg", "n00000001/b.jpg")
    synsets = tmp_path / "synsets.txt"
    synsets.write_text("n00000009 crane\nn00000003 tench, Tinca tinca\nn00000001 crane, machine\n")
    source = {"kind": "folder", "root": str(root), "classes": str(synsets)}
    table = key_table(source)
    assert dict(zip(keys(table), table["label"].to_pylist(), strict=True)) == {
        "n00000001/b.jpg": 2,
        "n00000003/a.jpg": 1,
    }
    assert class_names(table) == ["crane", "tench, Tinca tinca", "crane, machine"]
    assert key_table(source | {"classes": ["x", "n00000003", "n00000001"]})["label"].to_pylist() == [2, 1]
    (root / "n00000001").rename(root / "n00000002")
    refused(source, "n00000002", "did you mean", "n00000002/b.jpg")
    synsets.write_text("n00000009 crane\nn00000009 crane\n")
    refused(source, "line 2", "line 1")


def test_names_and_first_synonyms_spell_a_class_where_they_are_unambiguous(tmp_path: Path) -> None:
    synsets = tmp_path / "synsets.txt"
    synsets.write_text("n00000001 crane\nn00000002 tench, Tinca tinca\nn00000003 crane\n")
    source = {"kind": "folder", "root": str(put(tmp_path / "i", "tench/a.jpg")), "classes": str(synsets)}
    assert key_table(source)["label"].to_pylist() == [1]
    put(tmp_path / "i", "crane/b.jpg")
    refused(source, "'crane'")


def test_images_beside_class_folders_are_ambiguous_until_said(tmp_path: Path) -> None:
    source = {"kind": "folder", "root": str(put(tmp_path, "a/1.jpg", "stray.jpg"))}
    refused(source, "stray.jpg", "labelled: false")
    assert key_table(source | {"labelled": False})["label"].null_count == 2


def test_linked_class_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path / "far", "1.jpg")
    root = put(tmp_path / "root", "a/2.jpg")
    os.symlink(tmp_path / "far", root / "b")
    os.symlink(tmp_path / "far", root / "c")  # a second link to the same folder is a second class, not a loop
    os.symlink(root, root / "a" / "up")
    os.symlink(root / "a", tmp_path / "far" / "side")
    table = key_table({"kind": "folder", "root": str(root)})
    assert {"a/2.jpg", "b/1.jpg", "c/1.jpg"} <= set(keys(table))


def test_any_fsspec_url_is_a_root() -> None:
    fs = fsspec.filesystem("memory")
    for name in ("b/2.jpg", "a/1.JPG", "a/readme.md", "a/.hidden.jpg"):
        fs.pipe(f"/raylens-folder/{name}", b"x")
    table = key_table({"kind": "folder", "root": "memory://raylens-folder/"})
    assert keys(table) == ["a/1.JPG", "b/2.jpg"]
    assert table["label"].to_pylist() == [0, 1]
    for uri in table["uri"].to_pylist():
        with fsspec.open(uri) as file:
            assert file.read() == b"x"
    refused({"kind": "folder", "root": "memory://raylens-nowhere"}, "memory://raylens-nowhere")
    refused({"kind": "folder", "root": "nosuchprotocol://x"}, "nosuchprotocol")


def test_bad_folders_are_named(tmp_path: Path) -> None:
    refused({"kind": "folder", "root": str(tmp_path / "nope")}, str(tmp_path / "nope"))
    put(tmp_path, "a.txt")
    refused({"kind": "folder", "root": str(tmp_path)}, "no images", str(tmp_path))
    refused({"kind": "folder", "root": str(tmp_path / "a.txt")}, "a.txt")
    (tmp_path / os.fsdecode(b"bad\xff.jpg")).write_bytes(b"")
    refused({"kind": "folder", "root": str(tmp_path)}, "UTF-8", "rename")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "foldr"}, ["foldr", "folder"]),
        ({"rot": "x"}, ["rot", "did you mean root"]),
        ({"root": 3}, ["root", "3"]),
        ({"limit": 0}, ["limit", "0"]),
        ({"share": [0.5, 0.2]}, ["share", "lo < hi"]),
        ({"label_pattern": "^n"}, ["label_pattern", "group"]),
        ({"label_pattern": "("}, ["label_pattern", "regular expression"]),
    ],
)
def test_config_mistakes_name_the_field_the_value_and_the_nearest_name(
    change: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source({"kind": "folder", "root": "/x"} | change, "fit")
    for word in ["fit", *words]:
        assert word in str(caught.value)


def test_limit_takes_the_first_by_key(many: dict[str, Any]) -> None:
    assert keys(key_table(many | {"limit": 3})) == ["a/000.jpg", "a/001.jpg", "a/002.jpg"]
    assert len(key_table(many | {"limit": 10_000})) == 400


def test_a_sample_is_seeded_sorted_and_independent_of_what_else_is_there(many: dict[str, Any], tmp_path: Path) -> None:
    first = key_table(many | {"sample": 50})
    assert len(first) == 50
    assert keys(first) == sorted(keys(first))
    assert keys(key_table(many | {"sample": 50})) == keys(first)
    assert keys(key_table(many | {"sample": 50, "seed": 1})) != keys(first)
    assert set(keys(first)) < set(keys(key_table(many | {"sample": 80})))
    # Each key is drawn by its own hash: a new image may push one out but reshuffles nothing.
    put(tmp_path, "a/new.jpg")
    assert len(set(keys(first)) - set(keys(key_table(many | {"sample": 50})))) <= 1


def test_shares_partition_the_keys(many: dict[str, Any]) -> None:
    cuts = [0, 0.1, 0.5, 1]
    parts = [keys(key_table(many | {"share": [lo, hi]})) for lo, hi in itertools.pairwise(cuts)]
    assert sorted(key for part in parts for key in part) == keys(key_table(many))
    # 400 keys: the counts are binomial, 5 standard deviations wide.
    for part, share in zip(parts, (0.1, 0.4, 0.5), strict=True):
        assert abs(len(part) - 400 * share) < 5 * np.sqrt(400 * share * (1 - share))


def test_a_sample_of_a_share_is_no_narrower_share(many: dict[str, Any]) -> None:
    # Were both drawn from one hash, every sample of [0, 0.5) would lie in its lowest part.
    half = key_table(many | {"share": [0, 0.5], "sample": 50})
    shares = key_shares(half.column("key").combine_chunks(), "share")
    assert 0.15 < shares.mean() < 0.35
    assert shares.max() < 0.5


def test_key_shares_are_fixed_for_ever() -> None:
    import pyarrow as pa

    # blake2b, 8 bytes, personalised with the purpose: splits of old runs must not move with a new version.
    assert key_shares(pa.array(["a/000.jpg", "b"]), "share").tolist() == [0.9874730572961138, 0.05051655237421404]


def test_keys_and_exclude_name_images_by_key_file_stem_or_pattern(many: dict[str, Any], tmp_path: Path) -> None:
    assert keys(key_table(many | {"keys": ["b/001.jpg", "a/00?.jpg"]})) == [
        *(f"a/00{i}.jpg" for i in range(10)),
        "b/001.jpg",
    ]
    assert keys(key_table(many | {"keys": ["199.jpg"]})) == ["a/199.jpg", "b/199.jpg"]
    assert len(key_table(many | {"exclude": ["b/*"]})) == 200
    black = tmp_path / "black.txt"
    black.write_text("007\n\nb/008.jpg\nnot-there-at-all\n")
    rest = keys(key_table(many | {"exclude": str(black)}))
    assert len(rest) == 397
    assert not {"a/007.jpg", "b/007.jpg", "b/008.jpg"} & set(rest)
    assert keys(key_table(many | {"keys": ["a/001.jpg", "a/002.jpg"], "exclude": ["001"]})) == ["a/002.jpg"]
    refused(many | {"keys": ["a/001.jpg", "c/1.jpg"]}, "keys", "c/1.jpg")
    refused(many | {"exclude": ["c*"]}, "exclude", "c*")
    refused(many | {"exclude": str(tmp_path / "nofile")}, "nofile")
    refused(many | {"exclude": ["*"]}, "no image is left")


def test_real_imagenet_sample_has_each_class_once_in_class_order(real_data: Path) -> None:
    table = key_table(
        {
            "kind": "folder",
            "root": str(real_data / "imagenet_sample"),
            "label_pattern": r"^(n\d{8})_",
            "classes": str(real_data / "ilsvrc_val/synsets.txt"),
        }
    )
    assert table["label"].to_pylist() == list(range(1000))
    names = class_names(table)
    assert names is not None
    assert names[0].startswith("tench")


def test_real_cifar_folders_are_balanced(real_data: Path) -> None:
    table = key_table({"kind": "folder", "root": str(real_data / "cifar10/test")})
    assert np.bincount(table["label"].to_numpy()).tolist() == [200] * 10
    names = class_names(table)
    assert names is not None
    assert (names[0], names[3], names[9]) == ("airplane", "cat", "truck")
