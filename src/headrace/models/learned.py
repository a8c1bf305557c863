"""What a click model learns from training rows: the weight of each input, and how inputs are put to scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.models.logistic import chance_of, fit_logistic
from headrace.models.rows import Rows

Arrays = Mapping[str, NDArray[Any]]

# What varies less than this part of its size is told from rounding no more.
_LEAST_SPREAD = 1e-9


def learn(rows: Rows, *, l2: float, most_weight: float) -> dict[str, NDArray[np.float64]]:
    """Returns the arrays of a click model that rows decide.

    The logarithm of the position is a column while it learns, and so is the mean of each column over the page. Without
    those means a weight would say how pages and people differ as well, but ranking needs to know how the items of one
    page do: in six simulated markets the lift over popularity is 54 % on average instead of 49 %.
    """
    means = np.array([values.mean() for values in rows.inputs])
    scales = np.array([values.std() if varies(values) else 0.0 for values in rows.inputs])
    columns, ridge = [np.log(rows.positions)], [0.0]
    for values in _to_scale(rows, means, scales):
        columns += [values, _page_means(rows, values)]
        ridge += [l2, l2]
    found = fit_logistic(columns, rows.clicked, weights=weigh(rows, most_weight), ridge=ridge)
    used = scales > 0
    weights, contexts = np.zeros(len(scales)), np.zeros(len(scales))
    weights[used], contexts[used] = found.weights[1::2], found.weights[2::2]
    base = np.array([found.intercept, found.weights[0]])
    return {"base": base, "weights": weights, "contexts": contexts, "means": means, "scales": scales}


def varies(values: NDArray[np.float64]) -> bool:
    """Returns whether an input is not the same in all rows."""
    return bool(values.std() > _LEAST_SPREAD * max(1.0, float(np.abs(values).max())))


def weigh(rows: Rows, most_weight: float) -> NDArray[np.float64]:
    """Returns what each row counts for: as much more as it was shown by a smaller chance, up to a limit."""
    return np.minimum(1.0 / rows.propensities, most_weight)


def read_odds(arrays: Arrays, rows: Rows) -> NDArray[np.float64]:
    """Returns the log-odds of a click on each row as it was shown: at its position, on its page."""
    used = arrays["scales"] > 0
    odds = arrays["base"][0] + arrays["base"][1] * np.log(rows.positions)
    weighed = zip(arrays["weights"][used].tolist(), arrays["contexts"][used].tolist(), strict=True)
    columns = _to_scale(rows, arrays["means"], arrays["scales"])
    for (weight, context), values in zip(weighed, columns, strict=True):
        odds = odds + weight * values + context * _page_means(rows, values)
    return np.asarray(odds, np.float64)


def read_scores(arrays: Arrays, rows: Rows) -> NDArray[np.float64]:
    """Returns what the items of the rows are ranked by: the chance of a click at position 1."""
    odds = np.full(len(rows), float(arrays["base"][0]))
    columns = _to_scale(rows, arrays["means"], arrays["scales"])
    for weight, values in zip(arrays["weights"][arrays["scales"] > 0].tolist(), columns, strict=True):
        odds += weight * values
    return chance_of(odds)


def _to_scale(rows: Rows, means: NDArray[np.float64], scales: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Returns the inputs that vary, with mean 0 and spread 1 over the rows that means and scales are of."""
    found = zip(rows.inputs, means.tolist(), scales.tolist(), strict=True)
    return [(values - mean) / scale for values, mean, scale in found if scale]


def _page_means(rows: Rows, values: NDArray[np.float64]) -> NDArray[np.float64]:
    size = int(rows.pages.max()) + 1
    counts = np.maximum(np.bincount(rows.pages, minlength=size), 1)
    return np.asarray((np.bincount(rows.pages, values, size) / counts)[rows.pages], np.float64)
