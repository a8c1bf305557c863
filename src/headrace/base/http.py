"""The one HTTP foundation: limits below ASGI, deadlines, health, drain, errors as JSON.

uvicorn with httptools accepts 100,000 headers and holds half-sent requests open for ever, so
limits and read deadlines stand in a subclass of its protocol class.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import logging
import signal
import socket
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl

import httptools
import msgspec
import uvicorn
import uvloop
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from headrace.base.errors import CallError, HeadraceError, OutsideError, OverloadedError, RequestError
from headrace.base.telemetry import get_logger

_SWEEP_SECONDS = 0.25
_LINGER_SECONDS = 1.0
_NOTICE_SECONDS = 0.1

JSON = (b"content-type", b"application/json")

Found = TypeVar("Found")


@dataclass(frozen=True)
class Limits:
    """What a client may ask of a server before it is cut off."""

    max_headers: int = 100
    max_header_bytes: int = 16_384
    max_body_bytes: int = 1 << 20
    oversize_status: int = 413
    header_seconds: float = 5.0
    body_seconds: float = 10.0
    idle_seconds: float = 60.0
    max_connections: int = 2_000
    max_open_body_bytes: int = 128 << 20
    """For the bodies of all connections together, from their first byte to their answer."""


class Request:
    """An HTTP request whose body has arrived whole."""

    __slots__ = ("__dict__", "body", "scope")

    def __init__(self, scope: Mapping[str, Any], body: bytes) -> None:
        self.scope = scope
        self.body = body

    @property
    def method(self) -> str:
        """The method, in capitals; GET for HEAD, which is answered alike, less the body."""
        method: str = self.scope["method"]
        return "GET" if method == "HEAD" else method

    @property
    def path(self) -> str:
        """The path, unquoted."""
        path: str = self.scope["path"]
        return path

    @cached_property
    def headers(self) -> dict[bytes, bytes]:
        """The headers by their name in small letters."""
        return dict(self.scope["headers"])

    @cached_property
    def query(self) -> dict[str, str]:
        """The query's parameters."""
        return dict(parse_qsl(self.scope["query_string"].decode("latin-1"), keep_blank_values=True))

    def header(self, name: bytes) -> str:
        """Returns a header's text, or nothing."""
        return self.headers.get(name, b"").decode("latin-1")


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent back."""

    status: int = 200
    body: bytes = b""
    headers: Sequence[tuple[bytes, bytes]] = (JSON,)
    stream: AsyncGenerator[bytes, None] | None = None
    """What follows the body, piece by piece, until it ends, its reader goes or the server drains."""


Answer = Callable[[Request], Awaitable[Response]]


def json_response(value: Any, *, status: int = 200, headers: Sequence[tuple[bytes, bytes]] = ()) -> Response:
    """Returns a response that carries `value` as JSON."""
    return Response(status, msgspec.json.encode(value), (JSON, *headers))


def error_response(error: HeadraceError) -> Response:
    """Returns the response for an error: 429 or 503 with Retry-After if it may be tried again."""
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, OutsideError):
        status = 429 if isinstance(error, OverloadedError) else 503
        headers.append((b"retry-after", str(error.retry_after_seconds).encode()))
    elif isinstance(error, RequestError):
        status = error.status
    else:
        status = 400 if isinstance(error, CallError) else 500
    return json_response({"error": type(error).__name__, "message": str(error)}, status=status, headers=headers)


def basic_user(request: Request) -> str:
    """Returns the user of a Basic authorization, or nothing.

    >>> basic_user(Request({"headers": [(b"authorization", b"Basic YW5uOg==")]}, b""))
    'ann'
    """
    kind, _, value = request.header(b"authorization").partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[0]
    except ValueError:
        return ""


def inflate(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Returns the body without its content encoding; a zip bomb is cut off at `max_bytes`."""
    if encoding.lower() in ("", "identity"):
        return body
    if encoding.lower() not in ("gzip", "x-gzip", "deflate"):
        raise RequestError(415, f"content-encoding {encoding!r} is not known. Use gzip, deflate or none")
    # 32 + MAX_WBITS detects gzip and zlib headers by itself.
    inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RequestError(400, f"the body is not {encoding}: {error}") from error
    if len(plain) > max_bytes:
        raise RequestError(400, f"the body has more than {max_bytes:,} bytes once unpacked")
    if not inflater.eof:
        raise RequestError(400, f"the {encoding} body ends too early")
    if inflater.unused_data:
        raise RequestError(400, f"the {encoding} body goes on after its end")
    return plain


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach `host`.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; port 0 takes any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise CallError(f"cannot listen on {host}:{port}: {error.strerror}. Choose another port") from error
    listener.listen(1024)
    return listener


