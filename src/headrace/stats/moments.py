"""Counts, means and (co)variances of values, per arm, mergeable.

Plain sums of squares lose every digit at a mean of 1e7. Here a value near the data, the shift, is taken off first, and
deviations are squared only once the mean is off as well; that reaches scipy's digits on NIST's hard sets. Counts, which
are small whole numbers, are summed exactly instead: they give the same bits in whatever order they come. Parts of the
data are measured apart and added: `measure(part) + measure(rest)`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from headrace.base.errors import CallError

Floats = NDArray[np.float64]

# Whole numbers up to here are doubles without rounding.
_EXACT = 2.0**53

# A spread below the rounding of the offset it was measured from is none.
_ROUNDING = 4 * sys.float_info.epsilon


@dataclass(frozen=True, slots=True)
class Moments:
    """What is known of some values. `Moments()` is that of none, and adds nothing."""

    n: int = 0
    shift: float = 0.0
    offset: float = 0.0
    """The mean less the shift: two means of one shift differ by their offsets, to all digits."""
    squares: float = 0.0
    """The sum of the squared deviations from the mean."""

    @property
    def mean(self) -> float:
        """The mean of the values; 0 if there are none."""
        return self.shift + self.offset

    @property
    def variance(self) -> float | None:
        """The variance of the values with n - 1 below; None for fewer than two."""
        return self.squares / (self.n - 1) if self.n > 1 else None

    def mean_beyond(self, other: Moments) -> float:
        """Returns this mean less the other's.

        >>> round(measure([10000000.2, 10000000.4]).mean_beyond(measure([10000000.1, 10000000.3])), 6)
        0.1
        """
        return (self.shift - other.shift) + (self.offset - other.offset)

    def __add__(self, other: Moments) -> Moments:
        if not self.n or not other.n:
            return other if not self.n else self
        n = self.n + other.n
        gap, share = other.mean_beyond(self), other.n / n
        offset = self.offset + gap * share
        squares = self.squares + other.squares + gap * gap * self.n * share
        flat = math.sqrt(squares) <= math.sqrt(n) * _ROUNDING * abs(offset)
        return Moments(n, self.shift, offset, 0.0 if flat else squares)


@dataclass(frozen=True, slots=True)
class RatioMoments:
    """What is known of pairs, one per visitor, whose ratio of sums is asked for: clicks over views."""

    numerator: Moments = Moments()
    denominator: Moments = Moments()
    products: float = 0.0
    """The sum of the products of both deviations from their means."""

    @property
    def n(self) -> int:
        """How many visitors there are."""
        return self.numerator.n

    def __add__(self, other: RatioMoments) -> RatioMoments:
        numerator, denominator = self.numerator + other.numerator, self.denominator + other.denominator
        if not self.n or not other.n:
            return RatioMoments(numerator, denominator, self.products + other.products)
        gaps = other.numerator.mean_beyond(self.numerator) * other.denominator.mean_beyond(self.denominator)
        products = self.products + other.products + gaps * self.n * (other.n / numerator.n)
        flat = not numerator.squares or not denominator.squares
        return RatioMoments(numerator, denominator, 0.0 if flat else products)


def measure(values: ArrayLike, *, shift: float | None = None) -> Moments:
    """Returns the moments of values; `shift` is any number near them, unless given the first one (for counts 0).

    >>> moments = measure([10000000.2, 10000000.1, 10000000.3])
    >>> moments.n, round(moments.mean, 6), round(moments.variance, 6)
    (3, 10000000.2, 0.01)
    >>> both = measure([1, 2]) + measure([3, 4])
    >>> both.mean, both.squares
    (2.5, 5.0)
    """
    listed = _floats(values)
    return measure_by_arm(listed, np.zeros(listed.size, dtype=np.intp), num_arms=1, shift=shift)[0]


def measure_by_arm(values: ArrayLike, arms: ArrayLike, *, num_arms: int, shift: float | None = None) -> list[Moments]:
    """Returns the moments of the values of each arm, 0 to num_arms - 1; those of a negative arm are left out.

    >>> [moments.mean for moments in measure_by_arm([1, 2, 3, 9], [0, 1, 0, -1], num_arms=2)]
    [2.0, 2.0]
    """
    (listed,), kept = _enrolled([_floats(values)], arms, num_arms)
    counts = np.bincount(kept, minlength=num_arms)
    if shift is None and _are_counts([listed]):
        return _count(listed, kept, counts)[0]
    return _centre(listed, kept, counts, shift=shift)[0]


def measure_ratio(numerators: ArrayLike, denominators: ArrayLike) -> RatioMoments:
    """Returns the moments of one pair per visitor.

    >>> measure_ratio([1, 0, 2], [10, 10, 10]).numerator.mean
    1.0
    """
    above = _floats(numerators)
    return measure_ratio_by_arm(above, denominators, np.zeros(above.size, dtype=np.intp), num_arms=1)[0]


def measure_ratio_by_arm(
    numerators: ArrayLike, denominators: ArrayLike, arms: ArrayLike, *, num_arms: int
) -> list[RatioMoments]:
    """Returns the moments of the pairs of each arm, 0 to num_arms - 1; those of a negative arm are left out.

    >>> control, treatment = measure_ratio_by_arm([1, 0, 2, 1], [10, 10, 20, 5], [0, 1, 0, 1], num_arms=2)
    >>> control.n, control.numerator.mean, control.denominator.mean
    (2, 1.5, 15.0)
    """
    (above, below), kept = _enrolled([_floats(numerators), _floats(denominators)], arms, num_arms)
    counts = np.bincount(kept, minlength=num_arms)
    if _are_counts([above, below]):
        return _count_pairs(above, below, kept, counts)
    upper, above_beyond = _centre(above, kept, counts)
    lower, below_beyond = _centre(below, kept, counts)
    with np.errstate(over="ignore", invalid="ignore"):
        products: Floats = np.bincount(kept, above_beyond * below_beyond, num_arms).astype(np.float64)
    _check_finite(products, [above, below])
    return _join(upper, lower, products.tolist())


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64).reshape(-1)


def _enrolled(columns: Sequence[Floats], arms: ArrayLike, num_arms: int) -> tuple[list[Floats], NDArray[np.intp]]:
    """Returns the values of those who have an arm, and their arms."""
    given = np.asarray(arms)
    if any(column.size != given.size for column in columns):
        raise CallError(f"one arm per value is needed: {[column.size for column in columns]} values, {given.size} arms")
    if given.size and given.dtype.kind not in "iub":
        raise CallError(f"arms are whole numbers, got {given.dtype}")
    kept = given.astype(np.intp).reshape(-1)
    if kept.size and kept.max() >= num_arms:
        raise CallError(f"an arm {kept.max()} is beyond the {num_arms} arms from 0 to {num_arms - 1}")
    if kept.size and kept.min() < 0:
        inside = kept >= 0
        return [column[inside] for column in columns], kept[inside]
    return list(columns), kept


def _are_counts(columns: Sequence[Floats]) -> bool:
    """Returns whether all sums of the values, their squares and products are whole numbers that a double holds."""
    if not all(column.size for column in columns):
        return False
    largest = max(max(abs(float(column.max())), abs(float(column.min()))) for column in columns)
    # NaN fails the comparison too.
    if not columns[0].size * max(largest, 1.0) * max(largest, 1.0) <= _EXACT:
        return False
    return all(bool((column == np.rint(column)).all()) for column in columns)


def _count(values: Floats, arms: NDArray[np.intp], counts: NDArray[np.intp]) -> tuple[list[Moments], list[float]]:
    """Returns the moments of counts, and their sums, without any rounding before the last step."""
    totals = np.bincount(arms, values, counts.size).tolist()
    squares = np.bincount(arms, values * values, counts.size).tolist()
    rows = zip(counts.tolist(), totals, squares, strict=True)
    return [
        Moments(n, 0.0, total / n, _spread(n, square, total, total)) if n else Moments() for n, total, square in rows
    ], totals


def _count_pairs(above: Floats, below: Floats, arms: NDArray[np.intp], counts: NDArray[np.intp]) -> list[RatioMoments]:
    upper, upper_totals = _count(above, arms, counts)
    lower, lower_totals = _count(below, arms, counts)
    sums = np.bincount(arms, above * below, counts.size).tolist()
    rows = zip(counts.tolist(), sums, upper_totals, lower_totals, strict=True)
    return _join(upper, lower, [_spread(*row) if row[0] else 0.0 for row in rows])


def _spread(n: int, products: float, total: float, other: float) -> float:
    """Returns the sum of products of deviations; Python's whole numbers lose nothing where the two terms cancel."""
    return (n * int(products) - int(total) * int(other)) / n


