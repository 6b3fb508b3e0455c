"""Rate, time left and the line a user reads, on a clock that the test turns."""

from __future__ import annotations

import io

import pytest

from pipeline.progress import Progress, duration


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_line_as_documented(clock: Clock) -> None:
    out = io.StringIO()
    bar = Progress("sweep", 10_000, shards=24, stream=out, clock=clock)
    clock.now += 10
    bar.shard_done({"ok": 839, "failed": 2})
    assert bar.line() == "sweep  841/10,000 rows  8.4 %  84.1 rows/s  ETA 1 min 49 s  shards 1/24  failed 2"
    bar.update({"ok": 10}, workers=2)
    assert bar.line().startswith("sweep  851/10,000 rows  8.5 %")
    assert bar.line().endswith("failed 2  workers 2")
    bar.close()


def test_an_epoch_in_hand_counts_in_part(clock: Clock) -> None:
    bar = Progress("train", 8, unit="epochs", stream=io.StringIO(), clock=clock)
    clock.now += 10
    bar.update({"ok": 0.5})
    assert bar.line() == "train  0.5/8 epochs  6.2 %  0.05 epochs/s  ETA 2 min 30 s"
    clock.now += 10
    bar.shard_done({"ok": 1})
    assert bar.line() == "train  1/8 epochs  12.5 %  0.05 epochs/s  ETA 2 min 20 s"
    bar.close()


def test_what_stands_between_epochs_is_in_the_time_left_if_it_forgets_slowly(clock: Clock) -> None:
    bar = Progress("train", 10, unit="epochs", stream=io.StringIO(), forgets_s=3600.0, clock=clock)
    for _ in range(4):  # ten minutes of steps, then five without a word
        for tick in range(1, 301):
            clock.now += 2
            bar.update({"ok": tick / 300})
        clock.now += 300
        bar.shard_done({"ok": 1})
    clock.now += 2
    bar.update({"ok": 1 / 300})
    assert bar.eta_s == pytest.approx(6 * 900, rel=0.35)
    bar.close()


def test_constant_work_gives_its_rate_whatever_the_size_of_the_bursts(clock: Clock) -> None:
    for burst, every in ((1, 0.1), (10, 1.0), (600, 60.0)):
        bar = Progress("sweep", 10**6, stream=io.StringIO(), clock=clock)
        for _ in range(20):
            clock.now += every
            bar.shard_done({"ok": burst})
        assert bar.rate == pytest.approx(10.0)
        assert bar.eta_s == pytest.approx((10**6 - 20 * burst) / 10)
        bar.close()


def test_rate_follows_a_change_within_minutes(clock: Clock) -> None:
    bar = Progress("sweep", 10**6, stream=io.StringIO(), clock=clock)
    for rows in (100, 10):
        for _ in range(300):
            clock.now += 1
            bar.shard_done({"ok": rows})
    assert bar.rate == pytest.approx(10, rel=0.1)
    bar.close()


def test_rows_of_earlier_drivers_are_progress_but_not_speed(clock: Clock) -> None:
    out = io.StringIO()
    bar = Progress("sweep", 1000, shards=10, done=500, shards_done=5, stream=out, clock=clock)
    clock.now += 10
    bar.shard_done({"ok": 100})
    assert bar.rows == 600
    assert bar.rate == pytest.approx(10)
    bar.close()
    assert "600/1,000 rows" in out.getvalue()
    assert "10.0 rows/s" in out.getvalue()
    assert "500 were there already" in out.getvalue()


def test_rows_in_hand_are_not_counted_twice_when_their_shard_is_committed(clock: Clock) -> None:
    bar = Progress("sweep", 1000, stream=io.StringIO(), clock=clock)
    clock.now += 1
    bar.update({"ok": 90, "failed": 10})
    assert (bar.rows, bar.failed) == (100, 10)
    clock.now += 1
    bar.shard_done({"ok": 90, "failed": 10})
    assert (bar.rows, bar.failed) == (100, 10)
    bar.close()


def test_rows_of_a_lost_worker_are_made_again_without_a_jump_in_the_rate(clock: Clock) -> None:
    bar = Progress("sweep", 1000, stream=io.StringIO(), clock=clock)
    clock.now += 10
    bar.update({"ok": 100})
    bar.update({})  # lost
    clock.now += 10
    bar.update({"ok": 100})  # made again: nothing gained
    assert bar.rate == pytest.approx(10)
    clock.now += 10
    bar.update({"ok": 200})
    assert bar.rate < 10
    bar.close()


def test_lines_off_a_terminal_come_after_two_seconds_then_every_ten(clock: Clock) -> None:
    out = io.StringIO()
    bar = Progress("sweep", 1000, stream=out, clock=clock)
    for _ in range(250):  # 25 s
        clock.now += 0.1
        bar.update({"ok": 1})
    assert out.getvalue().count("\n") == 3  # at 2, 12 and 22 s
    bar.close()
    bar.close()
    assert out.getvalue().count("\n") == 4
    assert "\x1b" not in out.getvalue()


def test_short_run_says_one_line(clock: Clock) -> None:
    out = io.StringIO()
    with Progress("solve", 4, unit="blocks", stream=out, clock=clock) as bar:
        clock.now += 1
        for _ in range(4):
            bar.shard_done({"ok": 1})
    assert out.getvalue() == "solve  4/4 blocks  in 1.0 s  4.0 blocks/s\n"


def test_long_silence_is_said(clock: Clock) -> None:
    bar = Progress("sweep", 1000, stream=io.StringIO(), clock=clock)
    clock.now += 300
    assert bar.line().endswith("nothing new for 5 min 00 s")
    bar.close()


def test_asking_workers_is_due_only_when_it_would_be_seen(clock: Clock) -> None:
    bar = Progress("sweep", 1000, stream=io.StringIO(), clock=clock)
    assert not bar.due()
    clock.now += 2.5
    assert bar.due()
    bar.update({})
    assert not bar.due()
    bar.close()


def test_terminal_gets_a_live_line_and_messages_stay_above_it() -> None:
    out = Terminal()
    with Progress("sweep", 100, stream=out) as bar:
        bar.update({"ok": 50})
        bar.say("a worker was lost")
        bar.shard_done({"ok": 100})
    text = out.getvalue()
    assert "a worker was lost" in text
    assert "100/100 rows" in text.splitlines()[-1]
    assert "\x1b[" in text  # the line is redrawn


def test_empty_step_and_closed_stream_do_no_harm(clock: Clock) -> None:
    out = io.StringIO()
    bar = Progress("sweep", 0, stream=out, clock=clock)
    assert bar.line() == "sweep  0/0 rows  100.0 %"
    out.close()
    bar.say("nobody reads this")
    bar.close()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (104, "1 min 44 s"),
        (3599.6, "1 h 00 min"), (7500, "2 h 05 min"),
        (86399, "1 d 00 h"), (3 * 86400 + 4 * 3600, "3 d 04 h"), (float("inf"), "unknown"),
    ],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
