"""What every test may ask for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import pipeline  # noqa: F401 (before any test imports Ray, as a driver does: Ray reads then what this sets)

# How long a busy machine takes for an example tells nothing. A commit is judged by the same examples each time;
# ``make fuzz`` looks for new ones.
settings.register_profile(
    "patient",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("RAYLENS_FUZZ"),
)
settings.load_profile("patient")

os.environ.setdefault("RAY_AUTH_MODE", "token")  # what a session started here has; read when Ray is imported
if "RAY_AUTH_TOKEN_PATH" not in os.environ:  # without one Ray writes one to the home folder
    os.environ.setdefault("RAY_AUTH_TOKEN", "5c1e8a37f02b4d96" * 4)

# A shell's background job ignores interruptions, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).parent.parent
HEAD = """
import sys, ray
quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
print("address", ray.init(address="local", num_cpus=2, **quiet).address_info["gcs_address"], flush=True)
sys.stdin.read()  # until the tests are over, or killed
"""


@pytest.fixture(autouse=True)
def _same_torch_in_each_test() -> Iterator[None]:
    yield from _same_torch()


@pytest.fixture(autouse=True, scope="module")
def _same_torch_in_each_module() -> Iterator[None]:
    yield from _same_torch()


def _same_torch() -> Iterator[None]:
    """What a test draws and how sums are rounded does not depend on which tests this process ran before."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


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
        _kill_family(head)
    try:
        assert address, f"Ray did not start: {log.read_text()}"
        yield replace(session, address=address)
    finally:
        _end(head)


def _address(head: subprocess.Popen[str], log: Path) -> str:
    """What the head says once it is up; nothing where it ended instead, or says nothing for too long."""
    until = time.monotonic() + 90
    while True:
        ended = head.poll() is not None or time.monotonic() > until
        for line in log.read_text().splitlines(keepends=True):
            if line.startswith("address ") and line.endswith("\n"):
                return line.split()[1]
        if ended:
            return ""
        time.sleep(0.1)


def _end(head: subprocess.Popen[str]) -> None:
    """Let it shut Ray down, which a busy machine may not do in a minute: then what it started goes with it."""
    try:
        head.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        _kill_family(head)


@pytest.fixture(scope="session")
def kill_family() -> Callable[[subprocess.Popen[Any]], None]:
    return _kill_family


def _kill_family(process: subprocess.Popen[Any]) -> None:
    """A process that started Ray, and all that is Ray's; asked politely that takes half a minute."""
    import ray  # noqa: F401 - brings psutil
    import psutil  # isort: skip

    family = [process]
    with contextlib.suppress(psutil.NoSuchProcess):
        family += psutil.Process(process.pid).children(recursive=True)
    for each in family:
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            each.kill()
    process.wait(30)


@pytest.fixture(scope="module")
def joined(ray_session: RaySession) -> Iterator[RaySession]:
    """This process is a driver of that session, and imports from its folder as its workers do."""
    import ray

    for left in (3, 2, 1, 0):  # tries: a busy machine may not answer in time
        ray.shutdown()
        try:
            ray.init(address=ray_session.address, log_to_driver=False, logging_level="ERROR")
            break
        except Exception:  # Ray raises a bare one
            if not left:
                raise
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
