"""The seen set: what a follower of `events` knows, against the lake; and what it says when it cannot know."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from endpoints.door import make_popular, make_tastes, open_door
from headrace import Event
from headrace.base.errors import StopError, UnknownNameError
from headrace.endpoints import follower
from headrace.endpoints.follower import MOST_SEEN, SEEN_US, Seen
from headrace.events.decision import decode_decision
from headrace.events.settled import PROGRESS_HEADERS, encode
from headrace.project import open_project
from headrace.tables.catalog import item_sql
from headrace.topics import Record
from headrace.verify.truth import is_same, replay
from running import wait_until
from streamline import BEGAN_US, DAY, HOUR, MINUTE, append, clicked, decided, make_project, sink, tracked, write

CLICKS = Event("Product Clicked", item="product_id")

pytestmark = pytest.mark.slow


def _seen(*events):
    seen = Seen([CLICKS])
    for event in events:
        seen.apply(encode(event))
    return seen


def test_seen_is_what_a_person_clicked_in_the_day_before():
    seen = _seen(
        clicked("ann", "new", at_us=BEGAN_US - 1),
        clicked("ann", "old", at_us=BEGAN_US - DAY),
        clicked("ann", "gone", at_us=BEGAN_US - DAY - 1),
        clicked("ann", "coming", at_us=BEGAN_US),
        clicked("ann", "again", at_us=BEGAN_US - 2 * DAY),
        clicked("ann", "again", at_us=BEGAN_US - HOUR),
        clicked("ann", "again", at_us=BEGAN_US - 3 * DAY),
        clicked("bob", "bobs", at_us=BEGAN_US - HOUR),
        clicked("phone", "hers", at_us=BEGAN_US - HOUR, user_id="ann"),
        tracked("Product Added", "ann", {"product_id": "added"}, at_us=BEGAN_US - HOUR),
        clicked("ann", "page", at_us=BEGAN_US - HOUR, type="page"),
    )
    assert seen.at("ann", BEGAN_US) == ("again", "hers", "new", "old")
    assert seen.at("nobody", BEGAN_US) == ()
    assert (seen.newest_us("ann"), seen.newest_us("nobody")) == (BEGAN_US, 0)


@pytest.mark.parametrize("properties", ["{}", "null", "7", '"item"', '{"product_id": []}', '{"product_id": null}'])
def test_clicks_that_name_no_item_are_passed_over(properties):
    event = msgspec.structs.replace(clicked("ann", "item", at_us=BEGAN_US), properties=Raw(properties.encode()))
    seen = _seen(event)
    assert seen.at("ann", BEGAN_US + 1) == ()


def test_what_is_two_days_old_is_forgotten():
    seen = _seen(
        *(clicked(f"v{number % 500}", f"item-{number}", at_us=BEGAN_US + number * MINUTE) for number in range(10_000))
    )
    # 10,000 minutes are seven days; two of them are kept.
    assert len(seen._order) == 2 * 24 * 60 + 1
    assert sum(map(len, seen._clicks.values())) <= 2 * 24 * 60 + 1
    assert len(_seen(clicked("ann", "a", at_us=BEGAN_US), clicked("bob", "b", at_us=BEGAN_US + 3 * DAY))) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6), st.integers(-60, 0)), max_size=40))
def test_seen_set_is_that_of_all_clicks_whatever_their_order(clicks):
    events = [(person, f"item-{item}", BEGAN_US + hours * HOUR) for person, item, hours in clicks]
    seen = _seen(*(clicked(person, item, at_us=at_us) for person, item, at_us in events))
    for person in "ab":
        at_us = max(BEGAN_US, seen.newest_us(person) + 1)
        expected = {item for who, item, when in events if who == person and at_us - SEEN_US <= when < at_us}
        # Whoever asks does so after all that has happened; what came days late may be forgotten, but none that counts.
        assert set(seen.at(person, at_us)) == expected


@pytest.fixture
def door(tmp_path):
    with open_door(make_project(tmp_path, per_row=3, explore=0.3)) as one:
        one.add(make_popular(), make_tastes())
        yield one


def _shown(answer):
    return [item["id"] for item in answer.json()["rows"][0]["items"]]


def test_item_that_was_clicked_does_not_come_again_within_a_day(door):
    append(door.project, events=[clicked("ann", f"item-{number}", at_us=BEGAN_US) for number in (0, 1, 5)])
    door.follow()
    for _ in range(20):
        answer = door.ask(anonymous_id="ann")
        assert answer.json()["degraded"] == []
        assert not {"item-0", "item-1", "item-5"} & set(_shown(answer))
    assert any("item-0" in _shown(door.ask(anonymous_id="bob")) for _ in range(20))
    # Who logs in is another person.
    assert any("item-0" in _shown(door.ask(anonymous_id="ann", user_id="u-1")) for _ in range(20))
    door.project.clock.step(24 * 3600)
    assert not any("item-0" in _shown(door.ask(anonymous_id="ann")) for _ in range(20))
    door.project.clock.step(1)
    assert any("item-0" in _shown(door.ask(anonymous_id="ann")) for _ in range(20))


def test_who_has_seen_everything_sees_it_again(door):
    append(door.project, events=[clicked("ann", f"item-{number}", at_us=BEGAN_US) for number in range(12)])
    door.follow()
    answer = door.ask(anonymous_id="ann")
    assert (answer.json()["degraded"], len(_shown(answer))) == (["all_seen"], 3)
    assert door.count("headrace_endpoint_degraded_total", "all_seen", "none") == 1


def test_decision_knows_its_positions_and_an_instant_after_all_it_knew(door):
    append(
        door.project, events=[clicked("ann", "item-0", at_us=BEGAN_US + HOUR), clicked("bob", "item-1", at_us=BEGAN_US)]
    )
    door.follow()
    for person in ("ann", "bob", "eve"):
        door.ask(anonymous_id=person)
    found = [decode_decision(message.value) for message in door.project.topic("decisions").read_to_ends()]
    by_person = {decision.person: decision for decision in found}
    assert by_person["ann"].at_us == BEGAN_US + HOUR + 1
    assert by_person["bob"].at_us == BEGAN_US + 1
    assert by_person["eve"].at_us == BEGAN_US
    ends = tuple(bound.end for bound in door.project.topics.bounds("events"))
    assert {decision.applied for decision in found} == {ends}
    assert sum(ends) == 2


def test_records_that_are_no_events_are_passed_over(door):
    values = [b"hello", b"{}", b'{"version":1,"src_offset":3}', b'{"version":1,"src_offset":"\xff"}', b"[" * 10_000]
    records = [Record(b"ann", value, 0, headers) for value in values for headers in ((), PROGRESS_HEADERS)]
    door.project.topic("events").append(records)
    append(door.project, events=[clicked("ann", "item-0", at_us=BEGAN_US)])
    door.follow()
    assert door.follower.seen.at("ann", BEGAN_US + 1) == ("item-0",)


def test_follower_begins_anew_with_a_topic_that_was_made_anew(door):
    append(door.project, events=[clicked("ann", "item-0", at_us=BEGAN_US) for _ in range(3)])
    door.follow()
    before = door.follower.incarnation
    with open_project(door.project.folder) as other:
        other.topics.drop("events")
        append(other, events=[clicked("ann", "item-1", at_us=BEGAN_US)])
        now = other.topics.describe("events").incarnation
        wait_until(lambda: door.follower.incarnation == now, what="the new topic is followed")
    door.follow()
    assert before != now
    assert door.follower.seen.at("ann", BEGAN_US + 1) == ("item-1",)
    assert door.ask(anonymous_id="ann").json()["degraded"] == []


def test_decision_while_events_cannot_be_followed_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(follower, "_BEHIND_SECONDS", 2.0)
    with open_project(make_project(tmp_path)) as project:
        project.make_topics()
    with open_door(tmp_path) as door:
        door.add(make_popular())
        door.follow()
        assert door.ask(anonymous_id="ann").json()["degraded"] == []
        with open_project(tmp_path) as other:
            other.topics.drop("events")
        wait_until(lambda: door.follower.is_behind, what="the follower is behind", seconds=12)
        answer = door.ask(anonymous_id="ann")
        assert (answer.json()["degraded"], len(_shown(answer))) == (["behind"], 4)
        with open_project(tmp_path) as other:
            append(other, events=[clicked("ann", "item-0", at_us=BEGAN_US)])
        wait_until(lambda: not door.follower.is_behind, what="the follower has caught up")
        assert "item-0" not in _shown(door.ask(anonymous_id="ann"))


def test_logged_decision_is_made_again_from_its_positions(door):
    project = door.project
    early = [
        clicked(person, f"item-{number}", at_us=BEGAN_US - number * HOUR)
        for person in ("ann", "bob")
        for number in (1, 4, 30)
    ]
    append(project, events=early)
    door.follow()
    ids = [door.ask(anonymous_id=person).json()["recommendation_id"] for person in ("ann", "bob", "eve", "ann")]
    # What came after changes nothing: late clicks of then, clicks of later, and all of them in another order.
    late = [clicked("ann", f"item-{number}", at_us=BEGAN_US - number * MINUTE) for number in (9, 2, 7)]
    late += [clicked("ann", "item-0", at_us=BEGAN_US + HOUR), clicked("bob", "item-1", at_us=BEGAN_US - 3 * DAY)]
    append(project, events=late)
    door.follow()
    project.clock.step(3600)
    ids += [door.ask(anonymous_id=person).json()["recommendation_id"] for person in ("ann", "bob")]
    append(project, events=late[::-1])
    sink(project)
    for recommendation_id in ids:
        ((again, logged),) = replay(project, recommendation_id)
        decision = next(
            one
            for message in project.topic("decisions").read_to_ends()
            if (one := decode_decision(message.value)).recommendation_id == recommendation_id
        )
        assert tuple(logged["seen"]) == decision.seen
        assert is_same(again, logged)
        assert again.items == decision.items
    assert replay(project, "no such page") == []


def test_decision_that_cannot_be_made_again_says_why(tmp_path):
    with open_project(make_project(tmp_path)) as project:
        bundle = project.registry.add(make_popular())
        project.make_topics()
        append(project, events=[clicked("ann", "item-0", at_us=BEGAN_US - HOUR)])
        events = project.topics.describe("events").incarnation
        rows = {
            "known": {"events": events, "applied": (1, 1)},
            "unknown page": {"events": events, "page": "hoem"},
            "other topic": {"events": "before"},
            "nothing known": {},
            "no bundle": {"bundle": "ffff"},
        }
        known = {"bundle": bundle, "per_row": 3, "at_us": BEGAN_US}
        write(
            project,
            decisions=[decided("ann", ["a"], recommendation_id=name, **(known | row)) for name, row in rows.items()],
        )
        assert replay(project, "known")[0][1]["seen"] == ["item-0"]
        assert replay(project, "nothing known")[0][1]["seen"] == []
        with pytest.raises(UnknownNameError, match=r"no page 'hoem'. Did you mean home"):
            replay(project, "unknown page")
        with pytest.raises(StopError, match="knew the events of another topic 'events', before, than the lake holds"):
            replay(project, "other topic")
        with pytest.raises(UnknownNameError, match="no bundle 'ffff'"):
            replay(project, "no bundle")


IDS = ["item-1", 7, 7.0, -7, 1.5, True, "", None, ["item-1"], {"a": 1}, "日本", "7 ", 'a"b', 10**20, "true", "\u0000"]


def test_lake_and_follower_take_the_same_for_an_item(tmp_path):
    events = [tracked("Product Clicked", f"v{n}", {"product_id": one}, at_us=BEGAN_US) for n, one in enumerate(IDS)]
    lists = [
        tracked(
            "Product List Viewed", f"v{n}", {"products": [{"product_id": one}, {"product_id": "x"}]}, at_us=BEGAN_US
        )
        for n, one in enumerate(IDS)
    ]
    views = Event("Product List Viewed", item="products[].product_id")
    with open_project(make_project(tmp_path)) as project:
        write(project, events=events + lists)
        for event, given in ((CLICKS, events), (views, lists)):
            seen = Seen([event])
            for one in given:
                seen.apply(encode(one))
            rows = project.query(f"SELECT person, item FROM ({item_sql(event)})").table().to_pylist()
            for number, one in enumerate(IDS):
                found = {row["item"] for row in rows if row["person"] == f"v{number}" and row["item"]}
                assert set(seen.at(f"v{number}", BEGAN_US + 1)) == found, json.dumps(one)


def _told(number, **more):
    return encode(clicked("ann", f"item-{number}", at_us=BEGAN_US + number, **more))


def test_of_very_many_clicks_the_newest_count_as_seen():
    seen = Seen([CLICKS])
    for number in range(2 * MOST_SEEN + 500):
        seen.apply(_told(number))
    seen.apply(_told(7))
    kept = seen.at("ann", BEGAN_US + HOUR)
    assert set(kept) == {f"item-{number}" for number in range(MOST_SEEN + 500, 2 * MOST_SEEN + 500)}


def test_clicks_of_robots_are_not_seen():
    seen = Seen([CLICKS])
    seen.apply(_told(1, bot=True))
    assert seen.at("ann", BEGAN_US + HOUR) == ()


def test_visitor_is_known_as_the_user_of_its_last_event():
    seen = Seen([CLICKS])
    seen.apply(_told(1))
    assert seen.user_of("ann") is None
    seen.apply(_told(2, user_id="u-7"))
    assert (seen.user_of("ann"), seen.at("u-7", BEGAN_US + HOUR)) == ("u-7", ("item-2",))
