"""Intervals are exact."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from headrace.base.errors import CallError
from headrace.stats.intervals import Estimate, Interval, binomial_band, fieller, share_interval

SHARES = st.floats(0, 1)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 3000), SHARES, st.floats(1e-9, 0.5))
def test_band_is_the_narrowest_that_keeps_its_promise(n, share, false_alarm):
    low, high = binomial_band(n, share, false_alarm=false_alarm)
    draws = stats.binom(n, share)
    assert 0 <= low <= high <= n
    assert draws.cdf(low - 1) <= false_alarm / 2 * (1 + 1e-9)
    assert draws.sf(high) <= false_alarm / 2 * (1 + 1e-9)
    assert draws.cdf(low) > false_alarm / 2 * (1 - 1e-9)
    assert high == 0 or draws.sf(high - 1) > false_alarm / 2 * (1 - 1e-9)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.integers(1, 10_000), SHARES, st.floats(1e-6, 0.5))
def test_share_interval_is_that_of_clopper_and_pearson(n, share, alpha):
    count = round(n * share)
    theirs = stats.binomtest(count, n).proportion_ci(1 - alpha, method="exact")
    assert share_interval(count, n, alpha=alpha) == pytest.approx((theirs.low, theirs.high), rel=1e-6, abs=1e-12)


def test_share_of_nothing_may_be_anything():
    assert share_interval(0, 0) == (0.0, 1.0)


ESTIMATES = st.builds(Estimate, st.floats(-10, 10), st.floats(1e-12, 10))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(ESTIMATES, ESTIMATES, st.floats(0.1, 20))
def test_fieller_holds_the_lifts_within_so_many_errors(control, treatment, quantile):
    found = fieller(control, treatment, quantile=quantile)
    strong = abs(control.value) - quantile * math.sqrt(control.variance)
    if abs(strong) > 1e-9 * abs(control.value):
        assert (found is not None) == (strong > 0)
    if found is None:
        return
    width = found.high - found.low
    for lift in np.linspace(found.low - width, found.high + width, 31):
        error = math.sqrt(treatment.variance + (1 + lift) ** 2 * control.variance)
        errors = abs(treatment.value - (1 + lift) * control.value) / error
        edge = min(abs(lift - found.low), abs(lift - found.high)) < 1e-6 * (width + abs(lift) + 1)
        assert edge or (errors <= quantile) == (found.low <= lift <= found.high)


def test_fieller_of_an_exact_control_is_the_usual_interval():
    assert fieller(Estimate(0.5, 0.0), Estimate(0.6, 0.01), quantile=2.0) == pytest.approx((-0.2, 0.6))
    assert fieller(Estimate(0.5, 0.0), Estimate(0.5, 0.0), quantile=2.0) == (0.0, 0.0)


def test_fieller_of_a_control_that_may_be_zero_is_unbounded():
    assert fieller(Estimate(0.0, 1.0), Estimate(1.0, 1.0), quantile=2.0) is None
    assert fieller(Estimate(2.0, 1.0), Estimate(1.0, 1.0), quantile=2.0) is None
    assert fieller(Estimate(1e-310, 1.0), Estimate(1.0, 1.0), quantile=2.0) is None


def test_interval_excludes_zero_only_outside():
    assert [Interval(*ends).excludes_zero for ends in [(-1, 1), (0, 1), (-1, 0), (0.1, 1), (-1, -0.1)]] == [
        False,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda: binomial_band(-1, 0.5),
        lambda: binomial_band(10, 1.5),
        lambda: binomial_band(10, 0.5, false_alarm=0.0),
        lambda: share_interval(11, 10),
        lambda: share_interval(1, 10, alpha=1.0),
    ],
)
def test_questions_without_an_answer_are_refused(call):
    with pytest.raises(CallError):
        call()
