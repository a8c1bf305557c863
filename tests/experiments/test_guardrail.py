"""Guardrails of a trial on a real lake: what a mean counts, its cap, and what becomes of a verdict."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from scipy import stats

from experiments.lake import ITEMS, beat, click, make_crowd, page, start_trial, stop_at, told, view, watch
from headrace.experiments.experiment import decode_trial, encode_trial
from headrace.experiments.guardrail import Measured, compare_guardrail
from headrace.experiments.metric import FrozenMetric
from headrace.experiments.verdict import decode_verdict, encode_verdict
from headrace.loop import judge_again, look, stop
from headrace.project import open_project
from streamline import BEGAN_US, HOUR, MINUTE, SECOND, make_project, tracked, write

MINUTES = FrozenMetric(name="watch_minutes", kind="mean", above="Video Content Playing", each=1 / 6)
CAPPED = msgspec.structs.replace(MINUTES, name="capped_minutes", cap=0.9)
CTR = FrozenMetric(
    name="quick_ctr", kind="ratio", above="Product Clicked", above_item="product_id", below="Product List Viewed",
    below_item="products[].product_id", within_us=10 * MINUTE,
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project in which each test runs a trial of its own: what was written before lies below its positions."""
    with open_project(make_project(tmp_path_factory.mktemp("guardrails"))) as one:
        yield one


def _judge(project, trial, decisions, events):
    write(project, decisions=decisions, events=events)
    stop_at(project, trial, hours=10)
    return look(project, trial.experiment)


def _beats_of(visitors, decisions, events, *, until_us):
    """Returns how many heartbeats each visitor has, by looping over all events."""
    found = dict.fromkeys(visitors, 0)
    for event in events:
        if event.event == "Video Content Playing" and event.visitor in found and not event.bot:
            first_us = min(one.received_us for one in decisions if one.visitor == event.visitor)
            found[event.visitor] += first_us <= event.event_us < until_us
    return found


def test_mean_is_what_a_loop_over_all_events_and_scipy_say(project):
    trial = start_trial(project, guardrails=(MINUTES, CAPPED))
    decisions, events = make_crowd(trial, visitors=60)
    # Some watch all night, some before they came, and some are robots.
    events += watch(decisions, most=(12, 20))
    events += watch(decisions[:4], most=(400, 400), seed=3)
    events += [beat(one.visitor, at_us=one.received_us - MINUTE) for one in decisions]
    events += [beat(one.visitor, at_us=one.received_us + HOUR, bot=True) for one in decisions]
    verdict = _judge(project, trial, decisions, events)
    arms = {one.visitor: one.arm for one in decisions}
    counts = _beats_of(arms, decisions, events, until_us=verdict.cutoff_us + trial.within_us)
    minutes = {arm: np.array([counts[name] / 6 for name in arms if arms[name] == arm]) for arm in set(arms.values())}
    cap = np.quantile(np.concatenate(list(minutes.values())), 0.9)
    for found, most in zip(verdict.guardrails, (np.inf, cap), strict=True):
        control, treatment = (np.minimum(minutes[arm], most) for arm in ("control", "treatment"))
        theirs = stats.ttest_ind(treatment, control, equal_var=False)
        assert (found.control, found.treatment) == pytest.approx((control.mean(), treatment.mean()))
        assert (found.control_visitors, found.treatment_visitors) == (len(control), len(treatment))
        assert (found.p, found.df) == pytest.approx((theirs.pvalue, theirs.df), rel=1e-9)
        assert found.difference_interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-9)
        assert found.lift == pytest.approx(treatment.mean() / control.mean() - 1)
    # Over these few the plain mean of the control cannot be told from 0.
    low, high = verdict.guardrails[1].lift_interval
    assert low < verdict.guardrails[1].lift < high
    assert [one.cap for one in verdict.guardrails] == [None, pytest.approx(cap)]
    assert verdict.guardrails[1].control < verdict.guardrails[0].control


