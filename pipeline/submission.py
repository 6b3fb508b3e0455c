"""Jobs on a Ray cluster by its job server: submitted, followed, listed, stopped. Knows commands, and no method."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import RaylensError, UsageError
from pipeline.redaction import redact_text

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_STOP_WAIT_S = 30  # before the cluster kills a driver that was asked to stop: it finishes the slice in hand first
_RETRY_S = 1.0
_SILENT_POLLS = 60  # while following: a head that is busy does not answer at once
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclasses.dataclass(frozen=True)
class Submitted:
    """A job as the cluster tells of it. Times are seconds since 1970."""

    id: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    command: str
    run: str
    config: str  # digest of what it was submitted with
    began: float | None
    ended: float | None
    message: str = ""
    exit_code: int | None = None

    @property
    def over(self) -> bool:
        return self.status in _ENDED


class JobServer:
    """The job server of the cluster whose dashboard is at ``address``.

    The token is RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, as for Ray itself.

    UsageError: no http(s) address; a token that would go over plain http to another machine, unless ``insecure``.
    RaylensError: nobody answers there, or the token is missing or wrong.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, *, insecure: bool = False) -> None:
        self.address = address.rstrip("/")
        token = auth_token()
        _refuse_other_addresses(self.address)
        if token is not None and not insecure:
            _refuse_plain_http(self.address)
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard").setLevel(logging.ERROR)
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        with _told(self.address), _no_ray_address():
            self._client = JobSubmissionClient(self.address, headers=headers)

    def submit(
        self,
        command: Sequence[str],
        run: str,
        *,
        name: str,
        config: str,
        files: Path,
        modules: Sequence[Path],
        env: Mapping[str, str],
    ) -> Submitted:
        """Start ``command`` on the head with ``files`` as its working folder; ``modules`` go to every worker.

        A run that a job there is already working on is not started again: that job is returned.
        """
        for job in self.jobs():
            if job.run == run and not job.over:
                return job
        environment: dict[str, Any] = {
            "working_dir": str(files),
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S), **env},
        }
        if modules:
            environment["py_modules"] = [str(path) for path in modules]
        with _told(self.address):
            found = self._client.submit_job(
                entrypoint=shlex.join(command),
                submission_id=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}",
                runtime_env=environment,
                metadata={"run": run, "raylens": name, "config": config},
            )
        return self.job(found)

    def job(self, id: str) -> Submitted:
        """One job. UsageError: there is none of this id."""
        with _told(self.address, id):
            return _submitted(self._client.get_job_info(id))

    def jobs(self) -> list[Submitted]:
        """What was submitted for a run, the newest first."""
        with _told(self.address):
            listed = [_submitted(job) for job in self._client.list_jobs() if job.submission_id]
        return sorted((job for job in listed if job.run), key=lambda job: -(job.began or 0))

    def stop(self, id: str) -> bool:
        """Ask a job to stop; it finishes the slice in hand. False where it was over already."""
        if self.job(id).over:
            return False
        with _told(self.address, id):
            return bool(self._client.stop_job(id))

    def follow(self, id: str, write: Callable[[str], None]) -> Submitted:
        """Pass on the job's output until it ends, each character once, over broken connections too.

        An interruption (KeyboardInterrupt) leaves the job running. RaylensError: the server is gone for a minute.
        """
        log, silent = _Log(write), 0
        while True:
            before = log.shown
            try:
                asyncio.run(self._tail(id, log))
            except Exception as error:
                if not _broken(error):
                    raise
            try:
                job = self.job(id)
            except UsageError:
                raise
            except RaylensError:
                silent += 1
                if silent > _SILENT_POLLS:
                    raise
            else:
                silent = 0
                if job.over and log.shown == before:  # nothing came after its end
                    return job
            time.sleep(_RETRY_S)

    async def _tail(self, id: str, log: _Log) -> None:
        log.begin()
        async for text in self._client.tail_job_logs(id):
            log.take(text)


