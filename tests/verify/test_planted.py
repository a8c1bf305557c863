"""A bug planted in each room in turn: each fails on its own line, and the same seed without it passes all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from msgspec import structs

from headrace import loop
from headrace.base.clock import begin_stepped
from headrace.console.crowd import HABITS
from headrace.console.init import write_project
from headrace.console.verify import BEGIN_US, Asked
from headrace.endpoints import app as endpoint
from headrace.endpoints import carousel
from headrace.endpoints.follower import Seen
from headrace.events import settle
from headrace.events.world import DAY, HOUR, MINUTE, World
from headrace.experiments import analyse
from headrace.experiments.assign import bucket
from headrace.features import updater
from headrace.features.tiles import Fold
from headrace.learn import LakeView
from headrace.models import linear
from headrace.project import open_project
from headrace.stats.compare import compare_ratios
from headrace.tables.sink import Sink
from headrace.topics.sqlite_sender import SqliteSender
from headrace.verify import check_trial
from headrace.verify.case import Case
from headrace.verify.checks import CHECKS, check
from headrace.verify.play import Script, play

pytestmark = pytest.mark.slow

ASKED = Asked(
    seed=11,
    folder="",
    visitors=250,
    # People look at about 200 pages: some of those must come without an id.
    script=Script(past_us=DAY, portion_us=10 * MINUTE, forced_us=6 * HOUR, late_every=11),
)


def play_case(folder):
    """Returns the small world, played, with its project open."""
    write_project(folder, ports=(0, 0, 0), clock="stepped://")
    begin_stepped(folder, BEGIN_US)
    market = World(
        ASKED.seed,
        visitors=ASKED.visitors,
        born_us=BEGIN_US - DAY,
        habits=structs.replace(HABITS, bots=0.06, beats=1.0),
    )
    project = open_project(folder)
    played = play(project, market, ASKED.script)
    return Case(project, market, played.record, played.verdict)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    case = play_case(tmp_path_factory.mktemp("clean") / "world")
    CLEAN[:] = [case]
    yield case
    case.project.close()


CLEAN = []
"""The case of the fixture `clean`, for a bug that has to look at it."""


def lines_of(case, names=None):
    """Returns what the checks have found, by their names; of the case only what was read before the bug is kept."""
    fresh = Case(case.project, case.world, case.record, case.verdict)
    chosen = [one for one in CHECKS if names is None or one.name in names]
    return {line.name: line for line in check(fresh, checks=chosen)}


def test_the_seed_without_a_bug_passes_all(clean):
    lines = lines_of(clean)
    assert [line for line in lines.values() if line.state != "holds"] == []
    assert len(lines) == len(CHECKS) >= 20


class Bug(NamedTuple):
    """One mistake, the line that must tell of it, and how it is planted."""

    name: str
    line: str
    plant: Callable[[pytest.MonkeyPatch], None]


def every(number):
    """Returns whether this call is one of those in which a bug shows."""
    calls = itertools.count(1)
    return lambda: next(calls) % number == 0


# While the world is played.


def drop_acknowledged(patch):
    shows, append = every(50), SqliteSender.append

    async def wrong(self, name, records):
        if name != "clicks" or not shows():
            await append(self, name, records)

    patch.setattr(SqliteSender, "append", wrong)


def change_acknowledged(patch):
    shows, append = every(50), SqliteSender.append

    async def wrong(self, name, records):
        if name == "clicks" and shows():
            records = [structs.replace(one, value=one.value.replace(b'"track"', b'"group"')) for one in records]
        await append(self, name, records)

    patch.setattr(SqliteSender, "append", wrong)


def forget_logins(patch):
    right = settle.who
    patch.setattr(settle, "who", lambda envelope: (right(envelope)[0], None))


def believe_clocks(patch):
    right = settle._event_time
    patch.setattr(settle, "_event_time", lambda *given: right(*given[:-1], DAY))


def lose_click(patch):
    shows, right = every(20), settle.settle

    def wrong(state, records, rules):
        outcome = right(state, records, rules)
        return replace(outcome, events=outcome.events[:-1]) if outcome.events and shows() else outcome

    patch.setattr("headrace.collect.settler.settle", wrong)


def doubling(topic):
    """Returns the bug that the first row of a topic's first portion comes into the table twice."""

    def plant(patch):
        right, done = Sink._decode, []

        def wrong(self, messages):
            batch = right(self, messages)
            if self._topic != topic or done:
                return batch
            done.append(1)
            return pa.Table.from_batches([batch, batch.slice(0, 1)]).combine_chunks().to_batches()[0]

        patch.setattr(Sink, "_decode", wrong)

    return plant


double_row, double_decision = doubling("events"), doubling("decisions")


def miss_robots(patch):
    right = settle._known_agent
    patch.setattr(settle, "_known_agent", lambda *given: structs.replace(right(*given), bot=False))


def ignore_late(patch):
    right = Fold.additions
    newest = [0]

    class Forgetful(Fold):
        def additions(self, row):
            newest[0] = max(newest[0], row.event_us)
            return iter(()) if row.event_us < newest[0] - HOUR else right(self, row)

    patch.setattr(updater, "Fold", Forgetful)


