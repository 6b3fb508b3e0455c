"""A proxy before an object store that answers badly now and then, as one on the other side of a network does."""

from __future__ import annotations

import collections
import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_ONE_AT_A_TIME = threading.Lock()
_BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_IN_A_ROW = 2  # faults of one request, sent again and again
_HOP = {"connection", "transfer-encoding", "content-length"}


class BadProxy:
    """Passes requests on, but for a share of each kind of fault, drawn from a seed:

    ``busy`` answers 503, ``reset`` breaks the connection before the store has seen the request, ``lost`` after it
    (what was asked for is done, and nobody says so), ``slow`` lets the answer wait.
    """

    def __init__(self, seed: int = 1) -> None:
        self.upstream = ("127.0.0.1", 9)  # to be set: nobody is there
        self.met: collections.Counter[str] = collections.Counter()
        self._random, self._shares = random.Random(seed), dict[str, float]()
        self._next: list[str] = []
        self._in_a_row: collections.Counter[tuple[str, str]] = collections.Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="bad-proxy", daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def failing(self, **shares: float) -> Iterator[None]:
        """Within the block requests meet these shares of faults."""
        self.met.clear()
        self._shares = shares
        try:
            yield
        finally:
            self._shares = {}

    def fail_next(self, *faults: str) -> None:
        """What the next requests that write meet, one after another."""
        self._next = list(faults)

    def fault(self, method: str, path: str) -> str:
        with self._lock:
            found = ""
            if self._next and method in ("PUT", "POST"):
                found = self._next.pop(0)
            elif self._shares and self._in_a_row[(method, path)] < _IN_A_ROW:
                drawn = self._random.random()
                for kind, share in self._shares.items():
                    drawn -= share
                    if drawn < 0:
                        found = kind
                        break
            if found in ("busy", "reset", "lost"):
                self._in_a_row[(method, path)] += 1
            else:
                self._in_a_row.pop((method, path), None)
            if found:
                self.met[found] += 1
            return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: BadProxy

    def log_message(self, *_: object) -> None:
        pass

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.fault(self.command, self.path)
        if fault == "busy":
            self._answer(503, {"Content-Type": "application/xml"}, _BUSY)
            return
        if fault == "reset":
            self._break_off()
            return
        store = http.client.HTTPConnection(*self.proxy.upstream, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        # What a store does in one step: the one behind this looks first and then writes, and two could pass.
        with _ONE_AT_A_TIME if "If-None-Match" in headers else contextlib.nullcontext():
            store.request(self.command, self.path, body, headers)
            answer = store.getresponse()
            data = answer.read()
        store.close()
        if fault == "lost":
            self._break_off()
            return
        if fault == "slow":
            time.sleep(0.5)
        self._answer(answer.status, dict(answer.getheaders()), data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on  # noqa: N815 - the server's own names

    def _answer(self, status: int, headers: Mapping[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in _HOP or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _break_off(self) -> None:
        """A reset, not a clean end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
