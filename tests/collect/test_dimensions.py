"""Dimensions on real topics: loaded, marked, followed, and carried by the events that come after."""

import json
import random
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from headrace.base.errors import CallError, FormatError, PositionError, UnavailableError, UnknownNameError
from headrace.base.telemetry import Metrics
from headrace.collect.app import CLICKS
from headrace.collect.dimensions import Dimensions
from headrace.collect.load import Loaded, load_members
from headrace.collect.settler import METRICS, Settler
from headrace.events.click import Door, encode_door
from headrace.events.dimension import MARKER, Attribute, Dimension, Marker, Member, encode
from headrace.events.event import Event
from headrace.events.settle import Rules
from headrace.events.settled import EVENTS, FAILED
from headrace.topics import Record, Topic, open_topics
from running import wait_until
from services.cluster import clear

pytestmark = pytest.mark.slow

SECOND = 1_000_000
NOON = 1_767_614_400 * SECOND
ITEMS = Dimension("items", key="product_id", attributes=(Attribute("title"), Attribute("genre")))
RULES = Rules({"Product Clicked": Event("Product Clicked", item="product_id", of=ITEMS)})
CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
FERRY = {"title": "Night Ferry", "genre": "drama"}


class Bench:
    """Topics with a settler that is made anew as often as a test likes."""

    def __init__(self, folder, url="sqlite:///topics"):
        self.folder = folder
        self.topics = open_topics(url, root=folder)
        for name in (CLICKS, EVENTS, FAILED):
            self.topics.create(name, partitions=2, retention_seconds=None)
        self.number = 0

    def load(self, members, *, now_us=NOON, topics=None):
        return load_members(topics or self.topics, ITEMS, members=members, now_us=now_us)

    def click(self, item="item-7", *, visitor="ann"):
        self.number += 1
        door = Door(version=1, received_us=NOON + self.number * SECOND, source="http/track", write_key="dev")
        event = {"type": "track", "event": "Product Clicked", "messageId": f"m{self.number}", "anonymousId": visitor}
        event["properties"] = {"product_id": item}
        Topic(self.topics, CLICKS).append([Record(visitor.encode(), json.dumps(event).encode(), 0, encode_door(door))])

    def settle(self, *, member="a", is_saved=True):
        """Settles all there is; unsaved, as if it were killed after its last transaction."""
        folder, metrics = self.folder / "settler", Metrics(METRICS)
        with closing(Settler(self.topics, RULES, folder, member=member, metrics=metrics)) as one:
            wait_until(lambda: one.turn() == 0 and self._is_done(one), seconds=30)
            if is_saved:
                one._save()

    def rows(self):
        return [json.loads(m.value) for m in Topic(self.topics, EVENTS).read() if not m.headers]

    def _is_done(self, settler):
        offsets = {partition: memory.state.offset for partition, memory in settler._memories.items()}
        return offsets == {partition: bound.end for partition, bound in enumerate(self.topics.bounds(CLICKS))}

    def raw(self):
        return sorted((m.partition, m.value) for m in Topic(self.topics, EVENTS).read() if not m.headers)

    def progress(self):
        return [json.loads(m.value) for m in Topic(self.topics, EVENTS).read() if m.headers]

    def known(self):
        return [row.get("attributes", {}).get(row["properties"]["product_id"]) for row in self.rows()]


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.topics.close()


def test_genre_that_changes_counts_for_later_clicks_only(bench):
    bench.click()
    assert bench.load({"item-7": FERRY}) == Loaded(new=1, changed=0, unchanged=0, offset=1)
    bench.click()
    bench.settle()
    assert bench.load({"item-7": FERRY | {"genre": "crime"}, "item-8": FERRY}) == Loaded(1, 1, 0, 3)
    bench.click()
    bench.click("item-9")
    bench.settle()
    assert bench.known() == [None, FERRY, FERRY | {"genre": "crime"}, None]
    assert [row.get("dimensions") for row in bench.rows()] == [None, {"items": 1}, {"items": 3}, {"items": 3}]


@pytest.mark.parametrize("forgotten", ["nothing", "folder"])
def test_dimension_is_known_again_after_a_restart(bench, forgotten):
    bench.load({"item-7": FERRY})
    bench.click()
    bench.click(visitor="bob")
    bench.settle()
    assert [one["dimensions"] for one in bench.progress()] == [{"items": 1}] * 2
    if forgotten == "folder":
        shutil.rmtree(bench.folder / "settler")
    bench.click()
    bench.click(visitor="bob")
    bench.settle()
    assert bench.known() == [FERRY] * bench.number


