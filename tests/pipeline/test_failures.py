"""What failures of a shard lead to: free retries, bisection, quarantine of the guilty alone."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.failures import DEATHS, FREE_RETRIES, UNREACHED, ShardFate
from pipeline.tasks import Task


def test_a_lost_worker_is_free_with_growing_delays_until_it_is_too_often():
    fate = ShardFate(Task("all", 0))
    verdicts = [fate.lost("its node is gone") for _ in range(FREE_RETRIES + 1)]
    assert [v.action for v in verdicts] == ["retry"] * FREE_RETRIES + ["give up"]
    delays = [v.delay_s for v in verdicts[:-1]]
    assert delays == sorted(delays)
    assert delays[-1] == 30.0
    assert fate.next_task({}).suspects == ()


def test_a_completed_run_acquits_a_slice():
    fate = ShardFate(Task("all", 0))
    for _ in range(DEATHS - 1):
        fate.died((0, 8))
    fate.acquit((0, 8))
    fate.died((0, 8))
    assert fate.next_task({}).suspects == ()


@settings(deadline=None)
@given(st.integers(1, 64), st.data())
def test_exactly_the_killers_are_quarantined_each_after_three_deaths_alone(rows, data):
    killers = data.draw(st.sets(st.integers(0, rows - 1), max_size=4))
    batch = data.draw(st.integers(1, 16))
    fate, task, alone, quarantined = ShardFate(Task("all", 0)), Task("all", 0), {}, set()
    for _ in range(2000):
        pieces = [(lo, min(lo + batch, rows)) for lo in range(0, rows, batch)]
        whole = [p for p in pieces if not any(s[0] < p[1] and p[0] < s[1] for s in task.suspects)]
        deadly = None
        for lo, hi in [*task.suspects, *whole]:
            if (killers - quarantined) & set(range(lo, hi)):
                deadly = (lo, hi)
                break
            fate.acquit((lo, hi))
        if deadly is None:
            break
        verdict = fate.died(deadly)
        if deadly[1] - deadly[0] == 1:
            alone[deadly[0]] = alone.get(deadly[0], 0) + 1
        if verdict.quarantined is not None:
            quarantined.add(verdict.quarantined)
        task = fate.next_task({})
    assert quarantined == killers
    assert alone == dict.fromkeys(killers, DEATHS)


def test_rows_that_cannot_be_reached_may_fail_after_ten_attempts():
    fate = ShardFate(Task("all", 0))
    for nth in range(1, UNREACHED + 1):
        assert fate.unreached("no route to host").action == "retry"
        assert fate.next_task({}).forgiving == (nth == UNREACHED)
    for _ in range(UNREACHED, FREE_RETRIES):
        assert fate.unreached("no route to host").action == "retry"
    assert fate.unreached("no route to host").action == "give up"
    lost = ShardFate(Task("all", 1))
    for _ in range(UNREACHED):
        lost.lost("its node is gone")
    assert not lost.next_task({}).forgiving
