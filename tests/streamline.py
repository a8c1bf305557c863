"""A Streamline project whose decisions and events a test writes itself, into real topics and a real lake.

make_project(tmp_path)
with open_project(tmp_path) as project:
    write(project, events=[clicked("ann", "item-1", at_us=BEGAN_US)])
"""

from __future__ import annotations

import itertools
import json

from msgspec import Raw

from headrace.base.clock import begin_stepped
from headrace.base.telemetry import Metrics
from headrace.events.decision import DECISIONS, Decision
from headrace.events.decision import encode as encode_decision
from headrace.events.settled import EVENTS, SettledEvent
from headrace.events.settled import encode as encode_event
from headrace.stream import CODECS, METRICS, make_table
from headrace.tables.sink import Flush, Sink
from headrace.topics import Record
from running import project_toml

PROJECT = """from headrace import Carousel, Event, Experiment, Metric, Page, Project
from headrace.models import popularity, taste

views = Event("Product List Viewed", item="products[].product_id")
clicks = Event("Product Clicked", item="product_id")
ctr = Metric.ratio("ctr", clicks, views, within="30m")
popular = popularity("popular", clicks, half_life="3d")
tastes = taste("tastes", clicks, base=popular)
home = Page("home", per_row={per_row}, explore={explore}, fallback=popular, carousels=(
    Carousel("For you", candidates=(popular,), rank=tastes),{below}))
trial = Experiment("taste-home", on=home, goal=ctr, mde=0.25, power=0.8)
project = Project("streamline", pages=(home,), experiments=(trial,))
"""

TRENDING = 'Carousel("Trending now", candidates=(popular,)),'
"""A second row for the page, which the trial does not change."""

BEGAN_US = 1_767_571_200_000_000  # 2026-01-05
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_numbers = itertools.count()


def make_project(folder, *, per_row=4, explore=0.1, partitions=2, clock="stepped://", extra="", below=""):
    """Writes the project, whose time stands still at `BEGAN_US`; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "project.py").write_text(PROJECT.format(per_row=per_row, explore=explore, below=below))
    topics = f"[topic.clicks]\npartitions = {partitions}\n[endpoint]\nport = 0\n[console]\nport = 0\n"
    (folder / "headrace.toml").write_text(project_toml(clock=clock, extra=topics + extra))
    if clock == "stepped://":
        begin_stepped(folder, BEGAN_US)
    return folder


def tracked(name, visitor, properties, *, at_us, **more):
    """Returns a settled event that was tracked."""
    number = next(_numbers)
    known = {
        "version": 1,
        "message_id": f"m-{number}",
        "source": "dev",
        "type": "track",
        "event": name,
        "event_us": at_us,
        "received_us": at_us,
        "log_us": at_us,
        "person": more.get("user_id") or visitor,
        "session_id": "0-0",
        "src_offset": number,
        "seq": number,
        "definitions": "00",
        "visitor": visitor,
        "recommendation_id": properties.get("recommendation_id"),
        "properties": Raw(json.dumps(properties).encode()),
    }
    return SettledEvent(**(known | more))


def clicked(visitor, item, *, at_us, category=None, recommendation_id=None, **more):
    """Returns the event that a visitor clicked an item."""
    properties = {"product_id": item, "category": category, "recommendation_id": recommendation_id}
    kept = {name: value for name, value in properties.items() if value is not None}
    return tracked("Product Clicked", visitor, kept, at_us=at_us, **more)


def viewed(visitor, items, *, at_us, recommendation_id=None, **more):
    """Returns the event that a visitor saw items."""
    properties = {"list_id": "For you", "products": [{"product_id": item} for item in items]}
    if recommendation_id:
        properties["recommendation_id"] = recommendation_id
    return tracked("Product List Viewed", visitor, properties, at_us=at_us, **more)


def decided(visitor, items, *, at_us, recommendation_id=None, **more):
    """Returns a decision that showed a visitor some items."""
    known = {
        "version": 1,
        "recommendation_id": recommendation_id or f"r-{next(_numbers)}",
        "page": "home",
        "list_id": "For you",
        "at_us": at_us,
        "received_us": at_us,
        "person": visitor,
        "items": tuple(items),
        "categories": ("",) * len(items),
        "propensities": (0.5,) * len(items),
        "scores": (0.1,) * len(items),
        "num_candidates": len(items),
        "seed": 7,
        "explore": 0.1,
        "per_row": len(items),
        "bundle": "00",
        "events": "",
        "applied": (),
        "visitor": visitor,
    }
    return Decision(**(known | more))


def append(project, *, events=(), decisions=()):
    """Appends events and decisions to their topics, as settler and endpoint do."""
    project.make_topics()
    for name, encode, values in ((EVENTS, encode_event, events), (DECISIONS, encode_decision, decisions)):
        records = [Record((value.visitor or value.person).encode(), encode(value)) for value in values]
        if records:
            project.topic(name).append(records)


def sink(project):
    """Moves events and decisions into the lake."""
    project.make_topics()
    metrics = Metrics(METRICS)
    for name in (EVENTS, DECISIONS):
        ends = [bound.end for bound in project.topics.bounds(name)]
        table = make_table(project, name)
        one = Sink(project.topics, name, table, CODECS[name], member=("test", Flush()), metrics=metrics)
        while one.turn() and [one.offsets[p] for p in range(len(ends))] != ends:
            pass
        one.flush()
        one._share.close()


def write(project, *, events=(), decisions=()):
    """Appends events and decisions, and moves them into the lake."""
    append(project, events=events, decisions=decisions)
    sink(project)