@pytest.mark.parametrize("seed", range(2))
def test_copy_settled_in_one_go_gives_the_same_bytes_as_any_restarts_and_loads(bench, tmp_path, seed):
    draws = random.Random(seed)
    for step in range(16):
        for _ in range(draws.randrange(3)):
            bench.click(f"item-{draws.randrange(4)}", visitor=draws.choice(["ann", "bob", "cid"]))
        if draws.random() < 0.4:
            bench.load({f"item-{draws.randrange(4)}": {"genre": f"g-{step}"} for _ in range(2)})
        if draws.random() < 0.4:
            bench.settle(is_saved=draws.random() < 0.5)
        if draws.random() < 0.1:
            shutil.rmtree(bench.folder / "settler", ignore_errors=True)
    bench.settle()
    other = Bench(tmp_path / "other")
    other.topics.create("items", partitions=1, retention_seconds=None)
    for name in ("items", CLICKS):
        messages = sorted(Topic(bench.topics, name).read(), key=lambda m: (m.partition, m.offset))
        Topic(other.topics, name).append([Record(m.key, m.value, m.time_us, m.headers) for m in messages])
    other.settle()
    assert other.raw() == bench.raw()
    assert any(b'"attributes"' in value for _, value in bench.raw())
    other.topics.close()


@pytest.mark.service("kafka")
def test_dimension_on_kafka_is_loaded_followed_and_carried(kafka, tmp_path):
    clear(kafka)
    bench = Bench(tmp_path, kafka.url)
    follower = Dimensions(bench.topics, ["items"])
    for genre in ("drama", "crime"):
        offset = bench.load({"item-7": {"genre": genre}}).offset
        assert follower.at_least("items", offset).end == offset
        bench.click()
        assert follower.history("items").at("item-7", follower.end("items")) == {"genre": genre}
    bench.settle()
    # A transaction is read once its markers stand, a moment after it was committed.
    wait_until(lambda: bench.known() == [{"genre": "drama"}, {"genre": "crime"}])
    bench.topics.drop("items")
    bench.topics.close()
    clear(kafka)


def test_marker_alone_is_told_by_progress(bench):
    bench.load({"item-7": FERRY})
    bench.settle()
    shutil.rmtree(bench.folder / "settler")
    bench.click()
    bench.settle()
    assert bench.known() == [FERRY]
    assert [(one["src_offset"], one["dimensions"]) for one in bench.progress()] == [(0, {"items": 1})] * 2


def test_memory_of_an_older_headrace_is_read(bench):
    bench.click()
    bench.settle()
    for path in bench.folder.rglob("state.db"):
        with closing(sqlite3.connect(path)) as older:
            older.executescript("alter table progress drop column dimensions; pragma user_version = 1")
    bench.load({"item-7": FERRY})
    bench.click()
    bench.settle()
    assert bench.known() == [None, FERRY]
    assert [row["seq"] for row in bench.rows()] == [0, 1]


def test_markers_of_others_stop_nothing(bench):
    bench.load({"item-7": FERRY})
    marks = [b"", b"\xff", b"[" * 3000, encode(Marker(version=1, name="cars", incarnation="i", offset=4))]
    Topic(bench.topics, CLICKS).append(
        [Record(key, None, 0, ((MARKER, one),)) for one in marks for key in (b"a", b"ann")]
    )
    bench.click()
    bench.settle()
    assert bench.known() == [FERRY]
    assert Topic(bench.topics, FAILED).read() == []


def test_marker_ahead_of_its_dimension_is_waited_for_and_then_told(bench):
    dimensions = Dimensions(bench.topics, ["items"], wait_seconds=0.05)
    assert dimensions.at_least("items", 0).end == 0
    with pytest.raises(PositionError, match=r"known up to offset 1, and its topic 'items' ends at 0\. .*table load"):
        dimensions.at_least("items", 1)
    bench.load({"item-7": FERRY})
    assert dimensions.at_least("items", 1).at("item-7", 1) == FERRY
    dimensions.refresh()
    assert dimensions.end("items") == 1
    with pytest.raises(UnknownNameError, match="Did you mean items"):
        dimensions.end("item")


def test_dimension_that_was_created_anew_is_told(bench):
    bench.load({"item-7": FERRY})
    dimensions = Dimensions(bench.topics, ["items"])
    dimensions.refresh()
    bench.topics.drop("items")
    with pytest.raises(UnknownNameError):
        dimensions.refresh()
    bench.load({"item-7": FERRY})
    with pytest.raises(PositionError, match="'items' was created anew: its members were read from incarnation"):
        dimensions.refresh()


