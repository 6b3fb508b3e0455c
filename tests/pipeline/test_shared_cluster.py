"""Workers on a cluster that grows and is shared: others hold GPUs and CPUs, and nodes come for them, too."""

from __future__ import annotations

import pytest
from shared_cluster import CPU_NODE, GPU_NODE, HEAD, Shared

from pipeline import cluster
from pipeline.options import Resources


@pytest.mark.parametrize("most", [2, None], ids=["at most two workers", "as many as are of use"])
def test_gpus_that_others_hold_are_no_places_so_others_are_asked_for(shared: Shared, most: int | None) -> None:
    for node in "abcd":
        shared.add(node, GPU_NODE, theirs=True)
    workers = shared.begun(Resources(HEAD, max_workers=most), 4)
    assert (shared.at, shared.asked) == ("", [{"GPU": 1.0}] * 2)
    shared.kind, shared.left = GPU_NODE, 2
    shared.pass_by(workers, 4, 12)
    assert (shared.at, shared.asked) == ("ef", [])
    assert workers.wanted == "a worker with 1 GPU"


def test_a_gpu_that_others_give_back_is_taken_by_what_waits_in_ray_s_queue(shared: Shared) -> None:
    for node in "ab":
        shared.add(node, GPU_NODE, theirs=True)
    workers = shared.begun(Resources(HEAD), 4)
    del shared.theirs["b"]
    shared.pass_by(workers, 4, 12)
    assert (shared.at, shared.asked) == ("b", [{"GPU": 1.0}])


def test_of_a_node_s_gpus_those_are_taken_that_are_free(shared: Shared) -> None:
    shared.add("a", {"CPU": 8.0, "GPU": 4.0})
    shared.theirs["a"] = {"GPU": 3.0}
    workers = shared.begun(Resources(HEAD), 6)
    shared.pass_by(workers, 6, 120)
    assert (shared.at, shared.asked) == ("a", [{"GPU": 1.0}] * 2)
    assert all(host.there for host in shared.hosts)


def test_a_node_that_came_for_us_and_was_taken_is_asked_for_again(shared: Shared) -> None:
    workers = shared.begun(Resources(HEAD, max_workers=1), 4)
    shared.kind, shared.left = GPU_NODE, 1
    shared.pass_by(workers, 4, 6)
    shared.hosts[0].there = False
    shared.theirs["e"] = {"GPU": 1.0}  # between the group and the worker
    shared.pass_by(workers, 4, 48)
    assert (shared.at, shared.asked) == ("e", []), "a start may be slow"
    shared.pass_by(workers, 4, 12)
    assert shared.asked == [{"GPU": 1.0}]
    shared.left = 1
    shared.pass_by(workers, 4, 6)
    assert (shared.at, shared.asked) == ("f", []), "the one worker there may be waits no more"


def test_a_node_that_came_for_others_and_is_free_is_used(shared: Shared) -> None:
    workers = shared.begun(Resources(HEAD), 4)
    shared.add("a", GPU_NODE)
    shared.pass_by(workers, 4, 12)
    assert (shared.at, shared.asked) == ("a", [{"GPU": 1.0}])


@pytest.mark.parametrize("gpus", [0, None], ids=["asked for CPUs", "began on CPUs"])
def test_gpus_that_come_for_others_do_not_move_a_step_that_works_on_cpus(shared: Shared, gpus: int | None) -> None:
    shared.add("a", CPU_NODE)
    workers = shared.begun(Resources(HEAD, gpus=gpus, max_workers=2), 4)
    shared.add("b", GPU_NODE, theirs=True)
    shared.pass_by(workers, 4, 12)
    assert (shared.at, shared.asked) == ("a", [{"CPU": 4.0}])
    assert [group.node for group in shared.groups] == ["a", ""], "what holds our node was not given back"
    assert [host.slot.device for host in shared.hosts] == ["cpu"]


def test_gpus_that_were_asked_for_are_waited_for_though_cpus_come_for_others(shared: Shared) -> None:
    workers = shared.begun(Resources(HEAD), 4)
    shared.add("a", CPU_NODE)
    shared.pass_by(workers, 4, 300)
    assert (shared.at, shared.asked) == ("", [{"GPU": 1.0}] * 2)
    shared.kind, shared.left = GPU_NODE, 2
    shared.pass_by(workers, 4, 12)
    assert (shared.at, shared.asked) == ("ef", [])


def test_gpus_that_do_not_come_are_given_up_for_cpus_that_came(shared: Shared) -> None:
    workers = shared.begun(Resources(HEAD), 4)
    shared.pass_by(workers, 4, 300)
    shared.add("a", CPU_NODE)
    shared.pass_by(workers, 4, 312)
    assert (shared.at, shared.asked) == ("a", [{"CPU": 4.0}])


