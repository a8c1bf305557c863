"""Promotion: from a challenger past the gate to a champion or a refusal, whoever is killed on the way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from endpoints.door import make_popular, make_tastes, make_trial, write_trial
from experiments.lake import make_crowd, stop_at, watch
from headrace import loop
from headrace.base.errors import CallError, FencedError, FormatError, StopError
from headrace.endpoints.serving import Shelf
from headrace.experiments.experiment import decode_trial
from headrace.experiments.promotion import (
    Champion,
    Refusal,
    decode_champion,
    decode_refusal,
    encode_promotion,
)
from headrace.models.registry import Entry
from headrace.project import open_project
from headrace.promote import LONGEST_US, advance, count_visitors, find_challenger
from streamline import BEGAN_US, HOUR, make_project, write

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
NAME, PAGE = "taste-home", "home"
POPULAR, TASTES = make_popular(), make_tastes()

ADVANCE = """import sys
from headrace.project import open_project
from headrace.promote import advance
with open_project(sys.argv[1]) as project:
    advance(project, "taste-home")
"""

pytestmark = pytest.mark.slow


def pass_gate(project, bundle, *, passed=True, reasons=()):
    """Writes what the offline gate says of a bundle."""
    value = json.dumps({"version": 1, "passed": passed, "reasons": list(reasons), "report": None}).encode()
    newest = project.registry.entries("gate", bundle.hash)
    project.registry.write(Entry(newest[-1].id if newest else 0, "gate", bundle.hash, value, BEGAN_US, "test"))


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A project whose page was logged for 200 visitors, with a bundle of each model; the ranker's is past the gate."""
    folder = make_project(tmp_path_factory.mktemp("logged"))
    source = folder / "project.py"
    source.write_text(source.read_text().replace("mde=0.25", "mde=1.0"))
    with open_project(folder) as project:
        for bundle in (POPULAR, TASTES):
            project.registry.add(bundle)
        pass_gate(project, TASTES)
        decisions, events = make_crowd(make_trial("c" * 32, "t" * 32), visitors=200)
        free = [msgspec.structs.replace(one, trial=None, arm=None, experiment=None) for one in decisions]
        write(project, decisions=free, events=events)
        project.clock.step(10 * 3600)
    return folder


