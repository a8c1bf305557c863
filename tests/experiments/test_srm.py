"""Sample ratio mismatch is scipy's chi-square, and exact where that accuses too often."""

import numpy as np
import pytest
from scipy import stats

from headrace.base.errors import CallError
from headrace.experiments.srm import check_ratio, explain_ratio
from headrace.experiments.verdict import SRM_ALPHA

NAMES = ["control", "treatment"]


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ([5021, 4979], [0.5, 0.5]),
        ([821_588, 815_482], [0.5, 0.5]),
        ([120, 280, 610], [0.1, 0.3, 0.6]),
        ([900, 100], [9, 1]),
    ],
)
def test_probability_is_that_of_scipy(counts, weights):
    expected = np.array(weights) / sum(weights) * sum(counts)
    found = check_ratio(counts, weights)
    assert found.p == pytest.approx(stats.chisquare(counts, expected).pvalue, rel=1e-9)
    assert found.expected == pytest.approx(expected)
    assert found.is_ok == (found.p >= SRM_ALPHA)


def test_probability_of_few_visitors_is_the_exact_one():
    assert check_ratio([2, 18], [0.01, 0.99]).p == pytest.approx(2 * stats.binom.sf(1, 20, 0.01))
    assert check_ratio([0, 10], [0.5, 0.5]).p == pytest.approx(stats.binomtest(0, 10).pvalue)
    assert check_ratio([0, 10, 0], [1, 1, 1]).p == pytest.approx(3 * 2 * stats.binom.sf(9, 10, 1 / 3))


@pytest.mark.parametrize(("total", "share"), [(20, 0.01), (49, 0.1), (49, 0.5), (500, 0.01), (2400, 0.01)])
def test_few_visitors_are_accused_no_more_often_than_promised(total, share):
    counts = np.arange(total + 1)
    accused = [not check_ratio([count, total - count], [share, 1 - share]).is_ok for count in counts.tolist()]
    assert stats.binom.pmf(counts, total, share)[accused].sum() <= SRM_ALPHA


def test_arm_that_got_nobody_is_a_mismatch():
    found = check_ratio([0, 1000], [0.5, 0.5])
    assert not found.is_ok
    assert found.p < 1e-200


def test_arm_without_weight_may_hold_nobody():
    assert check_ratio([500, 500, 0], [0.5, 0.5, 0.0]).p == check_ratio([500, 500], [0.5, 0.5]).p
    assert check_ratio([10, 0], [1.0, 0.0]).is_ok
    assert check_ratio([500, 500, 1], [0.5, 0.5, 0.0]).p == 0.0


def test_no_visitor_accuses_nobody():
    found = check_ratio([0, 0], [0.5, 0.5])
    assert (found.p, found.is_ok, found.expected) == (1.0, True, (0.0, 0.0))
    assert explain_ratio(found, NAMES) == "no visitor is enrolled, so there is no ratio to check"


def test_mismatch_is_said_with_its_numbers():
    assert explain_ratio(check_ratio([5210, 4791], [0.5, 0.5]), NAMES) == (
        "sample ratio mismatch: control 5,210 (5,000 expected), treatment 4,791 (5,000 expected), p = 2.8e-05. "
        "Visitors are lost or doubled in one arm, so no lift can be trusted: look for an arm that fails or is slow, "
        "for bots, and for decisions that were not logged"
    )
    assert explain_ratio(check_ratio([3, 4], [0.5, 0.5]), NAMES) == (
        "the visitors fit the weights: control 3 (3.5 expected), treatment 4 (3.5 expected), p = 1"
    )


@pytest.mark.parametrize(
    ("counts", "weights", "message"),
    [
        ([1], [1.0], "two at least"),
        ([1, 2], [0.5, 0.25, 0.25], "one count per weight"),
        ([-1, 2], [0.5, 0.5], "0 or more"),
        ([1, 2], [0.0, 0.0], "not all 0"),
        ([1, 2], [float("nan"), 0.5], "weights are 0 or more"),
    ],
)
def test_counts_that_fit_no_weights_are_refused(counts, weights, message):
    with pytest.raises(CallError, match=message):
        check_ratio(counts, weights)
