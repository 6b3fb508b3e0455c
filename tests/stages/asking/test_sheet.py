"""The sheet: answers above, pictures in the middle, questions below, in the order they came."""

from __future__ import annotations

import numpy as np

from stages.asking.sheet import sheet, stacked


def flat(*levels: int) -> np.ndarray:
    """One picture of 10 x 6 for each level: uint8 [n, 3, 10, 6]."""
    return np.stack([np.full((3, 10, 6), level, np.uint8) for level in levels])


def test_every_part_lies_in_its_place() -> None:
    seen, truth = flat(10, 250)
    questions = np.zeros((2, 5, 3), np.float16)
    questions[1, :, 2] = 1.0
    colours = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
    found = sheet(seen, flat(50, 60, 70), questions, colours, truth)
    # Two rows of swatches, ten of pictures, ten of questions; five columns of six; gaps of four between.
    assert found.shape == (2 + 4 + 10 + 4 + 10, 5 * 6 + 4 * 4, 3)
    middle = found[11]
    assert [middle[x, 0] for x in (3, 13, 23, 33, 43)] == [10, 50, 60, 70, 250]
    top = found[1]
    assert [tuple(map(int, top[x])) for x in (3, 13, 23, 33, 43)] == [
        (255, 255, 255), (255, 255, 255), (200, 0, 0), (0, 200, 0), (255, 255, 255),
    ]  # fmt: skip
    below = found[20:]
    assert (below[:, 10:16] == 0).all(), "the first question, below the picture without answers"
    assert (below[:, 20:24] == 0).all()
    assert (below[:, 24:26] == 255).all(), "the second one, enlarged from 5 x 3"
    assert (below[:, 30:36] == 255).all(), "after the last picture nothing is asked"
    assert (found[:, 6:10] == 255).all()


def test_without_answers_and_without_truth_there_are_two_columns() -> None:
    found = sheet(flat(9)[0], flat(8), np.zeros((0, 5, 3)), np.zeros((0, 3), np.uint8))
    assert found.shape[1] == 2 * 6 + 4
    assert stacked([found, found]).shape == (2 * found.shape[0] + 4, found.shape[1], 3)
