"""One p value, intervals that never contradict it, and a reason wherever there is none."""

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import special, stats

from headrace.base.errors import CallError
from headrace.stats.compare import REASONS, compare_ratios, ratio, welch
from headrace.stats.intervals import binomial_band
from headrace.stats.moments import RatioMoments, measure, measure_ratio, measure_ratio_by_arm


def _numbers(value):
    """Yields every number that stands in a result."""
    if isinstance(value, tuple | list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, float | int):
        yield value


def _check(found):
    """What holds for every comparison, whatever went into it."""
    assert all(map(math.isfinite, _numbers(astuple(found))))
    assert (found.p is None) == (found.reason in REASONS) == (found.difference_interval is None)
    assert (found.lift_interval is None) == (found.lift_reason in REASONS)
    if found.p is not None:
        assert 0 <= found.p <= 1
        assert found.difference_interval.excludes_zero == found.is_significant
        assert found.difference_interval.low <= found.difference <= found.difference_interval.high
        assert found.df >= 1 - 1e-9
    if found.lift_interval is not None:
        assert found.lift_interval.excludes_zero == found.is_significant
        assert found.lift_interval.low <= found.lift <= found.lift_interval.high
        if found.is_significant:
            assert (found.lift_interval.low > 0) == (found.lift > 0)


@pytest.mark.parametrize(("level", "spread"), [(0.0, 1.0), (1e7, 0.1), (1e8, 0.1), (-1e6, 3.0)])
def test_welch_is_that_of_scipy(level, spread):
    draw = np.random.default_rng(3)
    one, other = draw.normal(level, spread, 300), draw.normal(level + spread / 8, 2 * spread, 170)
    theirs = stats.ttest_ind(other, one, equal_var=False)
    found = welch(measure(one), measure(other))
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-6)
    assert found.df == pytest.approx(theirs.df, rel=1e-6)
    assert found.t == pytest.approx(theirs.statistic, rel=1e-6)


def test_ratio_of_one_denominator_is_welch_of_the_numerators():
    draw = np.random.default_rng(4)
    one, other = draw.normal(5, 1, 60), draw.normal(5.5, 2, 45)
    found = compare_ratios(measure_ratio(one, np.full(60, 2.0)), measure_ratio(other, np.full(45, 2.0)))
    theirs = stats.ttest_ind(other, one, equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert found.df == pytest.approx(theirs.df, rel=1e-9)
    assert found.difference_interval == pytest.approx(tuple(end / 2 for end in theirs.confidence_interval(0.95)))


def test_variance_of_a_ratio_is_that_of_the_linearised_visitors():
    draw = np.random.default_rng(5)
    views = draw.poisson(20, 500) + 1
    clicks = draw.binomial(views, 0.1)
    found = ratio(measure_ratio(clicks, views))
    assert found.estimate == pytest.approx(clicks.sum() / views.sum(), rel=1e-15)
    linear = (clicks - found.estimate * views) / views.mean()
    assert found.variance == pytest.approx(linear.var(ddof=1) / 500, rel=1e-12)
    assert found.visitor_variance == pytest.approx(linear.var(ddof=1), rel=1e-12)


def test_ends_of_the_lift_interval_are_as_surprising_as_alpha():
    draw = np.random.default_rng(6)
    views = draw.poisson(20, 400) + 1
    clicks = draw.binomial(views, np.where(np.arange(400) % 2, 0.10, 0.13))
    arms = measure_ratio_by_arm(clicks, views, 1 - np.arange(400) % 2, num_arms=2)
    found = compare_ratios(*arms, alpha=0.01)
    for end in found.lift_interval:
        error = math.sqrt(found.treatment.variance + (1 + end) ** 2 * found.control.variance)
        t = (found.treatment.estimate - (1 + end) * found.control.estimate) / error
        assert 2 * special.stdtr(found.df, -abs(t)) == pytest.approx(0.01, rel=1e-9)


SMALL = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=6)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(SMALL, SMALL, st.sampled_from([0.05, 0.01, 0.001, 0.2, 0.5, 0.999]))
@example([(0, 5), (0, 3)], [(1, 5), (0, 4)], 0.05)
@example([(1, 5), (2, 10)], [(1, 5), (2, 10)], 0.05)
def test_small_arms_give_agreeing_intervals_or_a_reason(control, treatment, alpha):
    one, other = (measure_ratio([row[0] for row in arm], [row[1] for row in arm]) for arm in (control, treatment))
    _check(compare_ratios(one, other, alpha=alpha))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(*[st.lists(st.floats(-1e150, 1e150), max_size=5)] * 2)
def test_welch_of_wild_numbers_is_finite_or_has_a_reason(control, treatment):
    found = welch(measure(control), measure(treatment))
    assert all(map(math.isfinite, _numbers(astuple(found))))
    assert (found.p is None) == (found.reason in REASONS)


WILD = st.floats(-1e150, 1e150) | st.sampled_from([0.0, 5e-324, 1e-300, -1e-300, 1e-160, 1e150, -1e150, 1.0])


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(WILD, WILD), max_size=5),
    st.lists(st.tuples(WILD, WILD), max_size=5),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
)
def test_wild_numbers_give_agreeing_intervals_or_a_reason(control, treatment, alpha):
    one, other = (measure_ratio([row[0] for row in arm], [row[1] for row in arm]) for arm in (control, treatment))
    _check(compare_ratios(one, other, alpha=alpha))


