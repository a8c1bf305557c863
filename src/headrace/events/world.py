"""A made-up audience of a video service: a seeded source of visits, and the truth about what is clicked in them.

Everything follows from the seed: the same world gives the same bytes, in whatever order one asks.
"""

from __future__ import annotations

import heapq
import math
import struct
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from hashlib import blake2b
from itertools import accumulate, count
from typing import Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import CallError
from headrace.events.draws import Draws
from headrace.events.market import DAY, HOUR, MINUTE, SECOND, Habits, Item, Market, ShownProduct
from headrace.events.visit import (
    LONGEST_VISIT_US,
    ClientEvent,
    Diary,
    PageShown,
    PageWanted,
    Visiting,
    Visitor,
    write_time,
)

# Who uses the world needs its parts and the lengths of time, wherever these are at home.
__all__ = [
    "BORN_US",
    "DAY",
    "HOUR",
    "MINUTE",
    "SECOND",
    "ClientEvent",
    "Delivery",
    "Faults",
    "Habits",
    "Item",
    "PageShown",
    "PageWanted",
    "Policy",
    "ShownProduct",
    "Visit",
    "Visiting",
    "Visitor",
    "World",
    "encode",
]

Policy = Callable[[int, int], Sequence[str]]
"""Says which products a visitor is shown at an instant: `policy(visitor, at_us) -> product ids`."""

BORN_US: Final = 1_767_571_200 * SECOND
"""Monday, 5 January 2026, 00:00 UTC: when a world begins unless told otherwise."""

_SIXTEEN = struct.Struct("<16I")


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GENRES: Final = _words(
    "action adventure animation comedy crime documentary drama family fantasy history horror music "
    "mystery nature romance science-fiction sport thriller war western"
)
_ADJECTIVES = _words("Silent Golden Broken Hidden Endless Crimson Gentle Distant Electric Paper Frozen Wandering")
_NOUNS = _words("Harbour Garden Machine Letter Mountain Orchestra Summer Witness River Kitchen Signal Carnival")
_LOCALES = ("en-GB", "en-US", "de-DE", "fr-FR", "es-ES", "ja-JP")

_GECKO = "AppleWebKit/537.36 (KHTML, like Gecko)"
_WEBKIT = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
_BROWSERS = (
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_GECKO} Chrome/142.0.0.0 Safari/537.36",
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_GECKO} Chrome/142.0.0.0 Safari/537.36",
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_WEBKIT} Version/26.0 Safari/605.1.15",
    "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0",
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_GECKO} Chrome/142.0.0.0 Safari/537.36 Edg/142.0.0.0",
    f"Mozilla/5.0 (SMART-TV; Linux; Tizen 8.0) {_GECKO} Version/8.0 TV Safari/537.36",
)
_PHONES = (
    f"Mozilla/5.0 (iPhone; CPU iPhone OS 18_6 like Mac OS X) {_WEBKIT} Version/26.0 Mobile/15E148 Safari/604.1",
    f"Mozilla/5.0 (Linux; Android 10; K) {_GECKO} Chrome/142.0.0.0 Mobile Safari/537.36",
    f"Mozilla/5.0 (Linux; Android 15; SM-S921B) {_GECKO} SamsungBrowser/29.0 Chrome/136.0.0.0 Mobile Safari/537.36",
)
_BOTS = (
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
    "Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)",
)

# Share of a day's visits in each hour: quiet nights, a small peak at noon, prime time in the evening.
_HOURS = (14, 8, 5, 3, 3, 5, 10, 18, 26, 30, 32, 36, 44, 42, 38, 38, 44, 54, 68, 84, 92, 80, 56, 30)
_WEEKDAYS = (0.92, 0.9, 0.92, 0.96, 1.06, 1.16, 1.08)  # Monday to Sunday
_CYCLE = np.outer(np.array(_WEEKDAYS) / np.mean(_WEEKDAYS), np.array(_HOURS) / np.sum(_HOURS)).ravel()


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """How delivery goes wrong."""

    late: float = 0.06
    """Share of the visits on phones that were offline: all they sent arrives 1 to 12 hours later."""
    duplicate: float = 0.01
    """Share of the deliveries that arrive twice, the second time 1 to 60 seconds later."""
    out_of_order: float = 0.02
    """Share of the deliveries held back for 20 to 120 seconds, so that later ones overtake them."""


class Visit(NamedTuple):
    """What one visitor did at one go."""

    at_us: int
    visitor: int
    events: list[ClientEvent]


class Delivery(NamedTuple):
    """One request of a client, at the instant in which it reaches the door."""

    at_us: int
    visitor: int
    events: list[ClientEvent]
    sent_at: str


