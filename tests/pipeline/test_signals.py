"""A process that is asked to go is gone in time, whatever holds it up: each is a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.lock import RunLock
from pipeline.storage import Folder

# The patience is 1 s instead of 19; whatever holds a process up does so for longer than any test may take.
PROGRAM = """
import atexit, os, signal, sys, threading, time
from pipeline import leaving, lock
from pipeline.signals import RunStopped, StopOnSignals
from pipeline.storage import Folder

leaving._PATIENCE_S = {patience}
held = lock.RunLock(Folder(sys.argv[1]))
{holds_up}
code = 0
print("begun")
try:
    with StopOnSignals(held) as stop:
        {work}
        stop.check()
except RunStopped as stopped:
    print(stopped, file=sys.stderr)
    code = 1
leaving.leave(code)
"""
ASKED = "os.kill(os.getpid(), signal.SIGTERM)"
AT_EXIT = "atexit.register(time.sleep, 3600)"
NO_LOCK = "held._beat = lambda: time.sleep(3600); threading.Thread.join = lambda thread, timeout: time.sleep(3600)"


def ended(folder: Path, holds_up: str, work: str, patience: float = 1.0) -> subprocess.CompletedProcess[str]:
    """``patience``: more where it ends by itself, which a busy machine may not do in a second."""
    program = PROGRAM.format(holds_up=holds_up, work=work, patience=patience)
    return subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=240, check=False
    )


def test_exit_functions_that_take_long_hold_up_no_process_that_was_asked_to_go(tmp_path: Path) -> None:
    found = ended(tmp_path, AT_EXIT, ASKED, patience=5.0)
    assert (found.returncode, found.stdout) == (1, "begun\n")
    assert found.stderr == "stopped on request\n  -> run the same command again to resume\n"
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.parametrize(
    ("holds_up", "work"),
    [("", f"{ASKED}; time.sleep(3600)"), (NO_LOCK, ASKED)],
    ids=["its work", "giving the lock back"],
)
def test_neither_its_work_nor_its_lock_holds_it_up_and_a_rerun_need_not_wait(
    tmp_path: Path, holds_up: str, work: str
) -> None:
    found = ended(tmp_path, holds_up, work)
    assert (found.returncode, found.stderr) == (1, "stopped; run the same command again to resume\n")
    assert (tmp_path / "lock.json").exists()
    with RunLock(Folder(str(tmp_path)), patience_s=3600.0, say=lambda _: pytest.fail("waits")):
        pass


def test_without_a_request_exit_functions_have_all_the_time_they_need(tmp_path: Path) -> None:
    found = ended(tmp_path, "atexit.register(print, 'done'); atexit.register(time.sleep, 2)", "pass")
    assert (found.returncode, found.stdout, found.stderr) == (0, "begun\ndone\n", "")


def test_a_request_that_ended_other_work_before_is_forgotten(tmp_path: Path) -> None:
    before = f"""
try:
    with StopOnSignals(lock.RunLock(Folder(sys.argv[1]))) as stop:
        {ASKED}
        stop.check()
except RunStopped:
    atexit.register(print, 'done')
    atexit.register(time.sleep, 6)
"""
    found = ended(tmp_path, before, "pass", patience=5.0)
    assert (found.returncode, found.stdout) == (0, "begun\ndone\n")
