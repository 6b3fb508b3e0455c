"""A head that goes and comes back, played by a socket."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from pipeline.head_watch import HeadWatch


def wait_for(what: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_it_tells_once_that_the_head_is_gone_and_once_that_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.head_watch._EVERY_S", 0.05)
    said: list[str] = []
    looks = 0
    joined = ""

    def address() -> str:
        nonlocal looks
        looks += 1
        return joined

    def looked(times: int) -> None:
        before = looks
        wait_for(lambda: looks >= before + times)

    with HeadWatch(said.append, address):
        looked(5)  # no cluster is joined
        head = socket.create_server(("127.0.0.1", 0), backlog=128)
        port = head.getsockname()[1]
        joined = f"127.0.0.1:{port}"
        looked(5)
        assert said == []
        head.close()
        wait_for(lambda: said)
        looked(5)
        (gone,) = said
        assert gone.startswith(f"the head of the cluster ({joined}) does not answer")
        assert "run the same command again to resume" in gone
        with socket.create_server(("127.0.0.1", port), backlog=128):
            wait_for(lambda: len(said) == 2)
            looked(5)
    assert said[1:] == [f"the head of the cluster ({joined}) answers again"]
