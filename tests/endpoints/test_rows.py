"""A page with several carousels: one recommendation id, a decision for each row, and no item twice."""

import json
from dataclasses import replace

import pytest

from endpoints.door import Scores, make_popular, make_tastes, make_trial, open_door
from headrace.base.errors import DeadlineError, RecordError
from headrace.endpoints import app
from headrace.events.decision import decode_decision
from headrace.experiments.assign import assign
from headrace.experiments.experiment import ARMS
from headrace.learn import open_lake
from headrace.loop import judge_trial, promote
from headrace.models.rows import list_rows, read_labels
from headrace.project import open_project
from headrace.verify.truth import is_same, replay
from running import wait_until
from streamline import BEGAN_US, DAY, HOUR, MINUTE, TRENDING, clicked, decided, make_project, sink, viewed, write

pytestmark = pytest.mark.slow


def _written(door, recommendation_id):
    found = [decode_decision(message.value) for message in door.project.topic("decisions").read_to_ends()]
    return [one for one in found if one.recommendation_id == recommendation_id]


def _items(row):
    return [item["id"] for item in row["items"]]


@pytest.fixture
def door(tmp_path):
    with open_door(make_project(tmp_path, per_row=3, explore=0.3, below=TRENDING)) as one:
        yield one


def test_rows_share_the_pages_id_and_no_item_stands_twice(door):
    door.add(make_popular(12))
    for number in range(20):
        shown = door.ask(anonymous_id=f"visitor-{number}").json()
        first, second = shown["rows"]
        assert (first["title"], second["title"]) == ("For you", "Trending now")
        assert [item["position"] for row in (first, second) for item in row["items"]] == [1, 2, 3, 1, 2, 3]
        assert len({*_items(first), *_items(second)}) == 6
        above, below = _written(door, shown["recommendation_id"])
        assert (list(above.items), list(below.items)) == (_items(first), _items(second))
        assert (above.above, below.above) == ((), above.items)
        assert (above.list_id, below.list_id) == ("For you", "Trending now")
        assert (above.num_candidates, below.num_candidates) == (12, 9)
        assert above.seed != below.seed


def test_a_row_with_nothing_left_to_show_is_left_out(door):
    door.add(make_popular(4))
    shown = door.ask(anonymous_id="ann").json()
    assert [len(row["items"]) for row in shown["rows"]] == [3, 1]
    door.add(make_popular(3, marked=1))
    shown = door.ask(anonymous_id="ann").json()
    assert [row["title"] for row in shown["rows"]] == ["For you"]
    assert len(_written(door, shown["recommendation_id"])) == 1


def test_a_trial_changes_the_rows_that_its_model_ranks_and_no_other(door):
    popular, tastes = make_popular(12), make_tastes(12)
    door.add(popular, tastes)
    trial = make_trial(popular.hash, tastes.hash, per_row=3)
    door.start(trial)
    for visitor in ("ann", "bob", "cid", "dan"):
        shown = door.ask(anonymous_id=visitor).json()
        arm = ARMS[assign(trial.seed, visitor, trial.weights)]
        assert [row["bundle"] for row in shown["rows"]] == [trial.bundle_of(arm), popular.hash]
        assert [one.arm for one in _written(door, shown["recommendation_id"])] == [arm, arm]
    assert {shown["arm"] for shown in (door.ask(anonymous_id=f"v-{n}").json() for n in range(20))} == set(ARMS)


def test_each_row_is_made_again_from_what_was_logged(door):
    popular, tastes = make_popular(12), make_tastes(12)
    door.add(popular, tastes)
    door.start(make_trial(popular.hash, tastes.hash, per_row=3))
    ids = [door.ask(anonymous_id=f"visitor-{number}").json()["recommendation_id"] for number in range(12)]
    sink(door.project)
    for recommendation_id in ids:
        made = replay(door.project, recommendation_id)
        assert [row["list_id"] for _, row in made] == ["For you", "Trending now"]
        assert all(is_same(*one) for one in made)


def test_clicks_of_all_rows_count_once_for_their_page(tmp_path):
    with open_door(make_project(tmp_path, per_row=3, explore=0.3, below=TRENDING, partitions=1)) as door:
        popular, tastes = make_popular(12), make_tastes(12)
        door.add(popular, tastes)
        project, visitors = door.project, [f"visitor-{number}" for number in range(12)]
        incarnations = {name: project.topics.describe(name).incarnation for name in ("decisions", "events")}
        places = {"decisions": (0,), "events": (0,)}
        trial = make_trial(popular.hash, tastes.hash, per_row=3, incarnations=incarnations, positions=places)
        door.start(trial)
        events = []
        for visitor in visitors:
            shown = door.ask(anonymous_id=visitor).json()
            told = {"recommendation_id": shown["recommendation_id"]}
            first, second = map(_items, shown["rows"])
            # Each row is viewed by an event of its own; both have a click on their second place.
            events += [viewed(visitor, items, at_us=BEGAN_US + MINUTE, **told) for items in (first, second)]
            events += [clicked(visitor, items[1], at_us=BEGAN_US + 2 * MINUTE, **told) for items in (first, second)]
        write(project, events=events)
        sink(project)
        ends = {name: tuple(bound.end for bound in project.topics.bounds(name)) for name in places}
        verdict = judge_trial(project, trial, ends, BEGAN_US + DAY)
        arms = (verdict.control, verdict.treatment)
        assert sum(arm.visitors for arm in arms) == sum(arm.pages for arm in arms) == 12
        assert (sum(arm.views for arm in arms), sum(arm.clicks for arm in arms)) == (12 * 6, 12 * 2)


