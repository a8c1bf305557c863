"""Popularity: numbers that can be checked by hand, from a real lake at one version."""

import json
import math
import threading

import pytest

from headrace import Event
from headrace.base.errors import CallError, ProjectError, StopError
from headrace.learn import LakeView, fit
from headrace.models import open_bundle, popularity
from headrace.models.model import read_texts
from headrace.project import open_project
from headrace.tables.catalog import item_sql
from streamline import BEGAN_US, DAY, HOUR, clicked, make_project, sink, tracked, write

CLICKS = Event("Product Clicked", item="product_id")
AT = BEGAN_US + 10 * DAY
GOOD = {
    # What is clicked at the instant of the fit counts whole, a half-life before half, two before a quarter.
    "whole": [clicked("ann", "whole", at_us=AT, category="drama")],
    "half": [clicked("ann", "half", at_us=AT - 3 * DAY)],
    "quarter": [clicked("ann", "quarter", at_us=AT - 6 * DAY, category="space")],
    # Ages are counted in sixteenths of a half-life, whole ones: 4.5 hours here.
    "step": [clicked("bob", "step", at_us=AT - 4 * HOUR), clicked("bob", "step", at_us=AT - 5 * HOUR)],
    "many": [clicked(f"v{number}", "many", at_us=AT - number % 2) for number in range(10)],
    # A category is the most frequent one, of equals the first by name.
    "torn": [clicked("eve", "torn", at_us=AT, category=name) for name in ("space", "drama", "drama", "comedy")],
    "even": [clicked("eve", "even", at_us=AT, category=name) for name in ("space", "comedy")],
    "7": [tracked("Product Clicked", "ann", {"product_id": 7}, at_us=AT)],
}
IDLE = [
    clicked("ann", "future", at_us=AT, received_us=AT + 1),
    clicked("ann", "old", at_us=AT - 60 * DAY),
    clicked("robot", "robotic", at_us=AT, bot=True),
    clicked("ann", "", at_us=AT),
    tracked("Product Clicked", "ann", {"name": "no id"}, at_us=AT),
    tracked("Product Added", "ann", {"product_id": "added"}, at_us=AT),
    tracked("Product Clicked", "ann", {"product_id": "whole"}, at_us=AT, type="page"),
]
COUNTS = {
    "whole": 1.0,
    "half": 0.5,
    "quarter": 0.25,
    "step": 1.0 + 2 ** (-1 / 16),
    "many": 10.0,
    "torn": 4.0,
    "even": 2.0,
    "7": 1.0,
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = make_project(tmp_path_factory.mktemp("popular"))
    with open_project(folder) as one:
        write(one, events=[event for events in GOOD.values() for event in events] + IDLE)
        yield one


def _version(project):
    return project.tables.open("events").version


def test_counts_are_those_that_a_hand_works_out(project):
    bundle = fit(project, "popular", at_us=AT)
    found = dict(zip(read_texts(bundle.arrays["items"]), bundle.arrays["counts"].tolist(), strict=True))
    assert found == COUNTS
    assert bundle.source["rows"] == sum(map(len, GOOD.values()))
    assert bundle.parameters == {"half_life_us": 3 * DAY}


def test_scores_are_shares_with_a_click_more_for_everybody(project):
    scorer = open_bundle(fit(project, "popular", at_us=AT))
    total = sum(COUNTS.values()) + len(COUNTS)
    found = dict(zip(scorer.items, scorer.scores("ann").tolist(), strict=True))
    assert found == pytest.approx({item: (count + 1) / total for item, count in COUNTS.items()}, rel=1e-12)
    assert math.fsum(found.values()) == pytest.approx(1)
    assert scorer.scores("ann") is scorer.scores("somebody else")
    categories = dict(zip(scorer.items, scorer.categories, strict=True))
    assert categories == {
        "whole": "drama",
        "half": "",
        "quarter": "space",
        "step": "",
        "many": "",
        "torn": "drama",
        "even": "comedy",
        "7": "",
    }


def test_source_says_where_the_rows_came_from(project):
    source = fit(project, "popular", at_us=AT).source
    events = project.topics.describe("events")
    positions = [bound.end for bound in project.topics.bounds("events")]
    table = {"version": _version(project), "incarnation": events.incarnation, "positions": positions}
    assert (source["tables"], source["at_us"]) == ({"events": table}, AT)


class Shuffled(LakeView):
    """The same lake, whose rows come in another order each time."""

    order = "1"

    def items_of(self, event):
        return f"SELECT * FROM ({item_sql(event)}) ORDER BY md5(message_id || '{self.order}')"


def test_order_of_rows_and_threads_change_nothing(project):
    model, version = popularity("popular", CLICKS), _version(project)
    plain = model.fit(LakeView(project, {"events": version}, AT))
    found = []

    def work(order):
        with open_project(project.folder) as other:
            other.engine._options.threads = 1 + order % 4
            view = Shuffled(other, {"events": version}, AT)
            object.__setattr__(view, "order", str(order))
            found.append(model.fit(view).hash)

    threads = [threading.Thread(target=work, args=(order,)) for order in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [plain.hash] * 5


def test_half_life_decides_what_counts_more(project):
    version = _version(project)
    short = popularity("popular", CLICKS, half_life="3h").fit(LakeView(project, {"events": version}, AT))
    found = dict(zip(read_texts(short.arrays["items"]), short.arrays["counts"].tolist(), strict=True))
    # After twenty half-lives a click is forgotten; 4 and 5 hours are 21 and 26 sixteenths of three.
    assert "half" not in found
    assert found["step"] == pytest.approx(2 ** (-21 / 16) + 2 ** (-26 / 16))
    late = popularity("popular", CLICKS).fit(LakeView(project, {"events": version}, AT + 3 * DAY))
    found = dict(zip(read_texts(late.arrays["items"]), late.arrays["counts"].tolist(), strict=True))
    assert (found["whole"], found["half"], found["future"]) == (0.5, 0.25, 0.5)


def test_half_life_is_checked_when_it_is_declared():
    for half_life in ("", "3", "soon", "0d", "-1d", 3):
        with pytest.raises(ProjectError, match=r"popularity\('popular'\): half_life is .*; write a number"):
            popularity("popular", CLICKS, half_life=half_life)
    for clicks in (Event("Product Clicked"), "Product Clicked"):
        with pytest.raises(ProjectError, match="give it an Event with item="):
            popularity("popular", clicks)


def test_fit_at_an_older_version_is_what_it_was_then(tmp_path):
    with open_project(make_project(tmp_path)) as project:
        write(project, events=[clicked("ann", "item-1", at_us=BEGAN_US)])
        before, version = fit(project, "popular", at_us=AT), _version(project)
        write(project, events=[clicked("ann", f"item-{number}", at_us=BEGAN_US) for number in (1, 2, 2)])
        after = fit(project, "popular", at_us=AT)
        assert (len(open_bundle(before).items), len(open_bundle(after).items)) == (1, 2)
        again = fit(project, "popular", versions={"events": version}, at_us=AT)
        assert again.packed == before.packed
        # Three fits made two bundles, whose versions nobody may clear away.
        assert [found.hash for found in project.registry.bundles("popular")] == [after.hash, before.hash]
        pinned = {pin.version for pin in project.tables.open("events").pins() if pin.owner == "headrace model"}
        assert pinned == {version, _version(project)}


def test_fit_of_nothing_says_what_is_missing(tmp_path):
    with open_project(make_project(tmp_path)) as project:
        with pytest.raises(CallError, match="there is no table 'events' yet to fit 'popular' from"):
            fit(project, "popular")
        sink(project)
        with pytest.raises(StopError, match="'popular' has learned nothing: version 0 of 'events' has no 'Product Cl"):
            fit(project, "popular")
        with pytest.raises(CallError, match=r"no model 'populra'. Did you mean popular"):
            fit(project, "populra")
        assert project.registry.bundles() == []


def test_lists_of_items_count_each_item(tmp_path):
    with open_project(make_project(tmp_path)) as project:
        products = [{"product_id": "a", "category": "drama"}, {"product_id": "b"}, {"product_id": "a"}, {}]
        write(project, events=[tracked("Order Completed", "ann", {"order_id": "o", "products": products}, at_us=AT)])
        bought = popularity("bought", Event("Order Completed", item="products[].product_id"))
        bundle = bought.fit(LakeView(project, {"events": _version(project)}, AT))
        assert read_texts(bundle.arrays["items"]) == ["a", "b"]
        assert bundle.arrays["counts"].tolist() == [2.0, 1.0]
        assert read_texts(bundle.arrays["categories"]) == ["drama", ""]
        assert json.loads(bundle.manifest)["name"] == "bought"
