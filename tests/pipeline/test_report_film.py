"""A film on a page: its steps in order, each with what it shows for those who cannot see it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pipeline.report.blocks import Picture, Section
from pipeline.report.film import Film, Frame
from pipeline.report.images import png
from pipeline.report.page import Page


def test_a_film_is_a_list_of_steps_with_swatches_and_alternative_texts() -> None:
    image = png(np.zeros((2, 2), np.uint8))
    frames = [
        Frame("Start", Picture(image, "the start", note="21.5 dB")),
        Frame("<b>Next", Picture(image, "what came"), swatch="#c03020", said="told red", below=Picture(image, "asked")),
    ]
    html = Page("Film", [Section("Process", [Film(frames, "How it went.", title="One <image>")])]).html()
    (film,) = re.findall(r'<figure class="film">.*?</figure>', html, re.S)
    steps = re.findall(r"<li>(.*?)</li>", film, re.S)
    assert len(steps) == 2
    assert "How it went." in film
    assert "One &lt;image&gt;" in film
    assert re.findall(r"<h4>(.*?)</h4>", film) == ["Start", "&lt;b&gt;Next"]
    assert re.findall(r'alt="(.*?)"', film) == ["the start", "what came", "asked"]
    assert "21.5 dB" in steps[0]
    assert "swatch" not in steps[0]
    assert 'style="background:#c03020"' in steps[1]
    assert "told red" in steps[1]


@pytest.mark.parametrize("colour", ["red", "#C03020", "#c03020;x:y", "#c0302"])
def test_a_swatch_is_a_colour_and_nothing_else(colour: str) -> None:
    with pytest.raises(ValueError, match="#rrggbb"):
        Frame("a", Picture(png(np.zeros((1, 1), np.uint8)), "a"), swatch=colour)
