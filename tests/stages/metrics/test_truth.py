"""Which boxes and masks of a row are of a class, and where they lie in the frame of comparison."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from stages.metrics.truth import Frame
from stages.preprocess import Preprocess

FRAME = Frame(Preprocess(size=(10, 10)), in_input=False)
LEFT, RIGHT = [0.0, 0.0, 3.0, 3.0], [10.0, 0.0, 13.0, 3.0]


def drawn(box: list[float]) -> str:
    x0, y0, x1, y1 = box
    return json.dumps([[x0, y0, x1 + 1, y0, x1 + 1, y1 + 1, x0, y1 + 1]])


def pixels(row: dict[str, Any], classes: set[int] | None) -> np.ndarray | None:
    """First and last column of the mask of these classes in a 20 x 6 image."""
    mask = FRAME.mask(row, FRAME.objects(row, classes), 20, 6)
    return None if mask is None else np.flatnonzero(mask.any(axis=0))[[0, -1]]


def test_a_mask_for_each_box_is_that_of_its_class() -> None:
    row = {"boxes": [LEFT, RIGHT], "box_labels": [1, 2], "masks": [drawn(LEFT), drawn(RIGHT)]}
    assert pixels(row, {1}).tolist() == [0, 3]
    assert pixels(row, {2}).tolist() == [10, 13]
    assert pixels(row, None).tolist() == [0, 13]
    assert pixels(row, {3}) is None


@pytest.mark.parametrize("boxes", [[LEFT, RIGHT], [LEFT, RIGHT, LEFT]])
def test_one_mask_beside_several_boxes_is_of_the_whole_image(boxes: list[list[float]]) -> None:
    row = {"boxes": boxes, "box_labels": [1, 2, 2][: len(boxes)], "masks": [drawn(RIGHT)]}
    for classes in ({1}, {2}, None):
        assert pixels(row, classes).tolist() == [10, 13]


def test_several_masks_beside_one_box_all_count() -> None:
    row = {"boxes": [LEFT], "box_labels": [1], "masks": [drawn(LEFT), drawn(RIGHT)]}
    assert pixels(row, None).tolist() == [0, 13]
    assert len(FRAME.boxes(row, FRAME.objects(row, None), 20, 6)) == 1


def test_masks_without_boxes_have_labels_of_their_own() -> None:
    row = {"boxes": None, "box_labels": [1, 2], "masks": [drawn(LEFT), drawn(RIGHT)]}
    assert pixels(row, {2}).tolist() == [10, 13]
    assert FRAME.boxes(row, [1], 20, 6) is None


def test_difficult_boxes_are_flagged_where_the_row_has_flags() -> None:
    assert FRAME.difficult({"difficult": [False, True, True]}, [0, 2]).tolist() == [False, True]
    assert FRAME.difficult({"difficult": None}, [0, 2]).tolist() == [False, False]
