"""What a pool asks an autoscaler for, on a cluster and placement groups that only pretend."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pipeline import cluster, demand, growth, places, pool, setups
from pipeline.cluster import Slot
from pipeline.errors import RaylensError, UsageError
from pipeline.estimate import Measured
from pipeline.options import Resources
from pipeline.storage import UnreachableError

HEAD = "head:6379"  # of the cluster that is joined
WORK = SimpleNamespace(id="sweep-0", step=SimpleNamespace(name="sweep"), plans={})


class Group(SimpleNamespace):
    """A placement group: PENDING until the world places it."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class World:
    """Places that there are, an autoscaler or none, and the groups that were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slots: list[Slot] = []
        self.scales, self.now = True, 100.0
        self.joined: str | None = HEAD  # None: a Ray of our own
        self.groups: list[Group] = []
        numbers = itertools.count()

        def make(bundles: list[dict[str, float]]) -> Group:
            name = f"{next(numbers):04x}"
            group = Group(id=SimpleNamespace(hex=lambda: name), bundle=bundles[0], state="PENDING")
            self.groups.append(group)
            return group

        def slots(resources: Resources) -> list[Slot]:
            if not self.slots:
                raise UsageError("the cluster has no place for a worker")
            return self.slots

        actor = SimpleNamespace(setup=self._remote(), placed=self._remote())
        monkeypatch.setattr(demand, "placement_group", make)
        monkeypatch.setattr(demand, "remove_placement_group", self.groups.remove)
        monkeypatch.setattr(
            demand,
            "placement_group_table",
            lambda: {g.id.hex(): {"state": g.state, "bundles_to_node_id": {}} for g in self.groups},
        )
        monkeypatch.setattr(growth, "autoscaled", lambda: self.scales)
        for module in (pool, growth, places, setups):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(pool, "ray", SimpleNamespace(put=lambda work: work, wait=lambda refs, timeout: (refs, [])))
        monkeypatch.setattr(cluster, "joined", lambda: self.joined)
        monkeypatch.setattr(cluster, "slots", slots)
        monkeypatch.setattr(cluster, "node_name", lambda node: f"host-{node}")
        monkeypatch.setattr(cluster, "alive_nodes", lambda: {slot.node: {} for slot in self.slots})
        monkeypatch.setattr(cluster, "free_of_nodes", lambda: None)  # Ray does not tell what is free
        monkeypatch.setattr(pool, "start_host", lambda slot, ledger: actor)

    @staticmethod
    def _remote() -> Any:
        numbers = itertools.count()
        return SimpleNamespace(remote=lambda *_: next(numbers))

    def later(self) -> None:
        self.now += 6.0

    @property
    def asked(self) -> list[dict[str, float]]:
        return [group.bundle for group in self.groups]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def gpu(node: str) -> Slot:
    return Slot(node, 0, "cuda", 1.0, 8)


def begun(resources: Resources, wanted: int) -> pool.Pool:
    found = pool.Pool(resources, None)
    found.begin(WORK, wanted)
    return found


def test_a_worker_for_every_two_shards_is_asked_for_less_the_places_there_are(world: World) -> None:
    workers = begun(Resources(HEAD), 9)
    assert world.asked == [{"GPU": 1.0}] * 5
    assert workers.wanted == "a worker with 1 GPU (5 asked of the cluster's autoscaler)"
    world.groups[0].state = "CREATED"  # its node is here: the room is a worker's now
    world.slots = [gpu("a")]
    world.later()
    workers.refresh(9)
    assert len(workers.members) == 1
    assert world.asked == [{"GPU": 1.0}] * 4
    assert all(group.state == "PENDING" for group in world.groups)
    world.later()
    workers.refresh(3)  # shards left
    assert world.asked == [{"GPU": 1.0}]
    workers.ask_no_more()
    assert world.asked == []


def test_no_more_than_max_workers_are_asked_for_or_started(world: World) -> None:
    world.slots = [gpu("a"), gpu("b"), gpu("c")]
    assert len(begun(Resources(HEAD, max_workers=2), 40).members) == 2
    assert world.asked == []
    world.slots = [gpu("a")]
    begun(Resources(HEAD, max_workers=8, gpus_per_actor=0.5), 40)
    assert world.asked == [{"GPU": 0.5}] * 7


def test_shards_for_fewer_than_max_workers_ask_for_fewer(world: World) -> None:
    begun(Resources(HEAD, max_workers=8), 9)
    assert world.asked == [{"GPU": 1.0}] * 5


def test_workers_on_cpus_hold_none_so_what_was_asked_for_stays_with_them(world: World) -> None:
    workers = begun(Resources(HEAD, gpus=0, cpus_per_actor=2), 6)
    assert world.asked == [{"CPU": 2.0}] * 3
    for group in world.groups[:2]:
        group.state = "CREATED"
    world.slots = [Slot("a", 0, "cpu", 0.0, 2), Slot("a", 1, "cpu", 0.0, 2)]
    world.later()
    workers.refresh(6)
    assert [group.state for group in world.groups] == ["CREATED", "CREATED", "PENDING"]
    world.later()
    workers.refresh(4)
    assert [group.state for group in world.groups] == ["CREATED", "CREATED"], "those that wait are taken back first"
    workers.close()
    assert world.asked == []


def test_gpus_that_can_come_are_waited_for_beside_cpus_that_are_there(world: World) -> None:
    world.slots = [Slot("a", 0, "cpu", 0.0, 4)]
    workers = begun(Resources(HEAD, gpus=1), 4)
    assert (len(workers.members), world.asked) == (0, [{"GPU": 1.0}] * 2)
    world.scales = False
    assert len(begun(Resources(HEAD, gpus=1), 4).members) == 1, "nobody brings them"


def test_gpus_that_are_lost_are_waited_for_beside_cpus_that_are_there(world: World) -> None:
    world.slots = [gpu("a")]
    workers = begun(Resources(HEAD), 6)
    workers.drop(workers.members[0])  # its node went, one that decodes is left
    world.slots = [Slot("b", 0, "cpu", 0.0, 4)]
    world.now += 3600
    workers.refresh(6)
    assert (workers.members, world.asked) == ([], [{"GPU": 1.0}] * 3)
    workers.ask_no_more()
    workers.begin(WORK, 6)  # the next step
    assert (workers.members, world.asked) == ([], [{"GPU": 1.0}] * 3)
    world.slots.append(gpu("c"))
    world.slots.pop(0)
    world.later()
    workers.refresh(6)
    assert [member.slot.node for member in workers.members] == ["c"]


@pytest.mark.parametrize(("gpus", "workers"), [(None, 0), (0, 1)])
def test_a_step_that_was_measured_on_gpus_goes_on_on_gpus(world: World, gpus: int | None, workers: int) -> None:
    world.slots = [Slot("a", 0, "cpu", 0.0, 4)]
    measured = Measured(1.0, 0.0, 0.0, 0.0, 0.0, "cuda", 8)
    resumed = pool.Pool(Resources(HEAD, gpus=gpus), None)
    resumed.begin(SimpleNamespace(step=WORK.step, plans={"all": SimpleNamespace(measured=measured)}), 4)
    assert len(resumed.members) == workers


def test_nobody_is_asked_for_nodes_of_a_ray_of_our_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "autoscaled", lambda: pytest.fail("asked"))
    world.joined, world.slots = None, [Slot("a", 0, "cpu", 0.0, 4)]
    assert len(begun(Resources(), 4).members) == 1
    assert world.asked == []


def test_the_autoscaler_of_a_cluster_is_asked_whoever_joined_it(world: World) -> None:
    begun(Resources(), 4)
    assert world.asked == [{"GPU": 1.0}] * 2


def test_a_step_begins_with_one_look_at_the_cluster(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(cluster, "slots", lambda resources: looks.append(resources) or [gpu("a")])
    workers = begun(Resources(HEAD), 4)
    assert len(looks) == 1
    workers.ask_no_more()
    workers.begin(WORK, 4)
    assert len(looks) == 2
    assert len(workers.members) == 1


@pytest.mark.parametrize(
    ("gpus", "there", "told"),
    [(None, [], "no place for a worker"), (2, [Slot("a", 0, "cpu", 0.0, 4)], "no node came for 10 minutes")],
    ids=["nothing", "only CPUs"],
)
def test_a_cluster_that_brings_nothing_for_long_is_not_believed_to_grow(
    world: World, gpus: int | None, there: list[Slot], told: str
) -> None:
    world.slots = there
    workers = begun(Resources(HEAD, gpus=gpus), 4)
    world.now += 590
    workers.refresh(4)
    assert world.asked == [{"GPU": 1.0}] * 2
    world.now += 20
    with pytest.raises(UsageError, match=told):
        workers.refresh(4)
    assert world.asked == []


def test_a_node_that_comes_gives_the_next_one_time(world: World) -> None:
    world.slots = [Slot("a", 0, "cpu", 0.0, 4)]
    workers = begun(Resources(HEAD, gpus=1), 4)
    world.now += 590
    world.slots = [*world.slots, Slot("b", 0, "cpu", 0.0, 4)]
    workers.refresh(4)
    world.now += 590
    workers.refresh(4)
    assert world.asked == [{"GPU": 1.0}] * 2


def test_a_cluster_without_places_and_autoscaler_is_refused(world: World) -> None:
    world.scales, world.joined = False, None
    with pytest.raises(UsageError, match="no place"):
        begun(Resources(), 4)
    world.joined = HEAD
    joined = begun(Resources(HEAD), 4)  # it may have started just now
    world.now += 50
    joined.refresh(4)
    world.now += 20
    with pytest.raises(UsageError, match="no place"):
        joined.refresh(4)


class Died(ray.exceptions.ActorDiedError):
    """As Ray tells it, without the protocol buffers it is made of."""

    def __init__(self, told: str, *, preempted: bool = False, init: bool = False) -> None:
        ray.exceptions.RayActorError.__init__(self, None, told, init, preempted)


class TestSetupsThatFail:
    @pytest.fixture
    def workers(self, world: World, monkeypatch: pytest.MonkeyPatch) -> pool.Pool:
        """Eight, on the GPUs of one node."""

        def get(reference: Any) -> None:
            raise self.error

        world.slots = [Slot("a", i, "cuda", 1.0, 8) for i in range(8)]
        monkeypatch.setattr(pool.ray, "exceptions", ray.exceptions, raising=False)
        monkeypatch.setattr(pool.ray, "get", get, raising=False)
        return begun(Resources(HEAD), 16)

    @pytest.mark.parametrize(
        "error",
        [
            ray.exceptions.ActorUnavailableError("connection reset", None),
            Died("its node was preempted", preempted=True),
        ],
    )
    def test_a_node_that_goes_with_all_its_workers_is_free_though_ray_still_lists_it(
        self, workers: pool.Pool, error: Exception
    ) -> None:
        self.error = error
        for reference in workers.pending:
            assert workers.settle(reference)
        assert (workers.members, workers.pending) == ([], [])

    def test_a_node_that_is_gone_is_free(self, workers: pool.Pool, world: World) -> None:
        self.error, world.slots = Died("its node died"), []
        for reference in workers.pending:
            workers.settle(reference)
        assert workers.members == []

    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (
                Died("The actor died.\n\tpid: 7\nWorker exits: it was killed by SIGKILL"),
                "3 workers in a row died while they were set up for step 'sweep' (Died: Worker exits: it was killed by "
                "SIGKILL)\n  -> look at the memory of the nodes: the network may not fit",
            ),
            (
                Died("The actor died:\nTraceback\nModuleNotFoundError: No module named 'pipeline'", init=True),
                "3 workers in a row died while they were set up for step 'sweep' (Died: ModuleNotFoundError: No module "
                "named 'pipeline')\n  -> see that every node has the same Raylens and the same libraries as this one",
            ),
        ],
        ids=["killed", "nothing installed"],
    )
    def test_three_deaths_in_a_row_end_the_run_and_say_what_ray_says(
        self, workers: pool.Pool, error: Exception, told: str
    ) -> None:
        self.error = error
        first, second, third, *_ = workers.pending
        workers.settle(first)
        workers.settle(second)
        with pytest.raises(RaylensError) as ended:
            workers.settle(third)
        assert str(ended.value) == told

    def test_a_place_where_none_can_be_set_up_is_left_alone_while_others_work(
        self, workers: pool.Pool, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A mount that one node lacks, or a GPU that is lost there, ends no run that goes on elsewhere."""
        lacking = ray.exceptions.RayTaskError("setup", "no traceback", RaylensError("no such weights file"))
        said: list[str] = []
        workers._ends._say = said.append
        outcome: Any = None

        def get(reference: Any) -> None:
            if outcome is not None:
                raise outcome

        monkeypatch.setattr(pool.ray, "get", get)
        monkeypatch.setattr(pool.ray, "kill", lambda actor: None, raising=False)
        *others, last = workers.pending
        for reference in others:
            workers.settle(reference)
        bad = workers._setups[last].slot
        outcome = lacking
        for nth in range(1, setups.LIMIT + 1):
            (reference,) = workers.pending
            assert workers.settle(reference)
            assert [m.slot for m in workers.members if m.slot == bad] == []
            assert len(said) == (nth == setups.LIMIT)
            world.later()
            workers.refresh(16)
        assert workers.pending == [], "no fourth worker is started there"
        assert said == [
            "step 'sweep': a place on host-a is left alone, no worker can be set up there: no such weights file"
        ]
        assert len(workers.members) == 7
        for member in list(workers.members):  # but it is tried again where nothing else is left
            workers.drop(member)
        world.slots = [bad]
        world.later()
        workers.refresh(16)
        assert [m.slot for m in workers.members] == [bad]
        for _ in range(setups.LIMIT - 1):
            workers.settle(*workers.pending)
            world.later()
            workers.refresh(16)
        (reference,) = workers.pending
        with pytest.raises(RaylensError, match="no such weights file"):
            workers.settle(reference)

    def test_what_workers_say_of_their_setup_ends_the_run_after_the_third(self, workers: pool.Pool) -> None:
        """It might be one GPU of eight that is lost; where there is one place it is told at once."""
        self.error = ray.exceptions.RayTaskError("setup", "no traceback", RaylensError("no such weights file"))
        first, second, third, *_ = workers.pending
        workers.settle(first)
        workers.settle(second)
        with pytest.raises(RaylensError, match="no such weights file"):
            workers.settle(third)

    def test_where_there_is_one_place_a_mistake_is_told_at_once(self, workers: pool.Pool, world: World) -> None:
        self.error = ray.exceptions.RayTaskError("setup", "no traceback", RaylensError("no such weights file"))
        world.slots = world.slots[:1]
        alone = begun(Resources(HEAD), 16)
        with pytest.raises(RaylensError, match="no such weights file"):
            alone.settle(*alone.pending)

    def test_storage_that_is_away_while_the_first_are_set_up_is_asked_again_for_two_minutes(
        self, workers: pool.Pool, world: World
    ) -> None:
        self.error = ray.exceptions.RayTaskError("setup", "no traceback", UnreachableError("it answers 503"))
        began = world.now

        def asked() -> None:
            for _ in range(100):
                for reference in workers.pending:
                    workers.settle(reference)
                workers.refresh(16)
                assert workers.members == [], "not at once"
                world.later()
                workers.refresh(16)

        with pytest.raises(UnreachableError, match="503"):
            asked()
        assert 120 <= world.now - began < 135


