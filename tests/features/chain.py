"""The whole way from click to page in one process: topics, settler, updater, sinks and lookups, all of them real."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random
from types import SimpleNamespace

import msgspec

from features.counting import drain
from headrace.base.clock import machine_us
from headrace.base.telemetry import Metrics
from headrace.collect.app import CLICKS
from headrace.collect.dimensions import Dimensions
from headrace.collect.load import load_members
from headrace.collect.settler import Settler
from headrace.endpoints.serving import Served
from headrace.endpoints.vectors import Lookup
from headrace.events.click import Door, encode_door
from headrace.events.decision import DECISIONS, encode
from headrace.events.settled import EVENTS
from headrace.features.updater import Updater
from headrace.project import OpenProject, read_profile
from headrace.stream import METRICS, codec_of, find_sources, make_table
from headrace.tables.sink import Flush, Sink
from headrace.topics import Record
from running import project_toml
from streamline import BEGAN_US, DAY, SECOND, decided

PROJECT = """from headrace import Attribute, Carousel, Dimension, Event, Metric, Page, Project
from headrace.features import count, item, last, person, total
from headrace.models import click_model, popularity

title, genre = Attribute("title"), Attribute("genre")
items = Dimension("items", key="product_id", attributes=(title, genre))
views = Event("Product List Viewed", item="products[].product_id", of=items)
clicks = Event("Product Clicked", item="product_id", of=items)
features = (
    count("taste", clicks, by=(person, genre), windows=("1d", "28d")),
    count("appeal", clicks, by=item, windows=("6h", "7d")),
    count("mood", views, by=genre, windows=("2h",)),
    count("again", clicks, by=(person, item), windows=("1d",)),
    count("busy", views, by=person, windows=("1h",)),
    total("spent", clicks, "price", by=(person, genre), windows=("1d",)),
    total("worth", clicks, "price", by=item, windows=("1d",)),
    last("latest", clicks, item, by=person, windows=("1h",)),
    last("whim", clicks, genre, by=person, windows=("1d",)),
    last("shelf", views, genre, by=item, windows=("1d",)),
)
ctr = Metric.ratio("ctr", clicks, views, within="30m")
popular = popularity("popular", clicks, half_life="3d")
ranker = click_model("ranker", ctr, features=features)
home = Page("home", per_row=4, fallback=popular, carousels=(Carousel("For you", candidates=(popular,), rank=ranker),))
project = Project("streamline", pages=(home,))
"""
BUNDLE = "b1"
GENRES = ("crime", "drama", "space")
ITEMS = tuple(f"item-{number}" for number in range(12))
PRICES = (1, 2.5, 0.1, "7", None, 0.0000005)
PORTIONS = 70
_BROWSER, _BOT = "Mozilla/5.0 (X11; Linux x86_64) Firefox/146.0", "Googlebot/2.1 (+http://www.google.com/bot.html)"


@dataclass
class Shopper:
    """Who clicks on one device."""

    visitor: str
    user: str | None
    login: int
    """The portion in which the device says who uses it."""
    bot: bool = False
    skew_us: int = 0
    """How far its clock is off."""
    back: int = 0
    """The portion in which the device is connected again."""

    def person(self, portion):
        """Returns who it is taken for."""
        return self.user if self.user and portion > self.login else self.visitor


class Shoppers:
    """Makes the clicks of a few devices: some are offline for hours, send a batch again, or have a wrong clock."""

    def __init__(self, seed):
        self.draw = Random(seed)
        users = [f"u{number % 5}" for number in range(8)] + [None] * 6
        self.all = [
            Shopper(
                f"v{number}",
                user,
                self.draw.randrange(15, PORTIONS - 15),
                bot=number == 13,
                skew_us=self.draw.randrange(-6, 6) * 3600 * SECOND if number % 4 == 3 else 0,
            )
            for number, user in enumerate(users)
        ]
        self.now_us = BEGAN_US
        self._queues = defaultdict(list)
        self._sent = []
        self._number = 0

    def portion(self, number):
        """Returns who came, and the records that the collector makes of what arrives."""
        self.now_us += self.draw.randrange(10 * 60, 80 * 60) * SECOND
        came = self.draw.sample(self.all, 3)
        for shopper in came:
            if shopper.back <= number and self.draw.random() < 0.25:
                shopper.back = number + self.draw.randrange(2, 8)
            self._visit(shopper)
        due = [shopper for shopper in self.all if shopper.login == number]
        for shopper in (one for one in due if one.user):
            self._queues[shopper.visitor].append(self._call(shopper, "identify", userId=shopper.user))
        records = []
        for shopper in self.all:
            if shopper.back <= number and self._queues[shopper.visitor]:
                batch = shopper, self._queues.pop(shopper.visitor)
                records += self._send(*batch)
                self._sent.append(batch)
        if self.draw.random() < 0.5 and self._sent:
            records += self._send(*self.draw.choice(self._sent[-12:]))
        return came, records

    def _visit(self, shopper):
        queue = self._queues[shopper.visitor]
        shown = self.draw.sample(ITEMS, 4)
        products = [{"product_id": name} for name in shown]
        queue.append(self._call(shopper, "track", event="Product List Viewed", properties={"products": products}))
        for name in self.draw.choices(shown, k=self.draw.randrange(1, 4)):
            self.now_us += self.draw.randrange(90) * SECOND
            # One in thirty fails, as no text.
            properties = {"product_id": name if self.draw.randrange(30) else [name], "price": self.draw.choice(PRICES)}
            queue.append(self._call(shopper, "track", event="Product Clicked", properties=properties))

    def _call(self, shopper, kind, **more):
        self._number += 1
        made = {"type": kind, "messageId": f"m{self._number}", "anonymousId": shopper.visitor}
        return made | {"originalTimestamp": _text(self.now_us + shopper.skew_us)} | more

    def _send(self, shopper, batch):
        agent = _BOT if shopper.bot else _BROWSER
        sent_at = _text(self.now_us + shopper.skew_us)
        door = Door(1, self.now_us, "http/batch", "dev", "127.0.0.1", agent, sent_at=sent_at)
        return [Record(shopper.visitor.encode(), json.dumps(one).encode(), 0, encode_door(door)) for one in batch]


def _text(at_us):
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="milliseconds")


class Inclusive:
    """An online store with a fault: its readers count what happened at their own instant."""

    def __init__(self, online):
        self._online = online

    def __getattr__(self, name):
        return getattr(self._online, name)

    def snapshot(self, *arguments, **options):
        """Returns what stands, as if the newest event were older."""
        found = self._online.snapshot(*arguments, **options)
        newest_us = tuple(max(at_us - 1, 0) for at_us in found.state.newest_us)
        return replace(found, state=msgspec.structs.replace(found.state, newest_us=newest_us))


class Chain:
    """A project whose roles run here, one step after the other."""

    def __init__(self, folder, seed):
        (folder / "project.py").write_text(PROJECT)
        (folder / "headrace.toml").write_text(
            project_toml(clock="stepped://", extra="[topic.clicks]\npartitions = 3\n")
        )
        (folder / ".headrace").mkdir()
        (folder / ".headrace" / "clock.stepped").write_bytes(struct.pack("<q", BEGAN_US + 60 * DAY))
        self.project = project = OpenProject(folder, read_profile(folder, None))
        project.make_topics()
        self.columns = project.declared.columns
        (self.dimension,) = project.declared.dimensions
        self.draw, self.shoppers = Random(seed + 1000), Shoppers(seed)
        self.metrics = Metrics(METRICS)
        self.genres = {name: GENRES[number % 3] for number, name in enumerate(ITEMS[:-1])}
        self.load(*self.genres)
        self.settler, self.updater = self.open_settler(), self.open_updater()
        self.settle()
        drain(self.updater)
        dimensions = Dimensions(project.topics, [self.dimension.name])
        self.lookup = Lookup(lambda: project.online, dimensions, self.columns)
        self.inclusive = Lookup(lambda: Inclusive(project.online), dimensions, self.columns)
        self.served = Served(BUNDLE, "ranker", SimpleNamespace(columns=self.columns, items=ITEMS))
        self.decisions, self.faulty = [], []

    def open_settler(self):
        """Returns a settler that goes on where the one before has stopped."""
        folder = self.project.folder / "settler"
        return Settler(self.project.topics, self.project.rules, folder, member="a", metrics=self.metrics)

    def open_updater(self):
        """Returns an updater that goes on where the one before has stopped."""
        sources = find_sources(self.project)
        made = Updater(self.project.online, lambda: self.columns, sources, clock=machine_us, metrics=self.metrics)
        made.open()
        return made

    def load(self, *names):
        """Says once more of which genres some items are."""
        members = {name: {"title": name.title(), "genre": self.genres[name]} for name in names}
        load_members(self.project.topics, self.dimension, members=members, now_us=self.shoppers.now_us)

    def settle(self):
        """Settles all that has arrived."""
        ends = [bound.end for bound in self.project.topics.bounds(CLICKS)]
        if not self.settler._memories:
            self.settler._renew()
        while any(memory.state.offset < ends[p] for p, memory in self.settler._memories.items()):
            self.settler.turn()

    def update(self):
        """Counts all that was settled."""
        ends = tuple(bound.end for bound in self.project.topics.bounds(EVENTS))
        while self.project.online.read_state().offsets != ends:
            self.updater.turn()

    def play(self):
        """Lets all shoppers come, and serves pages between what they send."""
        for number in range(PORTIONS):
            if self.draw.random() < 0.3:
                # From now on; what was settled keeps what it carries.
                changed = self.draw.sample([*self.genres], 2)
                self.genres |= {name: self.draw.choice(GENRES) for name in changed}
                self.load(*changed)
            came, records = self.shoppers.portion(number)
            if records:
                self.project.topic(CLICKS).append(records)
            if self.draw.random() < 0.1:
                self.settler.close()
                self.settler, self.updater = self.open_settler(), self.open_updater()
            # Either may lag.
            if self.draw.random() < 0.85:
                self.settle()
            if self.draw.random() < 0.85:
                self.update()
            for shopper in came:
                self.serve(shopper, number)
        self.settle()
        self.update()

    def serve(self, shopper, number):
        """Makes the vectors of all items for one page, and notes them as its decision."""
        now_us = self.shoppers.now_us + self.draw.choice([0, 0, self.draw.randrange(20 * 60_000_000)])
        for lookup, decisions in ((self.lookup, self.decisions), (self.inclusive, self.faulty)):
            lookup.prepare([self.served])
            found = lookup.read(self.served, shopper.person(number), now_us)
            noted = {"bundle": BUNDLE, "known": found.known, "dimensions": found.dimensions}
            noted |= {"vectors": found.of(range(len(ITEMS))), "person": shopper.person(number)}
            decisions.append(decided(shopper.visitor, ITEMS, at_us=found.at_us, **noted))

    def sink(self):
        """Writes the decisions down, and moves all topics into the lake."""
        records = [Record(one.visitor.encode(), encode(one)) for one in self.decisions]
        self.project.topic(DECISIONS).append(records)
        for name in (EVENTS, DECISIONS, self.dimension.name):
            ends = {p: bound.end for p, bound in enumerate(self.project.topics.bounds(name))}
            table = make_table(self.project, name)
            one = Sink(self.project.topics, name, table, codec_of(name), member=("a", Flush()), metrics=self.metrics)
            while one._buffer.offsets != ends:
                one.turn()
            one.flush()
            one._share.close()

    def close(self):
        """Closes everything."""
        self.settler.close()
        self.project.close()