def test_training_rows_count_positions_down_the_page(tmp_path):
    folder = make_project(tmp_path, per_row=2, below=TRENDING)
    with open_project(folder) as project:
        goal = project.declared.experiments[0].goal
        page = {"recommendation_id": "r-1", "at_us": BEGAN_US, "known": (0, 0)}
        rows = [
            decided("ann", ["a", "b"], propensities=(0.8, 0.7), **page),
            decided("ann", ["c", "d"], propensities=(0.6, 0.5), list_id="Trending now", above=("a", "b"), **page),
        ]
        told = {"at_us": BEGAN_US + MINUTE, "recommendation_id": "r-1"}
        events = [viewed("ann", ["a", "b"], **told), viewed("ann", ["c", "d"], **told), clicked("ann", "d", **told)]
        write(project, decisions=rows, events=events)
        project.clock.step(int(2 * HOUR / 1_000_000))
        found = list_rows(read_labels(open_lake(project), goal))
    assert [(row.item, row.position, row.propensity, row.clicked) for row in found] == [
        ("a", 1, 0.8, False),
        ("b", 2, 0.7, False),
        ("c", 3, 0.6, False),
        ("d", 4, 0.5, True),
    ]


def test_a_page_that_cannot_be_logged_withdraws_all_its_rows(door, monkeypatch):
    door.add(make_popular(12))
    sender, told = door.endpoint._sender, []

    async def refuse_once(_, records):
        told.append([json.loads(record.value) for record in records])
        if len(told) == 1:
            raise TimeoutError

    monkeypatch.setattr(sender, "append", refuse_once)
    shown = door.ask(anonymous_id="ann").json()
    assert (shown["recommendation_id"], shown["degraded"], len(shown["rows"])) == (None, ["unlogged"], 2)
    wait_until(lambda: len(told) == 2)
    first, withdrawn = told
    assert [row["recommendation_id"] for row in first] == [row["recommendation_id"] for row in withdrawn]
    assert [row["degraded"] for row in withdrawn] == [["unlogged"]] * 2


def test_a_page_is_withdrawn_once_the_log_takes_it(door, monkeypatch):
    door.add(make_popular(12))
    told = []

    async def refuse_three_times(_, records):
        told.append([json.loads(record.value) for record in records])
        if len(told) <= 3:
            raise DeadlineError("the log is silent")

    monkeypatch.setattr(door.endpoint._sender, "append", refuse_three_times)
    monkeypatch.setattr(app, "_AGAIN_SECONDS", 0.01)
    assert door.ask(anonymous_id="ann").json()["degraded"] == ["unlogged"]
    wait_until(lambda: len(told) == 4)
    assert [[row.get("degraded", []) for row in rows] for rows in told] == [[[]] * 2, *[[["unlogged"]] * 2] * 3]
    wait_until(lambda: door.endpoint._withdrawn == [])


def test_a_page_that_no_log_takes_holds_no_other_back(door, monkeypatch):
    door.add(make_popular(12))
    told = []

    async def refuse_ann(_, records):
        person, *_ = {json.loads(record.value)["person"] for record in records}
        told.append(person)
        if person == "ann":
            raise RecordError("too large")
        if told.count(person) == 1:
            raise DeadlineError("the log is silent")

    monkeypatch.setattr(door.endpoint._sender, "append", refuse_ann)
    for visitor in ("ann", "bob"):
        assert door.ask(anonymous_id=visitor).json()["degraded"] == ["unlogged"]
    wait_until(lambda: told == ["ann", "ann", "bob", "bob"])


def test_a_row_that_cannot_be_ranked_costs_the_page_no_other(door):
    popular, tastes = make_popular(12), make_tastes(12)
    door.add(popular, tastes)
    promote(door.project, "home", tastes.hash)
    door.take_over()
    # As a bundle would that ranks wrongly: the row's own, which is the page's fallback too.
    broken = replace(door.shelf.servings["home"].fallback, scorer=Scores([]))
    serving = replace(door.shelf.servings["home"], fallback=broken, own={"Trending now": broken})
    door.shelf.servings = {"home": serving}
    shown = door.ask(anonymous_id="ann").json()
    assert ([row["title"] for row in shown["rows"]], shown["degraded"]) == (["For you"], ["rows"])
    (decision,) = _written(door, shown["recommendation_id"])
    assert (decision.bundle, decision.degraded) == (tastes.hash, ("rows",))
    assert door.count("headrace_endpoint_degraded_total", "rows", "none") == 1
