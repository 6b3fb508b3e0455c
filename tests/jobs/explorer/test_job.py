"""The explorer's numbers: what its scripts hold is what the rows hold, bit for bit. No browser."""

from __future__ import annotations

import base64
import fnmatch
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from explorer_cases import drawn, make_run, network, rows_of, write
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.explorer.chunks import display_range, filter_scripts, script, thumbnail, tile, triplet_scripts
from jobs.explorer.page import SHIPPED
from jobs.explorer.rows import Answer, Filters, Patches, Triplets
from jobs.explorer.write import by_image
from jobs.report.parts import scripts
from pipeline.errors import RaylensError


def value_of(data: bytes, name: str) -> Any:
    """What a script hands over."""
    text = data.decode("ascii")
    start, end = f"raylens({json.dumps(name)}, ", ");\n"
    assert text.startswith(start)
    assert text.endswith(end)
    return json.loads(text[len(start) : -len(end)])


def words(text: str, dtype: str = "<u4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def unpacked(scripts: dict[str, bytes], folder: str, kind: str) -> dict[tuple[int, ...], tuple[tuple[int, ...], bytes]]:
    """(channel, y, x) -> (corner, the bytes of its patch), as the page's index of places and its chunks have them."""
    told = value_of(scripts[f"{folder}/picture"], f"{folder}/picture")[kind]
    places = words(told["places"], "<i2").reshape(-1, 5)
    size = int(np.prod(told["patch"])) * 4
    found = {}
    for chunk, start in enumerate(told["starts"]):
        end = (*told["starts"], len(places))[chunk + 1]
        name = f"{folder}/{kind}-{chunk}"
        data = base64.b64decode(value_of(scripts[name], name))
        assert len(data) == (end - start) * size
        for i, (channel, y, x, top, left) in enumerate(places[start:end].tolist()):
            assert (channel, y, x) not in found
            found[channel, y, x] = ((top, left), data[i * size : (i + 1) * size])
    return found


def patches(
    rng: np.random.Generator, shape: tuple[int, int, int], chosen: np.ndarray, patch: tuple[int, ...]
) -> Patches:
    """Some places of a picture, with patches of any bits: NaN with a payload, -0, denormals."""
    places = np.argwhere(np.ones(shape, bool))[chosen].astype(np.int32)
    bits = rng.integers(0, 2**32, (len(places), *patch), dtype=np.uint32)
    corners = rng.integers(-9, 9, (len(places), 2)).astype(np.int32)
    return Patches(places, corners, bits.view(np.float32))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(st.integers(1, 2), st.integers(1, 9), st.integers(1, 9)),
    patch=st.tuples(st.integers(1, 2), st.integers(1, 90), st.integers(1, 90)),
    share=st.floats(0, 1),
)
def test_chunks_hold_the_rows_bit_for_bit(
    seed: int, shape: tuple[int, int, int], patch: tuple[int, int, int], share: float
) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.random(int(np.prod(shape))) <= share
    pictures = [rng.integers(0, 2**32, s, dtype=np.uint32).view(np.float32) for s in (shape, shape, shape)]
    both = patches(rng, shape, chosen, patch), patches(rng, shape, chosen, patch[::-1])
    scripts = dict(filter_scripts(Filters(*pictures, *both, bounded=True), "3-1"))
    for kind, given_ in zip(("rows", "columns"), both, strict=True):
        found = unpacked(scripts, "3-1", kind)
        assert found == {
            tuple(place): (tuple(corner), values.tobytes())
            for place, corner, values in zip(
                given_.places.tolist(), given_.corners.tolist(), given_.values, strict=True
            )
        }
    told = value_of(scripts["3-1/picture"], "3-1/picture")
    for name, picture in zip(("input", "output", "residual"), pictures, strict=True):
        assert base64.b64decode(told[name]) == picture.tobytes()
    named = {f"3-1/{kind}-{i}" for kind in ("rows", "columns") for i in range(len(told[kind]["starts"]))}
    assert set(scripts) == {"3-1/picture", *named}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5000), st.integers(1, 40_000))
def test_a_chunk_is_a_small_square_of_neighbours(
    channels: int, height: int, width: int, patch: int, chunk: int
) -> None:
    places = np.argwhere(np.ones((channels, height, width), bool))
    parts = list(tile(places, patch, chunk).parts())
    assert sorted(i for part in parts for i in part) == list(range(len(places)))
    side = max(1, int((chunk / patch) ** 0.5))
    for part in parts:
        extent = places[part].max(axis=0) - places[part].min(axis=0) + 1
        assert extent[0] == 1
        assert max(extent[1:]) <= side
        assert len(part) == extent[1] * extent[2]
        assert len(part) == 1 or len(part) * patch <= chunk


def test_pairs_hold_the_singular_vectors_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    inputs, outputs = (
        rng.integers(0, 2**32, s, dtype=np.uint32).view(np.float32) for s in ((3, 1, 4, 5), (3, 2, 8, 10))
    )
    found = dict(triplet_scripts(Triplets(np.ones(3), inputs, outputs, np.zeros(3), 9, True), "a"))
    assert list(found) == ["a/pair-0", "a/pair-1", "a/pair-2"]
    for i, (name, data) in enumerate(found.items()):
        pair = value_of(data, name)
        assert base64.b64decode(pair["input"]) == inputs[i].tobytes()
        assert base64.b64decode(pair["output"]) == outputs[i].tobytes()


@given(st.text())
def test_no_text_ends_a_script_or_its_line(text: str) -> None:
    value = {"key": text + "</script>\u2028\ud800"}
    data = script("index", value)
    assert data.count(b"\n") == 1
    assert value_of(data, "index") == value