class _Log:
    """A job's output so far. Every new connection tells it from the beginning; what was shown is not shown again."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self.shown = self._seen = 0

    def begin(self) -> None:
        self._seen = 0

    def take(self, text: str) -> None:
        self._seen += len(text)
        if self._seen > self.shown:
            self._write(text[-(self._seen - self.shown) :])
            self.shown = self._seen


def auth_token() -> str | None:
    """The token where Ray would look for it; None where there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    with contextlib.suppress(OSError):
        return path.read_text().strip() or None
    return None


def _refuse_other_addresses(address: str) -> None:
    """UsageError for what Ray would take for something else: any cluster, a module to import, a host to wait for."""
    with contextlib.suppress(ValueError):  # no port, half an IPv6 address
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return
    raise UsageError(
        f"{redact_text(address)!r} is no address of a job server",
        where="--address",
        cure=f"write http://HOST:PORT, as in {DEFAULT_ADDRESS}",
    )


def _refuse_plain_http(address: str) -> None:
    """UsageError where a token sent to ``address`` could be read on the way."""
    parts = urlsplit(address)
    if parts.scheme == "http" and not _loopback(parts.hostname or ""):
        raise UsageError(
            f"the token would go over plain http to {parts.hostname}",
            where="--address",
            cure=f"open a tunnel ('ray dashboard cluster.yaml') and use {DEFAULT_ADDRESS}, or https, or --insecure",
        )


def environment_file(path: Path) -> dict[str, str]:
    """NAME=value lines; empty lines and those that begin with # are left out. UsageError names the line."""
    found = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot be read ({error})", where=str(path), cure="name a file of NAME=value lines"
        ) from error
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name.strip()):
            raise UsageError("this line is not NAME=value", where=f"{path}, line {number}", cure="correct it")
        found[name.strip()] = value.strip().strip("'\"")
    return found


def _broken(error: Exception) -> bool:
    """A connection that broke, in Ray's words or in those of the library it uses."""
    return isinstance(error, (RuntimeError, OSError)) or type(error).__module__.partition(".")[0] == "aiohttp"


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _submitted(job: Any) -> Submitted:
    times = [None if value is None else value / 1000 for value in (job.start_time, job.end_time)]
    metadata = job.metadata or {}
    return Submitted(
        id=job.submission_id or job.job_id or "",
        status=str(getattr(job.status, "value", job.status)),
        command=job.entrypoint,
        run=metadata.get("run", ""),
        config=metadata.get("config", ""),
        began=times[0],
        ended=times[1],
        message=job.message or "",
        exit_code=job.driver_exit_code,
    )


@contextlib.contextmanager
def _told(address: str, id: str = "") -> Iterator[None]:
    """What the job server answers, as one line with a cure."""
    try:
        yield
    except RaylensError:
        raise
    except Exception as error:
        text = str(error)
        if type(error).__name__ == "AuthenticationError":
            raise RaylensError(
                "the cluster wants a token, and " + ("refuses this one" if auth_token() else "none was found"),
                where=address,
                cure="set RAY_AUTH_TOKEN, or copy the head's ~/.ray/auth_token to this machine",
            ) from error
        if id and "status code 404" in text:
            raise UsageError(f"there is no job '{id}'", where=address, cure="'raylens jobs' lists them") from error
        if isinstance(error, OSError):
            raise RaylensError(
                "no job server answers", where=address, cure="check --address; is the tunnel ('ray dashboard') open?"
            ) from error
        raise RaylensError(
            f"the job server refuses: {text.strip().splitlines()[0][:300] if text.strip() else type(error).__name__}",
            where=address,
            cure="see the cluster's dashboard",
        ) from error


@contextlib.contextmanager
def _no_ray_address() -> Iterator[None]:
    """Ray lets RAY_ADDRESS win over what it is given."""
    names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
