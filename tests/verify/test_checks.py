"""The checks' own parts: the hash written down once more, reports, and what many worlds say together."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import growthbook
import msgspec
import numpy as np
import pytest

from headrace.endpoints.carousel import Rule, choose
from headrace.experiments.assign import assign
from headrace.experiments.srm import check_ratio
from headrace.models.popular import OpenPopularity
from headrace.rehearse import judge_exposed, make_trial
from headrace.verify import check_log, check_page, check_trial
from headrace.verify.case import Check
from headrace.verify.check_trial import hash_arm
from headrace.verify.checks import CHECKS, check
from headrace.verify.exposed import Exposed
from headrace.verify.play import LateSender
from headrace.verify.report import Line, Report, read_report, write_report
from headrace.verify.worlds import World, join_lines

LINES = tuple(Line(name=one.name, room=one.room, state="holds", text="3 events") for one in CHECKS)
OTHER = """
import json, sys
from headrace.experiments.assign import assign
print(json.dumps([assign("exp", name, (0.5, 0.5)) for name in json.load(sys.stdin)]))
"""


def test_arms_are_those_of_growthbooks_sdk_in_every_process():
    chance = random.Random(7)
    names = [f"{chance.getrandbits(64):x}" for _ in range(3_000)] + ["zoë", "用户", ""]
    told = [int(growthbook.core.gbhash("exp", name, 2) >= 0.5) for name in names]
    assert [hash_arm("exp", name) for name in names] == told
    assert [assign("exp", name, (0.5, 0.5)) for name in names] == told
    done = subprocess.run(
        [sys.executable, "-c", OTHER], input=json.dumps(names), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == told


def test_a_report_comes_back_as_it_was_written(tmp_path):
    assert read_report(tmp_path) is None
    report = Report(made_us=7, seed=1, worlds=1, seconds=2.5, lines=LINES)
    write_report(tmp_path, report)
    assert read_report(tmp_path) == report
    assert report.holds


def worlds(count, **changes):
    """Returns worlds whose verdicts are as far from the truth as chance has it."""
    chance, made = random.Random(11), []
    for seed in range(1, count + 1):
        error = chance.gauss(0, 1)
        known = {"difference": 0.02 + 0.005 * error, "error": 0.005, "true_difference": 0.02, "true_lift": 0.5}
        inside = {"is_inside": abs(error) < 1.96, "is_promoted": True, "outcome": "better"}
        made.append(World(seed=seed, lines=LINES, pages=9, events=9, seconds=1.0, **{**known, **inside, **changes}))
    return made


def named(lines):
    return {line.name: line for line in lines}


def test_one_world_says_what_its_lines_say():
    assert join_lines(worlds(1)) == list(LINES)


def test_a_line_that_fails_in_one_world_of_many_names_its_seed():
    made = worlds(3)
    wrong = msgspec.structs.replace(LINES[2], state="fails", text="2 events", witness="event m-7")
    made[1] = msgspec.structs.replace(made[1], lines=(*LINES[:2], wrong, *LINES[3:]))
    lines = join_lines(made)
    assert [line.name for line in lines if line.state == "fails"] == [LINES[2].name]
    assert lines[2].witness == "seed 2: event m-7"
    assert lines[2].text.startswith("fails in 1 of 3 worlds; in seed 2: 2 events")


MANY = [
    "95 % intervals hold the truth as often as they say",
    "verdicts err to both sides alike",
    "what is promoted is better in truth",
]


@pytest.mark.parametrize(
    ("changes", "failing"),
    [
        ({}, []),
        ({"is_inside": False}, MANY[:1]),
        ({"true_difference": 0.03}, MANY[1:2]),
        ({"true_lift": -0.1}, MANY[2:]),
    ],
)
def test_many_worlds_tell_when_verdicts_lie(changes, failing):
    lines = named(join_lines(worlds(60, **changes)))
    assert [name for name in MANY if lines[name].state == "fails"] == failing


def test_promotions_are_held_against_the_worlds_that_are_worse_in_truth():
    found = [msgspec.structs.replace(one, true_lift=-0.1) if one.seed <= 8 else one for one in worlds(60)]
    assert named(join_lines(found))[MANY[2]].witness == "seed 1"


def test_few_verdicts_say_nothing_of_how_often_they_hold():
    assert [line.name for line in join_lines(worlds(4))] == [line.name for line in LINES]
    assert join_lines(worlds(6, is_inside=None, error=None)) == join_lines(worlds(6))[: len(LINES)]


def test_a_check_that_breaks_fails_and_the_others_are_asked():
    broken = Check("the first", "events", lambda case: case.nothing)
    lines = check(SimpleNamespace(judged=None), checks=[broken, CHECKS[0]])
    assert [(line.state, line.witness) for line in lines] == [("fails", "AttributeError")] * 2


def test_arms_are_mismatched_where_the_verdict_says_so():
    sizes = [(few, many - few) for many in (*range(2, 60), 199, 1_000) for few in range(many // 2 + 1)]
    wrong = [one for one in sizes if check_trial._is_mismatched(list(one)) == check_ratio(one, (0.5, 0.5)).is_ok]
    assert wrong == []


def follow(control, treatment):
    """Returns a verdict on visitors given as (views, clicks), and what the check says of it."""
    arms = {"control": control, "treatment": treatment}
    own = {
        f"{arm}-{number}": Exposed({arm}, {"page"}, views, clicks)
        for arm, some in arms.items()
        for number, (views, clicks) in enumerate(some)
    }
    trial = make_trial(1, [SimpleNamespace(hash="a"), SimpleNamespace(hash="b")], 0)
    case = SimpleNamespace(trial=trial, exposed=own)
    case.judged = judge_exposed(trial, check_trial._visitors(case))
    return case.judged.outcome, check_trial._follows_from_numbers(case).witness


@pytest.mark.parametrize(
    ("control", "treatment", "outcome"),
    [
        ([], [], "empty"),
        ([(10, 1)], [(10, 1), (20, 0)], "empty"),
        ([(10, 0)] * 9, [(10, 0)] * 8, "empty"),
        ([(0, 0)] * 9, [(10, 0), (9, 1)] * 4, "empty"),
        ([(10, 0)] * 9, [(10, 1), (10, 0)] * 4, "better"),
        ([(10, 0), (9, 1)] * 38, [(10, 0), (9, 1)] * 62, "unhealthy"),
        ([(10, 0), (9, 1)] * 40, [(10, 0), (9, 1)] * 40, "undecided"),
    ],
)
def test_a_verdict_on_few_follows_from_its_numbers(control, treatment, outcome):
    assert follow(control, treatment) == (outcome, None)


SCORER = OpenPopularity([f"item-{number}" for number in range(60)], [""] * 60, np.arange(60.0))


@pytest.mark.parametrize(("seeds", "is_even"), [(range(300), True), ([5] * 300, False)])
def test_shares_of_slots_that_are_explored_are_held_against_their_chances(seeds, is_even):
    rows = []
    for seed in seeds:
        chosen = choose(SCORER, "p", (), rule=Rule(10, 0.1), seed=seed)
        rows.append({"propensities": chosen.propensities, "explore": 0.1, "num_candidates": chosen.num_candidates})
    slots, p = check_page._count_tops(rows)
    assert (slots, p > 1e-6) == (3_000, is_even)
    rows[-1]["propensities"] = (0.5,)
    assert check_page._count_tops(rows)[1] == 0.0


def test_chances_of_few_items_that_sum_up_to_one_are_true():
    drawn = [choose(SCORER, "p", (), rule=Rule(1, 0.1), seed=seed) for seed in range(6_000)]
    assert check_page._fit([(one.items[0], one.propensities[0]) for one in drawn]) > 1e-6


def shown(visitor, arm, at_us):
    return SimpleNamespace(anonymous_id=visitor, arm=arm, served_us=at_us)


def test_who_comes_to_a_trial_and_is_in_no_arm_is_found():
    trial = SimpleNamespace(seed="exp-carousel", started_us=10, stopped_us=50)
    pages = [shown("u1", None, 9), shown("u1", "control", 20), shown("u2", None, 50), shown(None, None, 30)]
    case = SimpleNamespace(trial=trial, record=SimpleNamespace(pages=pages))
    assert check_trial._is_assigned_by_hash(case).witness is None
    pages.append(shown("u2", None, 49))
    assert check_trial._is_assigned_by_hash(case).witness == "visitor u2 came to the trial and is in no arm"


@pytest.mark.parametrize(
    ("settled", "failed", "witness"),
    [
        (["a", "b"], ["c-faulty"], None),
        (["a"], ["b", "c-faulty"], "event b"),
        (["a", "b", "c-faulty"], [], "event c-faulty"),
    ],
)
def test_an_event_on_the_wrong_side_is_found(settled, failed, witness):
    ids = ("a", "b", "c-faulty")
    places = [(name, (0, number)) for number, name in enumerate(settled)]
    record = SimpleNamespace(acknowledged=set(ids))
    case = SimpleNamespace(settled=places, failed=failed, clicks=Counter(ids), record=record)
    assert check_log._is_settled_once(case).witness == witness


@pytest.mark.parametrize(
    ("outcome", "champion", "served", "is_right"),
    [
        ("better", "new", "new", True),
        ("better", "new", "popular", False),
        ("better", None, "popular", False),
        ("worse", None, "popular", True),
        ("worse", None, "old", False),
        ("worse", "old", "old", True),
        ("worse", "newer", "newer", False),
    ],
)
def test_a_page_is_served_by_what_follows_from_the_verdict(monkeypatch, outcome, champion, served, is_right):
    found = SimpleNamespace(bundle=champion) if champion else None
    monkeypatch.setattr(check_trial, "find_champion", lambda *_: found)
    arm = SimpleNamespace(visitors=9)
    bundles = {"control_bundle": "old", "treatment_bundle": "new"}
    verdict = SimpleNamespace(outcome=outcome, page="home", control=arm, treatment=arm, **bundles)
    page = SimpleNamespace(fallback=SimpleNamespace(name="popular"))
    registry = SimpleNamespace(bundles=lambda name: [SimpleNamespace(hash=name)])
    project = SimpleNamespace(registry=registry, declared=SimpleNamespace(pages=[page]))
    trial = SimpleNamespace(id="t", planned=9)
    shown = SimpleNamespace(bundle=served, degraded=())
    case = SimpleNamespace(judged=verdict, trial=trial, project=project, served=shown)
    assert (check_trial._is_champion_by_verdict(case).witness is None) == is_right


def test_a_late_sender_rests_once_all_is_durable():
    async def play():
        durable = asyncio.Event()
        late = LateSender(SimpleNamespace(append=lambda *_: durable.wait()), every=97)
        sending = asyncio.create_task(late.append("decisions", []))
        await asyncio.sleep(0)
        resting = asyncio.create_task(late.rest())
        await asyncio.sleep(0.01)
        assert not resting.done()
        durable.set()
        await asyncio.gather(sending, resting)

    asyncio.run(play())
