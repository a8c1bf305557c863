"""The visitors of the demo: a simulated product's audience, who ask for pages and send events through real doors."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from headrace.base.clock import Clock
from headrace.events.visit import ClientEvent, PageShown, PageWanted
from headrace.events.world import DAY, Delivery, Habits, Visit, World, encode
from headrace.verify.audience import (
    AUTHORIZATION,
    FAULTY_EVERY,
    Pool,
    Record,
    ask_for,
    make_faulty,
    past_deliveries,
    shown_of,
)

HABITS = Habits(visits_per_day=2.0, beats=3.0)

_PAGE_CONNECTIONS = 32
_SEND_CONNECTIONS = 24
_HISTORY_CONNECTIONS = 4
_RESEND_SECONDS = 0.02
_LEAST_SECONDS = 0.001


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
    record: Record = field(default_factory=Record)
    answered: int = 0
    acks: Latencies = field(default_factory=Latencies)
    page_times: Latencies = field(default_factory=Latencies)
    answered_at: float = 0.0
    killed_at: float | None = None
    pause: float = 0.0
    """The longest time after a kill in which nothing was acknowledged."""
    _visits: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def pages(self) -> int:
        """How many pages were answered."""
        return self.record.answered

    async def send_history(self, days: float) -> None:
        """Sends what happened in the days before now, on the site's own lists, as a product does that joins later."""
        now_us = self.clock.now_us()
        queue: asyncio.Queue[Delivery | None] = asyncio.Queue(maxsize=2 * _HISTORY_CONNECTIONS)
        async with Pool(self.collector, _HISTORY_CONNECTIONS) as pool:
            workers = [asyncio.create_task(self._send_all(queue, pool)) for _ in range(_HISTORY_CONNECTIONS)]
            for delivery in past_deliveries(self.world, now_us - int(days * DAY), now_us):
                await queue.put(delivery)
            for _ in workers:
                await queue.put(None)
            await asyncio.gather(*workers)

    async def live(self, stop: asyncio.Event) -> None:
        """Lets the audience come at the world's pace until it is told to stop, and waits for the last answer."""
        async with Pool(self.endpoint, _PAGE_CONNECTIONS) as pages, Pool(self.collector, _SEND_CONNECTIONS) as sends:
            try:
                for number, (at_us, visitor) in enumerate(self._schedule()):
                    await self._wait_until(at_us, stop)
                    if stop.is_set():
                        break
                    faulty = number % FAULTY_EVERY == 0
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

    async def _visit(self, visitor: int, at_us: int, doors: tuple[Pool, Pool, asyncio.Event], *, faulty: bool) -> None:
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
            deliveries.append(make_faulty(deliveries[0]))
        for delivery in deliveries:
            await self._wait_until(delivery.at_us, stop)
            if not stop.is_set() or delivery.at_us <= self.clock.now_us():
                await self._send(delivery, sends)

    async def _wait_until(self, at_us: int, stop: asyncio.Event) -> None:
        while (early := at_us - self.clock.now_us()) > 0 and not stop.is_set():
            await asyncio.sleep(min(max(early / 3.6e9, _LEAST_SECONDS), 0.2))

    async def _ask(self, wanted: PageWanted, pool: Pool) -> PageShown:
        """Returns the page that the endpoint answers; asks again while nobody does."""
        body = ask_for(wanted, "home")
        while True:
            started_at = time.perf_counter()
            status, answer = await pool.post(b"/v1/page", body)
            if status == 200:
                break
            self.refused += status > 0
            self.record.unanswered += status != 200
            await asyncio.sleep(_RESEND_SECONDS)
        self.page_times.seconds.append(time.perf_counter() - started_at)
        page = self.record.note_page(answer)
        return shown_of(page, delay_us=max(self.clock.now_us() - wanted.at_us, 0))

    async def _send_all(self, queue: asyncio.Queue[Delivery | None], pool: Pool) -> None:
        while (delivery := await queue.get()) is not None:
            await self._send(delivery, pool)

    async def _send(self, delivery: Delivery, pool: Pool) -> None:
        """Sends events, the same ones again until they are acknowledged, as SDKs do."""
        body = encode(delivery)
        self.sent += len(delivery.events)
        started_at = time.perf_counter()
        while True:
            self.requests += 1
            status, _ = await pool.post(b"/v1/batch", body, AUTHORIZATION)
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
        self.record.note_acknowledged(delivery.events)
        self.answered += len(delivery.events)
