"""headrace model as a user types it, on bundles that were fitted from a real lake."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from console.audience import copy, declare, now_us
from console.conftest import Shop
from headrace import learn
from headrace.models import Bundle
from headrace.project import open_project
from models.market import ITEMS, load_items, make_market, write_market
from running import lines

pytestmark = pytest.mark.slow


def newest(shop):
    """Returns the newest bundle of each model as `model list --json` shows it."""
    rows = lines(shop.call("model", "list", "--json")[1])
    return {row["name"]: row for row in reversed(rows)}


def fit_again(shop, name):
    """Fits a model a second later, so that another bundle comes of it; returns its hash."""
    now_us(shop, later=1.0)
    code, out, _ = shop.call("model", "fit", name, "--json")
    assert code == 0
    return lines(out)[0]["hash"]


# fit.


def test_fit_says_what_was_learned_whence_and_where_it_serves(shared_fitted):
    code, out, error = shared_fitted.call("model", "fit", "popular")
    assert (code, error) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert facts["model"] == "popular, popularity"
    assert facts["learned"] == "21 items from 66 clicks"
    assert facts["from"].startswith("events, version ")
    assert facts["serves"] == "home as fallback"
    assert len(facts["bundle"]) == 32


def test_fit_as_json_has_hash_rows_items_and_version(shared_fitted):
    code, out, _ = shared_fitted.call("model", "fit", "tastes", "--json")
    (found,) = lines(out)
    assert code == 0
    assert found.pop("seconds") > 0
    with open_project(shared_fitted.folder) as project:
        assert {"events": project.tables.open("events").version} == found.pop("versions")
        assert project.registry.bundles("tastes")[0].hash == found.pop("hash")
    gate = found.pop("gate")
    assert (gate["passed"], gate["report"]) == (True, None)
    del found["fitted_us"]
    assert found == {"name": "tastes", "kind": "taste", "rows": 66, "items": 21, "serves": []}


def test_fit_pins_the_version_that_it_read_once_per_bundle(shared_fitted):
    found = [lines(shared_fitted.call("model", "fit", "popular", "--json")[1])[0] for _ in range(2)]
    assert found[0]["hash"] == found[1]["hash"], "the same rows and instant give the same bundle"
    pins = lines(shared_fitted.call("table", "pin", "events", "--json")[1])
    assert [pin["version"] for pin in pins if found[0]["hash"] in pin["reason"]] == [found[0]["versions"]["events"]]


def test_fit_of_an_unknown_model_names_the_nearest(shared_fitted):
    assert shared_fitted.call("model", "fit", "populr") == (
        2, "", "UnknownNameError: no model 'populr'. Did you mean popular?  known: popular, tastes\n",
    )  # fmt: skip


def test_fit_before_anything_ran_says_what_to_start(shop):
    declare(shop)
    assert shop.call("model", "fit", "popular") == (
        2, "", "CallError: there is no table 'events' yet to fit 'popular' from. Start its sink with: headrace up\n",
    )  # fmt: skip


@pytest.mark.slow
def test_fit_without_a_click_says_so_and_changes_nothing(shop):
    declare(shop)
    shop.click({"type": "page", "messageId": "1", "anonymousId": "ann"})
    shop.run()
    code, out, error = shop.call("model", "fit", "popular")
    assert (code, out) == (1, "")
    assert error.startswith("StopError: 'popular' has learned nothing: version 1 of 'events' has no 'Product Clicked'")
    assert shop.call("model", "list", "--json") == (0, "", "")


# list.


def test_list_before_a_fit_says_how_to_fit(shop):
    declare(shop)
    code, out, _ = shop.call("model", "list")
    assert code == 0
    assert out.splitlines() == [
        "no bundles yet",
        "popular was not fitted yet. Fit it with: headrace model fit popular",
        "tastes was not fitted yet. Fit it with: headrace model fit tastes",
    ]


def test_list_has_the_newest_first_and_what_serves(shared_fitted):
    hashes = [fit_again(shared_fitted, name) for name in ("popular", "tastes")]
    rows = lines(shared_fitted.call("model", "list", "--json")[1])
    assert [row["hash"] for row in rows[:2]] == hashes[::-1]
    assert rows[1]["serves"] == [{"page": "home", "role": "fallback", "trial": None}]
    assert [row["serves"] for row in (rows[0], *rows[2:])] == [[]] * (len(rows) - 1)
    code, out, _ = shared_fitted.call("model", "list")
    assert code == 0
    assert f"home  fallback   popular  {hashes[0][:12]}" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.slow
def test_list_in_a_trial_says_which_arm_each_bundle_is(fitted):
    assert fitted.call("experiment", "start", "taste-home", "--without-aa")[0] == 0
    rows = newest(fitted)
    assert [(place["trial"], place["role"]) for place in rows["popular"]["serves"]] == [
        (None, "fallback"), ("taste-home-1", "control"),
    ]  # fmt: skip
    assert [(place["trial"], place["role"]) for place in rows["tastes"]["serves"]] == [("taste-home-1", "treatment")]
    assert "treatment of taste-home-1  tastes" in fitted.call("model", "list")[1]


# describe.


def test_describe_takes_a_name_a_hash_or_its_beginning(shared_fitted):
    older = newest(shared_fitted)["popular"]["hash"]
    hashes = {"popular": fit_again(shared_fitted, "popular"), older: older, older[:12]: older}
    assert hashes["popular"] != older
    for name, whole in hashes.items():
        code, out, _ = shared_fitted.call("model", "describe", name, "--json")
        assert (code, lines(out)[0]["hash"]) == (0, whole)


def test_describe_shows_manifest_positions_and_the_best_items(shared_fitted):
    found = lines(shared_fitted.call("model", "describe", "tastes", "--json")[1])[0]
    source = found["manifest"]["source"]
    with open_project(shared_fitted.folder) as project:
        positions = source["tables"]["events"]["positions"]
        assert sum(positions) == sum(bound.end for bound in project.topics.bounds("events"))
    assert found["fit"]["environment"]["python"]
    assert found["gate"]["passed"]
    assert set(found["manifest"]["arrays"]) >= {"items", "categories", "counts", "persons", "genre_clicks"}
    scores = [one["score"] for one in found["top"]]
    assert (len(scores), scores) == (10, sorted(scores, reverse=True))
    assert {one["category"] for one in found["top"]} == {"comedy", "drama", "crime"}
    code, out, _ = shared_fitted.call("model", "describe", "tastes")
    assert code == 0
    assert "parameters  half_life 3 days, prior 2.0" in out
    assert found["top"][0]["item"] in out
    assert max(map(len, out.splitlines())) <= 80


def test_describe_of_an_unknown_bundle_names_what_stands(shared_fitted):
    code, _, error = shared_fitted.call("model", "describe", "taste")
    assert code == 2
    assert error.startswith("UnknownNameError: no bundle or model 'taste'. Did you mean tastes?")


def test_describe_of_a_model_without_a_bundle_says_how_to_fit(shop):
    declare(shop)
    assert shop.call("model", "describe", "tastes") == (
        2, "", "CallError: there is no bundle of 'tastes' yet. Fit one with: headrace model fit tastes\n",
    )  # fmt: skip


# compare, promote and reproduce.


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """A shop with a click model's bundle and one with its weights turned round; returns it and their hashes."""
    folder = make_market(tmp_path_factory.mktemp("market"))
    with open_project(folder) as project:
        write_market(project, pages=600)
        project.clock.step(48 * 3600)
        learn.fit(project, "popular")
        bundle = learn.fit(project, "ranker")
        arrays = {**bundle.arrays, "weights": -bundle.arrays["weights"]}
        turned = project.registry.add(Bundle(bundle.name, bundle.kind, bundle.parameters, bundle.source, arrays))
    return Shop(folder, is_new=False), bundle.hash, turned


