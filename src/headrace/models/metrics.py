"""Offline metrics of a ranking, from items that were viewed, at positions that drew different numbers of eyes.

A click at position 7 says more of an item than one at position 1, for fewer people look there: each counts by 1 over
the chance that its position is examined. All are ratios of sums over pages, so that each click counts alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.models.rows import Rows

MOST_RANKS = 10
RECALLED = 3
"""Recall is the share of clicks on the first so many items of each page."""

SEED = 7
"""What the samples of persons follow from."""

_RESAMPLES = 500

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Ranking:
    """What a ranking earned, by the number of the person: NDCG and recall are ratios of sums."""

    gained: Sums
    best: Sums
    recalled: Sums
    clicked: Sums

    @property
    def ndcg(self) -> float:
        """The gains of clicks, discounted by their rank up to 10, as a share of the best order's."""
        return float(self.gained.sum() / self.best.sum())

    @property
    def recall(self) -> float:
        """The share of clicks, by weight, among the first three of each page."""
        return float(self.recalled.sum() / self.clicked.sum())


def measure_ranking(rows: Rows, scores: NDArray[np.float64], *, examination: float) -> Ranking:
    """Returns what ranking each page's viewed items by scores earns.

    A position is examined with the chance `position ** examination`.
    """
    gains = np.where(rows.clicked, rows.positions ** -np.clip(examination, -3.0, 0.0), 0.0)
    ranks, best = _ranks(rows, scores), _ranks(rows, gains)
    size = int(rows.persons.max()) + 1
    kinds = (gains * _discount(ranks), gains * _discount(best), gains * (ranks <= RECALLED), gains)
    gained, most, recalled, clicked = (np.bincount(rows.persons, values, size).astype(np.float64) for values in kinds)
    return Ranking(gained, most, recalled, clicked)


def _ranks(rows: Rows, scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the rank of each row within its page, from 1; of equals the first by the item's id."""
    order = np.lexsort((rows.items, -scores, rows.pages))
    pages = rows.pages[order]
    starts = np.flatnonzero(np.r_[True, pages[1:] != pages[:-1]])
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)])) + 1
    return ranks


def _discount(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.where(ranks <= MOST_RANKS, 1.0 / np.log2(ranks + 1.0), 0.0)


def bound_gain(one: Ranking, other: Ranking, *, quantile: float) -> float:
    """Returns a quantile of one's NDCG less the other's, over samples of the persons with replacement, by one seed."""
    kept = np.flatnonzero(one.best > 0)
    draw = np.random.default_rng(SEED)
    gains = []
    for _ in range(_RESAMPLES):
        chosen = kept[draw.integers(0, len(kept), len(kept))]
        gains.append((one.gained[chosen] - other.gained[chosen]).sum() / one.best[chosen].sum())
    return float(np.quantile(gains, quantile))


def correlate_scores(rows: Rows, one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Returns how alike two scores order the items of each page: the correlation within pages, 1 for the same."""
    counts = np.maximum(np.bincount(rows.pages), 1)
    first, second = (found - (np.bincount(rows.pages, found) / counts)[rows.pages] for found in (one, other))
    spread = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / spread if spread else 0.0


def log_loss(odds: NDArray[np.float64], clicked: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """Returns the mean of -log of the chance that was given to what happened.

    >>> bool(log_loss(np.zeros(2), np.array([True, False]), np.ones(2)) == np.log(2))
    True
    """
    losses = np.logaddexp(0.0, np.where(clicked, -odds, odds))
    return float((losses * weights).sum() / weights.sum())


def calibration(chances: NDArray[np.float64], clicked: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """Returns the clicks that were expected by those that came."""
    return float((chances * weights).sum() / (clicked * weights).sum())
