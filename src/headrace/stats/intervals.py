"""Intervals: exact ones for shares of a count, Fieller's for a ratio of two uncertain numbers."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

from scipy import special

from headrace.base.errors import CallError


class Interval(NamedTuple):
    """From `low` to `high`, both inside."""

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


class Estimate(NamedTuple):
    """A number and the variance of its error."""

    value: float
    variance: float


def check_share(name: str, value: float) -> None:
    """Raises a CallError unless a value lies between 0 and 1, both outside."""
    if not 0 < value < 1:
        raise CallError(f"{name} lies between 0 and 1, got {value!r}")


def binomial_band(n: int, share: float, *, false_alarm: float = 0.01) -> tuple[int, int]:
    """Returns the counts, first and last, that n draws of a known share give but for a false alarm.

    Below the band lies at most half of the false alarm's probability, and above it the other half at most. It is exact.

    >>> binomial_band(1000, 0.05)
    (33, 69)
    >>> binomial_band(3, 0.5)
    (0, 3)
    """
    check_share("false_alarm", false_alarm)
    if n < 0 or not 0 <= share <= 1:
        raise CallError(f"a band needs n >= 0 and a share from 0 to 1, got n {n!r} and share {share!r}")
    low = _first(n, lambda count: bool(special.bdtr(count, n, share) > false_alarm / 2))
    high = _first(n, lambda count: bool(special.bdtrc(count, n, share) <= false_alarm / 2))
    return low, high


def share_interval(count: int, n: int, *, alpha: float = 0.05) -> Interval:
    """Returns Clopper and Pearson's interval for the share behind `count` of `n`, which never covers too rarely.

    >>> [round(end, 4) for end in share_interval(0, 10)]
    [0.0, 0.3085]
    >>> [round(end, 4) for end in share_interval(52, 1000)]
    [0.0391, 0.0676]
    """
    check_share("alpha", alpha)
    if not 0 <= count <= n:
        raise CallError(f"a count lies from 0 to n, got {count!r} of {n!r}")
    low = float(special.betaincinv(count, n - count + 1, alpha / 2)) if count else 0.0
    high = float(special.betainccinv(count + 1, n - count, alpha / 2)) if count < n else 1.0
    return Interval(low, high)


def fieller(control: Estimate, treatment: Estimate, *, quantile: float) -> Interval | None:
    """Returns all lifts, treatment / control - 1, that lie within `quantile` standard errors; None if unbounded.

    The set of lifts L with |treatment - (1 + L) control| <= quantile * its standard error holds 0 exactly if the
    difference lies within as many standard errors of 0. It is no finite interval once control itself does so. The two
    estimates are independent.

    >>> [round(end, 4) for end in fieller(Estimate(0.10, 1e-6), Estimate(0.12, 1e-6), quantile=1.96)]
    [0.1698, 0.2311]
    >>> fieller(Estimate(0.001, 1e-6), Estimate(0.12, 1e-6), quantile=1.96)
    """
    if not control.value:
        return None
    lift = (treatment.value - control.value) / control.value
    above, below = (math.sqrt(one.variance) * (quantile / control.value) for one in (treatment, control))
    above, below = above * above, below * below
    room = 1.0 - below
    if not room > 0.0:
        return None
    centre = lift + below
    # The root nearer to 0 comes from the other one and their product, whose sign says whether 0 lies between them.
    far = centre + math.copysign(math.sqrt(above * room + (1.0 + lift) * (1.0 + lift) * below), centre)
    near = lift * lift - above - below
    ends = (far / room, near / far if far else 0.0)
    return Interval(min(ends), max(ends)) if all(map(math.isfinite, ends)) else None


def _first(n: int, holds: Callable[[int], bool]) -> int:
    """Returns the first count from 0 to n for which something holds that holds for all counts above it."""
    return bisect_left(range(n), True, key=holds)
