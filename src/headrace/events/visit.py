"""One visit, written down as clients would send it; the pages in it may come from anywhere."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from datetime import date
from functools import lru_cache
from itertools import islice
from typing import Any, Final

import msgspec

from headrace.events.market import DAY, MINUTE, SECOND, Market, ShownProduct

BEAT_US: Final = 10 * SECOND
LONGEST_VISIT_US: Final = 29 * MINUTE
# No page is asked for after it: what is left suffices for what is clicked on the last one.
_LAST_PAGE_US: Final = 24 * MINUTE


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


class PageWanted(msgspec.Struct, frozen=True, gc=False):
    """A visitor asks for the home page."""

    at_us: int
    """The instant, on a true clock; chances of clicks are those of this instant, however long the page takes."""
    visitor: Visitor
    user_id: str | None
    """The account, once the visitor is logged in."""


class PageShown(msgspec.Struct, frozen=True, gc=False):
    """The page that came. Nothing on it means that none came: the visitor sees no list and clicks nothing."""

    product_ids: Sequence[str]
    recommendation_id: str | None = None
    """What the events carry, so that a click is traced to the decision that made the page."""
    delay_us: int = 0
    """How long the visitor waited for it."""
    rows: Sequence[tuple[str, int]] = ()
    """The carousels from above with their sizes; without them all products are one list, `home`."""


Visiting = Generator[PageWanted, PageShown, list[ClientEvent]]
"""A visit under way: it asks for pages, is sent them, and returns its events."""


class Diary:
    """One visit while it is written down."""

    def __init__(self, market: Market, who: Visitor, at_us: int) -> None:
        self.events: list[ClientEvent] = []
        self.market = market
        self.who = who
        self.draw = market.draws.source("visit", who.number, at_us)
        self.now_us = self.began_us = at_us
        self.until_us = at_us + LONGEST_VISIT_US
        self.prefix = f"{market.draws.seed:x}-{who.number:x}-{at_us:x}-"
        self.user_id = who.user_id if who.user_id and who.login_us < at_us else None
        self.logs_in = who.user_id is not None and who.login_us == at_us

    def browse(self) -> Visiting:
        """Writes a person's visit."""
        draw = self.draw
        self.write("screen" if self.who.phone else "page", name="Home", properties={"path": "/", "title": "Home"})
        if draw() < self.market.habits.utterances:
            self.ask()
        while True:
            self.wait(2, 20)
            wanted_us = self.now_us
            if wanted_us > self.began_us + _LAST_PAGE_US:
                return self.events
            page = yield PageWanted(wanted_us, self.who, self.user_id)
            shown = self.show(page)
            if self.logs_in:
                self.log_in()
            for list_id, product in self.choose(page, shown, wanted_us):
                self.watch(product, list_id, page.recommendation_id)
            if draw() > 0.45:
                return self.events

    def crawl(self) -> Visiting:
        """Writes a bot's visit: lists and nothing else."""
        self.write("page", name="Home", properties={"path": "/", "title": "Home"})
        for _ in range(10 + int(30 * self.draw())):
            self.wait(1, 5)
            self.show((yield PageWanted(self.now_us, self.who, self.user_id)))
        return self.events

    def show(self, page: PageShown) -> list[tuple[str, ShownProduct]]:
        """Writes that each list was viewed, all of it, soon after it came; returns what they hold, with their names."""
        self.now_us = min(self.now_us + page.delay_us // 1000 * 1000, self.until_us)
        self.wait(1, 2)
        product, ids = self.market.product, iter(page.product_ids)
        shown: list[tuple[str, ShownProduct]] = []
        for list_id, size in page.rows or (("home", len(page.product_ids)),):
            products = [product(product_id, position) for position, product_id in enumerate(islice(ids, size), 1)]
            if products:
                properties = _traced({"list_id": list_id, "products": products}, page.recommendation_id)
                self.write("track", "Product List Viewed", properties=properties)
            shown += [(list_id, one) for one in products]
        return shown

    def choose(
        self, page: PageShown, shown: list[tuple[str, ShownProduct]], wanted_us: int
    ) -> list[tuple[str, ShownProduct]]:
        """Returns what is clicked on a page, each slot independently of the others; eyes go down the page."""
        chances = self.market.chances(
            self.who.number, page.product_ids, at_us=wanted_us, tired_us=wanted_us - self.began_us
        )
        draw = self.draw
        return [one for one, chance in zip(shown, chances, strict=False) if draw() < chance]

    def log_in(self) -> None:
        """Writes the one login of this visitor."""
        self.logs_in = False
        self.wait(3, 30)
        self.user_id = self.who.user_id
        self.write("identify", traits={"plan": "plus" if self.draw() < 0.3 else "free"})

    def ask(self) -> None:
        """Writes what was asked for aloud."""
        self.wait(1, 4)
        genre = self.market.items[int(self.draw() * len(self.market.items))].genre
        said = {"text": f"play something from {genre}", "intent": "play", "confidence": round(0.5 + self.draw() / 2, 3)}
        self.write("track", "Utterance Heard", properties={**said, "locale": "en-GB", "slots": {"genre": genre}})

    def watch(self, product: ShownProduct, list_id: str, recommendation_id: str | None) -> None:
        """Writes a click and the playback that follows, with a heartbeat every 10 s."""
        self.wait(1, 15)
        item_id, category = product.product_id, product.category
        clicked = {"product_id": item_id, "position": product.position, "list_id": list_id, "category": category}
        self.write("track", "Product Clicked", properties=_traced(clicked, recommendation_id))
        self.wait(1, 3)
        session_id, length = f"{self.prefix}p{len(self.events)}", self.market.item(item_id).seconds
        started = {"session_id": session_id, "content_asset_ids": [item_id], "position": 0, "total_length": length}
        self.write("track", "Video Playback Started", properties=started)
        wanted = -int(math.log1p(-self.draw()) * self.market.habits.beats)
        beats = max(0, min(wanted, length // 10, (self.until_us - self.now_us) // BEAT_US))
        for position in range(10, 10 * beats + 10, 10):
            self.now_us += BEAT_US
            beat = {"session_id": session_id, "asset_id": item_id, "position": position, "total_length": length}
            self.write("track", "Video Content Playing", properties=beat)
        self.wait(1, 9)
        ended = {"session_id": session_id, "content_asset_id": item_id, "position": 10 * beats, "total_length": length}
        self.write("track", "Video Playback Completed", properties=ended)

    def wait(self, shortest: float, longest: float) -> None:
        """Lets some seconds pass, as long as the visit may still last."""
        self.now_us = min(
            self.now_us + int((shortest + (longest - shortest) * self.draw()) * 1000) * 1000, self.until_us
        )

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
        at = write_time(self.now_us + who.skew_us)
        user_id = self.user_id
        events.append(
            ClientEvent(kind, message_id, who.anonymous_id, at, who.context, user_id, event, name, properties, traits)
        )


def _traced(properties: dict[str, Any], recommendation_id: str | None) -> dict[str, Any]:
    if recommendation_id is not None:
        properties["recommendation_id"] = recommendation_id
    return properties


_HOUR_MINUTE = tuple(f"T{hour:02}:{minute:02}:" for hour in range(24) for minute in range(60))
_TWO = tuple(f"{number:02}." for number in range(60))
_THREE = tuple(f"{number:03}Z" for number in range(1000))


@lru_cache(maxsize=64)
def _day_text(day: int) -> str:
    return date.fromordinal(date(1970, 1, 1).toordinal() + day).isoformat()


def write_time(time_us: int) -> str:
    """Returns an instant as clients write it, to the millisecond.

    >>> write_time(1_767_571_200_123_000)
    '2026-01-05T00:00:00.123Z'
    """
    day, rest = divmod(time_us, DAY)
    minute, rest = divmod(rest, MINUTE)
    second, rest = divmod(rest, SECOND)
    return f"{_day_text(day)}{_HOUR_MINUTE[minute]}{_TWO[second]}{_THREE[rest // 1000]}"
