"""Moments keep scipy's digits where plain sums lose them, and parts add up to the whole."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.base.errors import CallError
from headrace.stats.moments import (
    Moments,
    RatioMoments,
    measure,
    measure_by_arm,
    measure_ratio,
    measure_ratio_by_arm,
)


def _digits(found, certified):
    """NIST's score: how many digits of the certified value are right."""
    return 15.0 if found == certified else -math.log10(abs(found - certified) / abs(certified))


# NIST's StRD, univariate: the data are these lines, mean and deviation are certified, and the digits are the most that
# doubles of that size can give.
NIST = {
    "NumAcc1": ([10000001, 10000003, 10000002], 10000002, 1, 15),
    "NumAcc2": ([1.2, *[1.1, 1.3] * 500], 1.2, 0.1, 14),
    "NumAcc3": ([1000000.2, *[1000000.1, 1000000.3] * 500], 1000000.2, 0.1, 9),
    "NumAcc4": ([10000000.2, *[10000000.1, 10000000.3] * 500], 10000000.2, 0.1, 8),
}


@pytest.mark.parametrize("name", NIST)
@pytest.mark.parametrize("shift", [None, 0.0])
def test_moments_keep_the_digits_of_nist(name, shift):
    data, mean, deviation, digits = NIST[name]
    found = measure(data, shift=shift)
    assert _digits(found.mean, mean) >= 14
    assert _digits(math.sqrt(found.variance), deviation) >= digits
    parts = sum((measure(part) for part in np.array_split(data, 7)), Moments())
    assert _digits(math.sqrt(parts.variance), deviation) >= digits


def test_moments_of_a_million_values_far_from_zero_are_those_of_numpy_in_higher_precision():
    values = np.random.default_rng(1).normal(1e7, 0.1, 1_000_000)
    exact = values.astype(np.longdouble)
    found = measure(values, shift=0.0)
    assert found.mean == pytest.approx(float(exact.mean()), rel=1e-15)
    assert found.variance == pytest.approx(float(exact.var(ddof=1)), rel=1e-11)


NUMBERS = st.floats(-1e6, 1e6) | st.integers(-5, 5)
PAIRS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30)


@settings(derandomize=True, deadline=None)
@given(st.lists(PAIRS, max_size=5), st.sampled_from([0.0, 1e7]))
def test_parts_add_up_to_the_whole(parts, level):
    def measured(pairs):
        columns = np.array(pairs, dtype=float).reshape(-1, 2)
        return measure_ratio(columns[:, 0] + level, columns[:, 1] - level)

    whole = measured([pair for part in parts for pair in part])
    added = sum(map(measured, parts), RatioMoments())
    assert added.n == whole.n
    # A double at 1e7 holds nine digits behind the point, and deviations reach 1e6.
    scale = 1e-9 * (1.0 + whole.numerator.squares + whole.denominator.squares)
    assert added.products == pytest.approx(whole.products, abs=scale, rel=1e-9)
    for one, other in [(added.numerator, whole.numerator), (added.denominator, whole.denominator)]:
        assert one.mean == pytest.approx(other.mean, abs=1e-8)
        assert one.squares == pytest.approx(other.squares, abs=scale, rel=1e-9)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS, st.integers(-1, 2)), max_size=40))
def test_moments_by_arm_are_those_of_each_arm_alone(rows):
    above, below, arms = (np.array([row[i] for row in rows]) for i in range(3))
    arms = arms.astype(np.int8)
    found = measure_ratio_by_arm(above, below, arms, num_arms=3)
    for one, other in zip(found, measure_by_arm(above, arms, num_arms=3), strict=True):
        assert (one.n, one.numerator.mean) == (other.n, pytest.approx(other.mean, abs=1e-8))
    for arm, one in enumerate(found):
        mine = arms == arm
        alone = measure_ratio(above[mine], below[mine])
        assert one.n == mine.sum()
        assert one.numerator.mean == pytest.approx(alone.numerator.mean, abs=1e-8)
        assert one.products == pytest.approx(alone.products, rel=1e-9, abs=1e-3)
        if one.n > 1:
            covariance = np.cov(above[mine], below[mine])
            assert one.numerator.variance == pytest.approx(covariance[0, 0], rel=1e-9, abs=1e-9)
            assert one.denominator.variance == pytest.approx(covariance[1, 1], rel=1e-9, abs=1e-9)
            assert one.products / (one.n - 1) == pytest.approx(covariance[0, 1], rel=1e-9, abs=1e-3)


def test_moments_of_counts_are_exact_and_those_of_their_floats():
    draw = np.random.default_rng(2)
    above, below, arms = draw.integers(-50, 5000, 999), draw.integers(0, 90, 999), draw.integers(0, 3, 999)
    exact = measure_ratio_by_arm(above, below, arms, num_arms=4)
    floats = measure_ratio_by_arm(above + 0.5, below + 0.25, arms, num_arms=4)
    for one, other in zip(exact, floats, strict=True):
        assert one.numerator.squares == pytest.approx(other.numerator.squares, rel=1e-12)
        assert one.denominator.squares == pytest.approx(other.denominator.squares, rel=1e-12)
        assert one.products == pytest.approx(other.products, rel=1e-10)
    mine = above[arms == 1].tolist()
    mean = Fraction(sum(mine), len(mine))
    assert exact[1].numerator.squares == float(sum((value - mean) ** 2 for value in mine))
    assert exact[1].numerator.mean == float(mean)


@pytest.mark.parametrize("value", [0.1, 7, 1 / 3, 1e7 + 0.1, -7e-9, 1e150])
@pytest.mark.parametrize("shift", [None, 0.0, 3.3])
def test_equal_values_have_no_variance(value, shift):
    found = measure([value] * 1001, shift=shift)
    assert found.squares == 0.0
    assert found.mean == pytest.approx(value, rel=1e-14)
    assert (found + measure([value] * 77)).squares == 0.0


def test_difference_of_means_keeps_its_digits():
    one, other = measure([1e12 + 0.25, 1e12 + 0.5]), measure([1e12 - 0.25, 1e12])
    assert one.mean_beyond(other) == 0.5


def test_nothing_has_no_moments_and_adds_nothing():
    some = measure([1.0, 2.0])
    assert measure([]) == Moments() == Moments(0, 0.0, 0.0, 0.0)
    assert some + Moments() == some == Moments() + some
    assert (Moments().variance, measure([5]).variance) == (None, None)
    assert measure_ratio([], []) + measure_ratio([1, 2], [3, 5]) == measure_ratio([1, 2], [3, 5])
    assert measure_ratio_by_arm([1], [2], [1], num_arms=3)[2] == RatioMoments()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure([1.0, 2.0, float("nan")]), "a value is nan, at 2 of 3"),
        (lambda: measure([float("inf"), 2.0]), "a value is inf, at 0 of 2"),
        (lambda: measure([1e200, -1e200]), "too large"),
        (lambda: measure_ratio([1.0, 2.0], [1.0, float("nan")]), "a value is nan, at 1 of 2"),
        (lambda: measure_ratio([1.0, 2.0], [1.0]), "one arm per value is needed"),
        (lambda: measure_by_arm([1.0, 2.0], [0.0, 1.0], num_arms=2), "arms are whole numbers, got float64"),
        (lambda: measure_by_arm([1.0, 2.0], [0, 2], num_arms=2), "an arm 2 is beyond the 2 arms"),
    ],
)
def test_values_that_have_no_moments_are_refused(call, message):
    with pytest.raises(CallError, match=message):
        call()
