"""One driver per run: a lock file with a heartbeat.

The lock saves work; correctness rests on receipts alone. So it may err (clocks, network file systems and stopped
machines make every such lock err now and then), and an owner that finds its token gone simply stops.

A lock is broken at once when its owner is a dead process of this host and boot, otherwise when its counter has not
moved for a while of the newcomer's own monotonic clock: no two clocks are ever compared. Before a stale lock is
replaced, a marker named after its token is created exclusively, so that of many newcomers one wins. A breaker that dies
half-way is itself broken the same way, by a marker named after its token.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import secrets
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from pipeline.errors import RaylensError
from pipeline.storage import Folder

NAME = "lock.json"
_LEFT: set[str] = set()  # tokens of this process that it holds no more, whether or not their lock could be removed


@dataclasses.dataclass(frozen=True)
class Owner:
    """Who holds the lock. ``boot`` names this boot and process namespace: only there does a pid mean anything."""

    host: str
    boot: str
    pid: int
    started: str  # of the process, in whatever form the system tells it: a pid may be used again
    token: str
    counter: int = 0

    @classmethod
    def me(cls) -> Owner:
        pid = os.getpid()
        return cls(platform.node(), _boot(), pid, _started(pid) or "", secrets.token_hex(8))

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Owner:
        """A damaged lock is owned by nobody we know: it goes when it has not changed for the patience."""
        try:
            fields = json.loads(data)
            text = {name: str(fields[name]) for name in ("host", "boot", "started", "token")}
            if not text["token"].isalnum():
                raise ValueError("the token becomes part of a file name")
            return cls(pid=int(fields["pid"]), counter=int(fields["counter"]), **text)
        except (ValueError, KeyError, TypeError):
            return cls("", "", -1, "", hashlib.sha256(data).hexdigest()[:16])

    @property
    def here(self) -> bool:
        """Whether this process can tell for certain if the owner lives."""
        return self.pid > 0 and bool(self.boot) and (self.host, self.boot) == (platform.node(), _boot())

    @property
    def dead(self) -> bool:
        return self.here and (_started(self.pid) != self.started or self.token in _LEFT)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}" if self.pid > 0 else "an unknown process"


class RunLock:
    """Hold the run folder for this process: ``with RunLock(folder) as lock: ...``.

    ``lock.lost`` is set when another driver took the lock (or somebody removed it); callers then stop. A live owner is
    a RaylensError. An owner on another host is watched for at most ``patience_s``, with one line through ``say``.
    """

    def __init__(
        self,
        folder: Folder,
        patience_s: float = 60.0,
        heartbeat_s: float = 5.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.patience_s, self.heartbeat_s, self.say = folder, patience_s, heartbeat_s, say
        self.me = Owner.me()
        self.lost = threading.Event()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> RunLock:
        self._acquire()
        self._thread = threading.Thread(target=self._beat, name="raylens-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self.me.pid:  # a forked child leaves its parent's lock alone
            return
        self._done.set()
        if self._thread is not None:
            self._thread.join(timeout=30)
        # A full disk or a lost network must not hide what the block raised; a dead pid frees the lock anyway.
        with contextlib.suppress(OSError, RaylensError):
            if not self.lost.is_set() and self._holds():
                self.folder.remove(NAME)
        _LEFT.add(self.me.token)

    def check(self) -> None:
        """RaylensError when the lock was lost."""
        if self.lost.is_set():
            owner = self._owner()
            raise RaylensError(
                f"this driver lost the run's lock to {owner}" if owner else "the run's lock was removed",
                where=self.folder.path(NAME),
                cure="nothing committed is lost; let the other driver finish, or run again",
            )

    def _acquire(self) -> None:
        watched: tuple[str, int] | None = None  # token and counter of the owner being watched
        since = 0.0
        while True:
            if self.folder.create(NAME, self.me.to_json()) and self._holds():
                return
            owner = self._owner()
            if owner is None:  # released just now
                continue
            if owner.dead:
                if self._break(owner):
                    return
                time.sleep(0.05)
                continue
            if owner.here:
                self._refuse(owner)
            now = time.monotonic()
            if watched is None or watched[0] != owner.token:
                self.say(
                    f"{self.folder.path(NAME)}: held by {owner}; waiting up to {self.patience_s:.0f} s "
                    "to see whether it still lives"
                )
                watched, since = (owner.token, owner.counter), now
            elif watched[1] != owner.counter:
                self._refuse(owner)
            elif now - since >= self.patience_s:
                if self._break(owner):
                    return
                watched = None
            time.sleep(min(0.5, self.patience_s / 20))

    def _refuse(self, owner: Owner) -> None:
        raise RaylensError(
            f"another driver is working on this run: {owner}",
            where=self.folder.path(NAME),
            cure=f"wait for it, or stop it (on {owner.host}: kill {owner.pid}), then run the same command again",
        )

    def _break(self, stale: Owner) -> bool:
        """Take the place of a stale owner; False when another newcomer is doing so or has done so."""
        token, markers = stale.token, []
        while True:
            marker = f"lock-broken-{token}.json"
            markers.append(marker)
            if self.folder.create(marker, self.me.to_json()):
                break
            try:
                breaker = Owner.from_json(self.folder.read(marker))
            except FileNotFoundError:  # it has just finished
                return False
            if breaker.token == token or not self._gone(marker, breaker):
                return False
            token = breaker.token
        # Markers are removed only after the lock has been replaced: whoever made one afresh sees another token here.
        owner = self._owner()
        if owner is None or owner.token != stale.token:
            self.folder.remove(marker)
            return False
        self.folder.write(NAME, self.me.to_json())
        for name in reversed(markers):
            self.folder.remove(name)
        return self._holds()

    def _gone(self, marker: str, breaker: Owner) -> bool:
        """Whether a breaker died half-way; one elsewhere gets our patience once more, for it takes but a moment."""
        if breaker.here:
            return breaker.dead
        until = time.monotonic() + self.patience_s
        while time.monotonic() < until:
            if not self.folder.exists(marker):
                return False
            time.sleep(min(0.5, self.patience_s / 20))
        return True

    def _owner(self) -> Owner | None:
        try:
            return Owner.from_json(self.folder.read(NAME))
        except FileNotFoundError:
            return None

    def _holds(self) -> bool:
        owner = self._owner()
        return owner is not None and owner.token == self.me.token

    def _beat(self) -> None:
        while not self._done.wait(self.heartbeat_s):
            # A full disk or a lost network: try again; whether the lock still stands is seen when reading works again.
            with contextlib.suppress(OSError, RaylensError):
                if not self._holds():
                    self.lost.set()
                    return
                self.me = dataclasses.replace(self.me, counter=self.me.counter + 1)
                self.folder.write(NAME, self.me.to_json())


def _boot() -> str:
    """This boot, and this process namespace: containers of one machine share the boot but not the pids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return _tell("sysctl", "-n", "kern.boottime")  # macOS; empty elsewhere: then every owner gets the patience


def _started(pid: int) -> str | None:
    """When a process started, None when there is none (or only a killed one that its parent has not reaped)."""
    if Path("/proc/self/stat").exists():
        try:
            # The name in parentheses may hold anything; state is the first field after it, start time the 20th.
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZXx" else fields[19]
    return _tell("ps", "-o", "lstart=", "-p", str(pid)) or None


def _tell(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
