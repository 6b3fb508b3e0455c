"""Batches made ahead: what a plain loop would compute, errors where they belong, and no thread left behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from stages.training import RowError, Subset, TensorData, TrainingConfig, fit, screen
from stages.training_ahead import AHEAD, ahead
from stages.training_data import readable


def producers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ahead"]


def test_items_come_in_order_from_another_thread() -> None:
    made_in: set[int] = set()

    def square(n: int) -> int:
        made_in.add(threading.get_ident())
        return n * n

    with ahead(square, range(50)) as items:
        assert list(items) == [n * n for n in range(50)]
    assert threading.get_ident() not in made_in
    assert len(made_in) == 1
    assert not producers()


def test_the_next_items_are_made_while_one_is_in_hand_and_no_more_than_that() -> None:
    made = threading.Semaphore(0)
    count = 0

    def make(n: int) -> int:
        nonlocal count
        count += 1
        made.release()
        return n

    with ahead(make, range(100)) as items:
        assert next(items) == 0
        for _ in range(1 + AHEAD + 1):  # the one in hand, those waiting, and one more that finds no room
            assert made.acquire(timeout=30)
        assert not made.acquire(blocking=False)
        assert count == 2 + AHEAD


def test_an_error_surfaces_where_its_item_would_have_come() -> None:
    def make(n: int) -> int:
        if n == 3:
            raise KeyError("three")
        return n

    seen: list[int] = []

    def read() -> None:
        with ahead(make, range(10)) as items:
            for item in items:
                seen.append(item)

    with pytest.raises(KeyError, match="three"):
        read()
    assert seen == [0, 1, 2]
    assert not producers()


def test_leaving_early_stops_the_thread_even_while_it_waits_for_room() -> None:
    made: list[int] = []
    with ahead(lambda n: made.append(n) or n, range(10_000)) as items:
        assert next(items) == 0
    assert not producers()
    assert len(made) <= 2 + 2 * AHEAD + 2


class Album(TensorData):
    """Rows of which some cannot be read; remembers what was asked for."""

    in_memory = False  # as if they were decoded on the way

    def __init__(self, bad: dict[str, str], rows: int = 12) -> None:
        x = torch.arange(float(rows))[:, None]
        super().__init__([f"image-{n}" for n in range(rows)], x=x, y=2 * x)
        self.bad, self.asked = bad, 0

    def batch(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        self.asked += 1
        for key in self.keys(rows):
            if key in self.bad:
                raise RowError(key, self.bad[key])
        return super().batch(rows)


def squares(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return ((model(batch["x"]) - batch["y"]) ** 2).mean()


PLAIN = TrainingConfig(epochs=2, batch=4, lr=1e-4, schedule="constant")


def test_a_row_that_cannot_be_read_ends_the_training_by_name() -> None:
    with pytest.raises(ValueError, match=r"row 'image-7' cannot be read: truncated; mend it, or leave it out"):
        fit(nn.Linear(1, 1), Album({"image-7": "truncated"}), PLAIN, loss=squares)
    assert not producers()


def test_screening_finds_every_unreadable_row_and_the_rest_trains() -> None:
    album = Album({"image-7": "truncated", "image-2": "no such file"})
    rows, bad = screen(album, batch=5)
    assert bad == {"image-7": "truncated", "image-2": "no such file"}
    assert rows.tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]
    subset = Subset(album, rows)
    assert len(subset) == 10
    assert subset.keys(np.array([2, 6])) == ["image-3", "image-8"]
    assert subset.batch(np.array([6]))["x"].item() == 8.0
    assert len(fit(nn.Linear(1, 1), subset, PLAIN, loss=squares)) == 2


def test_splits_lose_what_cannot_be_read_and_none_may_lose_everything() -> None:
    said: list[str] = []
    data = {"train": Album({"image-7": "truncated"}), "tune": Album({}, rows=3)}
    found, left_out = readable(data, None, skip=True, world=1, say=said.append)
    assert left_out == {"train": {"image-7": "truncated"}, "tune": {}}
    assert {split: len(rows) for split, rows in found.items()} == {"train": 11, "tune": 3}
    assert said == ["1 of 12 images of train cannot be read: left out, first image-7"]
    data["train"].asked = 0
    known = {"tune": {"image-1": "gone"}}
    found, left_out = readable(data, known, skip=True, world=2, say=said.append)
    assert left_out == {"train": {}, "tune": {"image-1": "gone"}}
    assert data["train"].asked == 0, "what is known is not read again"
    assert readable(data, None, skip=False, world=2, say=said.append)[1] == {"train": {}, "tune": {}}
    with pytest.raises(ValueError, match="give unreadable"):
        readable(data, None, skip=True, world=2, say=said.append)
    gone = {"tune": {f"image-{n}": "gone" for n in range(3)}}
    with pytest.raises(ValueError, match="tune has no image that can be read: all 3 are left out, first image-0: gone"):
        readable(data, gone, skip=False, world=1, say=said.append)
    with pytest.raises(ValueError, match="train has no image that can be read: it is empty"):
        readable({"train": Album({}, rows=0)}, {}, skip=False, world=1, say=said.append)


def test_what_is_learnt_is_the_same_with_and_without_the_thread() -> None:
    class InMemory(Album):
        in_memory = True

    config = TrainingConfig(epochs=3, batch=4, lr=1e-3)
    weights = []
    for album in (Album({}), InMemory({})):
        model = nn.Linear(1, 1)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        weights.append((fit(model, album, config, loss=squares), model.weight.item(), model.bias.item()))
    assert weights[0] == weights[1]


def test_a_row_error_survives_pickling() -> None:
    import pickle

    again = pickle.loads(pickle.dumps(RowError("a", "b")))
    assert (again.key, again.reason, str(again)) == ("a", "b", str(RowError("a", "b")))


def test_an_error_in_the_loop_leaves_no_thread() -> None:
    album = Album({}, rows=400)

    def fails(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(nn.Linear(1, 1), album, PLAIN, loss=fails)
    assert not producers()
    assert album.asked <= 2 + 2 * AHEAD + 2