@dataclass
class App:
    """An ASGI application made of routes, with /live, /ready and /metrics."""

    routes: Mapping[tuple[str, str], Answer]
    fallback: Answer | None = None
    readiness: Sequence[Callable[[], str]] = ()
    metrics_text: Callable[[], str] | None = None
    close: Callable[[], Awaitable[None]] | None = None
    draining: bool = field(default=False, init=False)

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        """Answers one request."""
        body = await _read_body(receive)
        if body is None:
            return
        response = await self.answer(Request(scope, body))
        headers = [*response.headers]
        # A cache would take that of a 304 for the length of what it keeps.
        if response.status != 304 and response.stream is None:
            headers.append((b"content-length", str(len(response.body)).encode()))
        if self.draining:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        # The server leaves out the body of a HEAD itself.
        stream = response.stream if scope["method"] != "HEAD" else None
        await send({"type": "http.response.body", "body": response.body, "more_body": stream is not None})
        if stream is not None:
            await self._send_stream(stream, receive, send)

    async def _send_stream(self, stream: AsyncGenerator[bytes, None], receive: Any, send: Any) -> None:
        gone = asyncio.ensure_future(receive())
        async with contextlib.aclosing(stream):
            async for part in stream:
                if gone.done() or self.draining:
                    break
                # Waits for a slow reader, so that no more than one piece of each is held.
                await send({"type": "http.response.body", "body": part, "more_body": True})
        gone.cancel()
        await send({"type": "http.response.body", "body": b""})

    async def answer(self, request: Request) -> Response:
        """Returns the response to a request, errors included."""
        asked = (request.method, request.path)
        route = self.routes.get(asked) or self._health(request) or self.fallback or nothing_answers
        try:
            return await route(request)
        except HeadraceError as error:
            return error_response(error)
        except Exception:  # noqa: BLE001 - a bug must cost one request, and be seen
            get_logger("http").exception("%s %r failed", request.method, request.path)
            return json_response({"error": "InternalError", "message": "see the log"}, status=500)

    def reasons(self) -> list[str]:
        """Returns why this server is not ready, or nothing."""
        return ["draining"] if self.draining else [reason for check in self.readiness if (reason := check())]

    def _health(self, request: Request) -> Answer | None:
        return getattr(self, self._HEALTH.get((request.method, request.path), ""), None)

    _HEALTH: ClassVar[Mapping[tuple[str, str], str]] = {
        ("GET", "/live"): "_live",
        ("GET", "/ready"): "_ready",
        ("GET", "/metrics"): "_metrics",
    }

    async def _live(self, _: Request) -> Response:
        return json_response({"live": True})

    async def _ready(self, _: Request) -> Response:
        reasons = self.reasons()
        return json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def _metrics(self, _: Request) -> Response:
        text = self.metrics_text() if self.metrics_text else ""
        return Response(200, text.encode(), ((b"content-type", b"text/plain; version=0.0.4"),))


def cors(request: Request) -> Sequence[tuple[bytes, bytes]]:
    """Returns the headers with which a page of another origin may read an answer."""
    origin = request.headers.get(b"origin")
    if origin is None:
        return ()
    return (
        (b"access-control-allow-origin", origin),
        (b"access-control-allow-credentials", b"true"),
        # Without this a page can't read for how long it is to wait.
        (b"access-control-expose-headers", b"Retry-After"),
        (b"vary", b"Origin"),
    )


