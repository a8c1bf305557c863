"""headrace feature get and backfill as a user types them, on clicks that were settled with a loaded dimension."""

from __future__ import annotations

import contextlib

import msgspec
import pytest

from headrace.base.clock import machine_us
from headrace.base.telemetry import Metrics
from headrace.experiments.promotion import CHAMPION, Champion, encode_promotion
from headrace.features.updater import METRICS, Updater
from headrace.models import Bundle
from headrace.models.registry import Entry
from headrace.project import open_project
from headrace.stream import find_columns, find_sources
from running import lines

pytestmark = pytest.mark.slow

PROJECT = """from headrace import Attribute, Carousel, Dimension, Event, Metric, Page, Project, item, person
from headrace.features import count, last
from headrace.models import click_model, popularity

title, genre = Attribute("title"), Attribute("genre")
items = Dimension("items", key="product_id", attributes=(title, genre))
views = Event("Product List Viewed", item="products[].product_id", of=items)
clicks = Event("Product Clicked", item="product_id", of=items)
taste = count("taste", clicks, by=(person, genre), windows=("1d",))
appeal = count("appeal", clicks, by=item, windows=("1d",))
latest = last("latest", clicks, item, by=person, windows=("1h",))
ctr = Metric.ratio("ctr", clicks, views, within="30m")
popular = popularity("popular", clicks, half_life="3d")
ranker = click_model("ranker", ctr, features=(taste, appeal, latest))
home = Page("home", fallback=popular, carousels=(Carousel("For you", candidates=(popular,), rank=ranker),))
project = Project("shop", pages=(home,))
"""
ITEMS = "product_id,title,genre\ni1,One,drama\ni2,Two,drama\ni3,Three,crime\n"


def clicked(message_id, item, at):
    return {
        "type": "track", "event": "Product Clicked", "messageId": message_id, "anonymousId": "ann", "timestamp": at,
        "properties": {"product_id": item},
    }  # fmt: skip


@pytest.fixture
def featured(shop):
    (shop.folder / "project.py").write_text(PROJECT)
    (shop.folder / "items.csv").write_text(ITEMS)
    assert shop.call("table", "load", shop.folder / "items.csv", "--table", "items")[0] == 0
    shop.settle()
    now_us = machine_us()
    shop.click(*(clicked(f"m{n}", item, None) for n, item in enumerate(["i1", "i1", "i3"])), received_us=now_us)
    shop.settle()
    return shop


def update(shop):
    """Counts all that was settled."""
    with open_project(shop.folder) as project:
        sources, columns = find_sources(project), project.declared.columns
        updater = Updater(project.online, lambda: columns, sources, clock=machine_us, metrics=Metrics(METRICS))
        updater.open()
        while updater.turn():
            pass


def test_get_shows_values_with_instant_positions_and_generation(featured):
    code, _, error = featured.call("feature", "get", "--person", "ann", "--json")
    assert (code, "Does the updater run" in error) == (3, True)
    update(featured)
    code, out, error = featured.call("feature", "get", "--person", "ann", "--item", "i2", "--item", "i3", "--json")
    assert (code, error) == (0, "")
    found = lines(out)
    assert {(row["column"], row["item"]): row["value"] for row in found} == {
        ("taste_1d", "i2"): 2.0,
        ("taste_1d", "i3"): 1.0,
        ("appeal_1d", "i2"): 0.0,
        ("appeal_1d", "i3"): 1.0,
        ("latest_1h", None): "i3",
    }
    with open_project(featured.folder) as project:
        state = project.online.read_state()
    assert {(sum(row["known"]), row["generation"]) for row in found} == {(3, state.generation)}
    assert all(row["at_us"] > max(state.newest_us) for row in found)
    code, out, _ = featured.call("feature", "get", "--person", "ann")
    assert (code, out.split()[:6]) == (0, ["feature", "item", "value", "latest_1h", "-", "i3"])
    assert "known      3 events" in out


def test_backfill_makes_the_same_values_from_the_lake(featured):
    update(featured)
    before = featured.call("feature", "get", "--person", "ann", "--item", "i1", "--json")[1]
    featured.sink()
    code, out, error = featured.call("feature", "backfill", "--json")
    assert (code, error) == (0, "")
    (found,) = lines(out)
    assert (found["columns"], found["events"]) == (3, 3)
    after = featured.call("feature", "get", "--person", "ann", "--item", "i1", "--json")[1]
    values = [[(row["column"], row["value"]) for row in lines(text)] for text in (before, after)]
    assert values[0] == values[1]
    assert {row["generation"] for row in lines(after)} == {found["generation"]}
    code, out, _ = featured.call("feature", "backfill")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (facts["columns"], facts["counted"]) == ("taste_1d, appeal_1d, latest_1h", "3 events")
    assert not list(left_over(featured))


def left_over(shop):
    """Yields blobs of generations that do not serve."""
    with open_project(shop.folder) as project:
        serving = project.online.read_state().generation
        with contextlib.closing(project.online):
            rows = project.online._connection.execute("select generation from blobs").fetchall()
        yield from (row for row in rows if row[0] != serving)


def test_columns_of_a_champion_are_counted_though_the_project_has_left_them(featured):
    with open_project(featured.folder) as project:
        appeal = next(column for column in project.declared.columns if column.name == "appeal_1d")
        wider = msgspec.structs.replace(appeal, name="appeal_3d", window_us=3 * appeal.window_us)
        parameters = {"columns": [msgspec.to_builtins(column) for column in (appeal, wider)]}
        bundle = project.registry.add(Bundle("ranker", "click", parameters, {"at_us": 1}, {}))
        assert wider not in find_columns(project)
        champion = Champion(version=1, page="home", bundle=bundle, model="ranker", how="hand")
        project.registry.write(Entry(0, CHAMPION, "home", encode_promotion(champion), 7, "ann"))
        assert find_columns(project) == (*project.declared.columns, wider)


def test_status_says_how_far_the_online_store_is_behind_its_topic(featured):
    def told():
        (stream,) = [one for one in lines(featured.call("status", "--json")[1]) if one["kind"] == "stream"]
        return stream["uncounted"], stream["uncounted_seconds"]

    assert told() == (None, None)
    assert "to count online" not in featured.call("status")[1]
    update(featured)
    assert told() == (0, 0.0)
    featured.click(clicked("m8", "i1", None), clicked("m9", "i2", None), received_us=machine_us())
    featured.settle()
    records, seconds = told()
    assert (records, 0 < seconds < 60) == (2, True)
    assert "updater    2 events to count online, the oldest 0." in featured.call("status")[1]
    with open_project(featured.folder) as project:
        project.topics.drop("events")
    assert told() == (None, None), "what is counted there is another topic"


def test_project_without_features_is_told(shop):
    for words in (("get", "--person", "ann"), ("backfill",)):
        code, _, error = shop.call("feature", *words)
        assert (code, "project 'shop' has no features" in error) == (2, True)