@pytest.fixture
def folder(logged, tmp_path):
    shutil.copytree(logged, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
    return tmp_path


@pytest.fixture
def project(folder):
    with open_project(folder) as one:
        yield one


def newest_trial(project):
    return decode_trial(project.registry.newest("trial")[NAME].value)


def meet(project, *, rates, visitors=400, most=(0, 0)):
    """Lets visitors meet the trial that runs, and watch so much, and time pass until all of them count."""
    trial = newest_trial(project)
    # The crowd comes at the beginning of the world, and the trial later.
    late_us = trial.started_us - BEGAN_US
    decisions, events = make_crowd(trial, visitors=visitors, rates=rates)
    events += watch(decisions, most=most)
    decisions = [
        msgspec.structs.replace(one, received_us=one.received_us + late_us, at_us=one.at_us + late_us)
        for one in decisions
    ]
    events = [msgspec.structs.replace(one, event_us=one.event_us + late_us) for one in events]
    write(project, decisions=decisions, events=events)
    stop_at(project, trial, hours=10)
    return trial


def rows(project, kind, name):
    return project.registry.entries(kind, name)


def test_challenger_that_is_better_becomes_the_champion(project):
    started = advance(project, NAME)
    assert (started.state, advance(project, NAME).state) == ("started", "runs")
    trial = meet(project, rates=(0.1, 0.3))
    assert (trial.control, trial.treatment) == (POPULAR.hash, TASTES.hash)
    assert trial.planned > 20
    assert trial.gate is not None
    # Fitted meanwhile, and past the gate: it waits, and the verdict promotes the bundle that it tested.
    newer = make_tastes(people=("ann", "bob", "eve"))
    project.registry.add(newer)
    pass_gate(project, newer)
    decided = advance(project, NAME)
    assert (decided.state, decided.again_us is not None) == ("decided", True)
    champion = loop.find_champion(project, PAGE)
    assert champion == Champion(
        version=1, page=PAGE, bundle=TASTES.hash, model="tastes", how="verdict", trial=trial.id, verdict="better",
        before="", reason="the treatment is better: p < alpha, and its ratio is higher",
    )  # fmt: skip
    (verdict,) = rows(project, "verdict", NAME)
    (row,) = rows(project, "champion", PAGE)
    assert (row.id, row.at_us, rows(project, "challenger", PAGE)) == (verdict.id + 1, verdict.at_us, [])
    # The next trial tests the one that waited against the champion.
    assert advance(project, NAME).state == "started"
    assert (newest_trial(project).control, newest_trial(project).treatment) == (TASTES.hash, newer.hash)


def test_champion_serves_and_an_older_one_where_it_cannot_be_opened(project):
    shelf = Shelf(lambda: project.registry, project.declared.pages)
    shelf.refresh()
    assert shelf.servings[PAGE].usual.hash == POPULAR.hash
    newer = make_tastes(people=("ann", "bob", "eve"))
    project.registry.add(newer)
    for bundle in (TASTES, newer):
        loop.promote(project, PAGE, bundle.hash, reason="they said so")
    shelf.refresh()
    serving = shelf.servings[PAGE]
    assert (serving.usual.hash, serving.fallback.hash, serving.is_older) == (newer.hash, POPULAR.hash, False)
    # One that the registry does not have: the champion before it serves, and a problem is told.
    lost = encode_promotion(Champion(version=1, page=PAGE, bundle="f" * 32, model="tastes", how="hand"))
    project.registry.write(Entry(rows(project, "champion", PAGE)[-1].id, "champion", PAGE, lost, BEGAN_US, "test"))
    shelf.refresh()
    serving = shelf.servings[PAGE]
    assert (serving.usual.hash, serving.is_older) == (newer.hash, True)
    assert "the champion of the page 'home', row" in serving.problems[0]


def test_rolling_back_goes_to_what_served_before_and_stays_in_the_history(project):
    newer = make_tastes(people=("ann", "bob", "eve"))
    project.registry.add(newer)
    with pytest.raises(CallError, match="has no champion"):
        loop.roll_back(project, PAGE)
    with pytest.raises(CallError, match=r"no page 'hom'\. Did you mean home"):
        loop.roll_back(project, "hom")
    loop.promote(project, PAGE, TASTES.hash)
    loop.promote(project, PAGE, newer.hash)
    assert loop.roll_back(project, PAGE, reason="slow").bundle == TASTES.hash
    told = [decode_champion(row.value) for row in rows(project, "champion", PAGE)]
    assert [(one.how, one.bundle, one.before) for one in told] == [
        ("hand", TASTES.hash, ""), ("hand", newer.hash, TASTES.hash), ("rollback", TASTES.hash, newer.hash),
    ]  # fmt: skip
    # Without a bundle the fallback serves again.
    loop.promote(project, PAGE, "")
    shelf = Shelf(lambda: project.registry, project.declared.pages)
    shelf.refresh()
    assert (shelf.servings[PAGE].usual.hash, shelf.servings[PAGE].problems) == (POPULAR.hash, ())


def test_promotion_by_hand_is_refused_where_it_makes_no_sense(project):
    with pytest.raises(CallError, match=r"no page 'hom'\. Did you mean home"):
        loop.promote(project, "hom", TASTES.hash)
    with pytest.raises(CallError, match="no bundle 'ffff"):
        loop.promote(project, PAGE, "f" * 32)
    advance(project, NAME)
    with pytest.raises(CallError, match="runs on the page 'home' and freezes what serves it"):
        loop.promote(project, PAGE, TASTES.hash)


def test_bad_challenger_planted_past_the_gate_is_refused_by_the_verdict_and_not_tried_again(project):
    assert advance(project, NAME).state == "started"
    trial = meet(project, rates=(0.3, 0.1))
    assert advance(project, NAME).state == "decided"
    assert rows(project, "champion", PAGE) == []
    (row,) = rows(project, "challenger", PAGE)
    refusal = decode_refusal(row.value)
    assert (refusal.bundle, refusal.trial, refusal.verdict) == (TASTES.hash, trial.id, "worse")
    assert (advance(project, NAME).state, len(rows(project, "verdict", NAME))) == ("idle", 1)


def test_challenger_whose_visitors_click_more_and_watch_less_is_refused(folder):
    source = folder / "project.py"
    declared = (
        'beats = Event("Video Content Playing", item="asset_id")\n'
        'minutes = Metric.mean("watch_minutes", beats, each=1 / 6, cap=0.99)\ntrial ='
    )
    text = (
        source.read_text().replace("\ntrial =", f"\n{declared}").replace("goal=ctr", "goal=ctr, guardrails=(minutes,)")
    )
    source.write_text(text)
    with open_project(folder) as project:
        assert "Video Content Playing" in {event.name for event in project.declared.events}
        trial = loop.start(project, NAME)
        assert [msgspec.to_builtins(one) for one in trial.guardrails] == [
            {
                "name": "watch_minutes", "kind": "mean", "above": "Video Content Playing", "above_item": "asset_id",
                "below": "", "below_item": "", "within_us": 0, "each": 1 / 6, "cap": 0.99,
            }
        ]  # fmt: skip
        meet(project, rates=(0.1, 0.3), most=(30, 5))
    # What a trial measures was frozen at its start.
    source.write_text(text.replace("guardrails=(minutes,), ", ""))
    with open_project(folder) as project:
        assert project.declared.experiments[0].guardrails == ()
        verdict = loop.stop(project, NAME)
        assert (verdict.outcome, verdict.difference > 0, verdict.guardrails[0].is_worse) == ("worse", True, True)
        assert loop.judge_again(project, verdict) == verdict
        assert rows(project, "champion", PAGE) == []
        refusal = decode_refusal(rows(project, "challenger", PAGE)[0].value)
        assert (refusal.bundle, refusal.verdict) == (TASTES.hash, "worse")
        assert (
            f"; ctr is better by {100 * verdict.lift:.1f} %, but the guardrail watch_minutes is worse" in refusal.reason
        )
        assert advance(project, NAME).state == "idle"


def test_gate_that_refuses_keeps_a_challenger_from_its_trial(project):
    pass_gate(project, TASTES, passed=False, reasons=["it is worse than popularity"])
    standing = advance(project, NAME)
    assert (standing.state, standing.text) == (
        "refused", f"the offline gate refuses {TASTES.hash[:12]} of tastes: it is worse than popularity",
    )  # fmt: skip
    with pytest.raises(StopError, match=r"the offline gate refuses the bundle .*it is worse than popularity"):
        loop.start(project, NAME)
    # An older bundle past the gate may be tried.
    newer = make_tastes(people=("eve",))
    pass_gate(project, TASTES)
    project.registry.add(newer)
    assert find_challenger(project, project.declared.pages[0]) == TASTES.hash


def test_trial_that_was_ended_early_by_hand_promotes_nothing(project):
    advance(project, NAME)
    meet(project, rates=(0.02, 0.9), visitors=24)
    verdict = loop.stop(project, NAME)
    assert verdict.outcome == "better"
    assert rows(project, "champion", PAGE) == []
    assert "the trial was ended at " in decode_refusal(rows(project, "challenger", PAGE)[0].value).reason


def test_trial_that_nobody_comes_to_ends_after_its_longest_time(project):
    started = advance(project, NAME)
    trial = newest_trial(project)
    assert started.again_us == trial.started_us + trial.within_us + trial.lateness_us + 1
    meet(project, rates=(0.1, 0.3), visitors=8)
    now_us = project.clock.now_us()
    fewest = min(count_visitors(project, trial, now_us=now_us))
    assert (0 < fewest < trial.planned / 3) is True, "by what has come until now it would take twice as long again"
    waits = advance(project, NAME)
    assert (waits.state, waits.again_us) == ("runs", 2 * now_us - started.again_us), "when the trial is twice as old"
    stop_at(project, trial, hours=LONGEST_US / HOUR)
    assert advance(project, NAME).state == "decided"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mde=1.0": "mde=0.001"}, "more than the 28 days that one lasts at most"),
        ({'within="30m"': 'within="9.9h"'}, "needs 100"),
    ],
    ids=["too few a day", "too few so far"],
)
def test_what_cannot_be_told_is_not_tried_and_says_why(folder, change, says):
    source = folder / "project.py"
    for before, after in change.items():
        source.write_text(source.read_text().replace(before, after))
    with open_project(folder) as project:
        standing = advance(project, NAME)
        assert (standing.state, standing.text.count(says)) == ("waits", 1)
        assert rows(project, "trial", NAME) == []
        assert standing.again_us > project.clock.now_us()