async def preflight(request: Request) -> Response:
    """Returns the answer to a browser that asks whether a page of another origin may send."""
    asked = request.headers.get(b"access-control-request-headers", b"authorization,content-type")
    headers = (
        *cors(request),
        (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
        (b"access-control-allow-headers", asked),
        (b"access-control-max-age", b"86400"),
    )
    return Response(204, b"", headers)


async def nothing_answers(request: Request) -> Response:
    """Raises RequestError 404."""
    raise RequestError(404, f"nothing answers {request.method} {request.path!r}")


async def _read_body(receive: Any) -> bytes | None:
    message = await receive()
    if message["type"] == "http.disconnect":
        return None
    if not message["more_body"]:
        body: bytes = message["body"]
        return body
    parts = [message["body"]]
    while message["more_body"]:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message["body"])
    return b"".join(parts)


@dataclass
class _Bodies:
    """What the bodies of all connections hold together."""

    open_bytes: int = 0


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on headers and body, and a deadline for each half-sent request."""

    limits: ClassVar[Limits] = Limits()
    bodies: ClassVar[_Bodies]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the deadline of the first request."""
        super().connection_made(transport)
        self.refusal = 0
        self._header_count = 0
        self._header_bytes = 0
        self._body_bytes = 0
        self._held_bytes = 0
        self._open_head_bytes = -1
        self._head_began = False
        self._is_upgrade = False
        self._is_trailing = False
        self.deadline = self.loop.time() + self.limits.header_seconds
        if len(self.connections) > self.limits.max_connections:
            self.refuse(503)

    def data_received(self, data: bytes) -> None:
        """Parses what arrives, unless this connection was refused already."""
        if self.refusal:
            return
        if self.deadline == 0:
            self.deadline = self.loop.time() + self.limits.header_seconds
        self._unset_keepalive_if_required()
        while data and not self.refusal:
            data = self._feed(data)

    def _feed(self, data: bytes) -> bytes:
        """Parses `data` and returns what is left to parse."""
        self._head_began = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            head = self._plain_head()
            # The old parser may be past the end of a connection that is to be closed.
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            return head + data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            cause = error.__context__
            self.refuse(cause.status if isinstance(cause, _Refused) else 400)
        # The parser tells of a header once it is whole; this bounds one that never ends.
        if self._open_head_bytes >= 0 and not self._head_began:
            self._open_head_bytes += len(data)
            if self._open_head_bytes > self.limits.max_header_bytes:
                self.refuse(431)
        return b""

    def _plain_head(self) -> bytes:
        """Returns the head of a request that asks for another protocol, without that wish.

        Java's HttpClient asks for HTTP/2 in its first request; the parser would take its body for HTTP/2.
        """
        self._header_count = self._header_bytes = 0
        version = b"HTTP/" + self.parser.get_http_version().encode()
        lines = [b" ".join((self.parser.get_method(), self.url, version))]
        for name, value in self.headers:
            if name == b"connection" and b"close" in value.lower():
                lines.append(b"connection: close")
            if name not in (b"connection", b"upgrade", b"http2-settings"):
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Begins to count the bytes of a head."""
        super().on_message_begin()
        self._open_head_bytes = 0
        self._head_began = True
        self._is_trailing = False

    def on_url(self, url: bytes) -> None:
        """Counts the URL as a header."""
        super().on_url(url)
        self._header_bytes += len(url)
        self._check_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Counts a header, or a trailer, which could not be trusted as one: uvicorn would add it to the headers."""
        if not self._is_trailing:
            super().on_header(name, value)
        self._header_count += 1
        self._header_bytes += len(name) + len(value)
        self._check_headers()

    def on_headers_complete(self) -> None:
        """Gives the body its deadline, and refuses one that announces too much."""
        self._open_head_bytes = -1
        self._is_trailing = True
        self._is_upgrade = self.parser.should_upgrade()
        if self._is_upgrade:
            if self.parser.get_method() == b"CONNECT":
                raise _Refused(405)
            return
        self.deadline = self.loop.time() + self.limits.body_seconds
        for name, value in self.headers:
            if name == b"content-length" and int(value) > self.limits.max_body_bytes:
                raise _Refused(self.limits.oversize_status)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Refuses a body that grows too large."""
        self._body_bytes += len(body)
        if self._body_bytes > self.limits.max_body_bytes:
            raise _Refused(self.limits.oversize_status)
        self._hold(len(body))
        if self.bodies.open_bytes > self.limits.max_open_body_bytes:
            raise _Refused(503)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Lets the request take its time to be answered."""
        if self._is_upgrade:
            return
        super().on_message_complete()
        self.deadline = 0
        self._header_count = self._header_bytes = self._body_bytes = 0

    def on_response_complete(self) -> None:
        """Lets go of the bodies that are answered."""
        self._hold(-self._held_bytes)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of everything."""
        self._hold(-self._held_bytes)
        super().connection_lost(exc)

    def _hold(self, count: int) -> None:
        self._held_bytes += count
        self.bodies.open_bytes += count

    def refuse(self, status: int) -> None:
        """Answers with `status`, then reads on for a second so that the answer is not lost in a reset."""
        self.refusal = status
        self._hold(-self._held_bytes)
        self.deadline = self.loop.time() + _LINGER_SECONDS
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        reason = HTTPStatus(status).phrase
        body = msgspec.json.encode({"error": "RequestError", "message": reason})
        extra = b"retry-after: 1\r\n" if status == 503 else b""
        origin = dict(self.headers or ()).get(b"origin")
        if origin is not None:
            # Without these a page sees a network error, and sends an oversize body again and again.
            extra += b"access-control-allow-origin: " + origin + b"\r\naccess-control-allow-credentials: true\r\n"
        self.transport.write(
            f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n".encode()
            + extra
            + b"\r\n"
            + body
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def sweep(self, now: float) -> None:
        """Cuts the connection off if its deadline has passed."""
        if not self.deadline or now < self.deadline:
            return
        if self.refusal or self._is_silent():
            self.transport.abort()
        else:
            self.refuse(408)

    def _is_silent(self) -> bool:
        return not self._header_bytes and not self._header_count and not self._body_bytes

    def _check_headers(self) -> None:
        if self._header_count > self.limits.max_headers or self._header_bytes > self.limits.max_header_bytes:
            raise _Refused(431)


class _Refused(Exception):  # noqa: N818 - leaves the parser, never this module
    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Service:
    """An application, the socket it answers at, and what its clients may ask."""

    app: App
    listener: socket.socket
    limits: Limits


async def serve(doors: Sequence[Service], *, drain_seconds: float, ready: Callable[[], None]) -> None:
    """Serves until SIGTERM or SIGINT, then drains."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with answering(doors, drain_seconds=drain_seconds):
        ready()
        await stop.wait()


