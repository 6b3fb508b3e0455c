"""A cluster without a worker, whose autoscaler brings some: a run asks for them, works, and gives them back.

Ray's own autoscaler, with a provider whose machines are processes here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_HEAD_ID = "f" * 51 + "00000"  # by which the provider knows the head
_WAIT_S = 150
pytestmark = [pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(1500)]


@dataclass(frozen=True)
class Scaled:
    """Where the cluster is, and the environment of its drivers."""

    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory: pytest.TempPathFactory, free_ports, kill_family) -> Iterator[Scaled]:
    """No workers; up to two of each kind, which go when they have done nothing for six seconds."""
    folder = tmp_path_factory.mktemp("scaled")
    for _ in range(4):  # Ray gives its processes half a minute, which a busy machine may not
        port, *others = free_ports(5)
        address = f"127.0.0.1:{port}"
        command, environment = _head(folder, port, others)
        process = _started(command, {**environment, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID}, folder / "log")
        if up := _is_up(process, folder / "log"):
            break
        kill_family(process)
    try:
        assert up, (folder / "log").read_text()
        yield Scaled(address, environment)
    finally:
        kill_family(process)


def _head(folder: Path, port: int, others: list[int]) -> tuple[list[str], dict[str, str]]:
    """The command that starts it, with the file it reads written, and the environment of all its processes."""
    address = f"127.0.0.1:{port}"
    config = {
        "cluster_name": "fake",
        "max_workers": 4,
        "upscaling_speed": 8.0,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 1, "GPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
            "cpu": {"resources": {"CPU": 2}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": "ray.head.default",
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("cluster_synced_files", "initialization_commands", "setup_commands")},
        **{f"{role}_{what}": [] for role in ("head", "worker") for what in ("setup_commands", "start_ray_commands")},
    }
    (folder / "autoscaling.json").write_text(json.dumps(config))
    python = Path(sys.executable)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0b7d6c1e8f3a4d529a60c4b7e1f2d3a8",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": f"{ROOT / 'tests/bench'}{os.pathsep}{ROOT}",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    names = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "ray-client-server-port",
        "metrics-export-port",
    )
    command = [str(python.parent / "ray"), "start", "--head", "--block", "--num-cpus=0", f"--port={port}"]
    command += ["--include-dashboard=false", f"--autoscaling-config={folder / 'autoscaling.json'}"]
    command += [f"--{name}={number}" for name, number in zip(names, others, strict=True)]
    return command, environment


def _is_up(process: subprocess.Popen[bytes], log: Path) -> bool:
    return process.poll() is None and "Ray runtime started" in log.read_text()


def _started(command: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """The head, up or ended."""
    with log.open("w") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
    end = time.monotonic() + _WAIT_S
    while process.poll() is None and time.monotonic() < end and not _is_up(process, log):
        time.sleep(0.2)
    return process


def ask(scaled: Scaled, question: str) -> str:
    """The answer of a driver of its own: what it prints after a mark, as Ray may print at any time."""
    program = (
        "import ray; from pipeline import cluster, growth;"
        "from ray.util.placement_group import placement_group_table as table;"
        f"ray.init(address={scaled.address!r}, log_to_driver=False, logging_level='ERROR');"
        f"print('answer:', {question})"
    )
    told = "it took too long"
    for _ in range(4):  # a driver may not get through to a busy head in the time that Ray gives it
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                [sys.executable, "-c", program], env=scaled.environment, capture_output=True, text=True, timeout=_WAIT_S
            )
            answers = [
                line.removeprefix("answer: ") for line in done.stdout.splitlines() if line.startswith("answer: ")
            ]
            if answers:
                return answers[0]
            told = done.stderr
    pytest.fail(f"no answer: {told}")


def wait_for(look: Callable[[], str], wanted: str) -> None:
    end = time.monotonic() + _WAIT_S
    while (found := look()) != wanted:
        assert time.monotonic() < end, found
        time.sleep(0.5)


NODES = "sum(n['Alive'] for n in ray.nodes())"
ASKED = "sum(g['state'] != 'REMOVED' for g in table().values())"


def drive(scaled: Scaled, run: Path, keys: int, together: int, **resources: int) -> subprocess.Popen[str]:
    """A run whose workers wait for each other before their first row, where ``together`` says for how many."""
    program = (
        "import scaling; from pipeline.engine import execute; from pipeline.leaving import leave;"
        "from pipeline.options import Options, Resources;"
        f"asked = scaling.job({keys}, scaling.SleepConfig(8, 0.05, {together}, {str(run)!r}));"
        f"resources = Resources(address={scaled.address!r}, shard_rows=8, **{resources!r});"
        f"leave(execute(asked, {str(run)!r}, Options(resources)).exit_code)"
    )
    return subprocess.Popen([sys.executable, "-c", program], env=scaled.environment, stderr=subprocess.PIPE, text=True)


def committed(run: Path) -> list[int]:
    return sorted(json.loads(path.read_text())["shard"] for path in (run / "sleep/all/receipts").glob("[0-9]*.json"))


def test_nodes_are_asked_for_used_and_given_back_by_a_driver_that_is_killed_too(scaled: Scaled, tmp_path: Path) -> None:
    wait_for(lambda: ask(scaled, "growth.autoscaled()"), "True")
    told = "sorted(cluster.free_of_nodes()) == sorted(cluster.alive_nodes())"
    assert ask(scaled, f"({NODES}, {ASKED}, {told})") == "(1, 0, True)", "the head alone, and nobody asks"

    # Starts without a worker; no row is made before two work, each on a GPU of its own node.
    driver = drive(scaled, tmp_path / "gpu", 64, together=2)
    _, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    assert committed(tmp_path / "gpu") == list(range(8))
    assert len(list((tmp_path / "gpu/up").iterdir())) == 2
    assert ask(scaled, ASKED) == "0"
    wait_for(lambda: ask(scaled, NODES), "1")

    # CPU workers; the driver dies while it works, and what it asked for goes with it.
    driver = drive(scaled, tmp_path / "cpu", 6400, together=0, gpus=0, cpus_per_actor=2)
    wait_for(lambda: str(bool(committed(tmp_path / "cpu"))), "True")
    assert int(ask(scaled, ASKED)) > 0, "workers on CPUs hold none: what was asked for does, so that nodes stay"
    driver.kill()
    driver.communicate(timeout=60)
    wait_for(lambda: ask(scaled, f"({NODES}, {ASKED})"), "(1, 0)")
