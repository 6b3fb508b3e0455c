"""Three nodes, each started by hand with `ray start` and a token, as the README says: one is lost, then the head is."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

FAULTS = str(Path(__file__).resolve().parents[1] / "faults")
if FAULTS not in sys.path:
    sys.path.insert(0, FAULTS)

import driving  # noqa: E402
from driving import receipts, wait_for  # noqa: E402
from toys import toy_job  # noqa: E402

pytestmark = [pytest.mark.faults, pytest.mark.long, pytest.mark.timeout(900)]
TOKEN = "7d3b9a51c04e4f7f8a6e2b90d1c5f348"
SHARDS = 30
KEYS = {"keys": 24 * SHARDS}
JOINED = "Ray runtime started."  # what a node says once its cluster has it

Process = subprocess.Popen[bytes]


class Nodes:
    """What `ray start --block` starts: each node with all it starts is a family of processes of its own."""

    def __init__(
        self, folder: Path, free_ports: Callable[[int], list[int]], kill_family: Callable[[Process], None]
    ) -> None:
        self._folder, self._free_ports, self.kill = folder, free_ports, kill_family
        self.address = ""  # of the last head that was started
        self.settings = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "PYTHONUNBUFFERED": "",  # as a driver whose output goes to a file has it
            "RAY_gcs_rpc_server_reconnect_timeout_s": "30",  # after which Ray gives a lost head up; a minute, else
        }
        self._started: list[Process] = []

    def cluster(self) -> list[Process]:
        """A head and two more nodes, of one CPU each."""
        port, client = self._free_ports(2)  # another one each time: the last head's may have been taken since
        self.address = f"127.0.0.1:{port}"
        head = ("--head", f"--port={port}", "--include-dashboard=false", f"--ray-client-server-port={client}")
        return [self._node(*options) for options in (head, *[(f"--address={self.address}",)] * 2)]

    def _node(self, *options: str) -> Process:
        """A node that has joined; where a machine is too busy to start Ray in time, another one."""
        for _ in range(4):
            log = self._folder / f"node-{len(self._started)}.log"
            process = self._start(log, *options)
            self._started.append(process)
            wait_for(lambda log=log, process=process: JOINED in log.read_text() or process.poll() is not None)
            if process.poll() is None:
                return process
            self.kill(process)
        raise AssertionError(log.read_text())

    def _start(self, log: Path, *options: str) -> Process:
        agent, grpc, metrics = self._free_ports(3)
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1", *options]
        command += [f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={grpc}"]
        command += [f"--metrics-export-port={metrics}", "--disable-usage-stats"]
        clean = {name: value for name, value in driving.environment().items() if not name.startswith("RAY_")}
        with log.open("w") as output:
            return subprocess.Popen(
                command, env={**clean, **self.settings}, stdout=output, stderr=output, start_new_session=True
            )

    def close(self) -> None:
        for process in self._started:
            self.kill(process)


@pytest.fixture
def nodes(
    tmp_path: Path, free_ports: Callable[[int], list[int]], kill_family: Callable[[Process], None]
) -> Iterator[Nodes]:
    found = Nodes(tmp_path, free_ports, kill_family)
    yield found
    found.close()


def test_a_node_is_lost_and_then_the_head_and_a_rerun_ends_as_if_nothing_had_happened(
    nodes: Nodes, tmp_path: Path
) -> None:
    run, log, seen = tmp_path / "run", tmp_path / "log", tmp_path / "seen"
    seen.mkdir()
    head, first, second = nodes.cluster()
    with log.open("w") as output:
        toy = {**KEYS, "pause_s": 1.0, "markers": str(seen)}
        driver = driving.start(run, toy, {"address": nodes.address}, output, nodes.settings)
    over = driver.poll
    try:
        wait_for(lambda: (len(list(seen.iterdir())) == 3 and receipts(run)) or over() is not None)
        assert over() is None, log.read_text()
        nodes.kill(first)
        before = receipts(run)
        wait_for(lambda: receipts(run) > before + 1 or over() is not None)
        assert over() is None, log.read_text()
        nodes.kill(head)
        assert driver.wait(120) != 0
        assert re.search(r"the head of the cluster \(\S+\) does not answer", log.read_text())
    finally:
        driver.kill()
        driver.wait()
    nodes.kill(second)  # it has no head any more
    committed = {file.name: file.stat().st_mtime_ns for file in (run / "measure/all/receipts").iterdir()}
    assert 2 <= len(committed) < SHARDS, log.read_text()

    nodes.cluster()
    with log.open("a") as output:
        driver = driving.start(run, KEYS, {"address": nodes.address}, output, nodes.settings)
    assert driver.wait(240) == 0, log.read_text()
    after = {file.name: file.stat().st_mtime_ns for file in (run / "measure/all/receipts").iterdir()}
    assert {name: after[name] for name in committed} == committed, "what was committed is made once"
    driving.undisturbed(tmp_path / "quiet", toy_job(**KEYS))
    assert driving.files_of(run) == driving.files_of(tmp_path / "quiet")
    print(f"{len(committed)} of {SHARDS} shards committed when the head was killed, none of them made again")
