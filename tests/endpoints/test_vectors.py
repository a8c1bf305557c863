"""Pages ranked by features: what is read, what is written down of it, and what is done without."""

from __future__ import annotations

import json

import pytest

from endpoints.door import make_popular
from endpoints.learned import ITEM_IDS, count_events, make_ranker, open_learned
from headrace.collect.load import load_members
from headrace.loop import promote
from models.market import ITEMS, with_genre
from running import wait_until
from streamline import BEGAN_US, HOUR, append, clicked

pytestmark = pytest.mark.slow


@pytest.fixture
def door(tmp_path):
    with open_learned(tmp_path) as one:
        one.add(make_popular(4), make_ranker(one.project.declared.columns))
        (ranker,) = one.project.registry.bundles("ranker")
        promote(one.project, "home", ranker.hash)
        one.take_over()
        yield one


def shown_to(door, visitor, **more):
    """Returns the answer and the decision behind it."""
    answer = door.ask(anonymous_id=visitor, **more)
    assert answer.status == 200, answer.body
    page = json.loads(answer.body)
    made = [json.loads(message.value) for message in door.project.topic("decisions").read_to_ends()]
    return page, next(one for one in made if one["recommendation_id"] == page["recommendation_id"])


def test_page_is_ranked_by_what_the_person_clicked(door):
    page, decision = shown_to(door, "ann", explain=True)
    dramas = [item for item in ITEM_IDS if ITEMS[item] == "drama"]
    top = max(page["rows"][0]["items"], key=lambda item: item["score"])
    assert top["id"] in dramas[2:], "two of them were seen"
    assert top["why"].startswith(("taste", "latest"))
    assert tuple(decision["known"]) == door.project.online.read_state().known
    assert decision["dimensions"] == {"items": len(ITEMS)}
    by_item = dict(zip(decision["items"], decision["vectors"], strict=True))
    assert by_item[top["id"]] == [2.0, 2.0, 0.0, "drama"]
    assert decision["at_us"] == BEGAN_US
    assert page["bundle"] == door.project.registry.bundles("ranker")[0].hash


def test_reasons_are_given_only_when_asked_for(door):
    page, _ = shown_to(door, "ann")
    assert {item["why"] for item in page["rows"][0]["items"]} == {""}


def test_a_click_counts_as_soon_as_it_is_counted_online(door):
    before = dict(zip(*(shown_to(door, "eve")[1][name] for name in ("items", "vectors")), strict=True))
    assert all(vector[0] == 0.0 and vector[3] is None for vector in before.values())
    late_us = BEGAN_US + HOUR
    append(door.project, events=[clicked("eve", "item-1", at_us=late_us, attributes=with_genre("item-1"), seq=9)])
    count_events(door.project)
    _, decision = shown_to(door, "eve")
    assert decision["at_us"] == late_us + 1, "never before an event that was counted"
    vectors = dict(zip(decision["items"], decision["vectors"], strict=True))
    assert {item: vector[0] for item, vector in vectors.items()} == {
        item: float(ITEMS[item] == ITEMS["item-1"]) for item in vectors
    }


def test_a_genre_that_changes_is_that_of_later_pages(door):
    (items,) = door.project.declared.dimensions
    changed = {"title": "Item-1", "genre": "drama"}
    load_members(door.project.topics, items, members={"item-1": changed}, now_us=BEGAN_US)

    def show_changed():
        # One position in ten is drawn at random, so that the item is not on every page.
        decision = shown_to(door, "ann")[1]
        return decision if decision["dimensions"] != {"items": len(ITEMS)} and "item-1" in decision["items"] else None

    decision = wait_until(show_changed)
    assert decision["dimensions"] == {"items": len(ITEMS) + 1}
    vectors = dict(zip(decision["items"], decision["vectors"], strict=True))
    assert vectors["item-1"][0] == 2.0, "it is a drama now, of which two were clicked"


def test_page_whose_features_are_away_is_served_by_the_fallback(door):
    path = door.project.folder / ".headrace" / "online.db"
    path.rename(path.with_suffix(".away"))
    page, decision = shown_to(door, "ann")
    assert page["degraded"] == ["features"]
    assert page["bundle"] == door.project.registry.bundles("popular")[0].hash
    assert "vectors" not in decision
    assert "known" not in decision
    path.with_suffix(".away").rename(path)
    assert shown_to(door, "ann")[0]["degraded"] == []


def test_a_page_of_popularity_says_what_features_were_known(tmp_path):
    with open_learned(tmp_path) as door:
        door.add(make_popular(4))
        _, decision = shown_to(door, "ann")
        assert tuple(decision["known"]) == door.project.online.read_state().known
        assert decision["dimensions"] == {"items": len(ITEMS)}
        assert "vectors" not in decision


def test_a_dimension_that_grows_is_noted_by_later_pages_of_popularity(tmp_path):
    with open_learned(tmp_path) as door:
        door.add(make_popular(4))
        (items,) = door.project.declared.dimensions
        load_members(door.project.topics, items, members={"item-99": {"genre": "drama"}}, now_us=BEGAN_US)
        wait_until(
            lambda: shown_to(door, "ann")[1]["dimensions"] == {"items": len(ITEMS) + 1}, what="the new end is noted"
        )
