"""The streaming reader says what json.load says, and where each entry lies."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sources import json_stream
from pipeline.sources.json_stream import JsonStream, copied

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.fixed_dictionaries(
    {}, optional={"images": st.lists(VALUES), "annotations": st.lists(VALUES), "info": VALUES, "é": VALUES}
)


def read(path: Path | str, chunk: int = 64) -> tuple[dict[str, Any], list[json_stream.Entry], JsonStream]:
    """The whole object put together again, its entries, and the stream after them."""
    stream = JsonStream(str(path), ("images", "annotations"), chunk=chunk)
    entries = list(stream)
    found: dict[str, Any] = {name: [] for name in stream.counts}
    for entry in entries:
        if entry.at < 0:
            found[entry.part] = entry.value
        else:
            assert entry.at == len(found[entry.part])
            found[entry.part].append(entry.value)
    return found, entries, stream


@settings(max_examples=200, deadline=None)
@given(
    value=OBJECTS,
    chunk=st.integers(1, 40),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    zipped=st.booleans(),
)
def test_any_object_in_any_windows_is_what_json_load_says_and_lies_where_it_says(
    tmp_path_factory: pytest.TempPathFactory,
    value: dict[str, Any],
    chunk: int,
    ascii_only: bool,
    indent: int | None,
    mark: bytes,
    zipped: bool,
) -> None:
    text = mark + json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    path = tmp_path_factory.getbasetemp() / ("x.json.gz" if zipped else "x.json")
    path.write_bytes(gzip.compress(text) if zipped else text)
    found, entries, stream = read(path, chunk)
    assert found == value
    assert stream.sha256 == hashlib.sha256(text).hexdigest()
    for entry in entries:
        assert json.loads(text[entry.start : entry.start + entry.length]) == entry.value
    spans = [(e.start, e.length) for e in entries]
    pieces = [text[a : a + n] for a, n in spans]
    digest = hashlib.sha256()
    assert list(copied(str(path), spans, digest, chunk=chunk)) == pieces
    assert digest.hexdigest() == stream.sha256
    assert list(copied(str(path), spans[::3], chunk=chunk)) == pieces[::3]


@settings(max_examples=100, deadline=None)
@given(value=OBJECTS.filter(bool), data=st.data())
def test_every_truncation_is_told(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, Any], data: st.DataObject
) -> None:
    text = json.dumps(value).encode()
    path = tmp_path_factory.getbasetemp() / "cut.json"
    path.write_bytes(text[: data.draw(st.integers(0, len(text) - 1))])
    with pytest.raises(UsageError, match=r"JSON[^\n]*(\n|.)*fetch or write"):
        read(path, data.draw(st.integers(1, 30)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[1]", "not a JSON object"),
        (b"", "not a JSON object"),
        (b"\xff\xfe{\x00}\x00", "not a JSON object"),  # UTF-16
        (b'{"images": {}}', "'images' is no list"),
        (b'{"images": [], "images": []}', "'images' stands twice"),
        (b'{"images": [1 2]}', "images[0]"),
        (b'{"images": [tru]}', "images[0]"),
        (b'{"images": ["\xff"]}', "images[0] is not UTF-8"),
        (b'{"images": [1,]}', "images[1]"),
        (b'{"images": []} x', "behind the object's end"),
        (b'{"images": [' + b"[" * 100_000, "images[0]"),
        (b'{"images": [' + b"9" * 5_000 + b"]}", "images[0]"),
    ],
)
def test_what_is_no_such_object_is_told_with_its_place(tmp_path: Path, text: bytes, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert words in str(caught.value)
    assert f"{path}, byte" in str(caught.value)


def test_an_error_in_the_middle_is_told_without_reading_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{"images": [{"a": nope, "b": 1}' + b" " * 2_000_000 + b"]}")
    asked: list[int] = []

    class Counting(json_stream._Window):
        def _more(self) -> bool:
            asked.append(1)
            return super()._more()

    stream = JsonStream(str(path), ("images",), chunk=1000)
    original, json_stream._Window = json_stream._Window, Counting  # type: ignore[misc]
    try:
        with pytest.raises(UsageError, match=r"images\[0\]"):
            list(stream)
    finally:
        json_stream._Window = original  # type: ignore[misc]
    assert len(asked) <= 3


def test_a_compressed_file_that_is_cut_off_or_none_is_told(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps({"images": list(range(5000))}).encode())
    for name, data in {"cut": whole[:-30], "none": b"{}", "broken": whole[:40] + b"\0" * 40 + whole[80:]}.items():
        path = tmp_path / f"{name}.json.gz"
        path.write_bytes(data)
        with pytest.raises(UsageError, match=path.name):
            read(path)


def test_object_stores_and_missing_files() -> None:
    url = "memory://raylens-stream/x.json.gz"
    fsspec.filesystem("memory").pipe(url, gzip.compress(b'{"images": [{"id": 3}]}'))
    assert read(url)[0] == {"images": [{"id": 3}]}
    for absent in ("memory://raylens-stream/absent.json", "/absent/x.json"):
        with pytest.raises(UsageError, match="no such file"):
            read(absent)


def test_a_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"{}")
    with pytest.raises(UsageError, match="shorter"):
        list(copied(str(path), [(0, 2), (5, 4)]))
