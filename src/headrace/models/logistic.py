"""A logistic regression whose bytes follow from its rows alone, whatever number of threads the machine has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.base.errors import StopError

_MOST_STEPS = 50
_MOST_HALVINGS = 30
_CLOSE = 1e-9

Columns = Sequence[NDArray[np.float64]]


@dataclass(frozen=True)
class Logistic:
    """Weights in log-odds: of 1 and of each column."""

    intercept: float
    weights: NDArray[np.float64]

    def odds(self, columns: Columns) -> NDArray[np.float64]:
        """Returns the log-odds of each row."""
        # Column by column: a product of matrices is added up in an order that the number of threads decides.
        found = np.full(len(columns[0]), self.intercept)
        for weight, column in zip(self.weights.tolist(), columns, strict=True):
            if weight:
                found += weight * column
        return found


def chance_of(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the chance of log-odds.

    >>> chance_of(np.array([0.0, 800.0, -800.0])).round(9).tolist()
    [0.5, 1.0, 0.0]
    """
    found: NDArray[np.float64] = 1.0 / (1.0 + np.exp(-np.clip(odds, -700.0, 700.0)))
    return found


@dataclass(frozen=True)
class _Task:
    """What is to be fitted; the first column is 1."""

    columns: Columns
    clicked: NDArray[np.bool_]
    weights: NDArray[np.float64]
    penalty: NDArray[np.float64]

    def odds(self, found: NDArray[np.float64]) -> NDArray[np.float64]:
        return Logistic(0.0, found).odds(self.columns)


def fit_logistic(
    columns: Columns, clicked: NDArray[np.bool_], *, weights: NDArray[np.float64], ridge: Sequence[float]
) -> Logistic:
    """Returns the regression of clicks on columns, by Newton's method; `ridge` is what holds each weight near 0."""
    task = _Task([np.ones(len(clicked)), *columns], clicked, weights, np.array([0.0, *ridge]))
    found = np.zeros(len(task.columns))
    share = float((weights * clicked).sum() / weights.sum())
    found[0] = np.log(share / (1 - share))
    loss = _loss(task, found)
    for _ in range(_MOST_STEPS):
        step = _step(task, found)
        for _ in range(_MOST_HALVINGS):
            tried = _loss(task, found + step)
            if tried <= loss + abs(loss) * 1e-12:
                break
            step = step / 2
        found, loss = found + step, tried
        if np.abs(step).max() < _CLOSE:
            return Logistic(float(found[0]), found[1:])
    raise StopError(
        f"the regression of {len(clicked):,} rows on {len(columns)} columns came to no end in {_MOST_STEPS} steps. "
        "Give click_model a larger l2"
    )


def _loss(task: _Task, found: NDArray[np.float64]) -> float:
    odds = task.odds(found)
    rows = np.logaddexp(0.0, np.where(task.clicked, -odds, odds))
    return float((task.weights * rows).sum() + 0.5 * (task.penalty * found**2).sum())


def _step(task: _Task, found: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns how far Newton's method goes from here."""
    chance = chance_of(task.odds(found))
    pull = task.weights * (task.clicked - chance)
    slope = np.array([(column * pull).sum() for column in task.columns]) - task.penalty * found
    curve = task.weights * chance * (1 - chance)
    bend = np.diag(task.penalty)
    for row, one in enumerate(task.columns):
        bent = one * curve
        for place in range(row + 1):
            bend[row, place] += float((bent * task.columns[place]).sum())
            bend[place, row] = bend[row, place]
    return _solve(bend, slope)


def _solve(matrix: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the solution by Cholesky's method, a few dozen numbers at most: the same bytes from every library."""
    size = len(right)
    # What is all but a sum of other columns gets next to no step instead of a huge one.
    floor = 1e-12 * float(np.diag(matrix).max())
    lower = np.zeros((size, size))
    for row in range(size):
        for place in range(row):
            known = float((lower[row, :place] * lower[place, :place]).sum())
            lower[row, place] = (matrix[row, place] - known) / lower[place, place]
        left = matrix[row, row] - float((lower[row, :row] ** 2).sum())
        lower[row, row] = np.sqrt(max(left, floor))
    half = np.zeros(size)
    for row in range(size):
        half[row] = (right[row] - float((lower[row, :row] * half[:row]).sum())) / lower[row, row]
    found = np.zeros(size)
    for row in reversed(range(size)):
        found[row] = (half[row] - float((lower[row + 1 :, row] * found[row + 1 :]).sum())) / lower[row, row]
    return found