def test_record_that_somebody_appended_to_a_dimension_is_passed_over(bench):
    bench.load({"item-7": FERRY})
    topic = Topic(bench.topics, "items")
    topic.append([Record(b"k", one) for one in (b"hello", b"\xff", b"[" * 3000, None)])
    assert bench.load({"item-7": FERRY, "item-8": {}}) == Loaded(new=1, changed=0, unchanged=1, offset=6)
    topic.append([Record(b"k", b'{"version":2,"key":"item-9","attributes":[]}')])
    with pytest.raises(FormatError, match="topic 'items', offset 6 holds a member that this Headrace cannot read"):
        bench.load({"item-7": FERRY})


def test_load_writes_only_what_has_changed_and_always_its_markers(bench):
    members = {"a": {"genre": "1", "title": None}, "b": {"genre": 1}, "c": {"genre": True}, "d": {"genre": 1.0}}
    assert bench.load(members) == Loaded(new=4, changed=0, unchanged=0, offset=4)
    assert bench.load({"a": {"genre": "1"}, "b": {"genre": True}, "c": {"title": "t"}}) == Loaded(0, 2, 1, 6)
    assert bench.load(members) == Loaded(0, 2, 2, 8)
    marks = [m for m in Topic(bench.topics, CLICKS).read() if m.headers]
    assert sorted((m.partition, json.loads(dict(m.headers)[MARKER])["offset"]) for m in marks) == [
        (partition, offset) for partition in (0, 1) for offset in (4, 6, 8)
    ]


class DyingTopics:
    """The same topics, which die after so many appends."""

    def __init__(self, topics, appends):
        self._topics = topics
        self._left = appends

    def __getattr__(self, name):
        return getattr(self._topics, name)

    def append(self, name, records, *, deadline_seconds):
        if not self._left:
            raise UnavailableError("gone")
        self._left -= 1
        return self._topics.append(name, records, deadline_seconds=deadline_seconds)


@pytest.mark.parametrize("appends", [0, 1, 2])
def test_load_that_dies_half_way_is_completed_by_the_next(bench, monkeypatch, appends):
    monkeypatch.setattr(sys.modules["headrace.collect.load"], "_PORTION", 2)
    members = {f"item-{number}": FERRY for number in range(4)}
    with pytest.raises(UnavailableError):
        bench.load(members, topics=DyingTopics(bench.topics, appends))
    bench.click("item-0")
    bench.settle()
    assert bench.load(members) == Loaded(new=4 - 2 * appends, changed=0, unchanged=2 * appends, offset=4)
    bench.click("item-0")
    bench.settle()
    assert bench.known() == [None, FERRY]


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ({"": {}}, "'' is no key; a key is a text of 1 to 1,024 characters"),
        ({5: {}}, "5 is no key"),
        ({"a" * 1025: {}}, "is no key"),
        ({"a": {"genre": ["x"]}}, r"member 'a', attribute 'genre': \['x'\] is of the type list"),
        ({"a": {"genre": float("inf")}}, "inf is beyond all numbers"),
        ({"a": {"genre": 1 << 63}}, "is beyond all numbers"),
        ({"a": {"title": "x" * 40_000}}, "it has 40,013 bytes as JSON, a member has at most 32,768"),
    ],
)
def test_member_that_cannot_be_loaded_leaves_all_as_it_was(bench, members, match):
    with pytest.raises(CallError, match=match):
        bench.load({"fine": FERRY} | members)
    assert "items" not in bench.topics.names()


# ---- the contract


def test_records_of_a_load_equal_the_golden_file(bench):
    bench.load({"item-7": FERRY}, now_us=NOON)
    bench.load(
        {"item-7": {"title": "Night Ferry", "genre": None, "year": 2024, "rated": 7.5, "live": True}}, now_us=NOON
    )
    members = Topic(bench.topics, "items").read()
    marks = [dict(m.headers)[MARKER] for m in Topic(bench.topics, CLICKS).read({0: 0})]
    incarnation = bench.topics.describe("items").incarnation.encode()
    found = [m.value.decode() for m in members] + [m.replace(incarnation, b"00").decode() for m in marks[-1:]]
    path = CONTRACTS / "dimension.golden.json"
    assert json.dumps(found, ensure_ascii=False, indent=1) + "\n" == path.read_text(encoding="utf-8")
    assert [m.key for m in members] == [b"item-7"] * 2


def test_page_explains_every_field_and_shows_the_golden_records():
    page = (CONTRACTS / "dimension.md").read_text(encoding="utf-8")
    for kind in (Member, Marker):
        assert [name for name in kind.__struct_fields__ if f"| `{name}` | " not in page] == []
    shown = page.partition("```json\n")[2].partition("\n```")[0]
    assert shown.split("\n") == json.loads((CONTRACTS / "dimension.golden.json").read_text(encoding="utf-8"))
