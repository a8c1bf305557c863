"""The audience of a world at real doors: what it asks and sends over HTTP, and its own record of the answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from headrace.endpoints.endpoint import Ask, Context, Shown
from headrace.events.visit import ClientEvent, PageShown, PageWanted, write_time
from headrace.events.world import Delivery, World

AUTHORIZATION = b"authorization: Basic ZGV2Og==\r\n"
"""That of the key `dev`."""

FAULTY_EVERY = 150
"""One visit in so many has an event with a fault."""

FAULTY = "-faulty"
"""How the id of such an event ends."""

_BATCH = 200
_FRESH_SECONDS = 30.0

_read_page = msgspec.json.Decoder(Shown).decode


@dataclass
class Record:
    """What clients were told, noted by themselves."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    """The events that a door said are durable: the checksum of each by its id."""
    unanswered: int = 0
    """Requests for pages that nobody answered: such a page may have been made all the same."""
    unlogged: int = 0
    """How many pages came without an id."""
    _answers: list[bytes] = field(default_factory=list)
    """Packed: a demo has tens of thousands, which as objects are most of what its process weighs."""
    _is_closed: bool = False

    def close(self) -> None:
        """Forgets everything and notes nothing more: whoever goes on would grow by a gigabyte an hour."""
        self.acknowledged.clear()
        self._answers.clear()
        self._is_closed = True

    def note_acknowledged(self, events: Iterable[ClientEvent]) -> None:
        """Notes that a door said of events that they are durable."""
        if self._is_closed:
            return
        self.acknowledged.update((event.message_id, zlib.crc32(msgspec.json.encode(event))) for event in events)

    def note_page(self, answer: bytes) -> Shown:
        """Returns the page that an answer is."""
        page = _read_page(answer)
        if not self._is_closed:
            self.unlogged += page.recommendation_id is None
            self._answers.append(zlib.compress(answer, 1))
        return page

    @property
    def answered(self) -> int:
        """How many pages there are."""
        return len(self._answers)

    @property
    def pages(self) -> Iterator[Shown]:
        """The pages, in the order of their answers."""
        return (_read_page(zlib.decompress(answer)) for answer in self._answers)

    @property
    def recommended(self) -> list[str]:
        """The id of each page that had one."""
        return [page.recommendation_id for page in self.pages if page.recommendation_id is not None]


def ask_for(wanted: PageWanted, page: str, *, deadline_ms: int = 250) -> bytes:
    """Returns the body of a visitor's request for a page."""
    who = wanted.visitor
    ask = Ask(page, who.anonymous_id, wanted.user_id, Context(who.user_agent), deadline_ms=deadline_ms)
    return msgspec.json.encode(ask)


def shown_of(page: Shown, *, delay_us: int) -> PageShown:
    """Returns the page as a visitor of the world sees it."""
    items = [item.id for row in page.rows for item in row.items]
    return PageShown(items, page.recommendation_id, delay_us, [(row.title, len(row.items)) for row in page.rows])


def past_deliveries(world: World, start_us: int, now_us: int) -> Iterator[Delivery]:
    """Yields batches of past events, each sent by one clock: who was offline sends everything now."""

    def batch(skew_us: int) -> Delivery:
        return Delivery(now_us, 0, waiting.pop(skew_us), write_time(now_us // 1000 * 1000 + skew_us))

    waiting: dict[int, list[ClientEvent]] = {}
    for visit in world.traffic(start_us, now_us):
        skew_us = world.visitor(visit.visitor).skew_us
        waiting.setdefault(skew_us, []).extend(visit.events)
        if len(waiting[skew_us]) >= _BATCH:
            yield batch(skew_us)
    for skew_us in list(waiting):
        yield batch(skew_us)


def make_faulty(delivery: Delivery) -> Delivery:
    """Returns a delivery of an event that cannot be settled: its position is no number."""
    first = delivery.events[0]
    event = ClientEvent(
        "track",
        f"{first.message_id}{FAULTY}",
        first.anonymous_id,
        first.timestamp,
        first.context,
        event="Product Clicked",
        properties={"product_id": "item-000", "position": "first"},
    )
    return Delivery(delivery.at_us, delivery.visitor, [event], delivery.sent_at)


class Pool:
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
        if connection is not None and time.monotonic() - connection.used_at > _FRESH_SECONDS:
            # A door ends what was idle for a minute, as all are after a fit that took so long.
            connection.close()
            connection = None
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
        self.used_at = time.monotonic()

    @classmethod
    async def open(cls, host: str, port: int) -> _Connection:
        return cls(*await asyncio.open_connection(host, port))

    async def post(self, path: bytes, body: bytes, headers: bytes) -> tuple[int, bytes]:
        head = b"POST %b HTTP/1.1\r\nhost: demo\r\n%bcontent-length: %d\r\n\r\n"
        self._writer.write(head % (path, headers, len(body)) + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        self.used_at = time.monotonic()
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return int(answer.split(b" ", 2)[1]), await self._reader.readexactly(length)

    def close(self) -> None:
        with contextlib.suppress(RuntimeError):
            self._writer.close()
