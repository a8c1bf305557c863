"""Two arms compared: one difference, one p value, and intervals that never contradict it.

The p value is Welch's for the absolute difference. Both intervals are cut with the t quantile of the same degrees of
freedom, the one for the relative lift by Fieller's method, so each excludes 0 exactly when p < alpha. No result holds
NaN or infinity: what cannot be estimated is None, and its reason says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy import special

from headrace.stats.intervals import Estimate, Interval, check_share, fieller
from headrace.stats.moments import Moments, RatioMoments

Reason = Literal[
    "too_few_visitors", "no_denominator", "no_variance", "control_is_zero", "control_near_zero", "out_of_range"
]

REASONS: dict[Reason, str] = {
    "too_few_visitors": "an arm has fewer than two visitors, so nothing says how much they vary",
    "no_denominator": "the denominators of an arm sum to 0, so it has no ratio",
    "no_variance": "all visitors of both arms are alike, so nothing says how far chance could reach",
    "control_is_zero": "relative lift not estimable: the control's ratio is 0",
    "control_near_zero": "relative lift not estimable: the control's ratio cannot be told from 0",
    "out_of_range": "the numbers go beyond what a double can hold",
}
"""What each reason means, in words."""

# What rounding leaves of a variance that is 0: ratios that are equal but for the last digits of a million sums.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Welch:
    """A difference of two arms, and what Welch's test says of it; None where `reason` says why."""

    difference: float | None
    standard_error: float | None = None
    df: float | None = None
    t: float | None = None
    p: float | None = None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of sums over the visitors of an arm, and the variance of its error."""

    n: int
    estimate: float | None
    variance: float | None
    reason: Reason | None = None

    @property
    def visitor_variance(self) -> float | None:
        """How much one visitor adds to the variance, whatever their number: what a power calculation asks for."""
        return None if self.variance is None else self.variance * self.n


@dataclass(frozen=True, slots=True)
class Comparison:
    """What treatment changed against control, at one alpha."""

    alpha: float
    control: Ratio
    treatment: Ratio
    difference: float | None
    difference_interval: Interval | None
    standard_error: float | None
    df: float | None
    p: float | None
    lift: float | None
    """The relative difference, treatment / control - 1."""
    lift_interval: Interval | None
    reason: Reason | None
    """Why there is no p value."""
    lift_reason: Reason | None
    """Why there is no interval for the lift."""

    @property
    def is_significant(self) -> bool:
        """Whether p < alpha."""
        return self.p is not None and self.p < self.alpha


def welch(control: Moments, treatment: Moments) -> Welch:
    """Returns Welch's test of the difference of two means, treatment less control.

    >>> from headrace.stats.moments import measure
    >>> found = welch(measure([1, 2, 3, 4]), measure([3, 4, 5, 7]))
    >>> found.difference, round(found.df, 4), round(found.p, 6)
    (2.25, 5.5846, 0.083707)
    >>> welch(measure([1, 1]), measure([2, 2])).reason
    'no_variance'
    """
    if not control.n or not treatment.n:
        return Welch(None, reason="too_few_visitors")
    variances = [None if one.variance is None else one.variance / one.n for one in (control, treatment)]
    return _welch(treatment.mean_beyond(control), (variances[0], control.n), (variances[1], treatment.n))


def _welch(difference: float, control: tuple[float | None, int], treatment: tuple[float | None, int]) -> Welch:
    if control[0] is None or treatment[0] is None:
        return Welch(difference, reason="too_few_visitors")
    variance = control[0] + treatment[0]
    if not variance:
        return Welch(difference, reason="no_variance")
    if not math.isfinite(variance) or not math.isfinite(difference):
        return Welch(None, reason="out_of_range")
    share = control[0] / variance
    df = 1.0 / (share * share / (control[1] - 1) + (1.0 - share) * (1.0 - share) / (treatment[1] - 1))
    standard_error = math.sqrt(variance)
    t = difference / standard_error
    if not math.isfinite(t):
        return Welch(difference, reason="out_of_range")
    return Welch(difference, standard_error, df, t, min(1.0, 2.0 * float(special.stdtr(df, -abs(t)))))


def ratio(moments: RatioMoments) -> Ratio:
    """Returns the ratio of the sums of an arm, with the variance of its error by the delta method.

    The visitor is the unit: whoever views more counts more, and one visitor's clicks may depend on each other. For a
    few dozen visitors the variance comes out a little small.

    >>> from headrace.stats.moments import measure_ratio
    >>> found = ratio(measure_ratio([1, 0, 2, 1], [10, 10, 20, 5]))
    >>> round(found.estimate, 6), round(found.variance, 6)
    (0.088889, 0.000764)
    """
    if not moments.n:
        return Ratio(0, None, None, "too_few_visitors")
    below = moments.denominator.mean
    if not below:
        return Ratio(moments.n, None, None, "no_denominator")
    estimate = moments.numerator.mean / below
    if not math.isfinite(estimate):
        return Ratio(moments.n, None, None, "out_of_range")
    if moments.n < 2:
        return Ratio(moments.n, estimate, None, "too_few_visitors")
    parts = (
        moments.numerator.squares,
        -2.0 * estimate * moments.products,
        estimate * estimate * moments.denominator.squares,
    )
    spread = sum(parts)
    if spread <= _ROUNDING * sum(map(abs, parts)) < math.inf:
        spread = 0.0
    variance = spread / (moments.n - 1) / moments.n / below / below
    if not math.isfinite(variance):
        return Ratio(moments.n, estimate, None, "out_of_range")
    return Ratio(moments.n, estimate, variance)


def compare_ratios(control: RatioMoments, treatment: RatioMoments, *, alpha: float = 0.05) -> Comparison:
    """Returns what treatment changed in a ratio of sums over visitors, such as clicks over views.

    >>> from headrace.stats.moments import measure_ratio
    >>> control = measure_ratio([1, 0, 2, 1, 1, 2], [10, 10, 20, 9, 12, 18])
    >>> treatment = measure_ratio([2, 3, 1, 2, 4, 1], [10, 12, 8, 11, 16, 9])
    >>> found = compare_ratios(control, treatment)
    >>> round(found.p, 4), round(found.lift, 2), [round(end, 2) for end in found.lift_interval]
    (0.0045, 1.22, [0.41, 2.74])
    >>> compare_ratios(measure_ratio([0, 0], [9, 9]), treatment).lift_reason
    'control_is_zero'
    """
    check_share("alpha", alpha)
    arms = ratio(control), ratio(treatment)
    before, after = (arm.estimate for arm in arms)
    if before is None or after is None:
        test = Welch(None, reason=arms[0].reason or arms[1].reason)
    elif broken := [arm.reason for arm in arms if arm.reason is not None]:
        test = Welch(after - before, reason=broken[0])
    else:
        test = _welch(after - before, (arms[0].variance, arms[0].n), (arms[1].variance, arms[1].n))
    return _compare(alpha, arms, test)


def _compare(alpha: float, arms: tuple[Ratio, Ratio], test: Welch) -> Comparison:
    quantile = 0.0 if test.df is None else -float(special.stdtrit(test.df, alpha / 2))
    if test.standard_error is not None and not math.isfinite(quantile * test.standard_error):
        test = Welch(test.difference, reason="out_of_range")
    lift = _divide(test.difference, arms[0].estimate)
    lift_interval, lift_reason = _lift_interval(arms, test, alpha, quantile, lift)
    return Comparison(
        alpha=alpha,
        control=arms[0],
        treatment=arms[1],
        difference=test.difference,
        difference_interval=_difference_interval(test, alpha, quantile),
        standard_error=test.standard_error,
        df=test.df,
        p=test.p,
        lift=lift,
        lift_interval=lift_interval,
        reason=test.reason,
        lift_reason=lift_reason,
    )


def _difference_interval(test: Welch, alpha: float, quantile: float) -> Interval | None:
    if test.difference is None or test.standard_error is None or test.p is None:
        return None
    half = quantile * test.standard_error
    found = Interval(test.difference - half, test.difference + half)
    return _agreeing(found, test.difference, significant=test.p < alpha)


def _lift_interval(
    arms: tuple[Ratio, Ratio], test: Welch, alpha: float, quantile: float, lift: float | None
) -> tuple[Interval | None, Reason | None]:
    control, treatment = arms
    if test.p is None or control.estimate is None or control.variance is None:
        return None, test.reason
    if treatment.estimate is None or treatment.variance is None:
        return None, test.reason
    if lift is None:
        return None, "out_of_range" if control.estimate else "control_is_zero"
    found = fieller(
        Estimate(control.estimate, control.variance),
        Estimate(treatment.estimate, treatment.variance),
        quantile=quantile,
    )
    if found is None:
        return None, "control_near_zero"
    return _agreeing(found, lift, significant=test.p < alpha), None


def _agreeing(found: Interval, estimate: float, *, significant: bool) -> Interval:
    """Returns the interval so that it excludes 0 exactly if p < alpha.

    It does so by its mathematics; where 0 is one of its ends but for rounding, the p value decides.
    """
    if found.excludes_zero == significant:
        return found
    if not significant:
        return Interval(min(found.low, 0.0), max(found.high, 0.0))
    if estimate > 0:
        return Interval(math.ulp(found.high), found.high)
    return Interval(found.low, -math.ulp(found.low))


def _divide(difference: float | None, control: float | None) -> float | None:
    if difference is None or not control:
        return None
    share = difference / control
    return share if math.isfinite(share) else None