@contextlib.asynccontextmanager
async def answering(doors: Sequence[Service], *, drain_seconds: float) -> AsyncIterator[None]:
    """Serves as long as the body runs, then drains.

    First /ready says no, then new connections are refused, then what runs is finished.
    """
    started = [await _start(door.app, door.listener, door.limits) for door in doors]
    states = [state for state, _ in started]
    sweeper = asyncio.get_running_loop().create_task(_sweep(states))
    try:
        yield
    finally:
        for door in doors:
            door.app.draining = True
        await asyncio.sleep(_NOTICE_SECONDS)
        for state, server in started:
            server.close()
            for connection in list(state.connections):
                connection.shutdown()
        deadline = time.monotonic() + drain_seconds
        while (tasks := [task for state in states for task in state.tasks]) and time.monotonic() < deadline:
            await asyncio.wait(tasks, timeout=max(deadline - time.monotonic(), 0))
        for door in doors:
            if door.app.close is not None:
                await door.app.close()
        sweeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sweeper


async def _start(app: App, listener: socket.socket, limits: Limits) -> tuple[ServerState, asyncio.Server]:
    # Its own log would let any client write to our disk; what matters is counted.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    protocol = type("Protocol", (BoundedProtocol,), {"limits": limits, "bodies": _Bodies()})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        # Who vouches for X-Forwarded-For is the application's business; uvicorn would trust all of loopback.
        proxy_headers=False,
        timeout_keep_alive=int(limits.idle_seconds),
    )
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config, state, {}), sock=listener, backlog=1024)
    return state, server


async def _sweep(states: Sequence[ServerState]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        now = loop.time()
        for connection in [one for state in states for one in state.connections]:
            if isinstance(connection, BoundedProtocol):
                connection.sweep(now)


def run(main: Awaitable[Found]) -> Found:
    """Runs a server to its end on uvloop, and returns what it has found."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_as_coroutine(main))


async def _as_coroutine(main: Awaitable[Found]) -> Found:
    return await main
