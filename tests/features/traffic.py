"""Settled events of a small shop: late ones, logins, robots, several items at once, and a genre that changes."""

from __future__ import annotations

import json
from random import Random

from msgspec import UNSET, Raw

from headrace.events.dimension import Attribute, Dimension
from headrace.events.event import Event
from headrace.events.settled import EVENTS, PROGRESS_HEADERS, Progress, SettledEvent, encode
from headrace.features import count, item, last, list_columns, person, total
from headrace.topics import Record
from headrace.topics.partition import partition_for

SECOND = 1_000_000
HOUR = 3600 * SECOND
DAY = 24 * HOUR
START_US = 20_460 * DAY

GENRES = ("crime", "drama", "space")
TITLE, GENRE = Attribute("title"), Attribute("genre")
ITEMS = Dimension("items", key="product_id", attributes=(TITLE, GENRE))
VIEWS = Event("Product List Viewed", item="products[].product_id", of=ITEMS)
CLICKS = Event("Product Clicked", item="product_id", of=ITEMS)

COLUMNS = list_columns(
    (
        count("taste", CLICKS, by=(person, GENRE), windows=("1d", "28d")),
        count("appeal", CLICKS, by=item, windows=("1d", "7d")),
        count("mood", VIEWS, by=GENRE, windows=("2h",)),
        count("again", CLICKS, by=(person, item), windows=("1d",)),
        count("busy", VIEWS, by=person, windows=("1h",)),
        total("spent", CLICKS, "price", by=(person, GENRE), windows=("1d",)),
        total("worth", CLICKS, "price", by=item, windows=("1d",)),
        last("latest", CLICKS, item, by=person, windows=("1h",)),
        last("whim", CLICKS, GENRE, by=person, windows=("1d",)),
        last("shelf", VIEWS, GENRE, by=item, windows=("1d",)),
    )
)
"""Every kind of key and value."""


class Shop:
    """Makes events, each partition's in its order; `genre_of` is what the dimension says at the moment."""

    def __init__(self, seed=1, *, partitions=3, items=12, step_us=7 * 60 * SECOND):
        self.random = Random(seed)
        self.partitions = partitions
        self.items = [f"item-{number}" for number in range(items)]
        self.genre_of = {name: GENRES[number % 3] for number, name in enumerate(self.items)}
        self.genre_of[self.items[-1]] = None
        self.now_us = START_US
        self._step_us = step_us
        self._offsets = [0] * partitions
        self._seqs = [0] * partitions
        self._users = {}

    def events(self, count):
        """Returns events with the partition of each."""
        return [self.event() for _ in range(count)]

    def event(self):
        """Returns one event with its partition."""
        draw = self.random
        self.now_us += draw.randrange(2 * self._step_us)
        if draw.random() < 0.02:
            # From now on; what happened keeps what it carries.
            self.genre_of[draw.choice(self.items[:-1])] = draw.choice(GENRES)
        visitor = f"v{draw.randrange(6)}"
        partition = int(visitor[1:]) % self.partitions
        if draw.random() < 0.05:
            self._users[visitor] = f"u{draw.randrange(3)}"
        late_us = draw.choice([0] * 8 + [draw.randrange(HOUR), draw.randrange(40 * DAY)])
        event_us = max(self.now_us - late_us, START_US)
        if draw.random() < 0.1:
            # At the very edge of a tile.
            event_us = event_us // HOUR * HOUR - draw.randrange(2)
        return self.make(partition, event_us, visitor=visitor, **self._what())

    def _what(self):
        draw = self.random
        if draw.random() < 0.2:
            return {"event": VIEWS.name, "items": draw.choices(self.items, k=3)}
        if draw.random() < 0.1:
            return {"event": draw.choice(["Product Clicked", "page"]), "kind": "page", "items": self.items[:1]}
        price = draw.choice([None, "text", True, 1, 2.345678, -0.1, 1e300, 0.0000005])
        return {"event": CLICKS.name, "items": [draw.choice(self.items)], "price": price, "bot": draw.random() < 0.05}

    def make(
        self, partition, event_us, *, visitor="v0", event=CLICKS.name, items=(), kind="track", price=None, bot=False
    ):
        """Returns one event as told, with its partition."""
        self._offsets[partition] += self.random.choice([1, 1, 3])
        self._seqs[partition] += 1
        products = [{"product_id": name} for name in items]
        properties = {"products": products} if event == VIEWS.name else {**(products or [{}])[0], "price": price}
        known = {name: {"genre": self.genre_of[name], "title": name} for name in items if name in self.genre_of}
        user = self._users.get(visitor)
        made = SettledEvent(
            version=1,
            message_id=f"m{partition}-{self._seqs[partition]}",
            source="dev",
            type=kind,
            event=event,
            event_us=event_us,
            received_us=max(self.now_us, event_us),
            log_us=self.now_us,
            person=user or visitor,
            session_id="s",
            src_offset=self._offsets[partition],
            seq=self._seqs[partition] - 1,
            definitions="d",
            visitor=visitor,
            user_id=user,
            bot=bot,
            properties=Raw(json.dumps(properties).encode()),
            attributes=Raw(json.dumps(known).encode()) if known else UNSET,
        )
        return made, partition


def append(topics, events):
    """Puts events into the topic `events`, each into its partition, with a progress record at the end of each."""
    partitions = topics.describe(EVENTS).partitions
    keys = {partition_for(b"k%d" % number, partitions): b"k%d" % number for number in range(64)}
    records = [Record(keys[partition], encode(event), event.log_us) for event, partition in events]
    progress = encode(Progress(version=1, src_offset=0, log_us=START_US))
    silent = [Record(key, progress, START_US, PROGRESS_HEADERS) for key in keys.values()]
    topics.append(EVENTS, [*records, *silent], deadline_seconds=10.0)
