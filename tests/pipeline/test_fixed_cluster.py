"""Workers on a cluster of fixed size whose GPUs others may hold."""

from __future__ import annotations

import pytest
from shared_cluster import CPU_NODE, GPU_NODE, HEAD, Shared

from pipeline import growth
from pipeline.options import Resources


@pytest.fixture
def fixed(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> Shared:
    """Nothing brings nodes."""
    monkeypatch.setattr(growth, "autoscaled", lambda: False)
    return shared


def test_on_a_cluster_of_fixed_size_free_gpus_are_taken_first_and_others_waited_for(fixed: Shared) -> None:
    for node in "ab":
        fixed.add(node, GPU_NODE, theirs=True)
    fixed.add("c", GPU_NODE)
    workers = fixed.begun(Resources(HEAD), 1)
    assert fixed.at == "c"
    fixed.next_step(workers, 40)
    assert (fixed.at, fixed.groups) == ("abc", [])
    fixed.pass_by(workers, 40, 3600)
    assert fixed.at == "abc"


def test_on_a_cluster_of_fixed_size_a_worker_that_waits_for_others_goes_where_a_gpu_becomes_free(fixed: Shared) -> None:
    for node in "abc":
        fixed.add(node, GPU_NODE, theirs=True)
    workers = fixed.begun(Resources(HEAD), 1)
    fixed.pass_by(workers, 1, 3600)
    assert fixed.at == "a"
    del fixed.theirs["c"]
    fixed.pass_by(workers, 1, 12)
    assert fixed.at == "c"


def test_a_slow_start_where_a_gpu_was_free_is_left_to_end(fixed: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    for node in "ab":
        fixed.add(node, GPU_NODE)
    monkeypatch.setattr(fixed, "schedule", lambda: None)
    workers = fixed.begun(Resources(HEAD), 1)
    first = fixed.hosts[0]
    fixed.pass_by(workers, 1, 600)
    assert fixed.hosts == [first]


def test_gpus_that_others_hold_take_no_worker_from_a_cluster_of_fixed_size(fixed: Shared) -> None:
    fixed.add("a", CPU_NODE)
    workers = fixed.begun(Resources(HEAD), 8)
    fixed.add("b", GPU_NODE, theirs=True)
    fixed.next_step(workers, 8)
    assert [host.slot.device for host in fixed.hosts if host.there] == ["cpu"]


def test_gpus_that_join_a_cluster_of_fixed_size_are_taken_at_once(fixed: Shared) -> None:
    fixed.add("a", CPU_NODE)
    workers = fixed.begun(Resources(HEAD), 8)
    fixed.add("b", GPU_NODE)
    fixed.pass_by(workers, 8, 12)
    assert [(host.slot.node, host.slot.device) for host in fixed.hosts] == [("a", "cpu"), ("b", "cuda")]
