"""A site for judges, without servers: a seeded world's visits, deliveries with their faults, pages with their features.

site = Site(7, tmp_path)
site.run()
assert site.alerts() == []
"""

from __future__ import annotations

import heapq
import itertools
import math
from datetime import datetime
from random import Random
from uuid import UUID

import msgspec
from msgspec import Raw

from headrace.events.dimension import Attribute, Dimension
from headrace.events.event import Event
from headrace.events.visit import ClientEvent, PageShown
from headrace.events.world import BORN_US, DAY, HOUR, Habits, Visit, World
from headrace.experiments.assign import assign
from headrace.experiments.experiment import ARMS
from headrace.features import count, item, last, list_columns, person
from headrace.features.serve import Items, Reader
from headrace.lookout import Happened
from headrace.rehearse import Tally as Online
from headrace.watch.alert import Book, Now, read_alerts
from headrace.watch.arms import Arms
from headrace.watch.drift import Inputs, Scores
from headrace.watch.share import Visitors, make_shares
from headrace.watch.skew import Made, Skew, Tally

RATE = 3600
LATE_US = 10 * HOUR
LOOK_US = HOUR // 2
BROKEN_US = BORN_US + DAY

GENRE = Attribute("genre")
ITEMS = Dimension("items", key="product_id", attributes=(GENRE,))
CLICKED = Event("Product Clicked", item="product_id", of=ITEMS)
COLUMNS = list_columns(
    [
        count("taste", CLICKED, by=(person, GENRE), windows=("1d",)),
        count("appeal", CLICKED, by=item, windows=("1d",)),
        last("latest", CLICKED, GENRE, by=person, windows=("1h",)),
    ]
)


