"""The taste policy: popularity, times how much more than others a person clicks a genre."""

import numpy as np
import pytest

from headrace import Event
from headrace.base.errors import ProjectError
from headrace.learn import LakeView, fit
from headrace.models import Bundle, open_bundle, popularity, taste
from headrace.models.taste import person_keys
from headrace.project import open_project
from models.test_popular import Shuffled
from streamline import BEGAN_US, DAY, clicked, make_project, tracked, write

CLICKS = Event("Product Clicked", item="product_id")
POPULAR = popularity("popular", CLICKS)
AT = BEGAN_US + DAY
CLICKED = {
    "ann": {"c-1": 6, "d-1": 2},
    "bob": {"c-1": 1, "c-2": 1, "d-1": 6},
    "yvonne": {"s-1": 4, "plain": 4},
}
GENRES = {"c": "comedy", "d": "drama", "s": "space"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    with open_project(make_project(tmp_path_factory.mktemp("taste"))) as one:
        events = [
            clicked(person, item, at_us=AT, category=GENRES.get(item[0]))
            for person, items in CLICKED.items()
            for item, count in items.items()
            for _ in range(count)
        ]
        events += [
            clicked("robot", "s-1", at_us=AT, category="space", bot=True),
            clicked("ann", "s-1", at_us=AT, category="space", received_us=AT + 1),
            # Who is known by another name is that person from then on.
            clicked("phone", "s-1", at_us=AT, category="space", user_id="yvonne"),
            tracked("Product Clicked", "ann", {"category": "space"}, at_us=AT),
        ]
        write(one, events=events)
        yield one


@pytest.fixture(scope="module")
def scorer(project):
    return open_bundle(fit(project, "tastes", at_us=AT))


def _base(project):
    found = open_bundle(fit(project, "popular", at_us=AT))
    return dict(zip(found.items, found.scores("ann").tolist(), strict=True))


def test_scores_are_those_that_a_hand_works_out(project, scorer):
    # A click without an item, on nothing's genre, is a click on the genre all the same.
    clicks = {"ann": (6, 2, 1), "bob": (2, 6, 0), "yvonne": (0, 0, 5)}
    totals = np.sum(list(clicks.values()), axis=0)
    shares = totals / totals.sum()
    base = _base(project)
    for person, mine in clicks.items():
        mixed = (np.array(mine) + 2.0 * shares) / (sum(mine) + 2.0)
        lift = dict(zip(("comedy", "drama", "space"), mixed / shares, strict=True))
        expected = {item: base[item] * lift.get(GENRES.get(item[0]), 1.0) for item in base}
        found = dict(zip(scorer.items, scorer.scores(person).tolist(), strict=True))
        assert found == pytest.approx(expected, rel=1e-12)


def test_person_of_whom_nothing_is_known_is_ranked_by_popularity(project, scorer):
    base = _base(project)
    for person in ("nobody", "", "robot", "phone", "日本"):
        assert dict(zip(scorer.items, scorer.scores(person).tolist(), strict=True)) == base


def test_items_and_categories_are_those_of_the_base(project, scorer):
    base = open_bundle(fit(project, "popular", at_us=AT))
    assert (scorer.items, scorer.categories, scorer.places) == (base.items, base.categories, base.places)
    assert scorer.places["c-2"] == scorer.items.index("c-2")


def test_bundle_holds_no_name_of_a_person(project):
    packed = fit(project, "tastes", at_us=AT).packed
    assert not [person for person in CLICKED if person.encode() in packed]


def test_persons_are_found_by_their_keys_whatever_their_order():
    people = [f"person-{number}" for number in range(1000)] + ["zoë", "\ud800", ""]
    keys = person_keys(people)
    assert len(set(keys.tolist())) == len(people)
    assert person_keys(people[::-1]).tolist() == keys[::-1].tolist()


def test_order_of_rows_changes_nothing(project):
    model, version = taste("tastes", CLICKS, base=POPULAR), project.tables.open("events").version
    plain = model.fit(LakeView(project, {"events": version}, AT))
    view = Shuffled(project, {"events": version}, AT)
    assert model.fit(view).hash == plain.hash


def test_stronger_prior_stays_closer_to_popularity(project):
    bundle, base = fit(project, "tastes", at_us=AT), _base(project)
    gaps = []
    for prior in (0.5, 2.0, 50.0, 999_999.0):
        parameters = {**bundle.parameters, "prior": prior}
        found = open_bundle(Bundle(bundle.name, bundle.kind, parameters, bundle.source, bundle.arrays))
        scores = dict(zip(found.items, found.scores("bob").tolist(), strict=True))
        gaps.append(sum(abs(scores[item] - base[item]) for item in base))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-4


def test_declaration_is_checked():
    with pytest.raises(ProjectError, match="give it an Event with item="):
        taste("tastes", Event("Product Clicked"), base=POPULAR)
    with pytest.raises(ProjectError, match="base='popular' is no popularity"):
        taste("tastes", CLICKS, base="popular")
    for prior in (0, -1, float("nan"), 1e9):
        with pytest.raises(ProjectError, match="must be a number above 0"):
            taste("tastes", CLICKS, base=POPULAR, prior=prior)
