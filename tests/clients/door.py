"""A real server between an SDK and the collector: refuses, cuts off or forwards, and notes what passed.

It stands where a load balancer would, so that the SDK and the collector both stay unmodified.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from running import wait_until

RETRY_AFTER_SECONDS = 1

# An act that is not the status of a refusal: the collector gets the post, its answer never arrives.
CUT = 0


@dataclass
class Exchange:
    """One request that came to this door, and its answer's status: CUT for no answer, None while it is under way."""

    at: float
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int | None = None

    @property
    def sent(self) -> Any:
        """What the body says."""
        plain = gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body
        return json.loads(plain)


class Door:
    """A proxy on a free port of the loopback address, with a plan for the next posts."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.exchanges: list[Exchange] = []
        self._plan: deque[int] = deque()
        self._lock = threading.Lock()
        self._open(0)

    @property
    def url(self) -> str:
        """Where an SDK finds this door."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def answer_next(self, *acts: int) -> None:
        """Sets what happens to the next posts: a status to refuse with, or CUT; later posts are forwarded."""
        with self._lock:
            self._plan.extend(acts)

    def recover(self) -> None:
        """Forwards from now on, whatever was planned."""
        with self._lock:
            self._plan.clear()

    def next_act(self) -> int | None:
        with self._lock:
            return self._plan.popleft() if self._plan else None

    @property
    def posts(self) -> list[Exchange]:
        """The requests with events, in the order of their arrival; waits for the answers under way."""
        wait_until(lambda: all(one.status is not None for one in list(self.exchanges)))
        return [one for one in list(self.exchanges) if one.method == "POST"]

    def go_away(self) -> None:
        """Cuts every connection and refuses new ones, as a server that is down."""
        self.close()
        for connection in self._server.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Listens again where it did."""
        self._open(self._server.server_address[1])

    def close(self) -> None:
        """Stops the server and its threads."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _open(self, port: int) -> None:
        self._server = _Server(("127.0.0.1", port), self)
        # Half a second is the default; a test would wait for it at each end.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="door")
        self._thread.start()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], door: Door) -> None:
        self.connections: list[socket.socket] = []
        super().__init__(address, _Exchanges)
        self.door = door

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address


class _Exchanges(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self._read()
        act = self.server.door.next_act()
        if act is None:
            self._forward(body)
        elif act == CUT:
            status, _, _ = self._ask(body)
            assert status == 200, status
            self._exchange.status = CUT
            self.close_connection = True
        else:
            self._refuse(act)

    def do_GET(self) -> None:
        self._forward(self._read())

    def do_OPTIONS(self) -> None:
        self._forward(self._read())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Says nothing: what passed is noted."""

    def _read(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._exchange = Exchange(time.monotonic(), self.command, self.path, headers, body)
        self.server.door.exchanges.append(self._exchange)
        return body

    def _forward(self, body: bytes) -> None:
        status, headers, answer = self._ask(body)
        self._answer(status, headers, answer)

    def _refuse(self, status: int) -> None:
        # The collector's own answer to a body that is no JSON shows which CORS headers its refusals wear.
        _, theirs, _ = self._ask(b"{")
        headers = [(name, value) for name, value in theirs if name.startswith("access-control-") or name == "vary"]
        self._answer(status, [*headers, ("retry-after", str(RETRY_AFTER_SECONDS))], b'{"error": "refused here"}')

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self.server.door.upstream, timeout=10)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "content-length"):
                    connection.putheader(name, value)
            connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            found = connection.getresponse()
            return found.status, [(name.lower(), value) for name, value in found.getheaders()], found.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self._exchange.status = status
        self.send_response(status)
        for name, value in headers:
            if name not in ("content-length", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
