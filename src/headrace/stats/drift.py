"""Whether two samples come from one distribution, and how far they are apart: PSI, Kolmogorov-Smirnov, chi-square.

At 100,000 values a p value accuses everything, so each comparison also says how large the difference is. Without scipy:
whoever looks at a stream has to start in a tenth of a second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from headrace.base.errors import CallError

_BINS = 10
# Below it chi-square is no good approximation: what is rarer is counted together.
_LEAST_EXPECTED = 5.0
_TERMS = 10_000
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Drift:
    """How a sample differs from a reference."""

    psi: float
    """The population stability index less what chance alone gives on average: 0 for the same, 0.25 is a lot."""
    statistic: float
    """Of numbers the largest distance of the distribution functions, of texts chi-square."""
    p: float
    """The chance of a statistic as large where nothing differs."""


def compare_numbers(reference: ArrayLike, sample: ArrayLike) -> Drift:
    """Returns how numbers differ: PSI over the reference's tenths, and the test of Kolmogorov and Smirnov.

    >>> found = compare_numbers(range(1000), range(500, 1500))
    >>> found.statistic, found.psi > 0.25, found.p < 1e-9
    (0.5, True, True)
    """
    first, second = np.sort(np.asarray(reference, np.float64)), np.sort(np.asarray(sample, np.float64))
    _check_sizes(len(first), len(second))
    edges = np.unique(np.quantile(first, np.arange(1, _BINS) / _BINS))
    # Many equal values: an edge on them belongs to the bin below, so that each bin is one that the reference has.
    bins = [np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1) for values in (first, second)]
    every = np.concatenate([first, second])
    below = [np.searchsorted(values, every, side="right") / len(values) for values in (first, second)]
    distance = float(np.max(np.abs(below[0] - below[1])))
    return Drift(_psi(bins[0].tolist(), bins[1].tolist()), distance, _ks_tail(distance, len(first), len(second)))


def compare_texts(reference: Sequence[str], sample: Sequence[str]) -> Drift:
    """Returns how texts differ: PSI over the texts, and the test of chi-square; the rare ones count as one.

    >>> found = compare_texts(["drama", "crime"] * 500, ["drama", "crime", "crime", "crime"] * 100)
    >>> round(found.psi, 2), found.p < 1e-9
    (0.27, True)
    """
    _check_sizes(len(reference), len(sample))
    counts = [Counter(reference), Counter(sample)]
    whole = len(reference) + len(sample)
    least = _LEAST_EXPECTED * whole / min(len(reference), len(sample))
    often = [text for text in counts[0] | counts[1] if counts[0][text] + counts[1][text] >= least]
    rows = [[each[text] for text in often] for each in counts]
    for row, size in zip(rows, (len(reference), len(sample)), strict=True):
        row.append(size - sum(row))
    columns = [pair for pair in zip(*rows, strict=True) if sum(pair)]
    statistic = sum(
        (count - (wanted := sum(pair) * size / whole)) ** 2 / wanted
        for pair in columns
        for count, size in zip(pair, (len(reference), len(sample)), strict=True)
    )
    psi = _psi([pair[0] for pair in columns], [pair[1] for pair in columns])
    return Drift(psi, statistic, chi_square_tail(statistic, len(columns) - 1))


def find_discoveries(ps: Sequence[float], *, rate: float) -> list[bool]:
    """Returns which of some p values stand out, with a share of `rate` of false ones among them at most.

    By Benjamini and Hochberg (1995): the largest k of the sorted ones with p <= k / n * rate, and all below it.

    >>> find_discoveries([0.001, 0.8, 0.02, 0.03], rate=0.05)
    [True, False, True, True]
    """
    ordered = sorted(ps)
    passed = [p for rank, p in enumerate(ordered, start=1) if p <= rank / len(ordered) * rate]
    return [bool(passed) and p <= passed[-1] for p in ps]


def chi_square_tail(statistic: float, freedom: int) -> float:
    """Returns the chance that chi-square exceeds a number: the upper incomplete gamma function.

    >>> round(chi_square_tail(3.841458820694124, 1), 12)
    0.05
    """
    if freedom < 1 or statistic <= 0:
        return 1.0
    a, x = freedom / 2, statistic / 2
    front = math.exp(a * math.log(x) - x - math.lgamma(a))
    return 1 - front * _series(a, x) if x < a + 1 else front * _fraction(a, x)


def _series(a: float, x: float) -> float:
    term = total = 1 / a
    for number in range(1, _TERMS):
        term *= x / (a + number)
        total += term
        if term < total * 1e-17:
            break
    return total


def _fraction(a: float, x: float) -> float:
    """Returns the continued fraction of the incomplete gamma function, by Lentz's method."""
    b = x + 1 - a
    c, d = 1 / _TINY, 1 / b
    found = d
    for number in range(1, _TERMS):
        part = -number * (number - a)
        b += 2
        d = 1 / (part * d + b or _TINY)
        c = b + part / c or _TINY
        found *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return found


def _ks_tail(distance: float, first: int, second: int) -> float:
    """Returns Kolmogorov's limit, with the correction of Stephens (1970) for few values."""
    size = math.sqrt(first * second / (first + second))
    scaled = (size + 0.12 + 0.11 / size) * distance
    if scaled < 0.2:
        return 1.0
    terms = (math.exp(-2 * (k * scaled) ** 2) * (-1) ** (k - 1) for k in range(1, 101))
    return min(max(2 * math.fsum(terms), 0.0), 1.0)


def _psi(reference: Sequence[int], sample: Sequence[int]) -> float:
    bins, sizes = len(reference), (sum(reference), sum(sample))
    total = 0.0
    for counts in zip(reference, sample, strict=True):
        # Half a value more in each bin: an empty one would make it infinite.
        expected, found = ((count + 0.5) / (size + bins / 2) for count, size in zip(counts, sizes, strict=True))
        total += (found - expected) * math.log(found / expected)
    return total - (bins - 1) * (1 / sizes[0] + 1 / sizes[1])


def _check_sizes(first: int, second: int) -> None:
    if not first or not second:
        raise CallError(f"two samples are needed to compare them, got {first} and {second} values")
