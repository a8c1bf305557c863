"""The collector: answers 200 only when the events are durable in the topic `clicks`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from headrace.base import fault
from headrace.base.clock import Clock
from headrace.base.errors import FullError, HeadraceError, OutsideError, RecordError, RequestError, UnavailableError
from headrace.base.http import (
    JSON,
    App,
    Limits,
    Request,
    Response,
    basic_user,
    cors,
    error_response,
    inflate,
    json_response,
    nothing_answers,
    preflight,
)
from headrace.base.telemetry import LATENCY_BUCKETS, Metric, Metrics
from headrace.collect.cookies import CookieOptions, read_visitor, visitor_cookie
from headrace.collect.keys import Keys
from headrace.collect.segment import CALLS, MAX_FILED_BYTES, Body, read_body, too_large
from headrace.collect.tracker import serve_tracker
from headrace.events.click import VERSION, Door, encode_door
from headrace.topics import Record, Sender
from headrace.topics.topic import MAX_RECORD_BYTES, check_records

CLICKS = "clicks"
MAX_BODY_BYTES = 500 * 1024
ACK_SECONDS = 0.9
MAX_PENDING_BYTES = 64 << 20
# Short, so that a balancer that heeds /ready soon lets a request try again.
_REFUSED_SECONDS = 5.0

LIMITS = Limits(max_body_bytes=MAX_BODY_BYTES, oversize_status=400)

_ANSWERS = ("200", "400", "401", "404", "415", "429", "503", "500")

METRICS = (
    Metric("headrace_collect_requests_total", "Requests with events, by answer.", labels={"status": _ANSWERS}),
    Metric("headrace_collect_events_total", "Events acknowledged as durable."),
    Metric("headrace_collect_bytes_total", "Bytes of the events acknowledged."),
    Metric("headrace_collect_ack_seconds", "Time until an event was durable.", "histogram", buckets=LATENCY_BUCKETS),
)

_OK = b'{"success":true}'
_HINTS = (b"sec-ch-ua", b"sec-ch-ua-mobile", b"sec-ch-ua-platform")


@dataclass(frozen=True)
class CollectorOptions:
    """What headrace.toml may say about the collector."""

    cookie: CookieOptions = field(default_factory=CookieOptions)
    trust_proxy: bool = False


class Collector:
    """Files what arrives at the door and says 200 when it is durable."""

    def __init__(self, sender: Sender, keys: Keys, clock: Clock, metrics: Metrics, options: CollectorOptions) -> None:
        self._sender = sender
        self._keys = keys
        self._clock = clock
        self._options = options
        self._answers = {status: metrics.count("headrace_collect_requests_total", status) for status in _ANSWERS}
        self._events = metrics.count("headrace_collect_events_total")
        self._bytes = metrics.count("headrace_collect_bytes_total")
        self._acks = metrics.measure("headrace_collect_ack_seconds")
        self._refusal = ""
        self._refused_at = 0.0

    async def collect(self, request: Request, call: str) -> Response:
        """Returns the answer to a request with events."""
        try:
            visitor = await self._file(request, call)
            response = Response(200, _OK, self._shared_headers(request, visitor))
        except HeadraceError as error:
            response = _refused(error, request)
        self._answers[str(response.status)].add()
        return response

    async def settings(self, request: Request) -> Response:
        """Returns the settings document that analytics.js asks for before it sends."""
        key = request.path.split("/")[3]
        if not self._keys.name_of(key):
            return _refused(RequestError(404, "no such write key"), request)
        host = request.header(b"host")
        scheme = "https" if self._is_secure(request) else "http"
        document = {
            "integrations": {"Segment.io": {"apiKey": key, "apiHost": f"{host}/v1", "protocol": scheme}},
            # Told nothing, analytics.js sends figures about itself to Segment's own host every 30 s.
            "metrics": {"sampleRate": 0},
            "visitor": read_visitor(request.header(b"cookie")) or None,
        }
        # It names a visitor: a cache in between would hand one visitor's id to the next.
        return json_response(document, headers=((b"cache-control", b"private, no-store"), *cors(request)))

    def stalled(self) -> str:
        """Returns why the topic cannot take events at present, or nothing."""
        seconds = self._sender.stalled_seconds()
        return f"the topic has not answered for {seconds:.1f} s" if seconds > ACK_SECONDS else ""

    def refused(self) -> str:
        """Returns why the topic has just refused events for a reason that is not theirs, or nothing."""
        return self._refusal if time.monotonic() - self._refused_at < _REFUSED_SECONDS else ""

    async def _append(self, records: list[Record]) -> None:
        try:
            await self._sender.append(CLICKS, records)
        except FullError as error:
            self._note_refusal(error)
            raise
        except (OutsideError, RecordError):
            raise
        except HeadraceError as error:
            # The client did nothing wrong, and a 400 would make every SDK drop its batch for ever.
            self._note_refusal(error)
            raise UnavailableError(self._refusal) from error
        self._refusal = ""

    def _note_refusal(self, error: HeadraceError) -> None:
        self._refusal = f"the topic {CLICKS!r} takes no events: {error}"
        self._refused_at = time.monotonic()

    async def _file(self, request: Request, call: str) -> str:
        body = read_body(call, inflate(request.body, request.header(b"content-encoding"), MAX_BODY_BYTES))
        records = self._records(request, call, body)
        fault.point("collect.parsed")
        if records:
            started_at = time.perf_counter()
            await self._append(records)
            self._acks.observe(time.perf_counter() - started_at)
        fault.point("collect.answering")
        self._events.add(len(records))
        self._bytes.add(body.size)
        return next((item.visitor for item in body.items if item.visitor), "")

    def _records(self, request: Request, call: str, body: Body) -> list[Record]:
        shared = self._keys.name_of(basic_user(request) or request.query.get("writeKey", "") or body.write_key)
        names = [shared or self._keys.name_of(item.write_key) for item in body.items]
        if not shared and not any(names):
            raise RequestError(401, "no write key, or one that nobody made")
        doors = {name: encode_door(self._door(request, call, body, name)) for name in set(names)}
        longest = max((len(headers[0][1]) for headers in doors.values()), default=0)
        if body.size + longest * len(names) > MAX_FILED_BYTES:
            raise too_large()
        records = [Record(item.key, item.event, 0, doors[name]) for item, name in zip(body.items, names, strict=True)]
        if body.size > MAX_RECORD_BYTES // 4:
            check_records(records)
        return records

    def _door(self, request: Request, call: str, body: Body, key_name: str) -> Door:
        hints = [f"{name.decode()}: {request.header(name)}" for name in _HINTS if name in request.headers]
        return Door(
            version=VERSION,
            received_us=self._clock.now_us(),
            address=self._address(request),
            user_agent=request.header(b"user-agent"),
            source=f"http/{call}",
            write_key=key_name,
            sent_at=body.sent_at,
            hints="\n".join(hints),
            repaired=body.repaired,
        )

    def _address(self, request: Request) -> str:
        if self._options.trust_proxy and b"x-forwarded-for" in request.headers:
            return request.header(b"x-forwarded-for").rpartition(",")[2].strip()
        client = request.scope["client"]
        return str(client[0]) if client else ""

    def _is_secure(self, request: Request) -> bool:
        if self._options.trust_proxy and b"x-forwarded-proto" in request.headers:
            return request.header(b"x-forwarded-proto") == "https"
        return bool(request.scope["scheme"] == "https")

    def _shared_headers(self, request: Request, visitor: str) -> Sequence[tuple[bytes, bytes]]:
        # Only browsers send Origin, and only they keep a cookie.
        if b"origin" not in request.headers:
            return (JSON,)
        headers = [JSON, *cors(request)]
        if visitor and not read_visitor(request.header(b"cookie")):
            cookie = visitor_cookie(visitor, self._options.cookie, secure=self._is_secure(request))
            if cookie:
                headers.append((b"set-cookie", cookie))
        return headers


def _refused(error: HeadraceError, request: Request) -> Response:
    refused = error_response(error)
    return Response(refused.status, refused.body, (*refused.headers, *cors(request)))


def build_app(collector: Collector, *, metrics_text: Callable[[], str]) -> App:
    """Returns the application with every path of the Segment API, under /v1 and under the root."""

    def route(call: str) -> Callable[[Request], object]:
        return lambda request: collector.collect(request, call)

    routes = {("POST", f"{prefix}/{path}"): route(call) for path, call in CALLS.items() for prefix in ("/v1", "")}
    routes["GET", "/headrace.js"] = serve_tracker

    async def other(request: Request) -> Response:
        if request.method == "OPTIONS":
            return await preflight(request)
        parts = request.path.split("/")
        if request.method == "GET" and parts[1:3] == ["v1", "projects"] and parts[4:] == ["settings"]:
            return await collector.settings(request)
        return await nothing_answers(request)

    return App(
        routes,  # type: ignore[arg-type]  # lambdas that return coroutines
        fallback=other,
        readiness=(collector.stalled, collector.refused),
        metrics_text=metrics_text,
    )