def _die_at(folder, point):
    done = subprocess.run(
        [sys.executable, "-c", ADVANCE, str(folder)],
        env={**os.environ, "HEADRACE_FAULT": f"{point}=kill"},
        check=False,
        timeout=60,
    )
    assert done.returncode == -9, point


def _seen(project):
    return {
        kind: len(rows(project, kind, name)) for kind, name in (("trial", NAME), ("verdict", NAME), ("champion", PAGE))
    }


STATES = {
    "promote.starting": {"trial": 0, "verdict": 0, "champion": 0},
    "promote.started": {"trial": 1, "verdict": 0, "champion": 0},
    "promote.stopped": {"trial": 2, "verdict": 0, "champion": 0},
    "promote.judged": {"trial": 2, "verdict": 0, "champion": 0},
    "promote.promoted": {"trial": 2, "verdict": 1, "champion": 1},
}


@pytest.mark.parametrize(
    "points",
    [["promote.judged", "promote.promoted"], pytest.param(list(STATES), marks=pytest.mark.soak)],
    ids=["around the verdict", "everywhere"],
)
def test_promotion_that_is_killed_ends_in_the_same_champion(project, folder, points):
    if "promote.starting" not in points:
        advance(project, NAME)
        meet(project, rates=(0.1, 0.3))
    for point in points:
        if point == "promote.stopped":
            meet(project, rates=(0.1, 0.3))
        _die_at(folder, point)
        assert _seen(project) == STATES[point], point
    # The verdict was in no table yet.
    assert "verdicts" not in project.tables.names()
    assert advance(project, NAME).state == "idle"
    assert project.query("SELECT trial, outcome FROM verdicts").table().to_pylist() == [
        {"trial": f"{NAME}-1", "outcome": "better"}
    ]
    assert loop.find_champion(project, PAGE).bundle == TASTES.hash
    assert _seen(project) == STATES["promote.promoted"]


