"""Drift against scipy, number by number, and against chance."""

import numpy as np
import pytest
from scipy import special, stats

from headrace.base.errors import CallError
from headrace.stats.drift import chi_square_tail, compare_numbers, compare_texts, find_discoveries

RANDOM = np.random.default_rng(20261122)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 11, 40, 239])
@pytest.mark.parametrize("statistic", [1e-6, 0.3, 1.0, 5.0, 11.0, 39.0, 120.0, 700.0])
def test_chi_square_tail_equals_scipys(statistic, freedom):
    assert chi_square_tail(statistic, freedom) == pytest.approx(stats.chi2.sf(statistic, freedom), rel=1e-9, abs=1e-15)


def test_texts_give_scipys_chi_square():
    reference, sample = (RANDOM.choice(list("abcdef"), size).tolist() for size in (900, 400))
    found = compare_texts(reference, sample)
    table = [[values.count(letter) for letter in "abcdef"] for values in (reference, sample)]
    wanted = stats.chi2_contingency(table, correction=False)
    assert (found.statistic, found.p) == pytest.approx((wanted.statistic, wanted.pvalue), rel=1e-9)


def test_rare_texts_are_counted_as_one():
    reference = ["often"] * 500 + [f"rare-{n}" for n in range(500)]
    assert compare_texts(reference, ["often"] * 150 + [f"new-{n}" for n in range(150)]).p > 0.9


@pytest.mark.parametrize(("sizes", "shift"), [((500, 300), 0.1), ((1500, 300), 0.02), ((50, 70), 0.5)])
def test_numbers_give_scipys_distance_and_nearly_its_p(sizes, shift):
    reference, sample = RANDOM.normal(size=sizes[0]), RANDOM.normal(shift, size=sizes[1])
    found, wanted = compare_numbers(reference, sample), stats.ks_2samp(reference, sample, method="exact")
    assert found.statistic == pytest.approx(wanted.statistic, abs=1e-12)
    assert found.p == pytest.approx(wanted.pvalue, rel=0.15)


def test_kolmogorovs_limit_is_scipys_for_many_values():
    reference, sample = RANDOM.normal(size=20_000), RANDOM.normal(0.02, size=20_000)
    found = compare_numbers(reference, sample)
    assert found.p == pytest.approx(special.kolmogorov(100 * found.statistic), rel=0.02)


def test_psi_of_numbers_is_that_of_the_references_tenths():
    reference, sample = np.arange(1000.0), np.concatenate([np.arange(500.0), np.arange(500.0)])
    # Five tenths hold twice as much, five nothing: 0.5 ln 2, and what half a value a bin makes of 0.5 ln(0.1 / 0).
    shares = np.array([200.5] * 5 + [0.5] * 5) / 1005, np.array([100.5] * 10) / 1005
    wanted = float(np.sum((shares[0] - shares[1]) * np.log(shares[0] / shares[1]))) - 9 * 2 / 1000
    assert compare_numbers(reference, sample).psi == pytest.approx(wanted, rel=1e-9)


def test_psi_is_nothing_on_average_where_nothing_differs():
    """Of 400 means of this spread (0.002) one leaves 0.012 with a chance of 1e-8."""
    numbers = [compare_numbers(RANDOM.normal(size=500), RANDOM.normal(size=300)).psi for _ in range(400)]
    letters = list("abcdefghijkl")
    texts = [compare_texts(RANDOM.choice(letters, 500).tolist(), RANDOM.choice(letters, 300).tolist()).psi
             for _ in range(100)]  # fmt: skip
    assert abs(np.mean(numbers)) < 0.012
    assert abs(np.mean(texts)) < 0.02


def test_p_accuses_at_a_hundred_thousand_what_psi_calls_nothing():
    found = compare_numbers(RANDOM.normal(size=100_000), RANDOM.normal(0.03, size=100_000))
    assert found.p < 1e-6
    assert found.psi < 0.01


def test_numbers_that_are_all_equal_have_not_changed():
    assert compare_numbers([7.0] * 100, [7.0] * 50).p == 1.0
    assert compare_numbers([7.0] * 100, [8.0] * 50).psi > 1


def test_discoveries_are_those_of_scipy():
    for _ in range(50):
        ps = np.concatenate([RANDOM.uniform(size=15), RANDOM.uniform(0, 0.01, size=5)])
        wanted = stats.false_discovery_control(ps, method="bh") <= 0.05
        assert find_discoveries(ps.tolist(), rate=0.05) == wanted.tolist()
    assert find_discoveries([], rate=0.05) == []


def test_nothing_to_compare_is_said():
    with pytest.raises(CallError, match="got 0 and 3 values"):
        compare_numbers([], [1.0, 2.0, 3.0])