def test_only_what_follows_the_exposure_in_time_counts(project):
    trial = start_trial(project, guardrails=(MINUTES,))
    one, other = page(trial, "ann", arm="control"), page(trial, "bob", arm="treatment")
    robot, torn = page(trial, "robot", bot=True), page(trial, "torn", arm="control")
    cutoff_us = BEGAN_US + 10 * HOUR - trial.within_us - trial.lateness_us
    end_us = cutoff_us + trial.within_us
    counted = [
        beat("ann", at_us=one.received_us),
        beat("ann", at_us=end_us - 1),
        # Three items at once are one record.
        tracked("Video Content Playing", "bob", {"asset_id": ["a", "b", "c"]}, at_us=other.received_us + SECOND),
        # Somebody else's page told of her first.
        told(trial, "eve", "control", at_us=BEGAN_US + 2 * MINUTE),
        beat("eve", at_us=BEGAN_US + 3 * MINUTE),
    ]
    passed_over = [
        beat("ann", at_us=one.received_us - 1),
        beat("ann", at_us=end_us),
        beat("ann", at_us=one.received_us + SECOND, bot=True),
        msgspec.structs.replace(beat("ann", at_us=one.received_us + SECOND), type="page"),
        msgspec.structs.replace(beat("ann", at_us=one.received_us + SECOND), visitor=None),
        tracked("Video Content Started", "ann", {}, at_us=one.received_us + SECOND),
        beat("stranger", at_us=one.received_us + SECOND),
        beat("robot", at_us=one.received_us + SECOND),
        beat("torn", at_us=one.received_us + SECOND),
        told(trial, "torn", "treatment"),
        view(one), view(other),
    ]  # fmt: skip
    # One torn visitor in five would make the trial unhealthy.
    more = [page(trial, f"visitor-{number}") for number in range(120)]
    verdict = _judge(project, trial, [one, other, robot, torn, *more], [*counted, *passed_over])
    (found,) = verdict.guardrails
    assert verdict.cutoff_us == cutoff_us
    assert (verdict.multiple, verdict.bots) == (1, 1)
    assert found.control * found.control_visitors == pytest.approx(3 / 6)
    assert found.treatment * found.treatment_visitors == pytest.approx(1 / 6)
    assert found.control_visitors + found.treatment_visitors == 123


def test_ratio_is_judged_as_the_goal_would_be(project):
    quick = start_trial(project, guardrails=(CTR,))
    decisions, events = make_crowd(quick, visitors=60, rates=(0.2, 0.4))
    verdict = _judge(project, quick, decisions, events)
    stop(project, quick.experiment)
    # The same crowd in a trial whose goal it is; pages end when they did.
    changed = [msgspec.structs.replace(one, trial="taste-home-goal") for one in decisions]
    goal = start_trial(project, id="taste-home-goal", within_us=CTR.within_us, lateness_us=HOUR + 20 * MINUTE)
    asked = _judge(project, goal, changed, events)
    (found,) = verdict.guardrails
    assert (found.control, found.treatment) == (asked.control.ratio, asked.treatment.ratio)
    assert (found.difference, found.lift_interval, found.p) == (asked.difference, asked.lift_interval, asked.p)
    assert asked.control.clicks < verdict.control.clicks


def test_ratio_that_waits_longer_than_the_goal_has_fewer_pages(project):
    slow = msgspec.structs.replace(CTR, within_us=2 * HOUR)
    trial = start_trial(project, guardrails=(slow,))
    cutoff_us = BEGAN_US + 10 * HOUR - trial.within_us - trial.lateness_us
    early = [page(trial, name, arm=arm) for name, arm in (("ann", "control"), ("bob", "treatment"))]
    late = page(trial, "eve", arm="control", at_us=cutoff_us - HOUR)
    events = [view(one) for one in (*early, late)]
    events += [click(early[0], "item-0", after_us=2 * HOUR), click(late, "item-0")]
    verdict = _judge(project, trial, [*early, late], events)
    assert (verdict.control.visitors, verdict.control.clicks) == (2, 1)
    assert (verdict.guardrails[0].control_visitors, verdict.guardrails[0].control) == (1, 1 / len(ITEMS))


def test_what_comes_later_changes_no_guardrail(project):
    trial = start_trial(project, guardrails=(CAPPED, CTR))
    decisions, events = make_crowd(trial, visitors=60)
    write(project, decisions=decisions, events=events + watch(decisions))
    stop_at(project, trial, hours=10)
    given = stop(project, trial.experiment)
    write(project, events=watch(decisions, most=(30, 30)) + [click(one, "item-0") for one in decisions])
    for again in (judge_again(project, given), stop(project, trial.experiment)):
        assert encode_verdict(again) == encode_verdict(given)
    assert given.guardrails[0].p is not None
    told_of = "SELECT unnest(json_extract(verdict, '$.guardrails[*]')) ->> 'name' AS name FROM verdicts"
    names = project.query(f"{told_of} WHERE trial = '{trial.id}'").table().column("name").to_pylist()
    assert names == ["capped_minutes", "quick_ctr"]
    (row,) = project.query(f"SELECT verdict FROM verdicts WHERE trial = '{trial.id}'").table().to_pylist()
    assert decode_verdict(row["verdict"].encode()) == given


