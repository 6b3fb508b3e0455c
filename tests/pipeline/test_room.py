"""When a training is refused for want of room, on clusters that only pretend."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline import growth, room
from pipeline.errors import UsageError
from pipeline.room import Room

HEAD = "head:6379"
CPU, GPU = {"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}


class World:
    """Nodes by name, what the cluster says of an autoscaler, and the time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.told = 1000.0, False
        self.nodes: dict[str, dict[str, float]] = {"head": {"CPU": 2.0}}
        for module in (room, growth):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(growth, "autoscaled", lambda: self.told)
        monkeypatch.setattr(room, "alive_nodes", lambda: self.nodes)
        monkeypatch.setattr(room, "cluster_has", lambda: "the cluster is as it is")

    def waits(self, wanted: Room, seconds: float) -> None:
        """It is not refused for so long, looked at twice a second."""
        end = self.now + seconds
        while self.now < end:
            wanted.check()
            self.now += 0.5


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.mark.parametrize(
    ("count", "bundle", "cluster", "told"),
    [
        (
            3,
            CPU,
            HEAD,
            "head:6379: no room for 3 training workers of 1 CPU: the cluster is as it is, which is enough for 2, "
            "and nothing brings more nodes\n"
            "  -> set resources.train_workers to 2 or less, or add nodes ('ray status' shows them)",
        ),
        (
            1,
            GPU,
            HEAD,
            "head:6379: no room for 1 training worker of 1 CPU and 1 GPU: the cluster is as it is, which is enough "
            "for none, and nothing brings more nodes\n"
            "  -> set resources.gpus to 0 to train without GPUs, or add nodes ('ray status' shows them)",
        ),
        (
            3,
            CPU,
            None,
            "this machine: no room for 3 training workers of 1 CPU: the cluster is as it is, which is enough for 2, "
            "and nothing brings more nodes\n"
            "  -> set resources.train_workers to 2 or less",
        ),
    ],
    ids=["CPUs", "GPUs", "a Ray of our own"],
)
def test_what_a_cluster_of_fixed_size_does_not_have_is_refused_at_once_or_when_nodes_had_time_to_join(
    world: World, count: int, bundle: dict[str, float], cluster: str | None, told: str
) -> None:
    wanted = Room(count, bundle, cluster)
    if cluster:
        world.waits(wanted, 59)
        world.now += 5
    with pytest.raises(UsageError) as refused:
        wanted.check()
    assert str(refused.value) == told


def test_where_an_autoscaler_may_bring_nodes_they_are_waited_for_as_long_as_it_brings_some(world: World) -> None:
    world.told = True
    wanted = Room(2, GPU, HEAD)
    world.waits(wanted, 500)
    world.nodes["a"] = {"CPU": 4.0, "GPU": 1.0}
    world.waits(wanted, 590)
    world.now += 20
    with pytest.raises(
        UsageError, match=r"enough for 1, and no node came for 10 minutes\n.*train_workers to 1 or less"
    ):
        wanted.check()


def test_room_that_was_there_is_waited_for_whoever_holds_it_or_took_it_away(world: World) -> None:
    world.nodes["a"] = {"CPU": 1.0, "GPU": 2.0}  # the one CPU beside them is enough for one worker
    with pytest.raises(UsageError, match="enough for 1"):
        Room(2, GPU, None).check()
    world.nodes["a"]["CPU"] = 2.0
    wanted = Room(2, GPU, HEAD)
    wanted.check()
    del world.nodes["a"]
    world.waits(wanted, 3600)
