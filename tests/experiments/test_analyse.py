"""The analysis of a trial, on a real lake: what counts, what does not, and why a result is empty or ill."""

import math
from random import Random

import msgspec
import numpy as np
import pytest

from experiments.lake import ITEMS, click, make_crowd, page, repeat, start_trial, stop_at, told, view
from headrace.experiments.analyse import Visitors, split_again
from headrace.experiments.assign import assign
from headrace.experiments.experiment import ARMS
from headrace.experiments.verdict import encode_verdict
from headrace.loop import judge_again, list_exposures, look, stop
from headrace.project import open_project
from headrace.stats.compare import REASONS, compare_ratios
from headrace.stats.moments import measure_ratio
from streamline import BEGAN_US, HOUR, MINUTE, SECOND, append, make_project, sink, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project in which each test runs a trial of its own: what was written before lies below its positions."""
    with open_project(make_project(tmp_path_factory.mktemp("trials"))) as one:
        yield one


def _judge(project, trial, decisions, events, *, hours=10):
    write(project, decisions=decisions, events=events)
    stop_at(project, trial, hours=hours)
    return look(project, trial.experiment)


def _pair(trial, **more):
    """Returns a page of each arm."""
    found = {}
    for number in range(100):
        one = page(trial, f"visitor-{number}", **more)
        found.setdefault(one.arm, one)
    return found["control"], found["treatment"]


def _counts(arm):
    return arm.visitors, arm.pages, arm.views, arm.clicks


def _exposed(project, verdict):
    return {one.visitor: one for one in list_exposures(project, verdict)}


def test_counts_are_those_that_a_hand_works_out(project):
    trial = start_trial(project)
    control, treatment = _pair(trial)
    second = page(trial, control.visitor, number=1, at_us=BEGAN_US + HOUR)
    events = [
        view(control, ITEMS[:4]),
        # The same items seen again, and two more: six in all.
        view(control, ITEMS[2:6], after_us=5 * MINUTE),
        click(control, "item-0"),
        click(control, "item-0", after_us=9 * MINUTE),
        click(control, "item-5", after_us=6 * MINUTE),
        view(second, ITEMS[:2]),
        click(second, "item-0"),
        view(treatment, ITEMS[:5]),
        click(treatment, "item-4"),
    ]
    verdict = _judge(project, trial, [control, second, treatment], events)
    assert _counts(verdict.control) == (1, 2, 8, 3)
    assert _counts(verdict.treatment) == (1, 1, 5, 1)
    assert (verdict.control.ratio, verdict.treatment.ratio) == (3 / 8, 1 / 5)
    assert verdict.lift == pytest.approx((1 / 5) / (3 / 8) - 1)
    exposed = _exposed(project, verdict)[control.visitor]
    assert (exposed.arm, exposed.arms, exposed.bot, exposed.first_us) == ("control", 1, False, control.received_us)


UNCOUNTED = {
    "an item that the page did not have": lambda one: [click(one, "item-99"), view(one, ["item-99"])],
    "an item that was not seen": lambda one: [click(one, "item-9")],
    "another page's id": lambda one: [msgspec.structs.replace(click(one, "item-0"), recommendation_id="r")],
    "no id of a page": lambda one: [msgspec.structs.replace(click(one, "item-0"), recommendation_id=None)],
    "another event": lambda one: [msgspec.structs.replace(click(one, "item-0"), event="Product Added")],
    "a page call of that name": lambda one: [msgspec.structs.replace(click(one, "item-0"), type="page")],
    "a click half an hour and a second after the view": lambda one: [
        click(one, "item-0", after_us=MINUTE + 30 * MINUTE + SECOND)
    ],
    "a stranger's click under the page's id": lambda one: [
        msgspec.structs.replace(click(one, "item-0"), visitor="stranger", person="stranger")
    ],
    "a robot's click": lambda one: [click(one, "item-0", bot=True)],
    "a click of the day before": lambda one: [click(one, "item-0", after_us=-24 * HOUR)],
    "a click a microsecond too late": lambda one: [click(one, "item-0", after_us=MINUTE + 30 * MINUTE + 1)],
}


@pytest.mark.parametrize("what", UNCOUNTED)
def test_click_on_what_does_not_count_is_passed_over(project, what):
    trial = start_trial(project)
    control, treatment = _pair(trial)
    events = [view(one, ITEMS[:3]) for one in (control, treatment)]
    verdict = _judge(project, trial, [control, treatment], [*events, *UNCOUNTED[what](control)])
    assert _counts(verdict.control) == (1, 1, 3, 0)


def test_what_strangers_send_under_a_pages_id_is_not_its_visitors(project):
    trial = start_trial(project)
    control, treatment = _pair(trial)
    shared = [
        msgspec.structs.replace(view(control, ITEMS[3:9]), visitor="stranger", person="stranger"),
        msgspec.structs.replace(view(control, ITEMS[:1], bot=True), visitor="preview", person="preview"),
    ]
    verdict = _judge(project, trial, [control, treatment], [view(control, ITEMS[:3]), view(treatment), *shared])
    assert _counts(verdict.control) == (1, 1, 3, 0)
    assert verdict.bots == 0


def test_page_that_was_withdrawn_is_nobodys(project):
    trial = start_trial(project)
    control, treatment = _pair(trial)
    late = page(trial, control.visitor, number=1)
    withdrawn = msgspec.structs.replace(late, degraded=("unlogged",))
    verdict = _judge(project, trial, [control, treatment, late, withdrawn], [view(control), view(treatment)])
    assert (verdict.control.pages, verdict.degraded) == (1, {"control/unlogged": 1})


def test_click_that_comes_exactly_half_an_hour_after_the_view_counts(project):
    trial = start_trial(project)
    control, treatment = _pair(trial)
    events = [
        view(control, ITEMS[:3]),
        view(treatment, ITEMS[:3]),
        # The first view and the first click count, however often they come again.
        view(control, ["item-0"], after_us=20 * MINUTE),
        click(control, "item-0", after_us=31 * MINUTE),
        click(control, "item-0", after_us=90 * MINUTE),
        # A client's clock may put the click before the view.
        click(treatment, "item-1", after_us=30 * SECOND),
    ]
    verdict = _judge(project, trial, [control, treatment], events)
    assert (verdict.control.clicks, verdict.treatment.clicks) == (1, 1)


def test_decisions_outside_of_the_trial_do_not_count(project):
    trial = start_trial(project)
    control, treatment = _pair(trial)
    stranger = [
        page(trial, "early", at_us=BEGAN_US - 1),
        msgspec.structs.replace(page(trial, "other"), trial="taste-home-9"),
        msgspec.structs.replace(page(trial, "untried"), trial=None, arm=None),
        msgspec.structs.replace(page(trial, "nobody"), visitor=None),
        page(trial, "last", at_us=BEGAN_US + 10 * HOUR - 90 * MINUTE - 1),
        page(trial, "late", at_us=BEGAN_US + 10 * HOUR - 90 * MINUTE),
    ]
    decisions = [control, treatment, *stranger]
    verdict = _judge(project, trial, decisions, [view(one) for one in decisions if one.visitor])
    assert verdict.cutoff_us == BEGAN_US + 10 * HOUR - 90 * MINUTE
    assert set(_exposed(project, verdict)) == {control.visitor, treatment.visitor, "last"}
    assert verdict.control.visitors + verdict.treatment.visitors == 3


def test_what_lies_below_the_trials_positions_does_not_count(project):
    early = start_trial(project)
    control, treatment = _pair(early)
    write(project, decisions=[control, treatment], events=[view(control), view(treatment)])
    trial = start_trial(project)
    again = page(trial, control.visitor, number=1)
    verdict = _judge(project, trial, [again], [view(again, ITEMS[:1])])
    assert verdict.control.views + verdict.treatment.views == 1


def test_experiment_viewed_exposes_too(project):
    trial = start_trial(project)
    control, treatment = _pair(trial)
    events = [
        view(control),
        view(treatment),
        told(trial, "told", "treatment"),
        told(trial, "told", "treatment", at_us=BEGAN_US + HOUR),
        told(trial, "by-trial", "control", experiment=trial.id),
        told(trial, control.visitor, "control"),
        told(trial, "elsewhere", "control", experiment="another"),
        told(trial, "unknown", "blue"),
        told(trial, "early", "control", at_us=BEGAN_US - 1),
        told(trial, "late", "control", at_us=BEGAN_US + 9 * HOUR),
        told(trial, "robot", "control", bot=True),
    ]
    verdict = _judge(project, trial, [control, treatment], events)
    exposed = _exposed(project, verdict)
    assert set(exposed) == {control.visitor, treatment.visitor, "told", "by-trial", "robot"}
    told_of = exposed["told"]
    assert (told_of.arm, told_of.pages, told_of.views, told_of.first_us) == ("treatment", 0, 0, BEGAN_US + MINUTE)
    assert (verdict.control.visitors, verdict.treatment.visitors, verdict.bots) == (2, 2, 1)
    assert verdict.control.pages == 1


def test_visitor_in_both_arms_is_dropped_and_counted(project):
    trial = start_trial(project)
    decisions, events = make_crowd(trial, visitors=300)
    torn = decisions[0]
    other = "treatment" if torn.arm == "control" else "control"
    events.append(told(trial, torn.visitor, other))
    verdict = _judge(project, trial, decisions, events)
    assert (verdict.multiple, verdict.outcome) == (1, "undecided")
    assert verdict.control.visitors + verdict.treatment.visitors == 299
    assert _exposed(project, verdict)[torn.visitor].arms == 2


def test_many_visitors_in_both_arms_make_it_unhealthy(project):
    trial = start_trial(project)
    decisions, events = make_crowd(trial, visitors=100)
    for visitor in sorted({one.visitor for one in decisions})[:2]:
        events += [told(trial, visitor, arm) for arm in ARMS]
    verdict = _judge(project, trial, decisions, events)
    assert (verdict.outcome, verdict.multiple) == ("unhealthy", 2)
    assert verdict.reasons == ("2 of 100 visitors were seen in both arms, so the arms are mixed",)


def test_robots_are_dropped_by_decision_and_by_impression(project):
    trial = start_trial(project)
    decisions, events = make_crowd(trial, visitors=40)
    decided, seen = (page(trial, name) for name in ("robot-1", "robot-2"))
    decisions += [msgspec.structs.replace(decided, bot=True), seen]
    events += [view(decided), view(seen, bot=True), click(seen, "item-0")]
    verdict = _judge(project, trial, decisions, events)
    assert verdict.bots == 2
    assert verdict.control.visitors + verdict.treatment.visitors == 40
    assert {name for name, one in _exposed(project, verdict).items() if one.bot} == {"robot-1", "robot-2"}


def test_trial_without_exposures_says_so(project):
    trial = start_trial(project)
    verdict = _judge(project, trial, [], [])
    assert verdict.outcome == "empty"
    assert verdict.reasons[0].startswith("no visitor was exposed before the cut-off: did pages ask /v1/page with")
    assert (verdict.srm_p, verdict.p, verdict.lift, verdict.difference) == (None, None, None, None)
    assert (_counts(verdict.control), verdict.control.ratio) == ((0, 0, 0, 0), None)


def test_trial_of_robots_only_says_so(project):
    trial = start_trial(project)
    pages = [msgspec.structs.replace(page(trial, f"visitor-{number}"), bot=True) for number in range(5)]
    verdict = _judge(project, trial, pages, [view(one) for one in pages])
    assert (verdict.outcome, verdict.bots) == ("empty", 5)
    assert verdict.reasons == ("all 5 exposed visitors are robots or were seen in both arms",)


def test_trial_whose_pages_nobody_saw_says_so(project):
    trial = start_trial(project)
    pages = [page(trial, f"visitor-{number}") for number in range(50)]
    verdict = _judge(project, trial, pages, [click(pages[0], "item-0")])
    assert verdict.outcome == "empty"
    (reason,) = verdict.reasons
    assert reason.startswith(
        "50 visitors were exposed, and no 'Product List Viewed' with the recommendation_id of their"
    )


def test_trial_with_one_arm_alone_seen_says_what_is_missing(project):
    trial = start_trial(project)
    pages = [page(trial, f"visitor-{number}") for number in range(50)]
    verdict = _judge(project, trial, pages, [view(one) for one in pages if one.arm == "control"])
    assert (verdict.outcome, verdict.reasons) == ("empty", (REASONS["no_denominator"],))


def test_arms_of_other_sizes_than_promised_are_a_sample_ratio_mismatch(project):
    trial = start_trial(project)
    visitors = [f"visitor-{number}" for number in range(1000)]
    pages = [
        page(trial, name, arm="control" if number % 10 < 6 else "treatment") for number, name in enumerate(visitors)
    ]
    verdict = _judge(project, trial, pages, [view(one, ITEMS[:2]) for one in pages])
    assert (verdict.outcome, verdict.control.visitors, verdict.treatment.visitors) == ("unhealthy", 600, 400)
    assert verdict.srm_p < 1e-9
    assert verdict.reasons[0].startswith("sample ratio mismatch: control 600 (500 expected), treatment 400")


def test_no_clicks_in_control_leave_the_difference_and_no_lift(project):
    trial = start_trial(project)
    decisions, events = make_crowd(trial, visitors=300, rates=(0.0, 0.3))
    verdict = _judge(project, trial, decisions, events)
    assert (verdict.control.ratio, verdict.lift, verdict.lift_interval) == (0.0, None, None)
    assert verdict.outcome == "better"
    assert verdict.reasons[0] == REASONS["control_is_zero"]
    low, high = verdict.difference_interval
    assert 0 < low < verdict.difference < high


def test_no_clicks_at_all_have_no_p(project):
    trial = start_trial(project)
    decisions, events = make_crowd(trial, visitors=60, rates=(0.0, 0.0))
    verdict = _judge(project, trial, decisions, events)
    assert (verdict.outcome, verdict.p, verdict.reasons) == ("empty", None, (REASONS["no_variance"],))


@pytest.mark.parametrize(
    ("rates", "planned", "outcome"),
    [
        ((0.1, 0.3), 100, "better"),
        ((0.3, 0.1), 100, "worse"),
        ((0.2, 0.2), 100, "undecided"),
        ((0.2, 0.2), 900, "early"),
    ],
)
def test_outcome_follows_what_the_arms_did(project, rates, planned, outcome):
    trial = start_trial(project, planned=planned)
    decisions, events = make_crowd(trial, visitors=400, rates=rates)
    verdict = _judge(project, trial, decisions, events)
    assert verdict.outcome == outcome
    significant = outcome in ("better", "worse")
    assert (verdict.p < 0.05) == significant
    assert (verdict.lift_interval[0] > 0 or verdict.lift_interval[1] < 0) == significant
    assert (verdict.difference_interval[0] > 0 or verdict.difference_interval[1] < 0) == significant
    if outcome == "early":
        assert verdict.reasons[0].endswith("visitors in the smaller arm, 900 were planned")


def test_verdict_is_what_the_statistics_say_of_the_exposures(project):
    trial = start_trial(project)
    decisions, events = make_crowd(trial, visitors=300, rates=(0.1, 0.2))
    verdict = _judge(project, trial, decisions, events)
    exposed = _exposed(project, verdict).values()
    arms = [[(one.clicks, one.views) for one in exposed if one.arm == arm] for arm in ARMS]
    found = compare_ratios(*(measure_ratio(*map(list, zip(*arm, strict=True))) for arm in arms))
    assert (verdict.p, verdict.lift, verdict.df) == (found.p, found.lift, found.df)
    assert verdict.lift_interval == (found.lift_interval.low, found.lift_interval.high)
    # What was served, seen and clicked is conserved: each number comes from what was written.
    served = {one.recommendation_id: one for one in decisions}
    assert sum(arm.pages for arm in (verdict.control, verdict.treatment)) == len(served)
    for one in exposed:
        mine = [page for page in served.values() if page.visitor == one.visitor]
        assert sum(len(page.items) for page in mine) >= one.views >= one.clicks >= 0
        assert one.pages == len(mine)


def test_degraded_pages_are_counted_by_arm(project):
    trial = start_trial(project)
    decisions, events = make_crowd(trial, visitors=40)
    changed = {0: ("bundle",), 1: ("behind", "fallback"), 2: ("behind",)}
    decisions = [
        msgspec.structs.replace(one, degraded=changed.get(number, ()), arm="control")
        for number, one in enumerate(decisions)
    ]
    verdict = _judge(project, trial, decisions, events)
    assert verdict.degraded == {"control/behind": 2, "control/bundle": 1, "control/fallback": 1}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_repeated_late_and_reordered_events_give_the_same_verdict(tmp_path, seed):
    """The same happenings, each time in another order, with repeats, in other portions."""
    verdicts, draw = [], Random(seed)
    for turn in range(3):
        with open_project(make_project(tmp_path / str(turn))) as project:
            trial = start_trial(project, incarnations={}, positions={"decisions": (0, 0), "events": (0, 0)})
            decisions, events = make_crowd(trial, visitors=120, rates=(0.1, 0.25), seed=seed)
            if turn:
                events = repeat(events, draw)
                draw.shuffle(decisions)
            cut = draw.randrange(len(events)) if turn == 2 else 0
            # Clicks may even arrive before the decisions that they answer, and views after the clicks.
            write(project, events=events[:cut])
            write(project, events=events[cut:], decisions=decisions)
            stop_at(project, trial, hours=10)
            verdicts.append(msgspec.structs.replace(stop(project, trial.experiment), positions={}))
    assert len({encode_verdict(one) for one in verdicts}) == 1
    assert verdicts[0].control.clicks > 10


def test_nothing_that_comes_later_changes_a_verdict(tmp_path):
    with open_project(make_project(tmp_path)) as project:
        _check_frozen(project)


def _check_frozen(project):
    trial = start_trial(project)
    decisions, events = make_crowd(trial, visitors=100, rates=(0.1, 0.25))
    write(project, decisions=decisions, events=events)
    stop_at(project, trial, hours=10)
    given = stop(project, trial.experiment)
    later = [click(one, one.items[0], after_us=MINUTE) for one in decisions]
    later += [view(one) for one in decisions] + [told(trial, f"new-{number}", "control") for number in range(50)]
    more = [page(trial, f"new-{number}", at_us=BEGAN_US + 9 * HOUR) for number in range(50)]
    write(project, decisions=more, events=later)
    project.clock.step(3600)
    for again in (judge_again(project, given), stop(project, trial.experiment), look(project, trial.experiment)):
        assert encode_verdict(again) == encode_verdict(given)
    assert project.tables.open("verdicts").scan().table().num_rows == 1


def test_look_waits_for_what_has_arrived_and_not_for_more(project):
    trial = start_trial(project)
    control, treatment = _pair(trial)
    write(project, decisions=[control, treatment], events=[view(control), view(treatment)])
    stop_at(project, trial, hours=10)
    first = look(project, trial.experiment)
    append(project, events=[click(control, "item-0")])
    sink(project)
    second = look(project, trial.experiment)
    assert (first.control.clicks, second.control.clicks) == (0, 1)


def _visitors(number, *, draw, rate=0.1):
    views = draw.integers(1, 20, number)
    return Visitors(
        names=[f"visitor-{one}" for one in range(number)],
        arms=np.zeros(number, np.int8),
        num_arms=np.ones(number, np.int64),
        bots=np.zeros(number, bool),
        first_us=np.zeros(number, np.int64),
        pages=np.ones(number, np.int64),
        views=views,
        clicks=draw.binomial(views, rate),
    )


def test_splits_of_the_same_visitors_differ_as_often_as_alpha_says():
    visitors = _visitors(1500, draw=np.random.default_rng(4))
    gate = split_again(visitors, seed="aa/one", splits=1000, weights=(0.5, 0.5), alpha=0.05)
    assert (gate.splits, gate.visitors, gate.is_passed) == (1000, 1500, True)
    # Binomial(1000, 0.05): 15 to 100 holds all but 1e-7 of it, were the splits independent.
    assert 15 <= gate.significant <= 100
    one, again, two = (
        split_again(visitors, seed=seed, splits=50, weights=(0.5, 0.5), alpha=0.05)
        for seed in ("aa/one", "aa/one", "aa/two")
    )
    assert one == again != two


def test_gate_leaves_out_who_does_not_count():
    visitors = _visitors(300, draw=np.random.default_rng(4))
    visitors.bots[:50] = True
    visitors.num_arms[50:60] = 2
    gate = split_again(visitors, seed="aa/one", splits=20, weights=(0.5, 0.5), alpha=0.05)
    assert gate.visitors == 240


def test_seeds_of_two_trials_split_visitors_independently():
    pairs = [
        (assign("taste-home-1-5", f"v{number}", (0.5, 0.5)), assign("taste-home-2-5", f"v{number}", (0.5, 0.5)))
        for number in range(4000)
    ]
    both = sum(a == b for a, b in pairs) / len(pairs)
    # 5 standard errors: a false alarm in 1.7 million.
    assert abs(both - 0.5) < 5 * math.sqrt(0.25 / len(pairs))