def test_a_step_on_cpus_that_lost_them_all_goes_on_with_the_next_ones(shared: Shared) -> None:
    shared.add("a", CPU_NODE)
    workers = shared.begun(Resources(HEAD), 4)
    workers.drop(workers.members[0])
    shared.nodes.clear()
    shared.groups.clear()
    shared.pass_by(workers, 4, 12)
    assert (shared.at, {"GPU": 1.0} in shared.asked) == ("", False)
    shared.add("b", CPU_NODE)
    shared.pass_by(workers, 4, 12)
    assert shared.at == "b"


def test_the_next_step_moves_to_gpus_that_came_and_are_free(shared: Shared) -> None:
    shared.add("a", CPU_NODE)
    workers = shared.begun(Resources(HEAD), 8)
    shared.add("a", {"CPU": 4.0, "GPU": 2.0})
    shared.theirs["a"] = {"GPU": 2.0}
    shared.next_step(workers, 8)
    assert [host.slot.device for host in shared.hosts] == ["cpu"], "nothing is gained by waiting without a worker"
    del shared.theirs["a"]
    shared.next_step(workers, 8)
    shared.pass_by(workers, 8, 12)
    assert [(host.slot.index, host.slot.device) for host in shared.hosts] == [(0, "cuda"), (1, "cuda")]
    on_cpus = shared.begun(Resources(HEAD, gpus=0), 4)
    assert {member.slot.device for member in on_cpus.members} == {"cpu"}


def test_where_a_run_worked_on_cpus_its_next_step_asks_for_those_when_none_are_left(shared: Shared) -> None:
    shared.add("a", CPU_NODE)
    workers = shared.begun(Resources(HEAD), 2)
    workers.drop(workers.members[0])
    shared.nodes.clear()
    shared.groups.clear()
    shared.kind, shared.left = CPU_NODE, 2
    shared.next_step(workers, 4)
    shared.pass_by(workers, 4, 30)
    assert (shared.at, {"GPU": 1.0} in shared.asked) == ("ef", False)


def test_workers_on_cpus_go_where_cpus_are_free_or_came_for_them(shared: Shared) -> None:
    for node in "ab":
        shared.add(node, CPU_NODE, theirs=True)
    shared.add("c", CPU_NODE)
    shared.theirs["c"] = {"CPU": 3.0}
    workers = shared.begun(Resources(HEAD, gpus=0, max_workers=2), 40)
    assert (shared.at, shared.asked) == ("c", [{"CPU": 4.0}] * 2)
    shared.kind, shared.left = CPU_NODE, 2
    shared.pass_by(workers, 40, 12)
    assert shared.at == "ce"
    assert [group.node for group in shared.groups] == ["e", "f"]


def test_where_no_cpu_becomes_free_for_long_they_are_shared_with_others(shared: Shared) -> None:
    for node in "ab":
        shared.add(node, CPU_NODE, theirs=True)
    workers = shared.begun(Resources(HEAD, gpus=0), 1)  # a micro-run
    shared.pass_by(workers, 1, 590)
    assert shared.at == ""
    assert workers.wanted == "a worker with 4 CPU (1 asked of the cluster's autoscaler)"
    shared.pass_by(workers, 1, 24)
    assert (shared.at, shared.asked) == ("a", [{"CPU": 4.0}])
    shared.next_step(workers, 4)
    assert (shared.at, shared.asked) == ("ab", [{"CPU": 4.0}] * 2)


@pytest.mark.parametrize(("most", "at"), [(1, "b"), (2, "ab")], ids=["enough are free", "others do not come"])
def test_beside_cpus_that_are_free_others_are_shared_where_what_was_asked_for_does_not_come(
    shared: Shared, most: int, at: str
) -> None:
    shared.add("a", CPU_NODE, theirs=True)
    shared.add("b", CPU_NODE)
    workers = shared.begun(Resources(HEAD, gpus=0, max_workers=most), 4)
    shared.pass_by(workers, 4, 590)
    assert shared.at == "b"
    shared.pass_by(workers, 4, 24)
    assert shared.at == at


def test_a_node_gets_as_many_workers_as_its_free_cpus_are_for(shared: Shared) -> None:
    shared.add("a", {"CPU": 64.0})
    shared.theirs["a"] = {"CPU": 59.0}
    workers = shared.begun(Resources(HEAD, gpus=0), 200)
    shared.pass_by(workers, 200, 12)
    assert shared.at == "aa"
    del shared.theirs["a"]
    shared.pass_by(workers, 200, 24)
    assert shared.at == "a" * 16


def test_where_ray_does_not_tell_what_is_free_every_place_is_tried(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "free_of_nodes", lambda: None)
    for node in "abc":
        shared.add(node, GPU_NODE, theirs=True)
    workers = shared.begun(Resources(HEAD, max_workers=1), 4)
    assert (shared.at, shared.asked) == ("a", [])
    shared.pass_by(workers, 4, 66)
    assert shared.at == "b", "it does not wait at one place for ever"
    shared.pass_by(workers, 4, 126)
    assert shared.at == "c"
    shared.pass_by(workers, 4, 120)
    assert shared.at == "c", "each time it is given longer, as a start may be slow"
    shared.pass_by(workers, 4, 66)
    assert shared.at == "a"
