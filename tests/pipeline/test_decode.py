"""Rows to arrays: errors are values, slices keep their order, nothing is decoded too far ahead."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import images
from pipeline.decode import Prepared, ThreadFeeder, prepare_row, prepare_slice, stack
from pipeline.images import Limits
from pipeline.storage import UnreachableError


class Stage:
    """Hands on what it is given, so that a test sees it."""

    def __init__(self, wants: str) -> None:
        self.wants = wants
        self.given: list[tuple[Any, dict[str, Any]]] = []

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        self.given.append((image, row))
        if row.get("fault"):
            raise ValueError(row["fault"])
        return {"x": np.full(row.get("size", 2), row.get("value", 0), np.float32)}


@pytest.fixture
def photo(tmp_path: Path) -> str:
    out = io.BytesIO()
    Image.new("RGB", (5, 3), (10, 20, 30)).save(out, "PNG")
    (tmp_path / "a.png").write_bytes(out.getvalue())
    return str(tmp_path / "a.png")


def test_each_stage_gets_what_it_wants(photo: str) -> None:
    pixels, data, records = Stage("pixels"), Stage("bytes"), Stage("records")
    for stage in (pixels, data, records):
        prepare_row(stage, {"key": "a", "uri": photo}, Limits())  # type: ignore[arg-type]
    image, row = pixels.given[0]
    assert image.shape == (3, 5, 3)
    assert image[0, 0].tolist() == [10, 20, 30]
    assert (row["width"], row["height"]) == (5, 3)
    assert data.given[0][0] == Path(photo).read_bytes()
    assert records.given[0] == (None, {"key": "a", "uri": photo})


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"uri": "/nowhere/a.png"}, "the file does not exist"),
        ({"fault": "too dark"}, "ValueError: too dark"),
    ],
)
def test_what_a_row_does_is_its_own_reason(row: dict[str, Any], reason: str, photo: str) -> None:
    found = prepare_row(Stage("pixels"), {"key": "a", "uri": photo, **row}, Limits())  # type: ignore[arg-type]
    assert isinstance(found, str)
    assert reason in found


def test_an_image_that_is_none_is_its_rows_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    assert isinstance(prepare_row(Stage("pixels"), {"key": "a", "uri": str(tmp_path / "a.png")}, Limits()), str)  # type: ignore[arg-type]


def test_storage_that_is_away_says_nothing_about_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    away = images.DecodeError("the storage did not answer", "unreachable")
    monkeypatch.setattr(images, "read_bytes", lambda *_: away)
    with pytest.raises(UnreachableError, match="did not answer"):
        prepare_row(Stage("pixels"), {"key": "a", "uri": "s3://bucket/a.png"}, Limits())  # type: ignore[arg-type]


def test_a_slice_is_stacked_around_the_rows_that_failed() -> None:
    rows = [{"key": str(i), "value": i, "fault": "bad" if i == 1 else ""} for i in range(4)]
    found = prepare_slice(Stage("records"), rows, Limits())  # type: ignore[arg-type]
    assert found.good == (0, 2, 3)
    assert found.arrays["x"].tolist() == [[0, 0], [2, 2], [3, 3]]
    assert found.errors == {1: "ValueError: bad"}
    assert found.bytes == 3 * 2 * 4


@pytest.mark.parametrize(
    "odd",
    [{"x": np.zeros(3, np.float32)}, {"x": np.zeros(2, np.float64)}, {"y": np.zeros(2, np.float32)}],
    ids=["shape", "type", "name"],
)
def test_a_row_unlike_the_first_good_one_fails_alone(odd: dict[str, np.ndarray]) -> None:
    like = {"x": np.zeros(2, np.float32)}
    found = stack(["no image", like, odd, like])
    assert found.good == (1, 3)
    assert found.errors[0] == "no image"
    assert "other shapes than their slice's" in found.errors[2]


def test_a_slice_of_nothing_good_has_no_arrays() -> None:
    assert stack(["a", "b"]) == Prepared({}, (), {0: "a", 1: "b"})


class Gated(Stage):
    """Waits at a gate in each row."""

    def __init__(self) -> None:
        super().__init__("records")
        self.gate, self.begun = threading.Event(), threading.Semaphore(0)

    def prepare(self, image: Any, row: dict[str, Any]) -> dict[str, np.ndarray]:
        self.begun.release()
        assert self.gate.wait(30)
        return super().prepare(image, row)


def slices(count: int) -> list[list[dict[str, Any]]]:
    return [[{"key": f"{i}{j}", "value": 10 * i + j} for j in range(2)] for i in range(count)]


def test_slices_come_in_the_order_asked_for() -> None:
    with ThreadPoolExecutor(3) as pool:
        feeder = ThreadFeeder(pool, Stage("records"), slices(5), Limits(), ahead=3)  # type: ignore[arg-type]
        firsts = [prepared.arrays["x"][:, 0].tolist() for prepared in feeder]
    assert firsts == [[10 * i, 10 * i + 1] for i in range(5)]


def test_only_so_many_slices_are_decoded_ahead() -> None:
    stage = Gated()
    with ThreadPoolExecutor(16) as pool:
        feeder = ThreadFeeder(pool, stage, slices(6), Limits(), ahead=2)  # type: ignore[arg-type]
        for _ in range(4):
            assert stage.begun.acquire(timeout=30), "two slices of two rows begin"
        stage.gate.set()
        begun = 4
        for done, _ in enumerate(feeder, 1):
            while stage.begun.acquire(blocking=False):
                begun += 1
            assert begun <= 2 * (done + 2)
    assert len(stage.given) == 12


def test_closing_forgets_what_was_not_begun() -> None:
    stage = Gated()
    with ThreadPoolExecutor(1) as pool:
        feeder = ThreadFeeder(pool, stage, slices(6), Limits(), ahead=3)  # type: ignore[arg-type]
        assert stage.begun.acquire(timeout=30)
        feeder.close()
        stage.gate.set()
    assert len(stage.given) == 1, "the one in hand"
    assert list(feeder) == []
