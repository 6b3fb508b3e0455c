"""Whether nodes may still come: what Ray tells of its autoscaler, and for how long that is believed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline import growth
from pipeline.growth import Growth

FIXED = {"active_nodes": {"node_" + "a" * 56: 1}}


@pytest.mark.parametrize(
    ("told", "kind", "scales"),
    [
        (b'{"autoscaler_report": {"active_nodes": {"node_%s": 1}}}' % (b"a" * 56), "", False),
        (b'{"autoscaler_report": {"active_nodes": {"node_%s": 1}}}' % (b"a" * 56), "workers", True),
        (b'{"autoscaler_report": {"active_nodes": {"head": 1}}}', "", True),
        (b'{"autoscaler_report": {"active_nodes": {}}}', "", False),
        (b'{"autoscaler_report": null}', "", False),
        (b"", "", False),
        (b"", "workers", True),
        (b"{", "", False),
    ],
    ids=[
        "nodes that nothing brings",
        "the second version beside it",
        "kinds of nodes",
        "no node yet",
        "starting",
        "nothing told",
        "the second version",
        "damaged",
    ],
)
def test_an_autoscaler_is_known_by_the_kinds_of_nodes_it_tells_of(
    monkeypatch: pytest.MonkeyPatch, told: bytes, kind: str, scales: bool
) -> None:
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda name: told)
    monkeypatch.setattr(
        "ray.autoscaler.v2.sdk.get_cluster_resource_state",
        lambda client: SimpleNamespace(node_states=[SimpleNamespace(ray_node_type_name=kind)]),
    )
    monkeypatch.setattr("ray._private.worker.global_worker", SimpleNamespace(gcs_client=None))
    assert growth.autoscaled() is scales


class Watched:
    """A cluster that is looked at every five seconds; gives when what is missed is given up, and what was believed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, joined: bool = True) -> None:
        self.now, self.told, self.nodes = 1000.0, False, ["head"]
        monkeypatch.setattr(growth, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(growth, "autoscaled", lambda: self.told)
        self.growth = Growth(joined)
        self.growth.look(self.nodes, missed=True)

    def look_for(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end and not self.growth.over:
            self.now += 5.0
            self.growth.look(self.nodes, missed=True)


def test_nothing_comes_to_a_ray_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Watched(monkeypatch, joined=False).growth.over


def test_a_cluster_without_an_autoscaler_is_given_a_minute_in_which_nodes_may_join_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Watched(monkeypatch)
    cluster.look_for(3600)
    assert cluster.now == 1060


def test_an_autoscaler_is_believed_for_ten_minutes_after_each_node(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Watched(monkeypatch)
    cluster.look_for(30)
    cluster.told = True  # it says so late
    cluster.look_for(500)
    assert cluster.growth.grows
    cluster.nodes = ["head", "of others"]
    cluster.look_for(590)
    cluster.told = False  # Ray's answer is late or lost: what is known is known
    assert cluster.growth.grows
    cluster.look_for(3600)
    assert cluster.now == 1000 + 30 + 500 + 5 + 600 + 5
    assert cluster.growth.doubted


def test_what_was_there_once_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Watched(monkeypatch)
    cluster.told = True
    cluster.look_for(10)
    cluster.now += 3600
    cluster.growth.look(["head"], missed=False)
    assert cluster.growth.grows