class Site:
    """Everything that judges are told of a world; a fault begins after a day."""

    def __init__(self, seed, folder, *, fault="", visitors=250):
        self.world = World(seed, visitors=visitors, habits=Habits(visits_per_day=3.0, beats=1.0, click=0.16))
        self.fault = fault
        self.random = Random(seed).random
        self.genres = {one.product_id: one.genre for one in self.world.items}
        attributes = {name: {"genre": genre} for name, genre in self.genres.items()}
        self.online = Online(COLUMNS, attributes)
        self.reader = Reader(self.online, COLUMNS)
        by_weight = sorted(self.world.items, key=lambda one: -one.weight)[:40]
        self.popular = [one.product_id for one in by_weight]
        self.items = Items(self.popular, {"genre": [self.genres[name] for name in self.popular]})
        self.book, self.path = Book(folder / "alerts.jsonl"), folder / "alerts.jsonl"
        self.shares, self.inputs, self.scores = make_shares(late="10 h"), Inputs(COLUMNS), Scores()
        self.arms, self.tally = Arms(f"trial-{seed}", ARMS, (0.5, 0.5)), Tally(COLUMNS)
        self.skew = Skew(lambda _: COLUMNS, lambda _, item, __: {"@genre": self.genres[item]})
        self.waiting, self.numbers = [], itertools.count()
        self.known, self.visitors, self.seq = set(), Visitors(), 0
        self.looked_us = BORN_US

    def alerts(self):
        """Returns the kinds of all alerts that were opened."""
        return sorted(one.kind for one in read_alerts(self.path))

    def run(self, days=2.0):
        """Lets the world go on for some days."""
        end_us = BORN_US + int(days * DAY)
        for at_us, visitor in self.world.schedule(BORN_US, end_us):
            self.pass_time(at_us)
            self.visit(visitor, at_us)
        self.pass_time(end_us)
        return self

    def pass_time(self, at_us):
        """Lets everything arrive that is due, and the judges look."""
        while self.looked_us + LOOK_US <= at_us:
            self.looked_us += LOOK_US
            if self.fault and BROKEN_US <= self.looked_us < BROKEN_US + 10 * HOUR:
                getattr(self, f"break_{self.fault}")()
            while self.waiting and self.waiting[0][0] <= self.looked_us:
                due_us, _, events, skew_us = heapq.heappop(self.waiting)
                self.settle(events, due_us, skew_us)
            self.look()

    def look(self):
        now = Now(self.looked_us // RATE, self.looked_us, self.looked_us // RATE)
        self.skew.compare(self.tally, now)
        judges = (*self.shares.values(), self.inputs, self.scores, self.arms, self.skew)
        self.book.note([found for judge in judges for found in judge.judge(now)], now)

    def visit(self, number, at_us):
        who = self.world.visitor(number)
        visiting = self.world.visiting(number, at_us)
        wanted = next(visiting)
        while True:
            page = self.decide(who.anonymous_id, wanted.user_id or who.anonymous_id, wanted.at_us, bot=who.bot)
            try:
                wanted = visiting.send(PageShown(page))
            except StopIteration as done:
                visit = Visit(at_us, number, done.value)
                break
        for delivery in self.world.deliveries(visit):
            self.send(delivery.events, delivery.at_us, who.skew_us)
        if number % 50 == 0:
            self.send([faulty(visit.events[0])], at_us)

    def send(self, events, at_us, skew_us=0):
        heapq.heappush(self.waiting, (at_us, next(self.numbers), events, skew_us))

    def decide(self, visitor, name, at_us, *, bot=False):
        """Returns the items of a page, which the judges hear of."""
        arm = assign("trial", visitor, (0.5, 0.5))
        read = self.reader.read(name, self.items, at_us)
        taste, appeal, latest = (values.tolist() for values in read.values)
        scores = [math.log1p(taste[n]) + math.log1p(appeal[n]) / 10 if arm else 1 / (n + 5) for n in range(40)]
        order = sorted(range(len(scores)), key=lambda n: (-scores[n] + 0.3 * self.random(), n))[:10]
        vectors = [[taste[n], appeal[n], latest[n]] for n in order]
        made = Made(
            recommendation_id=f"r-{next(self.numbers)}",
            at_us=read.at_us,
            received_us=at_us,
            person=name,
            items=tuple(self.popular[n] for n in order),
            scores=tuple(scores[n] for n in order),
            bundle=ARMS[arm],
            known=read.known,
            vectors=Raw(msgspec.json.encode(vectors)),
        )
        if not bot:
            self.arms.add(visitor, ARMS[arm])
            self.scores.add(visitor, (ARMS[arm], ARMS[arm]), made.scores, at_us)
        self.skew.add(made)
        return made.items

    def settle(self, events, received_us, skew_us):
        """Tells the judges of a delivery, as the settler would have made rows of it."""
        at = {"machine_us": received_us // RATE, "project_us": received_us}
        for event in events:
            if event.message_id in self.known:
                self.shares["duplicates"].add(1, 1, **at)
                continue
            self.known.add(event.message_id)
            failed = (event.properties or {}).get("position") == "first"
            self.shares["failed"].add(failed, 1, **at)
            self.shares["duplicates"].add(0, 1, **at)
            if not failed:
                self.take(event, received_us, skew_us, at)

    def take(self, event, received_us, skew_us, at):
        written_us = round(datetime.fromisoformat(event.timestamp).timestamp() * 1e6)
        row = Happened(
            type=event.type,
            event=event.event or event.type,
            event_us=min(written_us - skew_us, received_us),
            person=event.user_id or event.anonymous_id,
            src_offset=self.seq,
            seq=self.seq,
            bot=b"bot" in bytes(event.context),
            received_us=received_us,
        )
        self.seq += 1
        if event.properties is not None:
            row.properties = Raw(msgspec.json.encode(event.properties))
            product = event.properties.get("product_id")
            if product in self.genres:
                row.attributes = Raw(msgspec.json.encode({product: {"genre": self.genres[product]}}))
        self.shares["lateness"].add(received_us - row.event_us > LATE_US, 1, **at)
        if self.visitors.meet(event.anonymous_id, received_us):
            self.shares["bots"].add(row.bot, 1, **at)
        self.inputs.add(row)
        self.tally.add(row, 0)
        self.online.tell(row)

    # The faults, as `headrace break` does them.

    def fresh(self, *, ago_us=0, agent="Firefox", **more):
        name = str(UUID(int=int(self.random() * 2**64)))
        known = {"type": "page", "name": "Home", "context": Raw(msgspec.json.encode({"userAgent": agent}))}
        stamp = datetime.fromtimestamp((self.looked_us - ago_us) / 1e6).astimezone().isoformat()
        return ClientEvent(message_id=f"fresh-{next(self.numbers)}", anonymous_id=name, timestamp=stamp, **known | more)

    def break_duplicate(self):
        self.batch = getattr(self, "batch", None) or [self.fresh() for _ in range(100)]
        self.send(self.batch, self.looked_us)

    def break_late(self):
        self.send([self.fresh(ago_us=2 * LATE_US) for _ in range(300)], self.looked_us)

    def break_bots(self):
        self.send([self.fresh(agent="Googlebot") for _ in range(100)], self.looked_us)

    def break_drift(self):
        rare = [name for name, genre in self.genres.items() if genre == self.genres["item-007"]]
        clicks = [
            self.fresh(type="track", event="Product Clicked", properties={"product_id": rare[n % len(rare)]})
            for n in range(60)
        ]
        self.send(clicks, self.looked_us)

    def break_srm(self):
        for _ in range(100):
            name = self.fresh().anonymous_id
            if assign("trial", name, (0.5, 0.5)) == 0:
                self.decide(name, name, self.looked_us)

    def break_skew(self):
        for entity, blob in self.online._blobs.items():
            if entity.startswith(b"person") and entity[-1] % 4 == 0:
                for hops in (hops for rests in blob.families.values() for hops in rests.values()):
                    for tiles in hops.values():
                        newest = max(tiles)
                        tiles[newest] = tiles[newest] + 2 if isinstance(tiles[newest], int) else tiles[newest]


def faulty(event):
    """Returns an event whose position is no number."""
    broken = {"product_id": "item-000", "position": "first"}
    return ClientEvent(
        "track",
        f"{event.message_id}-faulty",
        event.anonymous_id,
        event.timestamp,
        event.context,
        event="Product Clicked",
        properties=broken,
    )
