"""Offline metrics, by numbers that can be checked by hand."""

import math

import numpy as np
import pytest

from headrace.models.metrics import bound_gain, calibration, correlate_scores, log_loss, measure_ranking
from headrace.models.rows import Rows


def make_rows(pages, positions, clicked, persons=None):
    """Returns rows without inputs; items are named by their number."""
    size = len(pages)
    zeros = np.zeros(size, np.int64)
    return Rows(
        at_us=zeros,
        received_us=zeros,
        pages=np.array(pages),
        persons=np.array(pages if persons is None else persons),
        items=np.arange(size),
        names=[f"item-{number}" for number in range(size)],
        positions=np.array(positions),
        propensities=np.ones(size),
        clicked=np.array(clicked, bool),
        inputs=(),
    )


def test_ndcg_weighs_a_click_by_how_few_looked_there():
    rows = make_rows([0, 0, 0], [1, 2, 4], [1, 0, 1])
    # With examination 1 / position the click on position 4 counts four times that on position 1.
    found = measure_ranking(rows, np.array([0.9, 0.5, 0.1]), examination=-1.0)
    best = 4 / math.log2(2) + 1 / math.log2(3)
    assert found.ndcg == pytest.approx((1 / math.log2(2) + 4 / math.log2(4)) / best)
    assert measure_ranking(rows, np.array([0.5, 0.1, 0.9]), examination=-1.0).ndcg == 1.0


def test_recall_is_the_share_of_clicks_among_the_first_three():
    rows = make_rows([0] * 5 + [1] * 2, [1, 2, 3, 4, 5, 1, 2], [1, 0, 0, 0, 1, 0, 1])
    scores = np.array([5.0, 4.0, 3.0, 2.0, 1.0, 1.0, 2.0])
    assert measure_ranking(rows, scores, examination=0.0).recall == pytest.approx(2 / 3)


def test_equal_scores_are_ordered_by_item_and_not_by_position():
    rows = make_rows([0, 0], [2, 1], [1, 0])
    assert measure_ranking(rows, np.zeros(2), examination=0.0).ndcg == 1.0


def test_gain_is_bounded_over_persons_and_the_same_each_time():
    pages = np.repeat(np.arange(200), 2)
    clicked = np.tile([True, False], 200)
    rows = make_rows(pages, np.tile([1, 2], 200), clicked)
    right, draw = clicked.astype(float), np.random.default_rng(1)
    noisy = right + draw.normal(0, 2, len(right))
    one, other = (measure_ranking(rows, scores, examination=0.0) for scores in (right, noisy))
    bound = bound_gain(one, other, quantile=0.2)
    assert 0 < bound < one.ndcg - other.ndcg
    assert bound == bound_gain(one, other, quantile=0.2)
    assert bound_gain(other, one, quantile=0.2) < 0


def test_scores_that_are_turned_round_correlate_by_minus_one():
    rows = make_rows([0, 0, 1, 1], [1, 2, 1, 2], [1, 0, 0, 1])
    scores = np.array([0.1, 0.4, 7.0, 7.5])
    assert correlate_scores(rows, scores, scores + np.array([3, 3, 9, 9])) == pytest.approx(1.0)
    assert correlate_scores(rows, scores, -scores) == pytest.approx(-1.0)
    assert correlate_scores(rows, scores, np.ones(4)) == 0.0


def test_log_loss_and_calibration_count_rows_by_their_weight():
    clicked, weights = np.array([True, False]), np.array([3.0, 1.0])
    odds = np.log(np.array([0.8, 0.5]) / np.array([0.2, 0.5]))
    assert log_loss(odds, clicked, weights) == pytest.approx(-(3 * math.log(0.8) + math.log(0.5)) / 4)
    assert calibration(np.array([0.8, 0.5]), clicked, weights) == pytest.approx((2.4 + 0.5) / 3)