@pytest.mark.parametrize("size", [2, 3, 10, 200])
def test_intervals_agree_with_the_p_value_over_thousands_of_draws(size):
    draw = np.random.default_rng(size)
    significant = unbounded = 0
    for _ in range(1000):
        views = draw.poisson(8, 2 * size) + 1
        clicks = draw.binomial(views, draw.choice([0.02, 0.1, 0.3], 2 * size))
        found = compare_ratios(*measure_ratio_by_arm(clicks, views, np.arange(2 * size) % 2, num_arms=2), alpha=0.1)
        _check(found)
        significant += found.is_significant
        unbounded += found.lift_reason == "control_near_zero"
    assert significant > 20
    assert (unbounded > 100) == (size <= 3)


def test_intervals_agree_with_the_p_value_where_alpha_is_next_to_it():
    draw = np.random.default_rng(8)
    agreed = 0
    for _ in range(400):
        size = int(draw.integers(2, 30))
        views = draw.poisson(8, 2 * size) + 1
        clicks = draw.binomial(views, 0.3)
        arms = measure_ratio_by_arm(clicks, views, np.arange(2 * size) % 2, num_arms=2)
        p = compare_ratios(*arms).p
        if p is None or not 0 < p < 1:
            continue
        for alpha in (p, math.nextafter(p, 0), math.nextafter(p, 1), p * (1 - 1e-13), min(p * (1 + 1e-13), 0.999)):
            found = compare_ratios(*arms, alpha=alpha)
            _check(found)
            assert found.is_significant == (p < alpha)
            nearest = min(map(abs, found.difference_interval))
            # What the p value decides is rounding: the end lies at 0 but for the last digits.
            assert nearest < 1e-9 * abs(found.difference) + 1e-300
            agreed += 1
    assert agreed > 1500


def test_counts_give_the_same_bits_in_any_order():
    draw = np.random.default_rng(12)
    views = draw.poisson(20, 3000)
    clicks, arms = draw.binomial(views, 0.1), draw.integers(0, 2, 3000)
    found = {
        compare_ratios(*measure_ratio_by_arm(clicks[order], views[order], arms[order], num_arms=2))
        for order in (draw.permutation(3000) for _ in range(50))
    }
    assert len(found) == 1


PAIR = measure_ratio([1, 2, 0], [10, 12, 9])


@pytest.mark.parametrize(
    ("control", "treatment", "reason", "lift_reason"),
    [
        (RatioMoments(), RatioMoments(), "too_few_visitors", "too_few_visitors"),
        (PAIR, RatioMoments(), "too_few_visitors", "too_few_visitors"),
        (measure_ratio([1], [10]), PAIR, "too_few_visitors", "too_few_visitors"),
        (measure_ratio([1], [10]), measure_ratio([2], [10]), "too_few_visitors", "too_few_visitors"),
        (measure_ratio([0, 0], [0, 0]), PAIR, "no_denominator", "no_denominator"),
        (PAIR, measure_ratio([0], [0]), "no_denominator", "no_denominator"),
        (measure_ratio([1, 2], [10, 20]), measure_ratio([3, 3], [10, 10]), "no_variance", "no_variance"),
        (measure_ratio([0, 0], [10, 20]), measure_ratio([0, 0], [10, 10]), "no_variance", "no_variance"),
        (measure_ratio([0, 0], [10, 20]), PAIR, None, "control_is_zero"),
        (measure_ratio([0, 0, 1], [10, 20, 20]), PAIR, None, "control_near_zero"),
        (measure_ratio([1e150, 2e150], [1e-170, 1e-170]), PAIR, "out_of_range", "out_of_range"),
        (PAIR, measure_ratio([0, 0], [10, 20]), None, "control_near_zero"),
        (measure_ratio([1, 1], [9, 9]), PAIR, None, None),
    ],
)
def test_what_cannot_be_estimated_has_a_reason(control, treatment, reason, lift_reason):
    found = compare_ratios(control, treatment)
    _check(found)
    assert (found.reason, found.lift_reason) == (reason, lift_reason)


def test_one_visitor_per_arm_still_has_a_difference():
    found = compare_ratios(measure_ratio([1], [10]), measure_ratio([2], [10]))
    assert (found.difference, found.lift, found.p, found.lift_interval) == (0.1, 1.0, None, None)


def test_equal_ratios_of_unequal_visitors_have_no_variance_but_for_rounding():
    views = np.random.default_rng(9).poisson(30, 10_000) + 1.0
    assert ratio(measure_ratio(0.3 * views, views)).variance == 0.0
    assert compare_ratios(*[measure_ratio(0.1 * part, part) for part in np.array_split(views, 2)]).reason == (
        "no_variance"
    )


@pytest.mark.parametrize(
    ("control", "treatment", "reason"),
    [([], [1, 2], "too_few_visitors"), ([1], [1, 2], "too_few_visitors"), ([3, 3], [3, 3], "no_variance")],
)
def test_welch_without_a_test_has_a_reason(control, treatment, reason):
    found = welch(measure(control), measure(treatment))
    assert (found.reason, found.p, found.standard_error) == (reason, None, None)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_alpha_that_is_no_probability_is_refused(alpha):
    with pytest.raises(CallError, match="alpha lies between 0 and 1"):
        compare_ratios(PAIR, PAIR, alpha=alpha)


def test_arms_that_do_not_differ_are_told_apart_as_often_as_alpha_says():
    draw = np.random.default_rng(10)
    views = draw.poisson(12, 4000) + 1
    clicks = draw.binomial(views, draw.beta(2, 18, 4000))
    found = [
        compare_ratios(*measure_ratio_by_arm(clicks, views, draw.integers(0, 2, 4000), num_arms=2)) for _ in range(1000)
    ]
    low, high = binomial_band(1000, 0.05, false_alarm=1e-6)
    assert low <= sum(one.is_significant for one in found) <= high
    assert all(one.lift_interval is not None for one in found)