def merge_twice(patch):
    right, shows = Fold.extend, every(20)

    class Eager(Fold):
        def extend(self, blob, additions):
            additions = list(additions)
            right(self, blob, additions)
            if shows():
                right(self, blob, additions)

    patch.setattr(updater, "Fold", Eager)


def serve_stale(patch):
    right = endpoint._pick

    def wrong(serving, asked):
        picked = right(serving, asked)
        return replace(picked, served=serving.fallback) if picked is not None and picked.arm else picked

    patch.setattr(endpoint, "_pick", wrong)


def show_again(patch):
    right = Seen.at
    patch.setattr(Seen, "at", lambda *given: right(*given)[1:])


def assign_unevenly(patch):
    right = endpoint.assign
    patch.setattr(endpoint, "assign", lambda seed, visitor, _: right(seed, visitor, (0.55, 0.45)))


def answer_otherwise(patch):
    right, shows = endpoint._shown, every(40)

    def wrong(decisions, whys):
        shown = right(decisions, whys)
        if shows():
            shown.rows[0].items.reverse()
        return shown

    patch.setattr(endpoint, "_shown", wrong)


def log_other_seed(patch):
    right = endpoint.choose
    patch.setattr(endpoint, "choose", lambda *given, seed, **more: right(*given, seed=seed + 1, **more))


def promote_anybody(patch):
    """Promotes whatever was tried, also where few came of those who were planned."""
    make = loop._make_trial
    patch.setattr(loop, "_make_trial", lambda *given: structs.replace(make(*given), planned=10_000))
    patch.setattr("headrace.loop._find_refusal", lambda *_, **__: "")


def take_for_the_other(patch):
    right = analyse._weigh

    def wrong(*given, **more):
        outcome, reasons = right(*given, **more)
        return ("better" if outcome == "worse" else "worse"), reasons

    patch.setattr(analyse, "_weigh", wrong)


PLAYED = [
    Bug("an acknowledged event is dropped", "every acknowledged event stands in clicks", drop_acknowledged),
    Bug("an acknowledged event is changed", "every acknowledged event stands in clicks", change_acknowledged),
    Bug("a click is settled by nobody", "every click is settled, failed or a repeat, once", lose_click),
    Bug("a login is forgotten", "every event says what its client sent", forget_logins),
    Bug("a clock that is off is believed", "every event says what its client sent", believe_clocks),
    Bug("a row is doubled", "every settled event is one row of the lake", double_row),
    Bug("a decision is doubled", "every decision is one row of the lake", double_decision),
    Bug("robots are taken for people", "robots are told from people", miss_robots),
    Bug("a late event is ignored online", "features served are those known to the page", ignore_late),
    Bug("a tile is merged twice", "features online are those of the events", merge_twice),
    Bug("a stale model is served", "each arm is served by its own bundle", serve_stale),
    Bug("the hash is biased", "each visitor is in the arm of the hash", assign_unevenly),
    Bug("a page is logged otherwise than answered", "every page is logged as it was answered", answer_otherwise),
    Bug("what was clicked is shown again", "what was seen is what was clicked within a day", show_again),
    Bug("a decision is made of another seed", "every decision is made again from what was logged", log_other_seed),
    Bug("a refused challenger is promoted", "the champion follows from the verdict", promote_anybody),
    Bug("a verdict takes the arms for each other", "the verdict follows from its numbers", take_for_the_other),
]


# While it is judged: the world was played without a fault.


def chance_wrongly(patch):
    right = carousel.choose

    def wrong(scorer, person, seen, *, rule, seed, values=()):
        chosen = right(scorer, person, seen, rule=rule, seed=seed, values=values)
        halved = tuple(chance if chance < 0.5 else 1 - (1 - chance) / 2 for chance in chosen.propensities)
        return replace(chosen, propensities=halved)

    patch.setattr("headrace.verify.check_page.choose", wrong)


def look_ahead(patch):
    right = LakeView.join

    def wrong(self, columns, labels):
        later = pa.array([at_us + HOUR for at_us in labels.column("at_us").to_pylist()], pa.int64())
        known = pa.array([[1 << 40] * len(one) for one in labels.column("known").to_pylist()], pa.list_(pa.int64()))
        for name, values in (("at_us", later), ("known", known)):
            labels = labels.set_column(labels.schema.get_field_index(name), name, values)
        return right(self, columns, labels)

    patch.setattr(LakeView, "join", wrong)


def fit_by_chance(patch):
    right, chance = linear.learn, np.random.default_rng(7)

    def wrong(rows, **more):
        return {name: array + 1e-9 * chance.normal() for name, array in right(rows, **more).items()}

    patch.setattr(linear, "learn", wrong)


