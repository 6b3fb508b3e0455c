"""Which Ray a process is connected to, and what it does when a run names another; Ray only pretends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline import cluster, head_watch
from pipeline.errors import UsageError
from pipeline.options import Resources

HEADS = {"10.0.0.1:6379": "one", "head-svc:6379": "one", "10.0.0.2:6379": "another"}


class Ray(SimpleNamespace):
    """What this process is connected to: a cluster joined, a Ray of its own, one through Ray Client, nothing."""

    def __init__(self, kind: str) -> None:
        self.kind, self.started = kind, list[dict[str, Any]]()
        self.util = SimpleNamespace(client=SimpleNamespace(ray=SimpleNamespace(is_connected=lambda: kind == "client")))

    def is_initialized(self) -> bool:
        return self.kind != "nothing"

    def init(self, **settings: Any) -> None:
        self.started.append(settings)

    def get_runtime_context(self) -> Any:
        client = SimpleNamespace(gcs_client=SimpleNamespace(cluster_id="one"))
        return SimpleNamespace(gcs_address="10.0.0.1:6379", worker=client)


@pytest.fixture
def ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ray:
    found = Ray(request.param)
    node = None if found.kind == "client" else SimpleNamespace(is_head=lambda: found.kind == "own")
    monkeypatch.setattr(cluster, "ray", found)
    monkeypatch.setattr("ray.util.client.ray.is_connected", lambda: found.kind == "client")
    monkeypatch.setattr("ray._private.worker._global_node", node)
    monkeypatch.setattr("ray._raylet.GcsClient", lambda address: SimpleNamespace(cluster_id=HEADS[address]))
    return found


@pytest.mark.parametrize(
    ("ray", "joined", "watched"),
    [
        ("cluster", "10.0.0.1:6379", "10.0.0.1:6379"),
        ("own", None, ""),
        ("client", "10.0.0.1:6379", ""),  # which its server sees, not this process
        ("nothing", None, ""),
    ],
    indirect=["ray"],
)
def test_what_was_joined_is_known_and_watched_where_it_is_in_reach(ray: Ray, joined: str | None, watched: str) -> None:
    assert cluster.joined() == joined
    assert head_watch._joined() == watched


@pytest.mark.parametrize("ray", ["cluster"], indirect=True)
def test_a_cluster_whose_address_is_not_told_is_not_watched(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Ray, "get_runtime_context")
    assert cluster.joined() == "the cluster"
    assert head_watch._joined() == ""


@pytest.mark.parametrize(
    ("ray", "address"),
    [
        ("cluster", None),
        ("cluster", "auto"),
        ("cluster", "10.0.0.1:6379"),
        ("cluster", "head-svc:6379"),
        ("cluster", "ray://head-svc:10001"),
        ("client", "ray://head-svc:10001"),
        ("own", None),
        ("own", "auto"),
        ("own", "local"),
        ("own", "10.0.0.1:6379"),
    ],
    indirect=["ray"],
)
def test_a_process_stays_with_what_it_is_connected_to(ray: Ray, address: str | None) -> None:
    cluster.connect(Resources(address))
    assert ray.started == []


@pytest.mark.parametrize(
    ("ray", "address", "told"),
    [
        ("cluster", "10.0.0.2:6379", "10.0.0.2:6379: this process is connected to 10.0.0.1:6379 already"),
        ("cluster", "nobody:6379", "nobody:6379: this process is connected to 10.0.0.1:6379 already"),
        ("own", "10.0.0.2:6379", "10.0.0.2:6379: this process is connected to a Ray of its own already"),
        ("own", "ray://head-svc:10001", "ray://head-svc:10001: this process is connected to a Ray of its own already"),
    ],
    indirect=["ray"],
)
def test_a_run_that_names_another_cluster_is_refused_instead_of_made_here(ray: Ray, address: str, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        cluster.connect(Resources(address))
    assert str(refused.value).splitlines()[0] == told
    assert ray.started == []