class TestSetupsThatFailOnOneNodeOfTwo:
    """``a`` is bad; it fails at once, because it has loaded nothing."""

    @pytest.fixture
    def workers(self, world: World, monkeypatch: pytest.MonkeyPatch) -> pool.Pool:
        error = ray.exceptions.RayTaskError("setup", "no traceback", RaylensError("there is a GPU it cannot use"))
        world.slots = [gpu("a"), gpu("b")]
        self.bad = error

        def get(reference: Any) -> None:
            if self.bad is not None:
                raise self.bad

        monkeypatch.setattr(pool.ray, "exceptions", ray.exceptions, raising=False)
        monkeypatch.setattr(pool.ray, "get", get, raising=False)
        monkeypatch.setattr(pool.ray, "kill", lambda actor: None, raising=False)
        return begun(Resources(HEAD), 16)

    @staticmethod
    def pending(workers: pool.Pool, node: str) -> Any:
        return next((r for r, m in workers._setups.items() if m.slot.node == node), None)

    def test_a_run_waits_for_the_good_one_which_takes_its_time(self, workers: pool.Pool, world: World) -> None:
        for _ in range(setups.LIMIT):
            workers.settle(self.pending(workers, "a"))
            world.later()
            workers.refresh(16)
        assert self.pending(workers, "a") is None, "it is left alone"
        self.bad = None
        workers.settle(self.pending(workers, "b"))
        assert [(m.slot.node, m.ready) for m in workers.members] == [("b", True)]

    def test_one_worker_alone_goes_to_the_place_that_has_not_failed(self, workers: pool.Pool, world: World) -> None:
        alone = begun(Resources(HEAD), 1)
        assert [m.slot.node for m in alone.members] == ["a"]
        alone.settle(*alone.pending)
        world.later()
        alone.refresh(1)
        assert [m.slot.node for m in alone.members] == ["b"]
        with pytest.raises(RaylensError, match="there is a GPU it cannot use"):
            alone.settle(*alone.pending)

    def test_a_place_that_somebody_else_holds_is_not_waited_for_with_a_mistake(
        self, workers: pool.Pool, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Node b's GPU is another job's: its worker has no process, so it will tell nothing."""
        bad = self.pending(workers, "a")
        monkeypatch.setattr(pool.ray, "wait", lambda refs, timeout: ([], refs))
        monkeypatch.setattr(workers._places, "open", lambda members: [(gpu("b"), False)])
        with pytest.raises(RaylensError, match="there is a GPU it cannot use"):
            workers.settle(bad)

    def test_storage_that_one_node_cannot_reach_ends_nothing(self, workers: pool.Pool, world: World) -> None:
        """It is asked there again, now and then; elsewhere a worker is set up for minutes, works and dies."""
        self.bad = ray.exceptions.RayTaskError("setup", "no traceback", UnreachableError("no route to S3"))
        for _ in range(40):
            if (reference := self.pending(workers, "a")) is not None:
                workers.settle(reference)
            world.later()
            workers.refresh(16)
        away, self.bad = self.bad, None
        workers.settle(self.pending(workers, "b"))
        (good,) = [m for m in workers.members if m.ready]
        self.bad = away
        for _ in range(40):
            if (reference := self.pending(workers, "a")) is not None:
                workers.settle(reference)
            world.later()
            workers.refresh(16)
        workers.drop(good)
        world.later()
        workers.refresh(16)
        assert self.pending(workers, "b") is not None
        for _ in range(3):  # and another is set up there in its own time
            if (reference := self.pending(workers, "a")) is not None:
                workers.settle(reference)
            world.later()
            workers.refresh(16)
        self.bad = None
        workers.settle(self.pending(workers, "b"))
        assert [m.slot.node for m in workers.members if m.ready] == ["b"]