def test_promote_asks_the_gate_and_does_what_it_says(market):
    shop, good, turned = market
    code, out, _ = shop.call("model", "promote", turned, "--page", "home")
    assert code == 1
    assert "✗ refuses" in out
    assert "the scores of the bundle and of that fit correlate by -0." in out
    assert lines(shop.call("model", "promote", turned, "--page", "home", "--json")[1])[0]["promoted"] is False
    code, out, _ = shop.call("model", "promote", good, "--page", "home")
    assert (code, out.splitlines()[2].split(maxsplit=1)) == (0, ["before", "the fallback"])
    rows = {row["hash"]: row for row in lines(shop.call("model", "list", "--json")[1])}
    assert rows[good]["serves"] == [{"page": "home", "role": "champion", "trial": None}]
    assert (rows[good]["passed"], rows[turned]["passed"]) == (True, False)
    code, out, _ = shop.call("model", "promote", turned, "--page", "home", "--force", "--json")
    assert (code, lines(out)[0]["before"]) == (0, good)
    assert lines(out)[0]["reason"].startswith("forced past the gate: the scores")


def test_rollback_lets_the_champion_before_serve_and_says_what_it_cannot_do(fitted):
    assert fitted.call("model", "rollback", "hom") == (
        2, "", "UnknownNameError: no page 'hom'. Did you mean home?  known: home\n",
    )  # fmt: skip
    code, out, error = fitted.call("model", "rollback", "home")
    assert (code, out, "the page 'home' has no champion" in error) == (2, "", True)
    tastes = newest(fitted)["tastes"]["hash"]
    assert fitted.call("model", "promote", tastes, "--page", "home")[0] == 0
    code, out, _ = fitted.call("model", "rollback", "home", "--reason", "too slow")
    assert (code, [tuple(line.split(maxsplit=1)) for line in out.splitlines()]) == (
        0,
        [("champion", "none: the fallback serves"), ("page", "home"), ("before", tastes), ("reason", "too slow")],
    )
    assert newest(fitted)["tastes"]["serves"] == []
    code, out, _ = fitted.call("model", "rollback", "home", "--json")
    assert (code, lines(out)[0]["bundle"], lines(out)[0]["how"]) == (0, tastes, "rollback"), "the way back, back"
    assert fitted.call("experiment", "start", "taste-home", "--without-aa")[0] == 2, "its own bundle serves already"
    fit_again(fitted, "tastes")
    assert fitted.call("experiment", "start", "taste-home", "--without-aa")[0] == 0
    code, _, error = fitted.call("model", "rollback", "home")
    assert (code, "trial 'taste-home-1' runs on the page 'home'" in error) == (2, True)


