"""A small market on a real lake: people who each like one genre, pages that show items, and what they click.

make_market(tmp_path)
with open_project(tmp_path) as project:
    write_market(project)
"""

from __future__ import annotations

import json
from random import Random

from msgspec import Raw

from headrace.base.telemetry import Metrics
from headrace.collect.load import load_members
from headrace.stream import METRICS, codec_of, make_table
from headrace.tables.sink import Flush, Sink
from streamline import BEGAN_US, HOUR, MINUTE, clicked, decided, make_project, viewed, write

PROJECT = """from headrace import Attribute, Carousel, Dimension, Event, Experiment, Metric, Page, Project, item, person
from headrace.features import count, last, total
from headrace.models import click_model, popularity

title, genre = Attribute("title"), Attribute("genre")
items = Dimension("items", key="product_id", attributes=(title, genre))
views = Event("Product List Viewed", item="products[].product_id", of=items)
clicks = Event("Product Clicked", item="product_id", of=items)
taste = count("taste", clicks, by=(person, genre), windows=("1d", "28d"))
appeal = count("appeal", clicks, by=item, windows=("7d",))
latest = last("latest", clicks, genre, by=person, windows=("1d",))
ctr = Metric.ratio("ctr", clicks, views, within="30m")
popular = popularity("popular", clicks, half_life="3d")
ranker = click_model("ranker", ctr, features=(taste, appeal, latest), l2=3.0)
home = Page("home", per_row=4, explore=0.2, fallback=popular, carousels=(
    Carousel("For you", candidates=(popular,), rank=ranker),))
trial = Experiment("ranked-home", on=home, goal=ctr)
project = Project("streamline", pages=(home,), experiments=(trial,))
"""

GENRES = ("comedy", "crime", "drama")
ITEMS = {f"item-{number}": GENRES[number % 3] for number in range(12)}
PEOPLE = tuple(f"visitor-{number}" for number in range(40))
AT = BEGAN_US + 48 * HOUR
"""When all windows of its pages are over."""


def make_market(folder):
    """Writes the project; returns its folder."""
    make_project(folder)
    (folder / "project.py").write_text(PROJECT)
    return folder


def load_items(project, items=None):
    """Loads the items and moves them into the lake."""
    project.make_topics()
    dimension = next(event.of for event in project.declared.events if event.of)
    found = {key: {"title": key.title(), "genre": genre} for key, genre in (items or ITEMS).items()}
    load_members(project.topics, dimension, members=found, now_us=BEGAN_US)
    table = make_table(project, "items")
    sink = Sink(project.topics, "items", table, codec_of("items"), member=("test", Flush()), metrics=Metrics(METRICS))
    end = project.topics.bounds("items")[0].end
    while sink.turn() and sink._buffer.offsets[0] != end:
        pass
    sink.flush()
    sink._share.close()


def with_genre(item):
    """Returns what a settled event carries of an item."""
    return Raw(json.dumps({item: {"genre": ITEMS[item]}}).encode())


def make_pages(*, pages=400, seed=3, like=0.5, others=0.06):
    """Returns decisions and events of pages over two days: everybody likes one genre."""
    draw = Random(seed)
    decisions, events = [], []
    for number in range(pages):
        visitor = draw.choice(PEOPLE)
        at_us = BEGAN_US + 46 * HOUR * number // pages
        known = events[-1].seq + 1 if events else 1
        shown = draw.sample(sorted(ITEMS), 4)
        page = decided(
            visitor,
            shown,
            at_us=at_us,
            known=(known, known),
            dimensions=Raw(b'{"items":12}'),
            propensities=tuple(draw.choice((0.2, 0.85)) for _ in shown),
        )
        decisions.append(page)
        told = {"recommendation_id": page.recommendation_id}
        events.append(viewed(visitor, shown, at_us=at_us + MINUTE, **told))
        for position, item in enumerate(shown, start=1):
            likes = like if ITEMS[item] == GENRES[PEOPLE.index(visitor) % 3] else others
            if draw.random() < likes * position**-0.5:
                attributes = with_genre(item)
                events.append(clicked(visitor, item, at_us=at_us + 2 * MINUTE, attributes=attributes, **told))
    return decisions, events


def write_market(project, **more):
    """Writes a market; returns its decisions and events."""
    load_items(project)
    decisions, events = make_pages(**more)
    write(project, events=events, decisions=decisions)
    return decisions, events
