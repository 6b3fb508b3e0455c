"""A Ray head of its own with a dashboard and a token, as a shared cluster has."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

TOKEN = "2f1c0d5e8b7a4c9d96f3a1b2c3d4e5f6"


@dataclass(frozen=True)
class Head:
    """Where its job server answers, and the environment of one who may talk to it."""

    address: str
    environment: dict[str, str]
    metrics: str  # where Prometheus would read
    gcs: str  # what a driver joins: a submitted one finds it in RAY_ADDRESS, which the head sets


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    return _free_ports


@pytest.fixture(scope="module")
def head(
    tmp_path_factory: pytest.TempPathFactory, kill_family: Callable[[subprocess.Popen[bytes]], None]
) -> Iterator[Head]:
    python = Path(sys.executable)
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "500",
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    names = (
        "port",
        "dashboard-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "ray-client-server-port",
        "metrics-export-port",
    )
    log = tmp_path_factory.mktemp("head") / "log"
    # Ray's job server looks up its own cluster in a file of this folder, which another head here would overwrite.
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: Ray's sockets lie in it
    for _ in range(4):  # Ray gives up where a machine is too busy to start it in half a minute
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        command = [str(python.parent / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
        command += [f"--temp-dir={folder}"]
        command += [f"--{name}={number}" for name, number in ports.items()]
        with log.open("w") as file:
            process = subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        if up := _comes_up(process, log, f"{address}/api/version"):
            break
        kill_family(process)
    try:
        assert up, log.read_text()
        metrics = f"http://127.0.0.1:{ports['metrics-export-port']}/metrics"
        yield Head(address, environment, metrics, f"127.0.0.1:{ports['port']}")
    finally:
        kill_family(process)
        shutil.rmtree(folder, ignore_errors=True)


def _comes_up(process: subprocess.Popen[bytes], log: Path, url: str) -> bool:
    """The dashboard answers before the node is up, which may still be given up."""
    end = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < end:
        if "Ray runtime started" in log.read_text() and _answers(url):
            return True
        time.sleep(0.2)
    return False


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError:
        return True  # it wants a token
    except OSError:
        return False
    return True
