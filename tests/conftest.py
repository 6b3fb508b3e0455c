"""What every test may ask for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "token")  # what a session started here has; read when Ray is imported
if "RAY_AUTH_TOKEN_PATH" not in os.environ:  # without one Ray writes one to the home folder
    os.environ.setdefault("RAY_AUTH_TOKEN", "5c1e8a37f02b4d96" * 4)

ROOT = Path(__file__).parent.parent
HEAD = """
import sys, ray
quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
print("address", ray.init(address="local", num_cpus=2, **quiet).address_info["gcs_address"], flush=True)
sys.stdin.read()  # until the tests are over, or killed
"""


@dataclass(frozen=True)
class RaySession:
    """A running Ray of two CPUs: where to join it, and a folder from which its workers import."""

    address: str
    modules: Path

    @property
    def path(self) -> str:
        return os.pathsep.join([str(self.modules), str(ROOT)])


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RaySession]:
    """Starting Ray takes longer than most tests: who needs no Ray of its own joins this one. It is its own process."""
    session = RaySession("", tmp_path_factory.mktemp("modules"))
    environment = {**os.environ, "PYTHONPATH": session.path}
    log = tmp_path_factory.mktemp("ray") / "log"  # a pipe that nobody reads fills up, and its writer waits
    for _ in range(4):  # Ray gives up where a machine is too busy to start it in half a minute
        with log.open("w") as output:
            head = subprocess.Popen(
                [sys.executable, "-c", HEAD],
                env=environment,
                text=True,
                cwd=session.modules,
                stdin=subprocess.PIPE,
                stdout=output,
            )
        if address := _address(head, log):
            break
    try:
        assert address, f"Ray did not start: {log.read_text()}"
        yield replace(session, address=address)
    finally:
        head.communicate(timeout=60)


def _address(head: subprocess.Popen[str], log: Path) -> str:
    """What the head says once it is up; nothing where it ended instead."""
    while True:
        ended = head.poll() is not None
        for line in log.read_text().splitlines(keepends=True):
            if line.startswith("address ") and line.endswith("\n"):
                return line.split()[1]
        if ended:
            return ""
        time.sleep(0.1)


@pytest.fixture(scope="module")
def joined(ray_session: RaySession) -> Iterator[RaySession]:
    """This process is a driver of that session, and imports from its folder as its workers do."""
    import ray

    ray.shutdown()
    ray.init(address=ray_session.address, log_to_driver=False, logging_level="ERROR")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ray_session.modules))
        patch.setenv("PYTHONPATH", ray_session.path)  # of the processes that tests start
        yield ray_session
    ray.shutdown()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real weights and images; without it the test is skipped with a reason."""
    folder = os.environ.get("RAYLENS_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("RAYLENS_TEST_DATA names no folder: tests on real weights and images need it")
    return Path(folder)
