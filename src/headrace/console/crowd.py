"""The visitors of the demo: a simulated product's audience, who ask for pages and send events through real doors."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from headrace.base.clock import Clock
from headrace.events.visit import ClientEvent, PageShown, PageWanted, write_time
from headrace.events.world import DAY, Delivery, Habits, Visit, World, encode

HABITS = Habits(visits_per_day=2.0, beats=3.0)

_PAGE_CONNECTIONS = 32
_SEND_CONNECTIONS = 24
_HISTORY_CONNECTIONS = 4
_RESEND_SECONDS = 0.02
_BATCH = 200
_AUTHORIZATION = b"authorization: Basic ZGV2Og==\r\n"
# One client in so many deliveries has a fault: a position that is no number.
_FAULTY_EVERY = 150
_LEAST_SECONDS = 0.001


class _Item(msgspec.Struct):
    id: str


class _Row(msgspec.Struct):
    title: str
    items: list[_Item]


class _Page(msgspec.Struct):
    """What of an answer to /v1/page a product's page needs."""

    recommendation_id: str | None
    rows: list[_Row]
    degraded: tuple[str, ...] = ()


_read_page = msgspec.json.Decoder(_Page).decode


@dataclass
class Latencies:
    """The newest response times of one door, and the longest pause since a kill."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5_000))

    def quantile_ms(self, q: float) -> float:
        """Returns a quantile."""
        ordered = sorted(self.seconds)
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)] * 1000 if ordered else 0.0


@dataclass
class Crowd:
    """The audience of one world, and what it has seen of the doors."""

    world: World
    collector: str
    endpoint: str
    clock: Clock
    sent: int = 0
    requests: int = 0
    refused: int = 0
    resent: int = 0
    acknowledged: set[str] = field(default_factory=set)
    answered: int = 0
    acks: Latencies = field(default_factory=Latencies)
    pages: int = 0
    recommended: list[str] = field(default_factory=list)
    """The recommendation_id of each page that had one, in the order of the answers."""
    unlogged: int = 0
    page_times: Latencies = field(default_factory=Latencies)
    answered_at: float = 0.0
    killed_at: float | None = None
    pause: float = 0.0
    """The longest time after a kill in which nothing was acknowledged."""
    _visits: set[asyncio.Task[None]] = field(default_factory=set)

    async def send_history(self, days: float) -> None:
        """Sends what happened in the days before now, on the site's own lists, as a product does that joins later."""
        now_us = self.clock.now_us()
        queue: asyncio.Queue[Delivery | None] = asyncio.Queue(maxsize=2 * _HISTORY_CONNECTIONS)
        async with _Pool(self.collector, _HISTORY_CONNECTIONS) as pool:
            workers = [asyncio.create_task(self._send_all(queue, pool)) for _ in range(_HISTORY_CONNECTIONS)]
            for delivery in self._history(now_us - int(days * DAY), now_us):
                await queue.put(delivery)
            for _ in workers:
                await queue.put(None)
            await asyncio.gather(*workers)

    async def live(self, stop: asyncio.Event) -> None:
        """Lets the audience come at the world's pace until it is told to stop, and waits for the last answer."""
        async with _Pool(self.endpoint, _PAGE_CONNECTIONS) as pages, _Pool(self.collector, _SEND_CONNECTIONS) as sends:
            try:
                for number, (at_us, visitor) in enumerate(self._schedule()):
                    await self._wait_until(at_us, stop)
                    if stop.is_set():
                        break
                    faulty = number % _FAULTY_EVERY == 0
                    task = asyncio.create_task(self._visit(visitor, at_us, (pages, sends, stop), faulty=faulty))
                    self._visits.add(task)
                    task.add_done_callback(self._visits.discard)
                await asyncio.gather(*self._visits)
            finally:
                for task in self._visits:
                    task.cancel()

    def _schedule(self) -> Iterator[tuple[int, int]]:
        start_us = self.clock.now_us()
        while True:
            yield from self.world.schedule(start_us, start_us + DAY)
            start_us += DAY

    def _history(self, start_us: int, end_us: int) -> Iterator[Delivery]:
        """Yields batches of past events, each sent by one clock: who was offline sends everything now."""
        waiting: dict[int, list[ClientEvent]] = {}
        for visit in self.world.traffic(start_us, end_us):
            skew_us = self.world.visitor(visit.visitor).skew_us
            events = waiting.setdefault(skew_us, [])
            events += visit.events
            if len(events) >= _BATCH:
                yield self._batch(waiting.pop(skew_us), skew_us)
        for skew_us, events in waiting.items():
            yield self._batch(events, skew_us)

    def _batch(self, events: list[ClientEvent], skew_us: int) -> Delivery:
        now_us = self.clock.now_us()
        return Delivery(now_us, 0, events, write_time(now_us // 1000 * 1000 + skew_us))

    async def _visit(
        self, visitor: int, at_us: int, doors: tuple[_Pool, _Pool, asyncio.Event], *, faulty: bool
    ) -> None:
        pages, sends, stop = doors
        visiting = self.world.visiting(visitor, at_us)
        wanted = next(visiting)
        while True:
            await self._wait_until(wanted.at_us, stop)
            shown = PageShown(()) if stop.is_set() else await self._ask(wanted, pages)
            try:
                wanted = visiting.send(shown)
            except StopIteration as done:
                events: list[ClientEvent] = done.value
                break
        visit = Visit(at_us, visitor, events)
        deliveries = list(self.world.deliveries(visit))
        if faulty:
            deliveries.append(_faulty(deliveries[0]))
        for delivery in deliveries:
            await self._wait_until(delivery.at_us, stop)
            if not stop.is_set() or delivery.at_us <= self.clock.now_us():
                await self._send(delivery, sends)

    async def _wait_until(self, at_us: int, stop: asyncio.Event) -> None:
        while (early := at_us - self.clock.now_us()) > 0 and not stop.is_set():
            await asyncio.sleep(min(max(early / 3.6e9, _LEAST_SECONDS), 0.2))

    async def _ask(self, wanted: PageWanted, pool: _Pool) -> PageShown:
        """Returns the page that the endpoint answers; asks again while nobody does."""
        who = wanted.visitor
        ask = {
            "page": "home",
            "anonymous_id": who.anonymous_id,
            "user_id": wanted.user_id,
            "context": {"userAgent": who.user_agent},
        }
        body = msgspec.json.encode(ask)
        while True:
            started_at = time.perf_counter()
            status, answer = await pool.post(b"/v1/page", body)
            if status == 200:
                break
            self.refused += status > 0
            await asyncio.sleep(_RESEND_SECONDS)
        self.page_times.seconds.append(time.perf_counter() - started_at)
        page = _read_page(answer)
        self.pages += 1
        if page.recommendation_id is None:
            self.unlogged += 1
        else:
            self.recommended.append(page.recommendation_id)
        items = [item.id for row in page.rows for item in row.items]
        delay_us = max(self.clock.now_us() - wanted.at_us, 0)
        return PageShown(items, page.recommendation_id, delay_us, [(row.title, len(row.items)) for row in page.rows])

    async def _send_all(self, queue: asyncio.Queue[Delivery | None], pool: _Pool) -> None:
        while (delivery := await queue.get()) is not None:
            await self._send(delivery, pool)

    async def _send(self, delivery: Delivery, pool: _Pool) -> None:
        """Sends events, the same ones again until they are acknowledged, as SDKs do."""
        body = encode(delivery)
        self.sent += len(delivery.events)
        started_at = time.perf_counter()
        while True:
            self.requests += 1
            status, _ = await pool.post(b"/v1/batch", body, _AUTHORIZATION)
            if status == 200:
                break
            self.refused += status > 0
            self.resent += 1
            await asyncio.sleep(_RESEND_SECONDS)
        now = time.monotonic()
        if self.killed_at is not None:
            self.pause = max(self.pause, now - max(self.answered_at, self.killed_at))
        self.answered_at = now
        self.acks.seconds.append(time.perf_counter() - started_at)
        self.acknowledged.update(event.message_id for event in delivery.events)
        self.answered += len(delivery.events)


def _faulty(delivery: Delivery) -> Delivery:
    first = delivery.events[0]
    event = ClientEvent(
        "track",
        f"{first.message_id}-faulty",
        first.anonymous_id,
        first.timestamp,
        first.context,
        event="Product Clicked",
        properties={"product_id": "item-000", "position": "first"},
    )
    return Delivery(delivery.at_us, delivery.visitor, [event], delivery.sent_at)


class _Pool:
    """Connections to one door; each carries one request at a time."""

    def __init__(self, url: str, size: int) -> None:
        address = urlsplit(url)
        self._address = (address.hostname or "", address.port or 0)
        self._idle: asyncio.Queue[_Connection | None] = asyncio.Queue()
        for _ in range(size):
            self._idle.put_nowait(None)

    async def post(self, path: bytes, body: bytes, headers: bytes = b"") -> tuple[int, bytes]:
        """Returns status and body of the answer; 0 if nobody answered."""
        connection = await self._idle.get()
        try:
            connection = connection or await _Connection.open(*self._address)
            answer = await connection.post(path, body, headers)
        except (OSError, asyncio.IncompleteReadError):
            if connection is not None:
                connection.close()
            connection = None
            answer = (0, b"")
        finally:
            self._idle.put_nowait(connection)
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: Any) -> None:
        while not self._idle.empty():
            connection = self._idle.get_nowait()
            if connection is not None:
                connection.close()


class _Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, host: str, port: int) -> _Connection:
        return cls(*await asyncio.open_connection(host, port))

    async def post(self, path: bytes, body: bytes, headers: bytes) -> tuple[int, bytes]:
        head = b"POST %b HTTP/1.1\r\nhost: demo\r\n%bcontent-length: %d\r\n\r\n"
        self._writer.write(head % (path, headers, len(body)) + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(answer.split(b" ", 2)[1]), await self._reader.readexactly(length)

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._writer.close()