@pytest.mark.parametrize(
    ("rates", "most", "outcome"),
    [((0.1, 0.3), (40, 10), "worse"), ((0.1, 0.3), (12, 12), "better"), ((0.2, 0.2), (40, 10), "undecided")],
)
def test_goal_that_is_better_does_not_outweigh_a_guardrail_that_is_worse(project, rates, most, outcome):
    trial = start_trial(project, guardrails=(MINUTES,))
    decisions, events = make_crowd(trial, visitors=200, rates=rates)
    verdict = _judge(project, trial, decisions, events + watch(decisions, most=most))
    (found,) = verdict.guardrails
    assert (verdict.outcome, found.is_worse) == (outcome, most == (40, 10))
    fell = f"the guardrail watch_minutes is worse: it fell by {-100 * found.lift:.1f} %, from "
    if outcome == "worse":
        assert verdict.difference > 0
        assert verdict.p < 0.05
        assert verdict.reasons[0].startswith(f"ctr is better by {100 * verdict.lift:.1f} %, but {fell}")
    else:
        assert not verdict.reasons[0].startswith("ctr")
        assert any(fell in reason for reason in verdict.reasons) == found.is_worse


def test_guardrail_that_cannot_be_judged_says_so_and_holds_nobody_back(project):
    orders = FrozenMetric(name="orders", kind="mean", above="Order Completed", cap=0.99)
    unseen = msgspec.structs.replace(CTR, name="cart", above="Product Added", below="Cart Viewed")
    rare = msgspec.structs.replace(CAPPED, name="rare")
    trial = start_trial(project, guardrails=(orders, unseen, rare))
    decisions, events = make_crowd(trial, visitors=200, rates=(0.1, 0.3))
    verdict = _judge(project, trial, decisions, [*events, *watch(decisions[:3], most=(9, 9))])
    assert verdict.outcome == "better"
    assert [one.reason for one in verdict.guardrails] == [
        "no visitor has sent 'Order Completed' since it was exposed",
        "no 'Cart Viewed' with the recommendation_id of the trial's pages has arrived",
        "so few visitors have any that the cap is 0, as cap=0.9 says; give the metric a higher cap, or leave it out",
    ]
    assert [one.is_worse or one.p is not None for one in verdict.guardrails] == [False] * 3
    told_of = [f"the guardrail {one.name} cannot be judged: {one.reason}" for one in verdict.guardrails]
    assert list(verdict.reasons[-3:]) == told_of


def test_trial_that_nobody_came_to_has_guardrails_without_numbers_and_its_rows_may_lack_them(project):
    trial = start_trial(project, guardrails=(CAPPED, CTR))
    verdict = _judge(project, trial, [], [])
    assert verdict.outcome == "empty"
    assert [(one.control, one.p, one.cap, one.is_worse) for one in verdict.guardrails] == [
        (None, None, None, False)
    ] * 2
    assert len(verdict.reasons) == 1
    assert decode_trial(encode_trial(trial)) == trial
    # Rows from before there were guardrails are read.
    for value, encode, decode in ((trial, encode_trial, decode_trial), (verdict, encode_verdict, decode_verdict)):
        row = msgspec.json.decode(encode(value))
        assert len(row.pop("guardrails")) == 2
        assert decode(msgspec.json.encode(row)) == msgspec.structs.replace(value, guardrails=())


def _measured(values, arms):
    return Measured(np.array(values, float), np.ones(len(values)), np.array(arms, np.int8))


def test_cap_is_the_quantile_of_both_arms_together(project):
    trial = start_trial(project)
    measured = _measured([*range(10), 1000], [0, 1] * 5 + [0])
    found = compare_guardrail(trial, msgspec.structs.replace(MINUTES, cap=0.9), measured)
    assert (found.cap, found.control) == (9.0, (0 + 2 + 4 + 6 + 8 + 9) / 6)
    plain, whole = (
        compare_guardrail(trial, msgspec.structs.replace(MINUTES, cap=cap), measured) for cap in (None, 1.0)
    )
    assert (whole.cap, whole.control) == (1000.0, plain.control)
    # Values are no whole numbers, and stay so.
    sixth = compare_guardrail(trial, MINUTES, replace(measured, above=measured.above / 6))
    assert sixth.treatment == pytest.approx(plain.treatment / 6, rel=1e-12)
    assert sixth.p == pytest.approx(plain.p, rel=1e-12)
