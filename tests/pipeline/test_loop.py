"""What becomes of a shard that two workers make: every order of ends, on workers and a clock that only pretend."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipeline import loop as loops
from pipeline import retries, silence
from pipeline.errors import RaylensError
from pipeline.late import Late
from pipeline.loop import ShardLoop
from pipeline.progress import Progress
from pipeline.shards import Receipt
from pipeline.signals import Stop
from pipeline.spent import Spent
from pipeline.storage import UnreachableError
from pipeline.tasks import Done, Task

NEVER = float("inf")
DIES = ray.exceptions.ActorDiedError()
Script = Callable[
    [Task, int], tuple[float, Any]
]  # (task, which try at its shard) -> after so long, what; None: its rows


class World:
    """Time, workers and what Ray would say. Time passes while the loop waits."""

    exceptions = ray.exceptions

    def __init__(self, script: Script) -> None:
        self.now, self.script = 0.0, script
        self.ends: dict[int, tuple[float, Any]] = {}
        self.owner: dict[int, Any] = {}
        self.tries: dict[int, int] = {}
        self.numbers = itertools.count(1)
        self.dropped: list[Any] = []
        self.given: dict[tuple[str, int], float] = {}

    def pass_by(self, seconds: float) -> None:
        self.now += max(seconds, 0.01)

    def wait(self, references: list[int], num_returns: int = 1, timeout: float | None = None) -> tuple[list, list]:
        done = [r for r in references if self.ends[r][0] <= self.now]
        if not done and timeout:
            self.pass_by(timeout)
        return done, [r for r in references if r not in done]

    def get(self, reference: Any, timeout: float | None = None) -> Any:
        if not isinstance(reference, int):
            return reference
        outcome = self.ends[reference][1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def give(self, task: Task, member: Any) -> int:
        reference = next(self.numbers)
        self.given[(task.track, task.attempt)] = self.now
        self.tries[task.shard] = self.tries.get(task.shard, 0) + 1
        after, outcome = self.script(task, self.tries[task.shard])
        done = Done(Receipt(task.shard, (), {"ok": 10, "filtered": 0, "failed": 0}), True, 0, after, 0)
        self.ends[reference] = (self.now + after, outcome or done)
        self.owner[reference] = member
        return reference


class Workers:
    """A pool of three; a dropped worker is replaced."""

    mode, pending, wanted = "inline", (), "a worker"

    def __init__(self, world: World) -> None:
        self.world = world
        self.members: list[Any] = []
        self.refresh(3)

    def begin(self, work: Any, wanted: int) -> None: ...

    def refresh(self, wanted: int) -> None:
        while len(self.members) < 3:
            member = SimpleNamespace(slot=SimpleNamespace(node="n", gpus=0.0), ready=True, tasks=0)
            member.actor = SimpleNamespace(
                run=SimpleNamespace(remote=lambda task, member=member: self.world.give(task, member)),
                prefetch=SimpleNamespace(remote=lambda *_: None),
                stop=SimpleNamespace(remote=lambda: None),
            )
            self.members.append(member)

    def settle(self, reference: Any) -> bool:
        return False

    def drop(self, member: Any) -> None:
        self.world.dropped.append(member)
        for reference, owner in self.world.owner.items():
            if owner is member and self.world.ends[reference][0] > self.world.now:
                self.world.ends[reference] = (self.world.now, DIES)
        self.members = [m for m in self.members if m is not member]


class Ledger:
    """Forgets all it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, int]]] = []
        self.forget = SimpleNamespace(remote=lambda track: None)
        self.history = SimpleNamespace(remote=lambda track, attempt: (None, []))
        self.begun = SimpleNamespace(remote=lambda attempts: True)
        self.rows = SimpleNamespace(remote=self._rows)
        self.silent = SimpleNamespace(remote=lambda attempts, seconds: [])

    def _rows(self, attempts: list[tuple[str, int]]) -> dict[str, int]:
        self.asked.append(attempts)
        return {"ok": len(attempts)}


