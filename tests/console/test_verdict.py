"""The panel of a verdict, as a person or a pipe gets it."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from headrace.console.verdict import WIDTH, print_verdict, verdict_lines
from headrace.experiments.experiment import Gate
from headrace.experiments.verdict import OUTCOMES, Arm, Guardrail, Verdict
from headrace.verify.truth import Truth

GATE = Gate(splits=1000, visitors=2123, significant=49, band=(30, 73), alpha=0.05, smallest_srm_p=0.001)

BETTER = Verdict(
    version=1,
    trial="taste-home-1",
    experiment="taste-home",
    page="home",
    goal="ctr",
    made_us=1_795_277_634_612_000,
    started_us=1_795_191_234_612_000,
    cutoff_us=1_795_272_234_612_000,
    positions={"decisions": (120, 98, 110, 104), "events": (5012, 4871, 5120, 4990)},
    incarnations={"decisions": "a", "events": "b"},
    control_bundle="a" * 32,
    treatment_bundle="b" * 32,
    alpha=0.05,
    planned=900,
    outcome="better",
    reasons=("the visitors fit the weights: control 1,021 (1,000 expected), treatment 979 (1,000 expected), p = 0.35",),
    gate=GATE,
    srm_p=0.35,
    multiple=2,
    bots=31,
    degraded={"control/behind": 12, "control/fallback": 1, "treatment/behind": 9},
    control=Arm(visitors=1021, pages=2311, views=23_110, clicks=1210, ratio=0.052358),
    treatment=Arm(visitors=979, pages=2251, views=22_510, clicks=1434, ratio=0.063705),
    difference=0.011347,
    difference_interval=(0.007, 0.0157),
    lift=0.2167,
    lift_interval=(0.131, 0.3075),
    p=3e-7,
    df=1900.0,
)
FELL = Guardrail(
    name="watch_minutes", control=12.3456, treatment=11.3456, control_visitors=1021, treatment_visitors=979, cap=60.5,
    difference=-1.0, difference_interval=(-1.5, -0.5), lift=-0.081, lift_interval=(-0.121, -0.041), p=0.0021, df=1800.0,
    is_worse=True,
)  # fmt: skip
HELD = msgspec.structs.replace(FELL, name="orders", p=0.4, is_worse=False)
UNKNOWN = msgspec.structs.replace(
    FELL, name="carts", p=None, lift=None, lift_interval=None, is_worse=False, reason="no visitor has sent 'Cart' since"
)
GUARDED = msgspec.structs.replace(BETTER, outcome="worse", guardrails=(FELL, HELD, UNKNOWN))
NOBODY = Arm(visitors=0, pages=0, views=0, clicks=0, ratio=None)
EMPTY = msgspec.structs.replace(
    BETTER,
    outcome="empty",
    reasons=("no visitor was exposed before the cut-off",),
    gate=None,
    srm_p=None,
    multiple=0,
    bots=0,
    degraded={},
    control=NOBODY,
    treatment=NOBODY,
    difference=None,
    difference_interval=None,
    lift=None,
    lift_interval=None,
    p=None,
    df=None,
)


def shown(verdict, **options):
    """Returns the panel as text."""
    return "\n".join(line.plain for line in verdict_lines(verdict, **options))


def changed(**members):
    return msgspec.structs.replace(BETTER, **members)


def truth(treatment):
    """Returns what a world knows of two arms, the control's ratio being 0.05."""
    fields = dict.fromkeys(Truth.__dataclass_fields__, 0)
    return Truth(**{**fields, "pages": 4500, "control": 0.05, "treatment": treatment})


def test_health_comes_first_then_the_arms_the_lift_and_the_outcome():
    text = shown(BETTER)
    places = [
        text.index(word)
        for word in ("✓ sample ratio", "✓ A/A", "· in both arms", "· robots", "· degraded", "  control", "  lift",
                     "\n  p ", "  difference", "BETTER: ", "  cut-off", "  read up to", "  bundle")
    ]  # fmt: skip
    assert places == sorted(places)
    assert "2 visitors, left out" in text
    assert "31 left out" in text
    assert "pages of control: 12 behind, 1 fallback; treatment: 9 behind" in text
    assert "decisions 0/120, 1/98, 2/110, 3/104" in text
    assert f"{'b' * 32} (treatment)" in text


