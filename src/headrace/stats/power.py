"""How many visitors a trial needs, and what a number of visitors can show.

The test is two-sided, Welch's, with as many visitors in one arm as in the other and the same variance in both. Power
counts only verdicts with the right sign.
"""

from __future__ import annotations

import math

from scipy import special

from headrace.base.errors import CallError
from headrace.stats.intervals import check_share

# A trial of more visitors per arm than there are people on Earth is no plan.
_MAX_VISITORS = 10**10


def power_of(base: float, variance: float, *, mde: float, visitors: int, alpha: float = 0.05) -> float:
    """Returns the probability that a trial of so many visitors per arm shows a relative lift of `mde`.

    `base` is the control's ratio, `variance` what one visitor adds to the variance of it (`Ratio.visitor_variance`).

    >>> round(power_of(0.1, 0.09, mde=0.1, visitors=14_000), 3)
    0.796
    """
    effect = _check(base, variance, mde=mde, alpha=alpha)
    if visitors < 2:
        raise CallError(f"a trial needs two visitors per arm, got {visitors!r}")
    return _power(effect / math.sqrt(variance), visitors, alpha)


def visitors_per_arm(base: float, variance: float, *, mde: float, alpha: float = 0.05, power: float = 0.8) -> int:
    """Returns the fewest visitors per arm with which a relative lift of `mde` is shown as often as `power` says.

    >>> visitors_per_arm(0.1, 0.09, mde=0.1)
    14129
    >>> visitors_per_arm(0.1, 0.02, mde=0.25, power=0.9)
    674
    """
    effect = _check(base, variance, mde=mde, alpha=alpha)
    _check_power(alpha, power)
    ratio = effect / math.sqrt(variance)
    low, high = 1, 2
    while _power(ratio, high, alpha) < power:
        low, high = high, high * 2
        if high > _MAX_VISITORS:
            raise CallError(
                f"a lift of {mde:g} on {base:g} would need more than {_MAX_VISITORS:,} visitors per arm: "
                f"aim at a larger one"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _power(ratio, middle, alpha) < power else (low, middle)
    return high


def reachable_mde(base: float, variance: float, *, visitors: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """Returns the smallest relative lift that so many visitors per arm show as often as `power` says.

    >>> round(reachable_mde(0.1, 0.09, visitors=14_129), 4)
    0.1
    """
    _check(base, variance, mde=1.0, alpha=alpha)
    _check_power(alpha, power)
    if visitors < 2:
        raise CallError(f"a trial needs two visitors per arm, got {visitors!r}")
    low, high = 0.0, 1.0
    while _power(high, visitors, alpha) < power:
        low, high = high, high * 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _power(middle, visitors, alpha) < power else (low, middle)
    return high * math.sqrt(variance) / abs(base)


def _power(ratio: float, visitors: int, alpha: float) -> float:
    """Returns the power for an effect that is `ratio` times the spread of one visitor."""
    df = 2.0 * (visitors - 1)
    quantile = -special.stdtrit(df, alpha / 2)
    missed = float(special.nctdtr(df, ratio * math.sqrt(visitors / 2), quantile))
    # scipy 1.17 answers NaN here and there where the true value is below 1e-200.
    return 1.0 if math.isnan(missed) else 1.0 - missed


def _check(base: float, variance: float, *, mde: float, alpha: float) -> float:
    """Returns the absolute effect of a relative one, without its sign."""
    check_share("alpha", alpha)
    if not (math.isfinite(base) and base):
        raise CallError(f"a relative lift needs a base other than 0, got {base!r}; take the ratio of earlier visitors")
    if not (math.isfinite(variance) and variance > 0):
        raise CallError(f"the variance of a visitor is above 0, got {variance!r}; take that of earlier visitors")
    if not (math.isfinite(mde) and mde):
        raise CallError(f"the lift to be shown is a share other than 0, such as 0.25, got {mde!r}")
    return abs(base * mde)


def _check_power(alpha: float, power: float) -> None:
    if not alpha / 2 < power < 1:
        raise CallError(f"power lies between alpha / 2 and 1, got {power!r} with alpha {alpha!r}")