@pytest.fixture
def made(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], tuple[World, ShardLoop, list[dict], Ledger]]:
    """Runs six shards, of which the last is the one that matters, through the loop."""

    def go(script: Script, inside: Any = None) -> tuple[World, ShardLoop, list[dict], Ledger]:
        world, ledger, said = World(script), Ledger(), []
        monkeypatch.setattr(ledger.history, "remote", lambda track, attempt: (inside, []))
        monkeypatch.setattr(ledger.silent, "remote", lambda attempts, seconds: hung(world, attempts, seconds))
        for module in (loops, silence):
            monkeypatch.setattr(module, "ray", world)
        monkeypatch.setattr(
            loops,
            "Meters",
            lambda step: SimpleNamespace(
                committed=lambda done: None,
                held=lambda seconds: None,
                waiting=lambda *_: None,
                **{name: SimpleNamespace(add=lambda n: None) for name in ("retries", "deaths", "duplicates")},
            ),
        )
        monkeypatch.setattr(loops.cluster, "alive_nodes", lambda: {"n": {}})
        for module in (loops, retries, silence):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: world.now, sleep=world.pass_by))
        events = SimpleNamespace(say=lambda kind, **fields: said.append({"kind": kind, **fields}))
        progress = Progress("step", 60, shards=6, stream=io.StringIO())
        monkeypatch.setattr(progress, "due", lambda: True)
        work = SimpleNamespace(
            id="w", step=SimpleNamespace(name="step"), folders={"all": str(tmp_path)}, keys_url="", plans={}
        )
        found = ShardLoop(Workers(world), ledger, events, Stop(), work, [("all", i) for i in range(6)], progress)
        found._late = Late(factor=2.0, least_s=5.0, clock=lambda: world.now)
        receipts = found.go()
        progress.close()
        assert sorted(receipts) == [("all", i) for i in range(6)]
        commits = [event["shard"] for event in said if event["kind"] == "commit"]
        assert sorted(commits) == [f"all/{i:05d}" for i in range(6)], "each shard once"
        assert all(len({track.removesuffix(" again") for track, _ in asked}) == len(asked) for asked in ledger.asked)
        return world, found, said, ledger

    return go


def hung(world: World, attempts: list[tuple[str, int]], seconds: float) -> list[tuple[str, int]]:
    """What the ledger would say if each worker had been in one slice since it was given its shard."""
    found = [world.given.get(attempt, world.now) for attempt in attempts]
    return [attempt for attempt, since in zip(attempts, found, strict=True) if world.now - since > seconds]


def last(*ends: tuple[float, Any]) -> Script:
    """Shards take ten seconds; the tries at the last one end like this."""
    return lambda task, number: (10.0, None) if task.shard < 5 else ends[number - 1]


def starts(said: list[dict]) -> list[tuple[int, bool]]:
    return [
        (e["attempt"], e.get("duplicate", False)) for e in said if e["kind"] == "start" and e["shard"] == "all/00005"
    ]


def test_the_first_hangs_and_its_worker_is_let_go_at_the_end(made) -> None:
    world, found, said, _ = made(last((NEVER, None), (10.0, None)))
    assert starts(said) == [(1, False), (1, True)]
    assert len(world.dropped) == 1
    assert not [e for e in said if e["kind"] == "death"]
    assert (found.spent.duplicates, found.spent.retries) == (1, 0)


def test_the_first_is_only_slow_and_wins_after_all(made) -> None:
    world, _, said, _ = made(last((45.0, None), (60.0, None)))
    assert starts(said) == [(1, False), (1, True)]
    assert len(world.dropped) == 1, "the second, which would have gone on for half a minute"


def test_the_first_dies_while_the_second_makes_it(made) -> None:
    _, found, said, _ = made(last((35.0, DIES), (20.0, None)))
    (death,) = [e for e in said if e["kind"] == "death"]
    assert death["verdict"] == "another worker makes it, or has made it"
    assert starts(said) == [(1, False), (1, True)]
    assert found.spent.retries == 0


def test_the_second_dies_while_the_first_goes_on(made) -> None:
    _, found, said, _ = made(last((60.0, None), (3.0, DIES), (500.0, None)))
    assert found.spent.retries == 0
    assert starts(said)[:2] == [(1, False), (1, True)]
    assert [e["verdict"] for e in said if e["kind"] == "death"] == ["another worker makes it, or has made it"]


def test_both_die_and_the_shard_is_tried_again(made) -> None:
    _, found, said, _ = made(last((35.0, DIES), (20.0, DIES), (10.0, None)))
    assert found.spent.retries == 1
    assert starts(said) == [(1, False), (1, True), (2, False)]
    assert [e["verdict"] for e in said if e["kind"] == "death"][1] == "ActorDiedError (between slices)"


def test_a_second_that_is_left_alone_and_hangs_is_doubled_again(made) -> None:
    _, found, said, _ = made(last((35.0, DIES), (NEVER, None), (10.0, None)))
    assert starts(said) == [(1, False), (1, True), (1, False)]
    assert found.spent.duplicates == 2


def test_a_worker_that_never_comes_out_of_its_slice_is_ended(made) -> None:
    """Its shard has a second worker, which hangs too: no third is put beside it, for that would hide what it is."""
    world, found, said, _ = made(last((NEVER, None), (NEVER, None), (10.0, None)), inside=(50, 60))
    assert starts(said) == [(1, False), (1, True), (2, False)]
    assert [(e["shard"], e["attempt"]) for e in said if e["kind"] == "hung"] == [("all/00005", 1)] * 2
    assert silence._LEAST_S < world.now < silence._LEAST_S + 120
    verdicts = [e["verdict"] for e in said if e["kind"] == "death"]
    assert verdicts == ["another worker makes it, or has made it", "death 1 inside rows 50 to 59"]
    assert (found.spent.duplicates, found.spent.retries) == (1, 1)


