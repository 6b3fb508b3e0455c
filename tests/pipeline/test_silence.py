"""Workers that do not answer: what became of them, and for how long one may be in a slice."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipeline import silence
from pipeline.estimate import Measured
from pipeline.ledger import Ledger
from pipeline.signals import Stop
from pipeline.silence import Silence, what_became
from pipeline.tasks import Mark, Task

UNAVAILABLE = ray.exceptions.ActorUnavailableError("connection reset", None)
DEAD = ray.exceptions.ActorDiedError()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray answers, one after the other; the last one for ever. Time passes with each question."""
    world: dict[str, Any] = {"now": 0.0, "answers": [UNAVAILABLE], "nodes": {"a": {}}, "questions": 0}

    def get(reference: Any, timeout: float) -> None:
        world["questions"] += 1
        world["now"] += timeout
        answer = world["answers"].pop(0) if len(world["answers"]) > 1 else world["answers"][0]
        if answer is not None:
            raise answer

    def sleep(seconds: float) -> None:
        world["now"] += seconds

    monkeypatch.setattr(silence, "ray", SimpleNamespace(get=get, exceptions=ray.exceptions))
    monkeypatch.setattr(silence, "time", SimpleNamespace(monotonic=lambda: world["now"], sleep=sleep))
    monkeypatch.setattr(silence.cluster, "alive_nodes", lambda: world["nodes"])
    return world


ACTOR = SimpleNamespace(placed=SimpleNamespace(remote=lambda: None))


def test_one_that_is_dead_is_taken_at_its_word(asked: dict[str, Any]) -> None:
    assert what_became(ACTOR, "a", DEAD, Stop()) is DEAD
    assert asked["questions"] == 0


def test_a_death_that_ray_hears_of_later_is_a_death(asked: dict[str, Any]) -> None:
    asked["answers"] = [UNAVAILABLE, ray.exceptions.GetTimeoutError(), DEAD]
    assert what_became(ACTOR, "a", UNAVAILABLE, Stop()) is DEAD


def test_one_that_answers_again_did_not_die(asked: dict[str, Any]) -> None:
    asked["answers"] = [UNAVAILABLE, None]
    assert isinstance(what_became(ACTOR, "a", UNAVAILABLE, Stop()), ray.exceptions.ActorUnavailableError)
    assert asked["questions"] == 2


def test_it_is_asked_no_longer_than_its_node_is_there_or_half_a_minute_or_until_a_stop(asked: dict[str, Any]) -> None:
    assert what_became(ACTOR, "a", UNAVAILABLE, Stop()) is UNAVAILABLE
    assert 30 <= asked["now"] < 35
    asked.update(nodes={}, questions=0)
    assert what_became(ACTOR, "a", UNAVAILABLE, Stop()) is UNAVAILABLE
    stop = Stop()
    stop.set()
    asked["nodes"] = {"a": {}}
    assert what_became(ACTOR, "a", UNAVAILABLE, stop) is UNAVAILABLE
    assert asked["questions"] == 0


def test_a_slice_may_take_half_an_hour_or_far_longer_than_in_the_micro_run(
    asked: dict[str, Any],
) -> None:
    def work(*rows_per_s: float) -> Any:
        plans = [SimpleNamespace(micro_batch=32, measured=Measured(r, 0, 0, 0, 0, "cpu", 1)) for r in rows_per_s]
        return SimpleNamespace(plans=dict(enumerate(plans)))

    assert Silence(work(), None).longest_s == 1800
    assert Silence(work(8.0, 16.0), None).longest_s == 1800
    assert Silence(work(8.0, 0.1), None).longest_s == (20 + 32) * 320


def test_the_ledger_knows_who_has_been_in_one_slice_for_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("pipeline.ledger.time", SimpleNamespace(monotonic=lambda: now))
    ledger = Ledger()
    slow, quick = Task("all", 1, work="w"), Task("all", 2, work="w")
    both = [(slow.track, 1), (quick.track, 1), ("w all/00003", 1)]
    for task in (slow, quick):
        ledger.mark(Mark(task.track, 1, (0, 8), begin=True))
    now = 50.0
    ledger.mark(Mark(quick.track, 1, (0, 8), begin=False))
    ledger.mark(Mark(quick.track, 1, (8, 16), begin=True))
    assert ledger.silent(both, 49.0) == [(slow.track, 1)]
    assert ledger.silent(both, 51.0) == []
    ledger.mark(Mark("w all/00003", 1, (0, 8), begin=True, decoding=True))
    now = 120.0
    ledger.mark(Mark(slow.track, 1, (0, 8), begin=False))
    assert ledger.silent(both, 60.0) == [(quick.track, 1)]


def test_the_ledger_forgets_a_shard_with_its_duplicate_and_a_step_with_all_its_shards() -> None:
    ledger = Ledger()
    tasks = [Task("all", 1, work="w"), Task("all", 1, work="w", duplicate=True), Task("all", 11, work="w")]
    other = Task("all", 1, work="v")
    for task in (*tasks, other):
        ledger.mark(Mark(task.track, 1, (0, 8), begin=False, rows={"ok": 8}))
    asked = [(task.track, 1) for task in (*tasks, other)]
    assert ledger.rows(asked) == {"ok": 32}
    ledger.forget(tasks[0].track)
    assert ledger.rows(asked) == {"ok": 16}
    ledger.forget("w")
    assert ledger.rows(asked) == {"ok": 8}
    assert ledger.history(other.track, 1) == (None, [(0, 8)]), "another step's shard of that name"
