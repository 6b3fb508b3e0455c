"""The process of asking as one picture: answers above, colorings in the middle, questions below, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

_GAP, _PAPER = 4, 255
_STRIP = 5  # a colour swatch's height is a fifth of a picture's


def sheet(
    seen: Pixels, pictures: Pixels, questions: NDArray[np.floating], colours: Pixels, truth: Pixels | None = None
) -> Pixels:
    """One image's process, T answers: uint8 [rows, columns, 3].

    Columns are what the agent saw, then its picture after 0..T answers, then the truth. Above a picture is the answer
    it was made with, below it the question that was asked next: bright where it asks.

    Args:
        seen, truth: [3, h, w]. pictures: [T + 1, 3, h, w]. questions: [T, h', w'] in 0..1. colours: [T, 3].
    """
    _, height, width = seen.shape
    blank, strip = _paper(height, width), _paper(max(1, height // _STRIP), width)
    columns = [[strip, _tile(seen), blank]]
    for step, picture in enumerate(pictures):
        swatch = strip if step == 0 else np.broadcast_to(colours[step - 1], strip.shape)
        asked = _question(questions[step], height, width) if step < len(questions) else blank
        columns.append([swatch, _tile(picture), asked])
    if truth is not None:
        columns.append([strip, _tile(truth), blank])
    return _joined([_joined(column, 0) for column in columns], 1)


def stacked(sheets: Sequence[Pixels]) -> Pixels:
    """Sheets of one width below each other."""
    return _joined(sheets, 0)


def _question(question: NDArray[np.floating], height: int, width: int) -> Pixels:
    """Nearest pixels, if the question is kept smaller than the pictures."""
    rows = np.arange(height) * question.shape[0] // height
    columns = np.arange(width) * question.shape[1] // width
    grey = np.rint(np.clip(question[np.ix_(rows, columns)], 0, 1) * 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _tile(image: Pixels) -> Pixels:
    return image.transpose(1, 2, 0)


def _paper(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), _PAPER, np.uint8)


def _joined(parts: Sequence[Pixels], axis: int) -> Pixels:
    """With gaps between and around them."""
    shape = list(parts[0].shape)
    shape[axis] = _GAP
    gap = np.full(shape, _PAPER, np.uint8)
    between = [piece for part in parts for piece in (part, gap)][:-1]
    return np.concatenate(between, axis=axis)