class World:
    """A seeded audience and what it does.

    >>> world = World(7, visitors=100)
    >>> [event.event or event.type for event in world.visit(3)][:2]
    ['page', 'Product List Viewed']
    >>> page = (3, BORN_US, world.popular(3, BORN_US))
    >>> world.expected_clicks(*page) / 10 == world.true_ctr([page])
    True
    >>> visits = world.traffic(BORN_US, BORN_US + DAY)
    >>> sum(len(visit.events) for visit in visits) > 1000
    True
    """

    def __init__(
        self,
        seed: int,
        *,
        visitors: int = 1000,
        items: int = 240,
        genres: int = 12,
        born_us: int = BORN_US,
        habits: Habits = Habits(),  # noqa: B008  # frozen
    ) -> None:
        if visitors < 1 or items < 1 or not 1 <= genres <= len(GENRES):
            raise CallError(f"World({seed}): needs visitors, items and 1 to {len(GENRES)} genres, got {genres}")
        self.seed = seed
        self.born_us = born_us
        self.habits = habits
        self.num_visitors = visitors
        self._draws = Draws(seed)
        everyone = np.arange(visitors, dtype=np.uint64)
        uniforms = self._draws.uniforms
        radius = np.sqrt(-2 * np.log1p(-uniforms("activity", everyone, 0)))
        normal = radius * np.cos(2 * np.pi * uniforms("turn", everyone, 0))
        sigma = habits.activity_sigma
        self.activity = habits.visits_per_day * np.exp(sigma * normal - sigma**2 / 2)
        """Each visitor's visits per day."""
        self._phase = (uniforms("phase", everyone, 0) * HOUR).astype(np.int64) // 1000 * 1000
        self.items = self._make_items(items, genres)
        """The titles of the service."""
        self._weights = list(accumulate(item.weight for item in self.items))
        self.market = Market(self._draws, self.items, habits=habits, born_us=born_us)
        """What the audience thinks of the titles."""
        self._visitors: dict[int, Visitor] = {}

    def visitor(self, number: int) -> Visitor:
        """Returns who the visitor of that number is, from 0 on."""
        found = self._visitors.get(number)
        if found is None:
            found = self._visitors[number] = self._make_visitor(number)
        return found

    def visit(self, visitor: int, *, at_us: int | None = None, policy: Policy | None = None) -> list[ClientEvent]:
        """Returns the events of a visit; `policy` is asked for each list shown.

        It begins at `at_us`, or when the world does.
        """
        visiting = self.visiting(visitor, self.born_us if at_us is None else at_us)
        show = policy or self.popular
        wanted = next(visiting)
        while True:
            page = PageShown(show(visitor, wanted.at_us))
            try:
                wanted = visiting.send(page)
            except StopIteration as done:
                events: list[ClientEvent] = done.value
                return events

    def visiting(self, visitor: int, at_us: int) -> Visiting:
        """Returns a visit that begins at an instant, as a generator that asks for its pages and returns its events.

        >>> world = World(7)
        >>> visit = world.visiting(3, BORN_US)
        >>> wanted, events = next(visit), None
        >>> while events is None:
        ...     try:
        ...         wanted = visit.send(PageShown(["item-001", "item-017"], "rec-1"))
        ...     except StopIteration as done:
        ...         events = done.value
        >>> events[1].event, events[1].properties["recommendation_id"]
        ('Product List Viewed', 'rec-1')
        """
        who = self.visitor(visitor)
        diary = Diary(self.market, who, at_us)
        return diary.crawl() if who.bot else diary.browse()

    def traffic(self, start_us: int, end_us: int, *, policy: Policy | None = None) -> Iterator[Visit]:
        """Yields the visits that begin from `start_us` to before `end_us`, in the order of their beginning.

        Two stretches one after the other give the same as one over both.
        """
        for at_us, visitor in self.schedule(start_us, end_us):
            yield Visit(at_us, visitor, self.visit(visitor, at_us=at_us, policy=policy))

    def schedule(self, start_us: int, end_us: int) -> Iterator[tuple[int, int]]:
        """Yields instant and visitor of each visit that begins from `start_us` to before `end_us`, in order."""
        everyone = np.arange(self.num_visitors, dtype=np.uint64)
        waiting: list[tuple[int, int]] = []
        for slot in range(start_us // HOUR - 2, end_us // HOUR + 1):
            starts = self._starts(everyone, np.full(1, slot, np.uint64))
            chosen = np.flatnonzero((starts >= start_us) & (starts < end_us))
            waiting += zip(starts[chosen].tolist(), chosen.tolist(), strict=True)
            waiting.sort()
            # The next slot has no visit before its own hour.
            ready = bisect(waiting, ((slot + 1) * HOUR, -1))
            yield from waiting[:ready]
            del waiting[:ready]
        yield from waiting

    def deliver(self, visits: Iterable[Visit], *, faults: Faults = Faults()) -> Iterator[Delivery]:  # noqa: B008
        """Yields the requests that bring the visits' events to the door, in the order of their arrival."""
        waiting: list[tuple[int, int, Delivery]] = []
        number = count()
        for visit in visits:
            while waiting and waiting[0][0] <= visit.at_us:
                yield heapq.heappop(waiting)[2]
            for delivery in self.deliveries(visit, faults=faults):
                heapq.heappush(waiting, (delivery.at_us, next(number), delivery))
        while waiting:
            yield heapq.heappop(waiting)[2]

    def deliveries(self, visit: Visit, *, faults: Faults = Faults()) -> Iterator[Delivery]:  # noqa: B008  # frozen
        """Yields the requests that bring one visit's events to the door, in the order of their sending."""
        who = self.visitor(visit.visitor)
        draw = self.random("network", visit.visitor, visit.at_us)
        offline_us = int((1 + 11 * draw()) * HOUR) if who.phone and draw() < faults.late else 0
        for last_us, events in _flushes(visit.events, 30 * SECOND if who.phone else 5 * SECOND, who.skew_us):
            sent_us = last_us
            if offline_us:
                sent_us = visit.at_us + LONGEST_VISIT_US + offline_us
            elif draw() < faults.out_of_order:
                sent_us += int((20 + 100 * draw()) * SECOND)
            while True:
                latency_us = int((20 + 280 * draw()) * 1000)
                yield Delivery(sent_us + latency_us, visit.visitor, events, write_time(sent_us + who.skew_us))
                if draw() >= faults.duplicate:
                    break
                sent_us += int((1 + 59 * draw()) * SECOND)

    def visit_start(self, visitor: int, at_us: int) -> int:
        """Returns when the visit of the schedule began in which the visitor is at an instant.

        For an instant in no such visit it is the instant itself.
        """
        start_us = self._start(visitor, (at_us - int(self._phase[visitor])) // HOUR)
        return at_us if start_us is None or not 0 <= at_us - start_us <= LONGEST_VISIT_US else start_us

    def expected_clicks(self, visitor: int, at_us: int, product_ids: Sequence[str]) -> float:
        """Returns the expected number of clicks of a visitor on a page that was wanted at an instant.

        It is exact for visits of the schedule. A visit that somebody made up with `visit` or `visiting` is not known
        to it: such a visitor counts as one who has just come.
        """
        if self.visitor(visitor).bot:
            return 0.0
        tired_us = at_us - self.visit_start(visitor, at_us)
        return math.fsum(self.market.chances(visitor, product_ids, at_us=at_us, tired_us=tired_us))

    def true_ctr(self, pages: Iterable[tuple[int, int, Sequence[str]]]) -> float:
        """Returns the expected clicks per product shown, of pages given as (visitor, instant, product ids).

        Bots' pages don't count, as in a metric.
        """
        clicks: list[float] = []
        shown = 0
        for visitor, at_us, product_ids in pages:
            if not self.visitor(visitor).bot:
                clicks.append(self.expected_clicks(visitor, at_us, product_ids))
                shown += len(product_ids)
        if not shown:
            raise CallError(f"World({self.seed}): there is no true CTR of pages that show no product to a person")
        return math.fsum(clicks) / shown

    def product(self, product_id: str, position: int) -> ShownProduct:
        """Returns a product as it stands at a position of a list."""
        return self.market.product(product_id, position)

    def item(self, product_id: str) -> Item:
        """Returns the title of that id; raises CallError for an id that the world does not have."""
        return self.market.item(product_id)

    def random(self, stream: str, visitor: int, at_us: int) -> Callable[[], float]:
        """Returns a source of numbers in [0, 1) that depend on the seed and the arguments alone."""
        return self._draws.source(stream, visitor, at_us)

    def popular(self, visitor: int, at_us: int) -> list[str]:
        """Returns the world's own list: popular titles first, in a new draw for each visitor and instant."""
        size = min(self.habits.slots, len(self.items))
        scale = self._weights[-1] / 2**32
        chosen: dict[str, None] = {}
        block = 0
        while len(chosen) < size:
            key = b"%d/%d/%d/%d" % (self.seed, visitor, at_us, block)
            # Sixteen draws from a hash cost 1.3 us, seeding a Random alone 4.7 us.
            for number in _SIXTEEN.unpack(blake2b(key, person=b"shown").digest()):
                chosen[self.items[bisect(self._weights, number * scale)].product_id] = None
            block += 1
        return list(chosen)[:size]

    def _starts(self, visitors: NDArray[np.uint64], slots: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Returns when each visitor's visit of an hourly slot begins, -1 for none.

        A slot's visits begin in the first half of the visitor's own hour and last less than the
        other half, so that nobody is in two visits at once.
        """
        weekday = (slots // np.uint64(24) + np.uint64(3)) % np.uint64(7)
        chance = self.activity[visitors] * _CYCLE[weekday * np.uint64(24) + slots % np.uint64(24)]
        inside = (self._draws.uniforms("start", visitors, slots) * (HOUR // 2)).astype(np.int64)
        starts = slots.astype(np.int64) * HOUR + self._phase[visitors] + inside
        return np.where(self._draws.uniforms("slot", visitors, slots) < chance, starts // 1000 * 1000, -1)

    def _start(self, visitor: int, slot: int) -> int | None:
        """Returns what `_starts` does for one visitor and slot, without arrays, None for no visit."""
        weekday = (slot // 24 + 3) % 7
        if self._draws.uniform("slot", visitor, slot) >= self.activity[visitor] * _CYCLE[weekday * 24 + slot % 24]:
            return None
        inside = int(self._draws.uniform("start", visitor, slot) * (HOUR // 2))
        return (slot * HOUR + int(self._phase[visitor]) + inside) // 1000 * 1000

    def _make_items(self, items: int, genres: int) -> tuple[Item, ...]:
        draw = self.random("item", 0, 0)
        titles = [f"The {adjective} {noun}" for adjective in _ADJECTIVES for noun in _NOUNS]
        titles.sort(key=lambda _: draw())
        made = []
        for number in range(items):
            sequel, place = divmod(number, len(titles))
            title = titles[place] + (f" {sequel + 1}" if sequel else "")
            seconds = 10 * int(30 + draw() * 500)
            made.append(Item(f"item-{number:03}", title, GENRES[number % genres], seconds, 1 / (0.01 + draw())))
        return tuple(made)

    def _make_visitor(self, number: int) -> Visitor:
        draw = self.random("visitor", number, 0)
        habits = self.habits
        bot, phone, account, skewed = (
            draw() < share for share in (habits.bots, habits.phones, habits.accounts, habits.skewed)
        )
        phone, account = phone and not bot, account and not bot
        agents = _BOTS if bot else _PHONES if phone else _BROWSERS
        user_agent = agents[int(draw() * len(agents))]
        library = {"name": "analytics-kotlin" if phone else "analytics.js", "version": "1.19.0" if phone else "2.11.1"}
        context = {"library": library, "userAgent": user_agent, "locale": _LOCALES[int(draw() ** 2 * len(_LOCALES))]}
        skew_us = int(10 * SECOND * 8640 ** draw()) * (1 if draw() < 0.5 else -1)
        wish_us = self.born_us - int(math.log1p(-draw()) * DAY)
        digest = blake2b(b"%d/%d" % (self.seed, number), digest_size=16).hexdigest()
        return Visitor(
            number=number,
            anonymous_id=f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}",
            user_id=f"user-{number}" if account else None,
            login_us=self._first_start(number, wish_us) if account else 0,
            bot=bot,
            phone=phone,
            user_agent=user_agent,
            address=f"2001:db8::{number >> 16:x}:{number & 0xFFFF:x}",
            skew_us=skew_us // 1000 * 1000 if skewed else 0,
            context=msgspec.Raw(_encode(context)),
        )

    def _first_start(self, visitor: int, from_us: int) -> int:
        """Returns when the first visit from an instant on begins, or the instant itself if none does for long."""
        first = from_us // HOUR - 2
        slots = np.arange(first, first + 24 * 28, dtype=np.uint64)
        starts = self._starts(np.full(slots.size, visitor, np.uint64), slots)
        starts = starts[starts >= from_us]
        return int(starts.min()) if starts.size else from_us


class _Body(msgspec.Struct, rename="camel", gc=False):
    batch: list[ClientEvent]
    sent_at: str


_encode = msgspec.json.Encoder().encode


def encode(delivery: Delivery) -> bytes:
    """Returns the body of a Segment batch request.

    >>> world = World(7)
    >>> first = next(world.deliver(world.traffic(BORN_US, BORN_US + DAY)))
    >>> sorted(msgspec.json.decode(encode(first)))
    ['batch', 'sentAt']
    """
    return _encode(_Body(delivery.events, delivery.sent_at))


def _flushes(events: list[ClientEvent], interval_us: int, skew_us: int) -> Iterator[tuple[int, list[ClientEvent]]]:
    """Yields what a client sends together: until the interval since the first is over, at most 20 events."""
    queue: list[ClientEvent] = []
    first_us = last_us = 0
    for event in events:
        at_us = round(datetime.fromisoformat(event.timestamp).timestamp() * 1000) * 1000 - skew_us
        if queue and (at_us - first_us >= interval_us or len(queue) == 20):
            yield last_us, queue
            queue = []
        if not queue:
            first_us = at_us
        queue.append(event)
        last_us = at_us
    yield last_us, queue