def vary_naively(patch):
    """Takes each view for a visitor of its own; of so few visitors each has three times as much, so that it shows."""
    visitors = check_trial._visitors

    def wrong(control, treatment, *, alpha):
        found = compare_ratios(control, treatment, alpha=alpha)
        sides = [
            (side.numerator.mean / side.denominator.mean, side.n * side.denominator.mean)
            for side in (control, treatment)
        ]
        error = sum(ratio * (1 - ratio) / views for ratio, views in sides) ** 0.5
        return replace(found, p=math.erfc(abs(sides[1][0] - sides[0][0]) / error / 2**0.5))

    def heavy(case):
        found = visitors(case)
        return replace(found, views=3 * found.views, clicks=3 * found.clicks)

    patch.setattr(check_trial, "_visitors", heavy)
    assert check_trial._are_p_values_even(CLEAN[0]).witness is None
    patch.setattr(analyse, "compare_ratios", wrong)


def lose_late_clicks(patch):
    right = analyse.outcomes_sql

    def wrong(*given, inside, **more):
        return right(*given, inside=f"{inside} AND received_us < decided.received_us + {20 * MINUTE}", **more)

    patch.setattr(analyse, "outcomes_sql", wrong)


def count_robots(patch):
    edit_exposures(patch, "people.bot OR coalesce(counted.bot, false)", "false")


def enrol_unlogged(patch):
    edit_exposures(patch, "WHERE list_contains(degraded, 'unlogged')", "WHERE false")


def edit_exposures(patch, before, after):
    right = analyse.exposures_sql

    def wrong(scope):
        sql = right(scope)
        assert before in sql
        return sql.replace(before, after)

    patch.setattr("headrace.loop.exposures_sql", wrong)


def favour_one(patch):
    patch.setattr("headrace.verify.check_trial.assign", lambda seed, visitor, _: int(bucket(seed, visitor) >= 4_500))


JUDGED = [
    Bug("a propensity is wrong", "a propensity is the frequency", chance_wrongly),
    Bug("a feature looks ahead", "training rows know what their page knew", look_ahead),
    Bug("a fit is left to chance", "the challenger is fitted again to the same bytes", fit_by_chance),
    Bug("a variance is naive", "where nothing differs, p values are even", vary_naively),
    Bug("a late click is lost", "every click in time is joined to its page", lose_late_clicks),
    Bug("a robot is counted", "people count and robots don't", count_robots),
    Bug("an unlogged page is enrolled", "no page without an id counts", enrol_unlogged),
    Bug("an arm gets more than its share", "the hash gives each arm its share", favour_one),
]


TOGETHER = [
    (
        *(drop_acknowledged, forget_logins, double_row, double_decision),
        *(miss_robots, merge_twice, serve_stale, answer_otherwise, show_again),
    ),
    (
        *(change_acknowledged, lose_click, believe_clocks, ignore_late),
        *(assign_unevenly, log_other_seed, promote_anybody, take_for_the_other),
    ),
]
"""Bugs that don't hide each other, so that one world shows all of them."""


@pytest.mark.parametrize("number", range(len(TOGETHER)))
def test_bugs_in_the_loop_fail_each_on_its_own_line(tmp_path, monkeypatch, number):
    bugs = [bug for bug in PLAYED if bug.plant in TOGETHER[number]]
    found = plant_and_play(tmp_path, monkeypatch, bugs, {bug.line for bug in bugs})
    assert [(bug.name, found[bug.line]) for bug in bugs if not found[bug.line].witness] == []


@pytest.mark.soak
@pytest.mark.parametrize("bug", PLAYED, ids=lambda bug: bug.name)
def test_a_bug_in_the_loop_fails_on_its_own_line(tmp_path, monkeypatch, bug):
    found = plant_and_play(tmp_path, monkeypatch, [bug], None)
    print([name for name, line in found.items() if line.state == "fails"])
    assert found[bug.line].witness


def plant_and_play(folder, patch, bugs, names):
    """Returns what the checks find in a world that was played with bugs."""
    for bug in bugs:
        bug.plant(patch)
    case = play_case(folder / "world")
    try:
        return lines_of(case, names)
    finally:
        case.project.close()


def test_every_bug_of_the_loop_is_planted():
    planted = [one for some in TOGETHER for one in some]
    assert len(planted) == len(PLAYED)
    assert set(planted) == {bug.plant for bug in PLAYED}


@pytest.mark.parametrize("bug", JUDGED, ids=lambda bug: bug.name)
def test_a_bug_in_what_is_told_fails_on_its_own_line(clean, monkeypatch, bug):
    bug.plant(monkeypatch)
    found = lines_of(clean, {bug.line})[bug.line]
    assert (found.state, bool(found.witness)) == ("fails", True), found


def test_every_line_has_a_bug_that_it_catches():
    caught = {bug.line for bug in (*PLAYED, *JUDGED)}
    assert {one.name for one in CHECKS} - caught == {"the true lift is near the lift that was found"}


def test_the_page_says_which_bug_fails_on_which_line():
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "verify.md").read_text(encoding="utf-8")
    rooms = {one.name: one.room for one in CHECKS}
    told = [f"| {bug.name} | `{rooms[bug.line]}` | {bug.line} |" for bug in (*PLAYED, *JUDGED)]
    assert sorted(page.partition("|---|---|---|\n")[2].partition("\n\n")[0].splitlines()) == sorted(told)
