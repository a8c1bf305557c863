"""The clients of the demo: a simulated product's visitors, who send through real doors and count the answers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from headrace.base.clock import Clock
from headrace.events.world import DAY, ClientEvent, Delivery, Visit, World, encode

VISITORS = 3_000

_CONNECTIONS = 48
_RESEND_SECONDS = 0.02
_AUTHORIZATION = b"authorization: Basic ZGV2Og=="
# One client in so many deliveries has a fault: a position that is no number.
_FAULTY_EVERY = 150


@dataclass
class Crowd:
    """What was sent and acknowledged, as the clients see it."""

    sent: int = 0
    requests: int = 0
    refused: int = 0
    resent: int = 0
    acknowledged: set[str] = field(default_factory=set)
    answered: int = 0
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=5_000))
    killed_at: float | None = None
    answered_at: float = 0.0
    pause: float = 0.0
    """The longest time after the kill in which nothing was acknowledged."""

    def note_answer(self, delivery: Delivery, seconds: float) -> None:
        """Counts the events of a request that was answered with 200."""
        now = time.monotonic()
        if self.killed_at is not None:
            self.pause = max(self.pause, now - self.answered_at)
        self.answered_at = now
        self.latencies.append(seconds)
        self.acknowledged.update(event.message_id for event in delivery.events)
        self.answered += len(delivery.events)

    def quantile_ms(self, q: float) -> float:
        """Returns a quantile of the answers' latency."""
        ordered = sorted(self.latencies)
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)] * 1000 if ordered else 0.0

    async def visit(self, url: str, clock: Clock, *, seed: int, ends_at: float) -> None:
        """Sends a world's visits at the world's pace until `ends_at`, and waits for the last answer."""
        world = World(seed, visitors=VISITORS, born_us=clock.now_us())
        queues: list[asyncio.Queue[Delivery | None]] = [asyncio.Queue() for _ in range(_CONNECTIONS)]
        address = urlsplit(url)
        host, port = address.hostname or "", address.port or 0
        clients = [asyncio.create_task(_Client(host, port, self).run(queue)) for queue in queues]
        for delivery in _deliveries(world, clock):
            while (early := delivery.at_us - clock.now_us()) > 0 and time.monotonic() < ends_at:
                await asyncio.sleep(min(early / 3.6e9, 0.05))
            if time.monotonic() >= ends_at:
                break
            # One visitor keeps to one connection, so that the order of his events is the order of sending.
            queues[delivery.visitor % _CONNECTIONS].put_nowait(delivery)
            await asyncio.sleep(0)
        for queue in queues:
            queue.put_nowait(None)
        await asyncio.gather(*clients)


def _deliveries(world: World, clock: Clock) -> Iterator[Delivery]:
    for number, delivery in enumerate(world.deliver(_visits(world, clock))):
        yield delivery
        if number % _FAULTY_EVERY == 0:
            yield _faulty(delivery)


def _visits(world: World, clock: Clock) -> Iterator[Visit]:
    start_us = clock.now_us()
    while True:
        yield from world.traffic(start_us, start_us + DAY)
        start_us += DAY


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


class _Client:
    """Sends deliveries over one connection, the same one again until it is acknowledged, as SDKs do."""

    def __init__(self, host: str, port: int, crowd: Crowd) -> None:
        self._host, self._port = host, port
        self._crowd = crowd
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, queue: asyncio.Queue[Delivery | None]) -> None:
        while (delivery := await queue.get()) is not None:
            body = encode(delivery)
            self._crowd.sent += len(delivery.events)
            started_at = time.perf_counter()
            while not await self._post(body):
                self._crowd.resent += 1
                await asyncio.sleep(_RESEND_SECONDS)
            self._crowd.note_answer(delivery, time.perf_counter() - started_at)
        if self._streams is not None:
            self._streams[1].close()

    async def _post(self, body: bytes) -> bool:
        self._crowd.requests += 1
        try:
            self._streams = self._streams or await asyncio.open_connection(self._host, self._port)
            reader, writer = self._streams
            head = b"POST /v1/batch HTTP/1.1\r\nhost: demo\r\n%b\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % (_AUTHORIZATION, len(body)) + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            if self._streams is not None:
                self._streams[1].close()
            self._streams = None
            return False
        accepted = answer.startswith(b"HTTP/1.1 200")
        self._crowd.refused += not accepted
        return accepted
