"""headrace topic replay --fresh | --continue: a table goes on after its topic was made anew."""

from __future__ import annotations

import json

import pytest

from headrace.base.errors import PositionError
from headrace.project import open_project
from running import clicked, lines

pytestmark = pytest.mark.slow


def ids(shop, *options):
    out = shop.call("table", "sql", "SELECT message_id FROM events ORDER BY ALL", "--json", *options)[1]
    return [row["message_id"] for row in lines(out)]


def recreate(shop):
    """Drops all three topics, as somebody does who has lost the topics' file."""
    with open_project(shop.folder) as project:
        for name in ("clicks", "events", "failed"):
            project.topics.drop(name)
        project.make_topics()


@pytest.fixture(scope="module")
def one(shared):
    """A shop with one event in its tables, for tests that are refused."""
    shared.click(clicked("m0"))
    shared.run()
    return shared


@pytest.fixture(params=[1, 5], ids=["a shorter topic", "a longer topic"])
def stopped(shop, request):
    """A shop whose topics were made anew after three events; the tables' sinks stop."""
    shop.click(clicked("m0"), clicked("m1"), clicked("m2"))
    shop.run()
    recreate(shop)
    with pytest.raises(PositionError, match="headrace topic replay clicks --group settler --to earliest"):
        shop.settle()
    assert shop.call("topic", "replay", "clicks", "--group", "settler", "--to", "earliest")[0] == 0
    shop.click(*[clicked(f"n{n}") for n in range(request.param)])
    shop.new = [f"n{n}" for n in range(request.param)]
    shop.settle()
    with pytest.raises(PositionError, match=r"headrace topic replay events --fresh events \| --continue"):
        shop.sink("events")
    return shop


def test_continue_keeps_the_rows_and_goes_on(stopped):
    code, out, _ = stopped.call("topic", "replay", "events", "--continue", "events", "--json")
    assert code == 0
    moved = lines(out)
    assert {(row["how"], row["table"], row["to"]) for row in moved} == {("--continue", "events", 0)}
    assert moved[0]["from_incarnation"] != moved[0]["incarnation"]
    stopped.sink("events")
    assert ids(stopped) == ["m0", "m1", "m2", *stopped.new]
    note = lines(stopped.call("table", "history", "events", "--json")[1])[-3]["note"]
    assert note["action"] == "topic replay --continue"
    assert sorted(filter(None, note["from"]["positions"].values())) == [3]
    audited = [json.loads(line) for line in (stopped.folder / ".headrace" / "audit.jsonl").read_text().splitlines()]
    assert {(line["what"], line["subject"], line["given"]["how"]) for line in audited if "how" in line["given"]} == {
        ("topic replay", "events", "--continue"),
    }  # fmt: skip


def test_fresh_begins_without_rows_and_the_past_can_be_read(stopped):
    code, out, _ = stopped.call("topic", "replay", "events", "--fresh", "events")
    assert code == 0
    assert out.startswith("table events goes on with topic events, empty; version 2")
    assert ids(stopped) == []
    stopped.sink("events")
    assert ids(stopped) == stopped.new
    assert ids(stopped, "--at", "1") == ["m0", "m1", "m2"]


def test_fresh_of_the_same_topic_fills_the_table_anew(shop):
    shop.click(clicked("m0"), clicked("m1"))
    shop.run()
    assert shop.call("topic", "replay", "events", "--fresh", "events")[0] == 0
    assert ids(shop) == []
    shop.click(clicked("m2"))
    shop.run()
    shop.sink()
    assert ids(shop) == ["m0", "m1", "m2"]


def test_continue_where_nothing_stopped_changes_nothing(shop):
    shop.click(clicked("m0"))
    shop.run()
    assert shop.call("topic", "replay", "events", "--continue", "events")[0] == 0
    shop.click(clicked("m1"))
    shop.run()
    assert ids(shop) == ["m0", "m1"]


def test_twice_is_as_once(stopped):
    for _ in range(2):
        assert stopped.call("topic", "replay", "events", "--fresh", "events")[0] == 0
        stopped.sink("events")
    assert ids(stopped) == stopped.new


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("events",), "choose who is to go on: --group GROUP --to PLACE, or --fresh TABLE, or --continue TABLE"),
        (("events", "--fresh", "events", "--continue", "events"), "choose who is to go on"),
        (("events", "--fresh", "events", "--to", "earliest"), "--to goes with --group"),
        (("events", "--group", "g"), "--to goes with --group"),
        (("clicks", "--fresh", "events"), "table 'events' is filled from topic 'events', asked to go on with 'clicks'"),
        (("evens", "--fresh", "events"), "table 'events' is filled from topic 'events', asked to go on with 'evens'"),
        (("events", "--fresh", "evens"), "no table 'evens'. Did you mean events?"),
    ],
)
def test_a_wrong_call_is_refused(one, words, message):
    code, out, error = one.call("topic", "replay", *words)
    assert (code, out, message in error) == (2, "", True)
