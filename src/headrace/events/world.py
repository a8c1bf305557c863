"""A made-up audience of a video service: a seeded source of visits, as clients would send them.

Everything follows from the seed: the same world gives the same bytes, in whatever order one asks.
Only `Random.random`, whose sequence Python promises to keep, and integer hashes are drawn from.
"""

from __future__ import annotations

import heapq
import math
import struct
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, datetime
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, count
from random import Random
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import CallError, did_you_mean

Policy = Callable[[int, int], Sequence[str]]
"""Says which products a visitor is shown at an instant: `policy(visitor, at_us) -> product ids`."""

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
BORN_US: Final = 1_767_571_200 * SECOND
"""Monday, 5 January 2026, 00:00 UTC: when a world begins unless told otherwise."""
BEAT_US: Final = 10 * SECOND
LONGEST_VISIT_US: Final = 29 * MINUTE

_MASK = (1 << 64) - 1
_SIXTEEN = struct.Struct("<16I")
_GOLDEN = 0x9E3779B97F4A7C15
_STREAMS = ("activity", "turn", "phase", "slot", "start", "visit", "network", "visitor", "item")


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


class Habits(msgspec.Struct, frozen=True, kw_only=True):
    """How the audience behaves. Shares are of visitors, unless said otherwise."""

    visits_per_day: float = 2.0
    """The mean over visitors, bots included."""
    activity_sigma: float = 0.6
    """The standard deviation of the logarithm of a visitor's visits per day."""
    bots: float = 0.03
    phones: float = 0.45
    """Of the people; they send `screen` where others send `page`."""
    accounts: float = 0.4
    """Of the people; each logs in once, a day after the world began on average, and stays so."""
    skewed: float = 0.08
    """Whose clock is wrong, by 10 seconds to a day."""
    utterances: float = 0.04
    """Of the visits of people: those in which something is asked for aloud."""
    slots: int = 10
    """How many products the world's own policy shows."""
    click: float = 0.08
    """The chance of a click at position 1; position k has this divided by k ** 0.7."""


class Faults(msgspec.Struct, frozen=True, kw_only=True):
    """How delivery goes wrong."""

    late: float = 0.06
    """Share of the visits on phones that were offline: all they sent arrives 1 to 12 hours later."""
    duplicate: float = 0.01
    """Share of the deliveries that arrive twice, the second time 1 to 60 seconds later."""
    out_of_order: float = 0.02
    """Share of the deliveries held back for 20 to 120 seconds, so that later ones overtake them."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One title of the service."""

    product_id: str
    title: str
    genre: str
    seconds: int
    weight: float
    """How popular it is, as a weight against the other items."""


class Visitor(msgspec.Struct, frozen=True, gc=False):
    """One member of the audience."""

    number: int
    anonymous_id: str
    user_id: str | None
    """The account, known to the service from `login_us` on; None without one."""
    login_us: int
    bot: bool
    phone: bool
    user_agent: str
    address: str
    skew_us: int
    """How far the client's clock is ahead."""
    context: msgspec.Raw


class ShownProduct(msgspec.Struct, frozen=True, gc=False):
    """One element of a list shown."""

    product_id: str
    position: int
    category: str