@pytest.mark.parametrize(
    "verdict",
    [
        BETTER,
        EMPTY,
        GUARDED,
        changed(guardrails=(msgspec.structs.replace(FELL, name="long " * 30, control=1e-300, lift=1e6),)),
        changed(trial="x" * 40, reasons=("long " * 60,)),
        changed(positions={"events": tuple(range(10**9, 10**9 + 64))}),
        changed(lift=45.1, lift_interval=(20.0, 98.5), difference=-0.1, p=0.3),
        changed(degraded={f"{arm}/{what}": 10**6 for arm in ("control", "treatment") for what in ("behind", "bundle")}),
    ],
)
def test_no_line_is_wider_than_a_terminal(verdict):
    lines = shown(verdict, truth=truth(0.06)).splitlines()
    assert max(map(len, lines)) <= WIDTH


def test_the_interval_is_drawn_around_0_and_the_truth_in_it():
    lines = shown(BETTER, truth=truth(0.06)).splitlines()
    bar, scale = next(pair for pair in pairwise(lines) if "●" in pair[0])
    zero = scale.index("0", 12)
    assert (bar[zero], scale.split()) == ("│", ["-33.8", "%", "0", "+33.8", "%"])
    assert zero < bar.index("├") < bar.index("x") < bar.index("●") < bar.index("┤")
    assert "+20.0 %, inside the interval" in shown(BETTER, truth=truth(0.06))
    assert "+60.0 %, OUTSIDE the interval" in shown(BETTER, truth=truth(0.08))


def test_an_interval_with_0_in_it_crosses_the_middle():
    text = shown(changed(outcome="undecided", lift=-0.02, lift_interval=(-0.2, 0.15), p=0.7))
    bar = next(line for line in text.splitlines() if "●" in line)
    assert bar.index("├") < bar.index("●") < bar.index("┼") < bar.index("┤")
    assert "UNDECIDED: as many visitors as planned" in text


def test_a_lift_that_cannot_be_told_leaves_the_difference():
    reasons = ("relative lift not estimable: the control's ratio cannot be told from 0",)
    text = shown(changed(lift_interval=None, reasons=reasons), truth=truth(0.06))
    assert "not estimable" in text
    assert "difference    +0.01135, 95 % interval +0.00700 to +0.01570" in text
    assert "+20.0 %, a difference of +0.01000" in text
    assert "●" not in text


def test_guardrails_stand_beside_the_goal_with_what_became_of_them():
    lines = shown(GUARDED).splitlines()
    places = [number for number, line in enumerate(lines) if line[2:11] == "guardrail"]
    assert "".join(lines[number][0] for number in places) == "✗✓·"
    assert places[0] > next(number for number, line in enumerate(lines) if line.startswith("  difference"))
    assert places[-1] < next(number for number, line in enumerate(lines) if "WORSE: " in line)
    told = " ".join(" ".join(lines[places[0] : places[1]]).split())
    assert told == (
        "✗ guardrail watch_minutes 12.346 in control, 11.346 in treatment: -8.1 %, 95 % interval -12.1 % to -4.1 %, "
        "p 0.0021"
    )
    assert "· guardrail     carts cannot be judged: no visitor has sent 'Cart' since" in lines
    unsure = shown(changed(guardrails=(msgspec.structs.replace(FELL, lift_interval=None),)))
    assert "difference -1, 95 % interval -1.5 to -0.5, p 0.0021" in " ".join(unsure.split())
    assert "✗ guardrail" not in shown(changed(outcome="unhealthy", guardrails=(FELL,)))


def test_an_empty_verdict_says_why_and_shows_no_number():
    text = shown(EMPTY)
    assert "EMPTY: there is nothing to compare; the reasons say why" in text
    assert "no visitor was exposed before the cut-off" in text
    assert "A/A           not run before this trial" in text
    assert "%" not in text


@pytest.mark.parametrize(
    ("members", "line"),
    [
        ({"srm_p": 2.7e-5}, "✗ sample ratio  p 2.7e-05"),
        ({"multiple": 80}, "✗ in both arms  80 visitors"),
    ],
)
def test_an_unhealthy_verdict_marks_what_failed(members, line):
    text = shown(changed(outcome="unhealthy", **members))
    assert line in text
    assert text.count("✗") == 1
    assert "UNHEALTHY: " in text


def test_a_gate_that_was_not_passed_is_marked():
    text = shown(changed(gate=msgspec.structs.replace(GATE, significant=90)))
    assert "✗ A/A           90 of 1,000 splits of 2,123 logged visitors differ" in text


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_is_told_in_words(outcome):
    assert f"{outcome.upper()}: " in shown(changed(outcome=outcome))


def test_a_name_cannot_steer_the_terminal(capsys):
    print_verdict(changed(trial="\x1b[2Jx", goal="\x1b[31m"))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "trial \\x1b[2Jx on the page home" in out


def test_a_pipe_gets_the_same_lines_without_colours(capsys):
    print_verdict(BETTER)
    assert capsys.readouterr().out.rstrip("\n") == shown(BETTER)
