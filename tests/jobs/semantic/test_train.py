"""Images of a key table as rows of a training: decoded as asked, once where they fit, and named when they cannot be."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from jobs.semantic.data import SCHEMA, require_rows, share
from jobs.semantic.train import KeyTableImages
from jobs.training.screen import unreadable
from pipeline.checkpoints import CommittedCheckpoints
from pipeline.errors import RaylensError, UsageError
from pipeline.images import Limits
from pipeline.storage import Folder, UnreachableError
from pipeline.train import Worker
from stages.preprocess import Preprocess
from stages.training_data import RowError, screen

FRAME = Preprocess(size=(8, 6))


class Keys:
    """A frozen key table as far as it is read here."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._table = pa.Table.from_pylist(rows, SCHEMA)

    def table(self) -> pa.Table:
        return self._table


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as found:
        yield found


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    found = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (20, 12 + i, 3), np.uint8)).save(path)
        found.append({"key": f"{i}.png", "uri": str(path), "fine": [i % 3, 3], "coarse": None if i == 4 else i % 2})
    return found


def data(rows: list[dict[str, Any]], pool: ThreadPoolExecutor, **more: Any) -> KeyTableImages:
    return KeyTableImages(Keys(rows), FRAME, Limits(), pool, fine=4, coarse=2, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("held", [0, 1 << 30])
def test_rows_are_the_frames_pixels_and_both_labels_in_any_batch(
    rows: list[dict[str, Any]], pool: ThreadPoolExecutor, held: int
) -> None:
    found = data(rows, pool, held=held)
    for order in ([0, 1, 2, 3, 4], [4, 0], [2], [3, 3]):
        batch = found.batch(np.array(order))
        assert found.keys(np.array(order)) == [rows[i]["key"] for i in order]
        for i, image, fine, coarse in zip(order, batch["image"], batch["fine"], batch["coarse"], strict=True):
            assert np.array_equal(image.numpy(), FRAME.pixels(np.asarray(Image.open(rows[i]["uri"]))))
            assert fine.nonzero().flatten().tolist() == sorted({i % 3, 3})
            assert int(coarse) == (-1 if i == 4 else i % 2)


def test_what_fits_is_decoded_once_and_what_does_not_each_time(
    rows: list[dict[str, Any]], pool: ThreadPoolExecutor
) -> None:
    once, each = data(rows, pool), data(rows, pool, held=5 * 3 * 8 * 6 - 1)
    for found in (once, each):
        found.batch(np.arange(5))
    Path(rows[1]["uri"]).unlink()
    assert once.batch(np.arange(5))["image"].shape == (5, 3, 8, 6)
    with pytest.raises(RowError, match="does not exist"):
        each.batch(np.arange(5))


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_taken(
    rows: list[dict[str, Any]], pool: ThreadPoolExecutor
) -> None:
    Path(rows[2]["uri"]).write_bytes(b"no image")
    good, bad = screen(data(rows, pool), batch=4)
    assert good.tolist() == [0, 1, 3, 4]
    assert list(bad) == ["2.png"]
    assert "not an image" in bad["2.png"]


class Frozen(Keys):
    digest = "0" * 64


def worker(rank: int, folder: Path, keys: list[dict[str, Any]], said: list[str]) -> Worker:
    checkpoints = CommittedCheckpoints(Folder(str(folder / "training" / "checkpoints")))
    return Worker(rank, 2, torch.device("cpu"), checkpoints, said.append, {"train": Frozen(keys)})  # type: ignore[dict-item]


def test_all_workers_and_later_starts_leave_out_what_the_first_one_could_not_read(
    rows: list[dict[str, Any]], pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    said: list[str] = []
    whole = Path(rows[2]["uri"]).read_bytes()
    with pytest.raises(RaylensError, match="the first worker did not say within 0 s"):
        unreadable(worker(1, tmp_path, rows, said), {"train": data(rows, pool)}, patience=0)
    Path(rows[2]["uri"]).write_bytes(b"no image")
    first = unreadable(worker(0, tmp_path, rows, said), {"train": data(rows, pool)})
    assert list(first["train"]) == ["2.png"]
    assert said == ["reading the 5 images of train once: those that cannot be read are left out"]
    Path(rows[2]["uri"]).write_bytes(whole)  # mended meanwhile
    for rank in (1, 0):
        assert unreadable(worker(rank, tmp_path, rows, said), {"train": data(rows, pool)}, patience=0) == first
    assert len(said) == 1, "nobody reads the images for it again"


def test_another_key_tables_images_are_read_anew(
    rows: list[dict[str, Any]], pool: ThreadPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unreadable(worker(0, tmp_path, rows, []), {"train": data(rows, pool)}) == {"train": {}}
    Path(rows[2]["uri"]).write_bytes(b"no image")
    assert unreadable(worker(0, tmp_path, rows, []), {"train": data(rows, pool)}) == {"train": {}}
    monkeypatch.setattr(Frozen, "digest", "1" * 64)
    assert list(unreadable(worker(0, tmp_path, rows, []), {"train": data(rows, pool)})["train"]) == ["2.png"]


def test_a_storage_that_is_away_ends_the_training_instead_of_shrinking_its_data(
    rows: list[dict[str, Any]], pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import images

    away = images.DecodeError("the storage did not answer", "unreachable")
    monkeypatch.setattr(images, "load", lambda uri, limits: away)
    with pytest.raises(UnreachableError, match="did not answer"):
        screen(data(rows, pool))


def test_shares_part_the_keys_and_do_not_depend_on_the_others(rows: list[dict[str, Any]]) -> None:
    many = [row | {"key": f"{n}/{row['key']}"} for n in range(40) for row in rows]
    table = pa.Table.from_pylist(many, SCHEMA)
    parts = [share(table, lo, hi, 7)["key"].to_pylist() for lo, hi in ((0.0, 0.25), (0.25, 1.0))]
    assert sorted(parts[0] + parts[1]) == sorted(table["key"].to_pylist())
    assert 0.1 < len(parts[0]) / len(table) < 0.4
    few = share(table.slice(0, 60), 0.0, 0.25, 7)["key"].to_pylist()
    assert few == [key for key in parts[0] if key in set(table.slice(0, 60)["key"].to_pylist())]


@pytest.mark.parametrize(
    ("change", "least", "words"),
    [
        ({}, 6, "6 are needed"),
        ({"coarse": None}, 1, "has a coarse class"),
        ({"coarse": 2}, 1, "coarse class 2, and the taxonomy has 2"),
    ],
)
def test_too_little_to_learn_from_is_refused(
    rows: list[dict[str, Any]], change: dict[str, Any], least: int, words: str
) -> None:
    table = pa.Table.from_pylist([row | change for row in rows], SCHEMA)
    with pytest.raises(UsageError, match=words):
        require_rows(table, least, "to train on", 2, "runs/coco")
