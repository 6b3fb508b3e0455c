"""Files with a receipt beside them: whole or absent, and never taken for good when they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.products import Product, Writing, products
from pipeline.storage import Folder


def _half_way(file: Writing) -> None:
    file.write(b"half")
    raise RuntimeError


def test_a_file_is_there_with_its_receipt_or_not_at_all(tmp_path: Path) -> None:
    product = Product(Folder(str(tmp_path / "kept")), "x.json")
    assert product.receipt() is None
    with pytest.raises(RuntimeError), product.writing() as file:
        _half_way(file)
    assert product.receipt() is None
    assert product.folder.list() == {}
    with product.writing() as file:
        file.write(b"one ")
        file.write(b"two")
        file.facts["images"] = 3
    assert (tmp_path / "kept/x.json").read_bytes() == b"one two"
    receipt = product.receipt()
    assert receipt is not None
    assert (receipt["bytes"], receipt["images"]) == (7, 3)
    assert product.wrong() == ""


def test_leftovers_of_a_killed_writer_go_with_the_next_one(tmp_path: Path) -> None:
    product = Product(Folder(str(tmp_path)), "x.json")
    (tmp_path / ".x.json.0123456789ab.tmp").write_bytes(b"half")
    (tmp_path / ".y.json.0123456789ab.tmp").write_bytes(b"another's")
    product.write(b"whole")
    assert product.folder.leftovers() == [".y.json.0123456789ab.tmp"]


def test_what_is_there_already_stays(tmp_path: Path) -> None:
    product = Product(Folder(str(tmp_path)), "x.json")
    product.write(b"same")
    before = (tmp_path / "x.json").stat().st_mtime_ns
    product.write(b"same")
    assert (tmp_path / "x.json").stat().st_mtime_ns == before
    product.write(b"other")
    assert (tmp_path / "x.json").read_bytes() == b"other"
    assert product.wrong() == ""


@pytest.mark.parametrize(
    ("damage", "there", "words"),
    [
        (lambda p: p.write_bytes(b"sane"), True, "content"),
        (lambda p: p.write_bytes(b"some more"), False, "content"),
        (lambda p: p.unlink(), False, "missing"),
        (lambda p: p.with_name("x.json.receipt").write_bytes(b"{"), False, "receipt"),
    ],
)
def test_damage_is_named_and_withdrawn(tmp_path: Path, damage: object, there: bool, words: str) -> None:
    Product(Folder(str(tmp_path / "a")), "x.json").write(b"same")
    damage(tmp_path / "a/x.json")  # type: ignore[operator]
    (product,) = products(Folder(str(tmp_path)))
    assert (product.receipt() is not None) == there, "only the size is looked at here"
    assert words in product.wrong()
    product.withdraw()
    assert list(products(Folder(str(tmp_path)))) == []
    assert product.folder.list() == {}