class ClientEvent(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    """One event as a client makes it; `encode` writes it as Segment's SDKs do."""

    type: str
    message_id: str
    anonymous_id: str
    timestamp: str
    context: msgspec.Raw
    user_id: str | None = None
    event: str | None = None
    name: str | None = None
    properties: dict[str, Any] | None = None
    traits: dict[str, Any] | None = None


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
        everyone = np.arange(visitors, dtype=np.uint64)
        radius = np.sqrt(-2 * np.log1p(-self._uniforms("activity", everyone, 0)))
        normal = radius * np.cos(2 * np.pi * self._uniforms("turn", everyone, 0))
        sigma = habits.activity_sigma
        self.activity = habits.visits_per_day * np.exp(sigma * normal - sigma**2 / 2)
        """Each visitor's visits per day."""
        self._phase = (self._uniforms("phase", everyone, 0) * HOUR).astype(np.int64)
        self.items = self._make_items(items, genres)
        """The titles of the service."""
        self._by_id = {item.product_id: item for item in self.items}
        self._weights = list(accumulate(item.weight for item in self.items))
        self._products: dict[tuple[str, int], ShownProduct] = {}
        self.click_up_to = list(accumulate(habits.click / position**0.7 for position in range(1, 201)))
        """The chance that one of the first k positions is clicked, for each k from 1."""
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
        who = self.visitor(visitor)
        diary = _Diary(self, who, self.born_us if at_us is None else at_us, policy or self.popular)
        if who.bot:
            diary.crawl()
        else:
            diary.browse()
        return diary.events

    def traffic(self, start_us: int, end_us: int, *, policy: Policy | None = None) -> Iterator[Visit]:
        """Yields the visits that begin from `start_us` to before `end_us`, in the order of their beginning.

        Two stretches one after the other give the same as one over both.
        """
        for at_us, visitor in self._schedule(start_us, end_us):
            yield Visit(at_us, visitor, self.visit(visitor, at_us=at_us, policy=policy))

    def deliver(self, visits: Iterable[Visit], *, faults: Faults = Faults()) -> Iterator[Delivery]:  # noqa: B008
        """Yields the requests that bring the visits' events to the door, in the order of their arrival."""
        waiting: list[tuple[int, int, Delivery]] = []
        number = count()
        for visit in visits:
            while waiting and waiting[0][0] <= visit.at_us:
                yield heapq.heappop(waiting)[2]
            for delivery in self._deliveries(visit, faults):
                heapq.heappush(waiting, (delivery.at_us, next(number), delivery))
        while waiting:
            yield heapq.heappop(waiting)[2]

    def product(self, product_id: str, position: int) -> ShownProduct:
        """Returns a product as it stands at a position of a list."""
        found = self._products.get((product_id, position))
        if found is None:
            genre = self.item(product_id).genre
            found = self._products[product_id, position] = ShownProduct(product_id, position, genre)
        return found

    def item(self, product_id: str) -> Item:
        """Returns the title of that id; raises CallError for an id that the world does not have."""
        found = self._by_id.get(product_id)
        if found is None:
            near = did_you_mean(product_id, self._by_id)
            raise CallError(f"World({self.seed}) has no product {product_id!r}, only {len(self.items)} others.{near}")
        return found

    def random(self, stream: str, visitor: int, at_us: int) -> Callable[[], float]:
        """Returns a source of numbers in [0, 1) that depend on the seed and the arguments alone."""
        key = ((self.seed & _MASK) << 136) | (_STREAMS.index(stream) << 128) | (visitor << 64) | (at_us & _MASK)
        return Random(key).random

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

    def _uniforms(self, stream: str, a: NDArray[np.uint64], b: NDArray[np.uint64] | int) -> NDArray[np.float64]:
        """Returns numbers in [0, 1) that depend on seed, stream, a and b alone."""
        start = np.uint64(((self.seed + 1) * _GOLDEN ^ (_STREAMS.index(stream) + 1) << 56) & _MASK)
        mixed = _mix(_mix(a * np.uint64(_GOLDEN) ^ start) + np.asarray(b, np.uint64) * np.uint64(0xD1B54A32D192ED03))
        return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def _starts(self, visitors: NDArray[np.uint64], slots: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Returns when each visitor's visit of an hourly slot begins, -1 for none.

        A slot's visits begin in the first half of the visitor's own hour and last less than the
        other half, so that nobody is in two visits at once.
        """
        weekday = (slots // np.uint64(24) + np.uint64(3)) % np.uint64(7)
        chance = self.activity[visitors] * _CYCLE[weekday * np.uint64(24) + slots % np.uint64(24)]
        inside = (self._uniforms("start", visitors, slots) * (HOUR // 2)).astype(np.int64)
        starts = slots.astype(np.int64) * HOUR + self._phase[visitors] + inside
        return np.where(self._uniforms("slot", visitors, slots) < chance, starts // 1000 * 1000, -1)

    def _schedule(self, start_us: int, end_us: int) -> Iterator[tuple[int, int]]:
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

    def _deliveries(self, visit: Visit, faults: Faults) -> Iterator[Delivery]:
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
                yield Delivery(sent_us + latency_us, visit.visitor, events, _iso(sent_us + who.skew_us))
                if draw() >= faults.duplicate:
                    break
                sent_us += int((1 + 59 * draw()) * SECOND)


class _Diary:
    """One visit while it is written down."""

    def __init__(self, world: World, who: Visitor, at_us: int, policy: Policy) -> None:
        self.events: list[ClientEvent] = []
        self.world = world
        self.who = who
        self.policy = policy
        self.draw = world.random("visit", who.number, at_us)
        self.now_us = at_us
        self.until_us = at_us + LONGEST_VISIT_US
        self.prefix = f"{world.seed:x}-{who.number:x}-{at_us:x}-"
        self.user_id = who.user_id if who.user_id and who.login_us < at_us else None
        self.logs_in = who.user_id is not None and who.login_us == at_us

    def browse(self) -> None:
        """Writes a person's visit."""
        draw = self.draw
        self.write("screen" if self.who.phone else "page", name="Home", properties={"path": "/", "title": "Home"})
        if draw() < self.world.habits.utterances:
            self.ask()
        while True:
            self.wait(2, 20)
            if self.now_us > self.until_us:
                return
            shown = self.show()
            if self.logs_in:
                self.log_in()
            clicked = bisect(self.world.click_up_to, draw())
            if clicked < len(shown):
                self.watch(shown[clicked])
            if draw() > 0.45:
                return

    def crawl(self) -> None:
        """Writes a bot's visit: lists and nothing else."""
        self.write("page", name="Home", properties={"path": "/", "title": "Home"})
        for _ in range(10 + int(30 * self.draw())):
            self.wait(1, 5)
            self.show()

    def show(self) -> list[ShownProduct]:
        """Writes that a list was shown, and returns it."""
        product_ids = self.policy(self.who.number, self.now_us)
        product = self.world.product
        shown = [product(product_id, position) for position, product_id in enumerate(product_ids, 1)]
        self.write("track", "Product List Viewed", properties={"list_id": "home", "products": shown})
        return shown

    def log_in(self) -> None:
        """Writes the one login of this visitor."""
        self.logs_in = False
        self.wait(3, 30)
        self.user_id = self.who.user_id
        self.write("identify", traits={"plan": "plus" if self.draw() < 0.3 else "free"})

    def ask(self) -> None:
        """Writes what was asked for aloud."""
        self.wait(1, 4)
        genre = self.world.items[int(self.draw() * len(self.world.items))].genre
        said = {"text": f"play something from {genre}", "intent": "play", "confidence": round(0.5 + self.draw() / 2, 3)}
        self.write("track", "Utterance Heard", properties={**said, "locale": "en-GB", "slots": {"genre": genre}})

    def watch(self, product: ShownProduct) -> None:
        """Writes a click and the playback that follows, with a heartbeat every 10 s."""
        self.wait(1, 15)
        item_id, category = product.product_id, product.category
        clicked = {"product_id": item_id, "position": product.position, "list_id": "home", "category": category}
        self.write("track", "Product Clicked", properties=clicked)
        self.wait(1, 3)
        session_id, length = f"{self.prefix}p{len(self.events)}", self.world.item(item_id).seconds
        started = {"session_id": session_id, "content_asset_ids": [item_id], "position": 0, "total_length": length}
        self.write("track", "Video Playback Started", properties=started)
        wanted = -int(math.log1p(-self.draw()) * 12)
        beats = max(0, min(wanted, length // 10, (self.until_us - self.now_us) // BEAT_US))
        for position in range(10, 10 * beats + 10, 10):
            self.now_us += BEAT_US
            beat = {"session_id": session_id, "asset_id": item_id, "position": position, "total_length": length}
            self.write("track", "Video Content Playing", properties=beat)
        self.wait(1, 9)
        ended = {"session_id": session_id, "content_asset_id": item_id, "position": 10 * beats, "total_length": length}
        self.write("track", "Video Playback Completed", properties=ended)

    def wait(self, shortest: float, longest: float) -> None:
        """Lets some seconds pass."""
        self.now_us += int((shortest + (longest - shortest) * self.draw()) * 1000) * 1000

    def write(
        self,
        kind: str,
        event: str | None = None,
        *,
        name: str | None = None,
        properties: dict[str, Any] | None = None,
        traits: dict[str, Any] | None = None,
    ) -> None:
        """Appends one event as of now, on the client's clock."""
        who, events = self.who, self.events
        message_id = f"{self.prefix}{len(events)}"
        at = _iso(self.now_us + who.skew_us)
        user_id = self.user_id
        events.append(
            ClientEvent(kind, message_id, who.anonymous_id, at, who.context, user_id, event, name, properties, traits)
        )


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


def _mix(number: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns the numbers scrambled, by the finaliser of splitmix64."""
    number = (number ^ number >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ number >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return number ^ number >> np.uint64(31)


_HOUR_MINUTE = tuple(f"T{hour:02}:{minute:02}:" for hour in range(24) for minute in range(60))
_TWO = tuple(f"{number:02}." for number in range(60))
_THREE = tuple(f"{number:03}Z" for number in range(1000))


@lru_cache(maxsize=64)
def _day_text(day: int) -> str:
    return date.fromordinal(date(1970, 1, 1).toordinal() + day).isoformat()


def _iso(time_us: int) -> str:
    day, rest = divmod(time_us, DAY)
    minute, rest = divmod(rest, MINUTE)
    second, rest = divmod(rest, SECOND)
    return f"{_day_text(day)}{_HOUR_MINUTE[minute]}{_TWO[second]}{_THREE[rest // 1000]}"
