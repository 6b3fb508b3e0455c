"""The sheet of one image: a step for each answer, told in words too."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.asking.sheet import Conversation, film, where


def conversation(side: int = 8, **changes: object) -> Conversation:
    question = np.zeros((2, 6, 6))
    question[0, :2, 4:] = 1  # the upper right
    question[1] = 0.5
    given = {
        "key": "a.png",
        "seen": np.zeros((3, side, side), np.uint8),
        "pictures": np.full((3, 3, side, side), 7, np.uint8),
        "questions": question,
        "colours": np.array([[192, 48, 32], [0, 1, 255]], np.uint8),
        "truth": np.full((3, side, side), 9, np.uint8),
        "psnr": [20.04, 25.46, np.inf],
    }
    return Conversation(**(given | changes))  # type: ignore[arg-type]


def test_answers_stand_above_the_pictures_they_led_to_and_questions_below() -> None:
    found = film(conversation(own=[2]))
    assert [frame.heading for frame in found.frames] == ["It sees", "No answer", "Answer 1", "Answer 2", "The picture"]
    assert [frame.swatch for frame in found.frames] == ["", "", "#c03020", "#0001ff", ""]
    assert [frame.said for frame in found.frames] == ["", "", "#c03020", "#0001ff, yours", ""]
    assert [frame.picture.note for frame in found.frames] == ["", "20.0 dB", "25.5 dB", "no error", ""]
    asked = [frame.below for frame in found.frames]
    assert [below is not None for below in asked] == [False, True, True, False, False]
    assert asked[1] is not None
    assert asked[1].alt == "question 1 about a.png: asks about 11 % of the picture, on average at its upper right"
    assert found.frames[2].picture.alt == "a.png after 1 answer"


def test_where_is_said_in_words() -> None:
    question = np.zeros((9, 9))
    assert where(question) == "asks about nothing"
    question[8, 0] = 1
    assert where(question) == "asks about 1 % of the picture, on average at its lower left"
    assert where(np.full((3, 5), 0.25)) == "asks about 100 % of the picture, on average at its middle centre"


@pytest.mark.parametrize(("side", "media"), [(64, "png"), (200, "jpeg")])
def test_small_pictures_are_exact_and_large_ones_small_files(side: int, media: str) -> None:
    image = film(conversation(side)).frames[1].picture.image
    assert image is not None
    assert image.uri.startswith(f"data:image/{media}")