def test_compare_puts_what_was_measured_side_by_side(market):
    shop, good, turned = market
    code, out, _ = shop.call("model", "compare", good, turned)
    assert code == 0
    assert [line.split() for line in out.splitlines() if line.startswith("gate")] == [["gate", "passed", "refused"]]
    first, second = lines(shop.call("model", "compare", good, "popular", "--json")[1])
    assert first["gate"]["report"]["held_out"]["ndcg"] > first["gate"]["report"]["popularity"]["ndcg"]
    assert second["gate"]["report"] is None


def test_reproduce_makes_the_same_bytes_and_says_what_differs_if_not(market):
    shop, good, turned = market
    code, out, _ = shop.call("model", "reproduce", good)
    assert (code, "✓ the same bytes" in out) == (0, True)
    code, out, _ = shop.call("model", "reproduce", turned, "--json")
    assert (code, lines(out)[0]["same"], lines(out)[0]["again"]) == (1, False, good)
    assert "array weights" in lines(out)[0]["differences"]


def test_vacuum_leaves_all_tables_that_a_bundle_was_fitted_from_and_it_is_made_again(market, tmp_path):
    shop, bundle, tables = copy(market[0], tmp_path), market[1], ("decisions", "events", "items")
    with open_project(shop.folder) as project:
        write_market(project, pages=20, seed=9)
        load_items(project, dict.fromkeys(ITEMS, "drama"))
    for name in tables:
        # Merged into others, its files are those of old versions only.
        assert shop.call("table", "maintain", name)[0] == 0
        code, out, error = shop.call("table", "maintain", name, "--vacuum", "--keep-days", "0")
        assert (code, out, f"bundle {bundle} of ranker" in error) == (2, "", True)
    with open_project(shop.folder) as project:
        pinned = {name: project.tables.open(name).pins()[0].version for name in tables}
        for name, version in pinned.items():
            table = project.tables.open(name)
            # As the keeper does it, around the pins.
            assert table.vacuum(keep_seconds=0)
            assert {file.path for file in table.at(version).files()}.isdisjoint(file.path for file in table.files())
    code, out, _ = shop.call("model", "reproduce", bundle, "--json")
    assert (code, lines(out)[0]["same"], lines(out)[0]["again"]) == (0, True, bundle)


def test_describe_of_a_click_model_says_what_made_it(market):
    shop, good, _ = market
    code, out, _ = shop.call("model", "describe", good)
    assert code == 0
    assert "features    taste_1d, taste_28d, appeal_7d, latest_1d" in out
    assert "from        items, version " in out
    assert "fitted before it" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.slow
def test_a_damaged_bundle_is_named_and_the_one_before_serves_on(fitted):
    before, damaged = newest(fitted)["popular"]["hash"], fit_again(fitted, "popular")
    path = fitted.folder / ".headrace" / "registry.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "update bundles set packed = cast(substr(packed, 1, length(packed) - 1) || x'ff' as blob) where hash = ?",
            (damaged,),
        )
    code, out, error = fitted.call("model", "describe", damaged)
    assert (code, out) == (1, "")
    assert error.startswith("FormatError: array ")
    rows = {row["hash"]: row for row in lines(fitted.call("model", "list", "--json")[1])}
    assert (rows[damaged]["serves"], len(rows[before]["serves"])) == ([], 1)