def _join(upper: Sequence[Moments], lower: Sequence[Moments], products: Sequence[float]) -> list[RatioMoments]:
    return [
        RatioMoments(one, other, product if one.squares and other.squares else 0.0)
        for one, other, product in zip(upper, lower, products, strict=True)
    ]


def _centre(
    values: Floats, arms: NDArray[np.intp], counts: NDArray[np.intp], *, shift: float | None = None
) -> tuple[list[Moments], Floats]:
    """Returns the moments of each arm, and how far each value lies from the mean of its arm."""
    if shift is None:
        shift = float(values[0]) if values.size else 0.0
    num_arms, divisors = counts.size, np.maximum(counts, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        beyond = values - shift
        offsets = np.bincount(arms, beyond, num_arms) / divisors
        beyond -= offsets[arms]
        # A sum over a million values is wrong in its last four digits; what it missed is small and summed exactly.
        missed = np.bincount(arms, beyond, num_arms) / divisors
        beyond -= missed[arms]
        offsets += missed
        squares: Floats = np.bincount(arms, beyond * beyond, num_arms).astype(np.float64)
        squares[np.sqrt(squares) <= np.sqrt(counts) * _ROUNDING * np.abs(offsets)] = 0.0
    _check_finite(squares, [values])
    rows = zip(counts.tolist(), offsets.tolist(), squares.tolist(), strict=True)
    return [Moments(n, shift, offset, square) if n else Moments() for n, offset, square in rows], beyond


def _check_finite(sums: Floats, columns: Sequence[Floats]) -> None:
    if np.isfinite(sums).all():
        return
    for column in columns:
        wrong = np.flatnonzero(~np.isfinite(column))
        if wrong.size:
            raise CallError(f"a value is {column[wrong[0]]}, at {wrong[0]} of {column.size}; leave such visitors out")
    raise CallError("the values are too large: their squares go beyond what a double can hold")
