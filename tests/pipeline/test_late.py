"""When a shard is late, by hand."""

from __future__ import annotations

from pipeline.late import Late


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def made(clock: Clock, took: list[float]) -> Late:
    late = Late(factor=2.0, least_s=5.0, clock=clock)
    for i, seconds in enumerate(took):
        late.begun(i)
        clock.now += seconds
        late.done(i)
    return late


def test_late_is_twice_the_median_of_what_others_took() -> None:
    clock = Clock()
    late = made(clock, [10, 12, 100])
    late.begun("x")
    clock.now += 24
    assert not late.is_late("x")
    clock.now += 0.1
    assert late.is_late("x")


def test_nothing_is_late_before_three_are_done_nor_within_five_seconds() -> None:
    clock = Clock()
    few = made(clock, [1, 1])
    few.begun("x")
    clock.now += 1000
    assert not few.is_late("x")
    short = made(clock, [0.1] * 9)
    short.begun("x")
    clock.now += 5
    assert not short.is_late("x")
    clock.now += 0.1
    assert short.is_late("x")


def test_an_attempt_that_waited_behind_another_counts_from_when_it_has_the_worker() -> None:
    clock = Clock()
    late = made(clock, [10, 10, 10])
    late.begun("behind")
    clock.now += 15
    late.begun("behind")
    clock.now += 15
    assert not late.is_late("behind")
    late.gone("behind")
    clock.now += 99
    assert not late.is_late("behind")