def test_champion_that_changes_while_a_verdict_is_made_leaves_neither(project, monkeypatch):
    advance(project, NAME)
    trial = meet(project, rates=(0.1, 0.3))
    judge = loop.judge_trial

    def judge_late(*given, **more):
        champion = Champion(version=1, page=PAGE, bundle=POPULAR.hash, model="popular", how="hand")
        project.registry.write(Entry(0, "champion", PAGE, encode_promotion(champion), BEGAN_US, "somebody"))
        return judge(*given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "judge_trial", judge_late)
        with pytest.raises(FencedError, match="champion of 'home' was changed by somebody else"):
            loop.stop(project, NAME)
    assert _seen(project) == {"trial": 2, "verdict": 0, "champion": 1}
    # Asked again, the trial compared with what serves: the same bundle, so its verdict counts.
    assert (loop.stop(project, NAME).outcome, loop.find_champion(project, PAGE).trial) == ("better", trial.id)


# The contract.

GOLDEN = (
    Champion(
        version=1, page=PAGE, bundle="t" * 32, model="ranker", how="verdict", trial="ranked-home-2", verdict="better",
        before="c" * 32, reason="the treatment is better: p < alpha, and its ratio is higher",
    ),
    Champion(version=1, page=PAGE, bundle="", model="", how="rollback", before="t" * 32, reason="zoë saw errors"),
    Refusal(
        version=1, page=PAGE, bundle="u" * 32, model="ranker", trial="ranked-home-3", verdict="undecided",
        reason="as many visitors as planned were in it, and chance explains the difference",
    ),
)  # fmt: skip


def test_golden_file_holds_what_is_written_and_reads_back():
    golden = json.loads((CONTRACTS / "promotion.golden.json").read_text(encoding="utf-8"))
    assert golden == [encode_promotion(one).decode() for one in GOLDEN]
    for text, value in zip(golden, GOLDEN, strict=True):
        decode = decode_refusal if isinstance(value, Refusal) else decode_champion
        assert decode(text.encode()) == value


def test_page_of_the_contract_names_every_field_and_shows_the_golden_file():
    text = (CONTRACTS / "promotion.md").read_text(encoding="utf-8")
    for kind in (Champion, Refusal):
        for name in kind.__struct_fields__:
            assert f"| `{name}` |" in text, (kind, name)
    for line in json.loads((CONTRACTS / "promotion.golden.json").read_text(encoding="utf-8")):
        assert line in text


def test_row_that_a_newer_headrace_wrote_is_refused():
    for decode in (decode_champion, decode_refusal):
        with pytest.raises(FormatError, match="version 2, this Headrace reads version 1"):
            decode(b'{"version":2}')
        with pytest.raises(FormatError, match="this is no"):
            decode(b'{"version":1,"page":3}')


def test_trial_by_hand_takes_what_serves_as_its_control(project):
    loop.promote(project, PAGE, TASTES.hash)
    with pytest.raises(CallError, match="serves the page 'home' already, so there is nothing to test"):
        loop.start(project, NAME, gate=False)
    newer = make_tastes(people=("ann", "bob", "eve"))
    project.registry.add(newer)
    trial = loop.start(project, NAME, gate=False)
    assert (trial.control, trial.treatment, trial.planned) == (TASTES.hash, newer.hash, 0)
    write_trial(project.registry, msgspec.structs.replace(trial, status="stopped", stopped_us=trial.started_us + 1))
    project.clock.step(10 * 3600)
    assert advance(project, NAME).state == "decided", "a trial that was stopped and not judged is judged"
