"""One driver per run: DESIGN.md, "The engine"."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import RaylensError
from pipeline.lock import NAME, Owner, RunLock
from pipeline.storage import Folder

SPAWN = mp.get_context("spawn")
HOLD = """
import sys, time
from pipeline.lock import RunLock
from pipeline.storage import Folder
with RunLock(Folder(sys.argv[1]), heartbeat_s=60):  # killed between two beats, never within one
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def owner(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def elsewhere(**changes: object) -> Owner:
    """An owner on another machine: whether it lives is not for us to see."""
    return dataclasses.replace(
        Owner("far-away", "another-boot", 4242, "1", "feedbeef"),
        **changes,  # type: ignore[arg-type]
    )


def test_lock_file_tells_who_holds_it_and_is_gone_afterwards(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path / "run"))
    with RunLock(folder):
        told = json.loads(folder.read(NAME))
        assert told["pid"] == os.getpid()
        assert set(told) == {"host", "boot", "pid", "started", "token", "counter"}
    assert folder.list() == {}


def test_live_owner_on_this_machine_is_refused_at_once_by_name(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        began = time.monotonic()
        with pytest.raises(RaylensError) as refused, RunLock(Folder(str(tmp_path)), patience_s=600):
            pass
        assert time.monotonic() - began < 30  # not the patience
        assert f"process {process.pid}" in str(refused.value)
        assert "wait for it, or stop it" in str(refused.value)
        assert process.poll() is None


def test_killed_owner_is_succeeded_at_once_even_before_its_parent_reaped_it(tmp_path: Path) -> None:
    with owner(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 60
        while Owner.from_json((tmp_path / NAME).read_bytes()).dead is False and time.monotonic() < deadline:
            time.sleep(0.01)  # the kernel takes a moment; the process stays a zombie, for nobody has waited for it
        said: list[str] = []
        with RunLock(Folder(str(tmp_path)), patience_s=600, say=said.append) as lock:
            assert json.loads((tmp_path / NAME).read_bytes())["token"] == lock.me.token
        assert said == []
    assert list(tmp_path.iterdir()) == []


def test_pid_that_was_given_to_another_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    stale = dataclasses.replace(Owner.me(), started="1", token="0ld")
    (tmp_path / NAME).write_bytes(stale.to_json())
    with RunLock(Folder(str(tmp_path)), patience_s=600):
        pass


def test_silent_owner_elsewhere_is_succeeded_after_the_patience_with_one_line(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(elsewhere().to_json())
    said: list[str] = []
    began = time.monotonic()
    with RunLock(Folder(str(tmp_path)), patience_s=0.6, say=said.append):
        assert time.monotonic() - began >= 0.6
    assert len(said) == 1
    assert "process 4242 on far-away" in said[0]


def test_owner_elsewhere_whose_counter_moves_is_refused(tmp_path: Path) -> None:
    folder, stop = Folder(str(tmp_path)), threading.Event()

    def beat() -> None:
        for counter in range(10_000):
            folder.write(NAME, elsewhere(counter=counter).to_json())
            if stop.wait(0.1):
                return

    thread = threading.Thread(target=beat)
    folder.write(NAME, elsewhere().to_json())
    thread.start()
    try:
        with pytest.raises(RaylensError, match="process 4242 on far-away"), RunLock(folder, 20, say=lambda _: None):
            pass
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"token": "../../x"}', b"\xff\xfe"])
def test_damaged_lock_file_goes_after_the_patience(tmp_path: Path, data: bytes) -> None:
    (tmp_path / NAME).write_bytes(data)
    with RunLock(Folder(str(tmp_path)), patience_s=0.2, say=lambda _: None) as lock:
        assert json.loads((tmp_path / NAME).read_bytes())["token"] == lock.me.token


def _newcomer(folder: str, together: Any, queue: Any, told: Any) -> None:
    together.wait(240)
    try:
        with RunLock(Folder(folder), patience_s=0.3, say=lambda _: None):
            queue.put("won")
            told.wait(240)
    except RaylensError as error:
        queue.put(str(error))


@pytest.mark.parametrize("stale", ["here", "elsewhere"])
def test_of_newcomers_that_break_a_stale_lock_at_once_one_wins(tmp_path: Path, stale: str) -> None:
    dead = dataclasses.replace(Owner.me(), started="1", token="0ld") if stale == "here" else elsewhere()
    (tmp_path / NAME).write_bytes(dead.to_json())
    together, queue, all_told = SPAWN.Barrier(3), SPAWN.Queue(), SPAWN.Event()
    racers = [SPAWN.Process(target=_newcomer, args=(str(tmp_path), together, queue, all_told)) for _ in range(3)]
    for racer in racers:
        racer.start()
    told = [queue.get(timeout=240) for _ in racers]
    all_told.set()
    for racer in racers:
        racer.join()
    assert told.count("won") == 1
    assert all("another driver is working on this run" in text for text in told if text != "won")
    assert [p.name for p in tmp_path.iterdir()] == []


def test_breaker_that_died_half_way_is_itself_succeeded(tmp_path: Path) -> None:
    first = dataclasses.replace(Owner.me(), started="1", token="f1rst")
    breaker = dataclasses.replace(Owner.me(), started="2", token="s3cond")
    (tmp_path / NAME).write_bytes(first.to_json())
    (tmp_path / "lock-broken-f1rst.json").write_bytes(breaker.to_json())
    with RunLock(Folder(str(tmp_path)), patience_s=600):
        assert [p.name for p in tmp_path.iterdir()] == [NAME]


def test_living_breaker_is_left_to_finish(tmp_path: Path) -> None:
    stale = dataclasses.replace(Owner.me(), started="1", token="0ld")
    (tmp_path / NAME).write_bytes(stale.to_json())
    (tmp_path / "lock-broken-0ld.json").write_bytes(Owner.me().to_json())
    entered = threading.Event()

    def enter() -> None:
        with RunLock(Folder(str(tmp_path)), patience_s=600):
            entered.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    assert not entered.wait(0.5)
    (tmp_path / NAME).unlink()  # the breaker goes on
    assert entered.wait(60)
    thread.join()


@pytest.mark.parametrize("taken", ["by another", "removed"])
def test_owner_that_lost_its_token_is_told_and_leaves_the_new_lock_alone(tmp_path: Path, taken: str) -> None:
    with RunLock(Folder(str(tmp_path)), heartbeat_s=0.05) as lock:
        lock.check()
        for _ in range(300):  # a beat that was under way may write over it once
            if taken == "removed":
                (tmp_path / NAME).unlink(missing_ok=True)
            else:
                Folder(str(tmp_path)).write(NAME, elsewhere().to_json())
            if lock.lost.wait(0.2):
                break
        assert lock.lost.is_set()
        with pytest.raises(RaylensError, match=r"lost the run's lock to process 4242|was removed"):
            lock.check()
    left = [p.name for p in tmp_path.iterdir()]
    assert left == ([] if taken == "removed" else [NAME])


def test_heartbeat_moves_the_counter(tmp_path: Path) -> None:
    with RunLock(Folder(str(tmp_path)), heartbeat_s=0.02):
        seen = set()
        deadline = time.monotonic() + 60
        while len(seen) < 4 and time.monotonic() < deadline:
            seen.add(json.loads((tmp_path / NAME).read_bytes())["counter"])
        assert len(seen) >= 4


def test_lock_on_a_store_that_is_no_disk() -> None:
    folder = Folder("memory://lock-test/run")
    with RunLock(folder), pytest.raises(RaylensError, match="another driver"), RunLock(folder):
        pass
    assert folder.list() == {}


def test_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RaylensError, match="is a file, not a folder"), RunLock(Folder(str(tmp_path / "file" / "run"))):
        pass
