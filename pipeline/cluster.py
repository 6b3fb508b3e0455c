"""Ray: connecting, and the places where workers can run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray

from pipeline.errors import RaylensError, UsageError
from pipeline.options import Resources, aloud
from pipeline.provenance import cpu_count

_STARTS = 3  # of Ray, where a machine is too busy for it


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one worker."""

    node: str
    index: int
    device: str
    gpus: float
    threads: int


def connect(resources: Resources, say: Callable[[str], None] = aloud) -> None:
    """Join the cluster that is named, or start one on this machine. What this process is connected to stays.

    Ray gives up where a machine is too busy to start its processes in half a minute: then ``say`` hears of another try.

    UsageError where a cluster is named and that is another.
    """
    if ray.is_initialized():
        if resources.address and not _is_up(resources.address):
            raise UsageError(
                f"this process is connected to {joined() or 'a Ray of its own'} already",
                where=resources.address,
                cure="run this in a process of its own, call ray.shutdown() first, or leave the address out",
            )
        return
    address = resources.cluster
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What is dropped when a run is stopped would be told as an error, with a traceback.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    # A task that asked for no GPU must see none: reductions take one where they see one.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "include_dashboard": False}
    if address:
        settings = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
    else:
        # "local": never a cluster that somebody else started on this machine.
        settings |= {"address": "local", "num_cpus": resources.cpus or cpu_count()}
        if resources.gpus is not None:
            settings["num_gpus"] = resources.gpus
    try:
        with _signals_kept():
            _init(settings, say)
    except Exception as error:  # Ray raises a bare one when its processes do not come up in time
        at, cure = "this machine", "run again when it is less busy"
        if address:
            at, cure = address, "check --address ('ray status' there), or leave it out to use this machine"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RaylensError(f"Ray could not be reached or started ({reason})", where=at, cure=cure) from error


def _init(settings: Mapping[str, Any], say: Callable[[str], None]) -> None:
    for _ in range(_STARTS - 1):
        try:
            ray.init(**settings)
            return
        except Exception as error:
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            say("Ray did not start in time, for this machine is busy: once more")
    ray.init(**settings)


def _is_up(address: str) -> bool:
    """Whether the Ray that this process is connected to is the one named, as far as it can be told."""
    if address == "auto" or ray.util.client.ray.is_connected():
        return True
    if address == "local" or address.startswith("ray://"):
        return (joined() is None) is (address == "local")
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    here = ray.get_runtime_context()
    if here.gcs_address == address:
        return True
    with contextlib.suppress(Exception):  # a head has several names; nobody may answer there
        return bool(GcsClient(address=address).cluster_id == here.worker.gcs_client.cluster_id)
    return False


def joined() -> str | None:
    """The cluster that this process has joined, whoever said so; None for a Ray of its own, to which nothing comes."""
    from ray._private.worker import _global_node as node

    if not ray.is_initialized() or (node is not None and node.is_head()):
        return None
    with contextlib.suppress(Exception):  # Ray Client
        return str(ray.get_runtime_context().gcs_address)
    return "the cluster"


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts its own handlers in place of ours, and a SIGTERM would then end the driver in mid-air."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def alive_nodes() -> dict[str, Mapping[str, float]]:
    """Living nodes and their total resources, by id."""
    return {n["NodeID"]: n["Resources"] for n in ray.nodes() if n["Alive"]}


def node_name(node: str) -> str:
    """A node as people know it: its host name; its id where Ray has none."""
    return next((n["NodeManagerHostname"] for n in ray.nodes() if n["NodeID"] == node), "") or node


def free_of_nodes() -> dict[str, Mapping[str, float]] | None:
    """What nobody holds of the living nodes, by id; None where Ray does not tell (Ray Client)."""
    with contextlib.suppress(Exception):
        from ray._private.state import available_resources_per_node

        found: dict[str, Mapping[str, float]] = available_resources_per_node()
        return found
    return None


def slots(resources: Resources) -> list[Slot]:
    """Every place for a worker on the cluster as it is now, whoever holds it; on CPUs where ``gpus`` is 0."""
    nodes = alive_nodes()
    total_gpus = sum(r.get("GPU", 0.0) for r in nodes.values())
    on_gpus = total_gpus > 0 and resources.gpus != 0
    total_cpus = sum(int(r.get("CPU", 0)) for r in nodes.values())
    found: list[Slot] = []
    for node, total in sorted(nodes.items()):
        cpus, gpus = int(total.get("CPU", 0)), total.get("GPU", 0.0)
        if on_gpus:
            share = resources.gpus_per_actor
            count = int(gpus / share + 1e-9)
            threads = max(1, cpus // max(1, count))
            found += [Slot(node, i, "cuda", share, threads) for i in range(count)]
        elif cpus:
            group = min(resources.cpus_per_actor or (cpus if resources.mode == "spread" else min(cpus, 4)), cpus)
            found += [Slot(node, i, "cpu", 0.0, group) for i in range(max(1, cpus // group))]
    if not found:
        raise UsageError(
            f"the cluster has no place for a worker (CPUs {total_cpus}, "
            f"GPUs {total_gpus:g}, {resources.gpus_per_actor:g} GPU a worker)",
            where=joined() or "this machine",
            cure="lower resources.gpus_per_actor, or add nodes",
        )
    return found


def bundle(resources: Resources, places: Sequence[Slot]) -> dict[str, float]:
    """What one more worker needs of a node: as the others have, a GPU where there are none (``gpus: 0``: CPUs)."""
    if places and not places[0].gpus:
        return {"CPU": float(max(place.threads for place in places))}
    if not places and resources.gpus == 0:
        return {"CPU": float(resources.cpus_per_actor or 1)}  # how large nodes are is seen when the first is there
    return {"GPU": resources.gpus_per_actor}
