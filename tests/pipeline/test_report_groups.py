"""Bars beside each other: panels, bars and whiskers are those of the numbers, and what is missing has none."""

from __future__ import annotations

import base64
import math
import re

import pytest
from matplotlib.axes import Axes

from pipeline.report.groups import Bars, beside, upright

NAMES = ["input", "conv1", "conv2", "head"]


def panels(uri: str) -> int:
    return len(re.findall(r'id="axes_\d+"', base64.b64decode(uri.split(",")[1]).decode()))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[float]]]:
    """What is handed to matplotlib, call by call."""
    calls: list[tuple[str, list[float]]] = []
    for name in ("bar", "errorbar"):
        whole = getattr(Axes, name)

        def spied(self: Axes, *args, name=name, whole=whole, **kwargs):
            sideways = name == "errorbar" and "xerr" in kwargs
            if len(args) == 2:
                calls.append((name, [float(v) for v in args[0 if sideways else 1]]))
            return whole(self, *args, **kwargs)

        monkeypatch.setattr(Axes, name, spied)
    return calls


def test_the_first_labels_can_stand_in_a_panel_of_their_own(drawn) -> None:
    groups = [Bars("clean", [90, 5, -3, 8], [1, 2, 3, math.nan]), Bars("FGSM", [80, 10, 0, 10])]
    image = upright(NAMES, groups, axis="%", apart=1)
    assert panels(image.uri) == 2
    bars = [values for name, values in drawn if name == "bar"]
    assert bars == [[90], [80], [5, -3, 8], [10, 0, 10]]
    whiskers = [values for name, values in drawn if name == "errorbar"]
    assert whiskers == [[90], [], [5, -3], []]
    assert panels(upright(NAMES, groups, axis="%").uri) == 1


def test_a_missing_value_has_no_number_and_no_whisker(drawn) -> None:
    image = beside(["a", "b"], [Bars("ours", [50, 60], [5, 6]), Bars("the paper's", [math.nan, 70])], axis="%")
    assert [values for name, values in drawn if name == "errorbar"] == [[50, 60], [70]]
    assert image.height > beside(["a"], [Bars("ours", [50])], axis="%").height


def test_nothing_to_show_is_a_picture_too() -> None:
    assert upright([], [], axis="%").width == 900
    assert beside(["a"], [Bars("ours", [math.nan])], axis="%").width == 760