def test_an_image_is_shown_from_black_to_white_as_its_kind_usually_is() -> None:
    ramp = np.linspace(0, 1, 100, dtype=np.float32)
    assert display_range(ramp) == [0, 1]
    assert display_range(2 * ramp - 1) == [-1, 1]
    assert display_range(255 * ramp) == [0, 255]
    assert display_range(3 * ramp - 2) == pytest.approx([-2, 1])
    assert display_range(1.1 * ramp, [0, 1]) == [0, 1], "an output that overshoots looks like its input"
    assert display_range(0.01 * ramp - 0.2, [0, 1]) == pytest.approx([-0.2, -0.19]), "a flat one shows what it has"
    assert display_range(np.full(9, 7, np.float32)) == [6.5, 7.5]
    assert display_range(np.full(9, np.nan, np.float32)) == [0, 1]


def test_a_thumbnail_is_the_picture_in_small() -> None:
    grey = np.linspace(0, 1, 130 * 130, dtype=np.float32).reshape(1, 130, 130)
    small = thumbnail(grey)
    pixels = words(small["rgb"], "u1").reshape(small["height"], small["width"], 3)
    assert pixels.shape == (44, 44, 3)
    assert pixels[20, 30].tolist() == [round(255 * float(grey[0, 60, 90]))] * 3


def test_images_come_in_the_order_of_their_keys_with_all_that_is_known_of_them() -> None:
    one, two = ([Answer(key, None) for key in keys] for keys in ("abd", "bc"))
    found = list(by_image({("filters", 0): iter(one), ("svd", 1): iter(two)}))
    assert [(key, sorted(kind for kind, _ in told)) for key, told in found] == [
        ("a", ["filters"]), ("b", ["filters", "svd"]), ("c", ["svd"]), ("d", ["filters"]),
    ]  # fmt: skip


def test_the_page_of_a_run(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>.png"
    pictures = {
        "a/one.png": drawn(10, 0),
        "b/one.png": drawn(10, 1),
        evil: drawn(10, 2),
        "z.png": "it is </script> none",
    }
    run = make_run(tmp_path, {"net": network(0, kernel=3)}, pictures, size=8, svd=2)
    path = write(run)
    assert path.name == "index.html"
    assert path.parent.parent == tmp_path / "report"
    index = value_of((path.parent / "data/index.js").read_bytes(), "index")
    assert [image["name"] for image in index["images"]] == [evil.removesuffix(".png"), "a/one.png", "b/one.png"]
    rows = rows_of(run, "filters_net")
    for i, image in enumerate(index["images"]):
        facts = image["networks"][0]["filters"]
        scripts = {
            f"{facts['folder']}/{p.stem}": p.read_bytes() for p in (path.parent / "data" / facts["folder"]).iterdir()
        }
        row = rows[image["key"]]
        for kind in ("row", "column"):
            found = unpacked(scripts, facts["folder"], f"{kind}s")
            places = row[f"{kind}_places"].reshape(-1, 3)
            values = row[f"{kind}_values"].reshape(len(places), -1)
            assert [found[tuple(p)][1] for p in places.tolist()] == [v.tobytes() for v in values], i
        largest = max(np.abs(row[f"{kind}_values"]).max() for kind in ("row", "column"))
        assert facts["peak"] == pytest.approx(float(largest))
    html = path.read_text()
    assert evil not in html
    assert "2 rows failed" in html
    assert "it is &lt;/script&gt; none" in html
    assert "default-src 'none'" in html
    again = {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}
    write(run)
    assert again == {p: p.read_bytes() for p in path.parent.rglob("*") if p.is_file()}, "the same rows, the same page"


def test_a_page_that_would_be_too_large_says_which_images_it_leaves_out(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"net": network(0, kernel=3)}, {f"{i}.png": drawn(8, i) for i in range(3)}, size=8)
    path = write(run, limit=1)
    assert len(value_of((path.parent / "data/index.js").read_bytes(), "index")["images"]) == 1
    assert "2 images of the run are not on this page" in path.read_text()


def test_a_run_without_an_answer_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"net": network(0)}, {"a.png": "no image", "b.png": "none either"}, size=8)
    page = write(run).read_text()
    assert "No image has an answer yet" in page
    assert "<script" not in page
    for file in tmp_path.glob("filters_net/images/receipts/*"):
        file.unlink()
    assert "0 of 2 planned rows" in write(run).read_text()


def test_a_row_of_something_else_is_refused_with_a_cure(tmp_path: Path) -> None:
    run = make_run(tmp_path, {"net": network(0, kernel=3)}, {"a.png": drawn(8, 0)}, size=8, svd=1)
    described = run.describe()
    table = next((tmp_path / "svd_net/images").glob("part-*"))
    other = next((tmp_path / "filters_net/images").glob("part-*"))
    receipt = next((tmp_path / "filters_net/images/receipts").iterdir())
    told = json.loads(receipt.read_text())
    (other.parent / table.name).write_bytes(table.read_bytes()[:-9])
    told["files"][0] |= {"name": table.name, "bytes": table.stat().st_size - 9}
    receipt.write_text(json.dumps(told))
    with pytest.raises(RaylensError, match="verify --repair"):
        write(run)
    assert described == run.describe()


def test_an_installed_package_carries_the_scripts_and_the_style() -> None:
    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"]["*"]
    assert len(scripts("jobs.explorer", SHIPPED)) == len(SHIPPED)
    for name in (*SHIPPED, "explorer.css"):
        assert any(fnmatch.fnmatch(name, pattern) for pattern in globs)
