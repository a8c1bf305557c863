"""Planned numbers of visitors reach the power they promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headrace.base.errors import CallError
from headrace.stats.compare import compare_ratios, ratio
from headrace.stats.intervals import binomial_band
from headrace.stats.moments import measure_ratio, measure_ratio_by_arm
from headrace.stats.power import power_of, reachable_mde, visitors_per_arm


@settings(derandomize=True, deadline=None)
@given(st.floats(0.01, 5), st.integers(2, 10**7), st.floats(1e-4, 0.3))
def test_power_is_that_of_the_noncentral_t(mde, visitors, alpha):
    df, effect = 2 * (visitors - 1), 0.1 * mde / 0.3 * math.sqrt(visitors / 2)
    theirs = stats.nct.sf(stats.t.isf(alpha / 2, df), df, effect)
    found = power_of(0.1, 0.09, mde=mde, visitors=visitors, alpha=alpha)
    assert 0 <= found <= 1
    if math.isfinite(theirs):
        assert found == pytest.approx(theirs, abs=1e-9)


# From R's power.t.test(delta = d, sd = 1, power = .8 | .9), rounded up.
@pytest.mark.parametrize(("delta", "power", "expected"), [(0.5, 0.8, 64), (0.2, 0.9, 527), (1.0, 0.8, 17)])
def test_visitors_are_those_of_the_tables(delta, power, expected):
    assert visitors_per_arm(1.0, 1.0, mde=delta, power=power) == expected


@settings(derandomize=True, deadline=None)
@given(st.floats(0.001, 10), st.floats(1e-3, 10), st.floats(0.02, 2), st.floats(0.2, 0.99))
def test_visitors_are_the_fewest_and_the_lift_comes_back(base, variance, mde, power):
    try:
        visitors = visitors_per_arm(base, variance, mde=mde, power=power)
    except CallError:
        assert variance / (base * mde) ** 2 > 1e8
        return
    assert power_of(base, variance, mde=mde, visitors=visitors) >= power
    if visitors > 2:
        assert power_of(base, variance, mde=mde, visitors=visitors - 1) < power
        assert reachable_mde(base, variance, visitors=visitors - 1, power=power) > mde
    assert reachable_mde(base, variance, visitors=visitors, power=power) <= mde * (1 + 1e-9)
    assert visitors_per_arm(-base, variance, mde=-mde, power=power) == visitors


def test_a_planned_trial_finds_its_lift_as_often_as_promised():
    draw = np.random.default_rng(11)

    def visit(visitors, rate):
        views = draw.poisson(12, visitors) + 1
        return draw.binomial(views, draw.beta(20 * rate, 20 * (1 - rate), visitors)), views

    before = ratio(measure_ratio(*visit(200_000, 0.1)))
    visitors = visitors_per_arm(before.estimate, before.visitor_variance, mde=0.25)
    shown = 0
    for _ in range(1000):
        (clicks, views), (more, seen) = visit(visitors, 0.1), visit(visitors, 0.125)
        arms = np.repeat([0, 1], visitors)
        found = compare_ratios(*measure_ratio_by_arm(np.append(clicks, more), np.append(views, seen), arms, num_arms=2))
        shown += found.is_significant and found.lift > 0
    # The larger ratio of the treatment varies more, which costs a little of the power.
    assert binomial_band(1000, 0.75, false_alarm=1e-6)[0] <= shown <= binomial_band(1000, 0.8, false_alarm=1e-6)[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: visitors_per_arm(0.0, 1.0, mde=0.1), "a base other than 0"),
        (lambda: visitors_per_arm(0.1, 0.0, mde=0.1), "variance of a visitor is above 0"),
        (lambda: visitors_per_arm(0.1, float("nan"), mde=0.1), "variance of a visitor is above 0"),
        (lambda: visitors_per_arm(0.1, 1.0, mde=0.0), "a share other than 0"),
        (lambda: visitors_per_arm(0.1, 1.0, mde=0.1, power=1.0), "power lies between"),
        (lambda: visitors_per_arm(0.1, 1.0, mde=0.1, power=0.02), "power lies between"),
        (lambda: visitors_per_arm(0.1, 1.0, mde=0.1, alpha=0.0), "alpha lies between 0 and 1"),
        (lambda: visitors_per_arm(0.1, 1.0, mde=1e-6), "more than 10,000,000,000 visitors per arm"),
        (lambda: reachable_mde(0.1, 1.0, visitors=1), "two visitors per arm"),
        (lambda: power_of(0.1, 1.0, mde=0.1, visitors=1), "two visitors per arm"),
    ],
)
def test_plans_that_cannot_be_are_refused(call, message):
    with pytest.raises(CallError, match=message):
        call()
