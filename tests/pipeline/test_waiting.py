"""Waiting is told after ten seconds and then every minute, and only while it lasts."""

from __future__ import annotations

import pytest

from pipeline.waiting import Patience


class Watch:
    def __init__(self) -> None:
        self.now, self.said, self.text = 0.0, [], "waiting for a GPU"

    def run(self, patience: Patience, until: float) -> None:
        while self.now < until:
            self.now += 0.5
            patience.tick()

    def say(self, text: str) -> None:
        self.said.append((self.now, text))


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def patience(watch: Watch) -> Patience:
    return Patience(watch.say, lambda: watch.text, lambda: watch.now)


def test_the_first_word_comes_after_ten_seconds_and_then_one_a_minute(watch: Watch, patience: Patience) -> None:
    watch.run(patience, 9.5)
    assert watch.said == []
    watch.run(patience, 140)
    assert watch.said == [(at, "waiting for a GPU") for at in (10.0, 70.0, 130.0)]


def test_what_has_come_is_waited_for_anew_next_time(watch: Watch, patience: Patience) -> None:
    watch.run(patience, 9)
    patience.reset()
    watch.run(patience, 18)
    assert watch.said == []
    watch.run(patience, 19)
    assert [at for at, _ in watch.said] == [19.0]


def test_nothing_to_tell_is_asked_again_in_ten_seconds(watch: Watch, patience: Patience) -> None:
    watch.text = ""
    watch.run(patience, 25)
    assert watch.said == []
    watch.text = "waiting for a CPU"
    watch.run(patience, 40)
    assert watch.said == [(30.0, "waiting for a CPU")]
