"""Telling that the head of the cluster is gone: Ray itself is silent until it ends the driver, after a minute."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType

_EVERY_S, _TIMEOUT_S = 5.0, 5.0
_ADDRESS = re.compile(r".+:\d+")
_MISSES = 2  # told when it did not answer so many times in a row


class HeadWatch:
    """``with HeadWatch(say):`` while a driver works; one line when the head answers no more, one when it does again.

    ``address`` gives ``host:port`` of the head's control service, "" while no cluster is joined.
    """

    def __init__(self, say: Callable[[str], None], address: Callable[[], str] | None = None) -> None:
        self._say, self._address = say, address or _joined
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="raylens-head", daemon=True)

    def __enter__(self) -> HeadWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(timeout=2 * _TIMEOUT_S)

    def _watch(self) -> None:
        misses = 0
        while not self._done.wait(_EVERY_S):
            address = self._address()
            if not address or _answers(address):
                if misses >= _MISSES:
                    self._say(f"the head of the cluster ({address}) answers again")
                misses = 0
                continue
            misses += 1
            if misses == _MISSES:
                self._say(
                    f"the head of the cluster ({address}) does not answer: without it Ray soon ends this driver. What "
                    "is committed is safe; once there is a head, run the same command again to resume"
                )


def _joined() -> str:
    if "pipeline.cluster" not in sys.modules:  # nobody has joined one
        return ""
    with contextlib.suppress(Exception):  # it may be left, or be on its way in, at any moment
        import ray

        from pipeline.cluster import joined

        address = joined() or ""
        if _ADDRESS.fullmatch(address) and not ray.util.client.ray.is_connected():  # its server sees a client's head
            return address
    return ""


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT_S):
        return True
    return False