def test_the_end_of_a_hung_worker_is_a_death_inside_its_slice(made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Late, "is_late", lambda *_: False)  # nobody else makes it
    _, found, said, _ = made(last((NEVER, None), (10.0, None)), inside=(50, 60))
    assert starts(said) == [(1, False), (2, False)]
    (death,) = [e for e in said if e["kind"] == "death"]
    assert (death["inside"], death["verdict"]) == ((50, 60), "death 1 inside rows 50 to 59")
    assert found.spent.retries == 1


def test_workers_that_wait_for_a_gpu_are_not_paid_for(made, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is ready, one is set up, the others wait at GPUs that somebody else holds."""

    def members(*states: tuple[bool, bool]) -> list[Any]:
        slot = SimpleNamespace(gpus=0.5)
        return [SimpleNamespace(slot=slot, ready=ready, waits=lambda waits=waits: waits) for ready, waits in states]

    world, found, _, _ = made(last((10.0, None)))
    monkeypatch.setattr(found, "spent", Spent("step"))
    monkeypatch.setattr(found._pool, "members", members((True, False), (False, False), *[(False, True)] * 6))
    assert found._hold(world.now - 10.0) == world.now
    assert (found.spent.held_s, found.spent.gpu_s) == (20.0, 10.0)


def retries_of(
    todo: list[tuple[str, int]], said: list[dict[str, Any]], told: io.StringIO | None = None
) -> retries.Retries:
    work: Any = SimpleNamespace(
        id="w", keys_url="memory://keys", step=SimpleNamespace(name="sweep"), folders={"all": "memory://retried"}
    )
    events: Any = SimpleNamespace(say=lambda kind, **fields: said.append(fields))
    meters: Any = SimpleNamespace(**{name: SimpleNamespace(add=lambda n: None) for name in ("deaths", "retries")})
    return retries.Retries(
        work, todo, events, Progress("sweep", 0, stream=told or io.StringIO()), Spent("sweep"), meters
    )


@pytest.mark.parametrize(
    ("node_alive", "taken", "ends"), [(False, False, False), (True, True, False), (True, False, True)]
)
def test_nodes_may_go_by_the_hundred_but_deaths_on_living_ones_end_a_step(
    node_alive: bool, taken: bool, ends: bool
) -> None:
    todo = [("all", shard) for shard in range(40)]
    retried = retries_of(todo, [])

    def deaths() -> None:
        for nth in range(120):
            retried.died(retried.first[nth % 40], "ActorDiedError", None, [], node_alive=node_alive, taken=taken)

    if ends:
        with pytest.raises(RaylensError, match="101 workers of step 'sweep' died and no shard was finished"):
            deaths()
    else:
        deaths()
        assert len(retried) == 120


def test_what_cannot_be_reached_is_told_of_and_after_ten_attempts_forgiven(capfd: pytest.CaptureFixture[str]) -> None:
    told = io.StringIO()
    retried = retries_of([("all", 0)], [], told)
    for _ in range(12):
        retried.failed(retried.first[0], UnreachableError("no route to host", where="http://there/x.jpg"))
    made = [entry[2].forgiving for entry in sorted(retried._delayed, key=lambda entry: entry[1])]
    assert made == [False] * 9 + [True] * 3
    line = "sweep  shard all/00000 is tried again for minutes: http://there/x.jpg: no route to host"
    assert told.getvalue().splitlines() == [line, line], "at first, and when such rows may fail"


@pytest.mark.parametrize(("inside", "named"), [((3, 4), "k3"), ((0, 8), None), (None, None)])
def test_a_death_is_told_with_a_key_only_where_one_row_was_in_hand(
    monkeypatch: pytest.MonkeyPatch, inside: tuple[int, int] | None, named: str | None
) -> None:
    """Of several the first is not the one; and no key table is read for them."""
    reads: list[tuple[int, int]] = []

    def names(lo: int, hi: int) -> list[str]:
        reads.append((lo, hi))
        return [f"k{i}" for i in range(lo, hi)]

    said: list[dict[str, Any]] = []
    monkeypatch.setattr(retries, "KeyTable", lambda folder, split: SimpleNamespace(names=names))
    retried = retries_of([], said)
    retried.tell_death(Task("all", 1), "ActorDiedError", inside, "cut", node_alive=True)
    assert said[0].get("key") == named
    assert len(reads) == (named is not None)
