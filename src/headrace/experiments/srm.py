"""Sample ratio mismatch: did the arms get the visitors that their weights promise?

If not, somebody is lost on the way for a reason that has to do with the arm, and no lift can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import special

from headrace.base.errors import CallError
from headrace.experiments.verdict import SRM_ALPHA

# With fewer visitors expected in an arm chi-square accuses too often: 3.2 healthy experiments in a thousand where 5 of
# 50 are expected, but at most 1.3 from 25 on.
_FEW = 25.0


@dataclass(frozen=True, slots=True)
class Srm:
    """How well the counts of visitors fit the weights of the arms."""

    p: float
    counts: tuple[int, ...]
    expected: tuple[float, ...]
    is_ok: bool


def check_ratio(counts: Sequence[int], weights: Sequence[float]) -> Srm:
    """Returns whether the visitors per arm fit the weights, by chi-square; with few visitors, by exact tails.

    >>> check_ratio([5021, 4979], [0.5, 0.5]).is_ok
    True
    >>> found = check_ratio([5210, 4790], [0.5, 0.5])
    >>> found.is_ok, round(found.p, 6), found.expected
    (False, 2.7e-05, (5000.0, 5000.0))
    """
    if len(counts) != len(weights) or len(counts) < 2:
        raise CallError(f"one count per weight, and two at least, are needed: got {counts!r} and {weights!r}")
    if any(count < 0 for count in counts):
        raise CallError(f"a count of visitors is 0 or more, got {counts!r}")
    total, whole = sum(counts), math.fsum(weights)
    if any(not weight >= 0 for weight in weights) or not 0 < whole < math.inf:
        raise CallError(f"weights are 0 or more and not all 0, got {weights!r}")
    expected = tuple(total * (weight / whole) for weight in weights)
    p = _probability(counts, expected)
    return Srm(p, tuple(counts), expected, is_ok=p >= SRM_ALPHA)


def _probability(counts: Sequence[int], expected: Sequence[float]) -> float:
    if any(count and not wanted for count, wanted in zip(counts, expected, strict=True)):
        return 0.0
    # An arm without weight took nobody, and says nothing.
    pairs = [(count, wanted) for count, wanted in zip(counts, expected, strict=True) if wanted]
    if len(pairs) < 2:
        return 1.0
    if min(wanted for _, wanted in pairs) < _FEW:
        return _exact(pairs)
    surprise = math.fsum((count - wanted) ** 2 / wanted for count, wanted in pairs)
    return float(special.chdtrc(len(pairs) - 1, surprise))


def _exact(pairs: Sequence[tuple[int, float]]) -> float:
    """Returns the p value of the most surprising arm against the others, times the number of such questions."""
    total = sum(count for count, _ in pairs)
    tails = []
    for count, wanted in pairs:
        share = wanted / total
        below, above = special.bdtr(count, total, share), special.bdtrc(count - 1, total, share) if count else 1.0
        tails.append(2.0 * min(float(below), float(above)))
    questions = len(pairs) if len(pairs) > 2 else 1
    return min(1.0, questions * min(tails))


def explain_ratio(found: Srm, names: Sequence[str]) -> str:
    """Returns what the check found, in a sentence or two, with the names of the arms.

    >>> print(explain_ratio(check_ratio([5021, 4979], [0.5, 0.5]), ["control", "treatment"]))
    the visitors fit the weights: control 5,021 (5,000 expected), treatment 4,979 (5,000 expected), p = 0.67
    >>> print(explain_ratio(check_ratio([0, 0], [0.5, 0.5]), ["control", "treatment"]))
    no visitor is enrolled, so there is no ratio to check
    """
    if not sum(found.counts):
        return "no visitor is enrolled, so there is no ratio to check"
    listed = ", ".join(
        f"{name} {count:,} ({_rounded(wanted)} expected)"
        for name, count, wanted in zip(names, found.counts, found.expected, strict=True)
    )
    if found.is_ok:
        return f"the visitors fit the weights: {listed}, p = {found.p:.2g}"
    return (
        f"sample ratio mismatch: {listed}, p = {found.p:.2g}. Visitors are lost or doubled in one arm, so no lift can "
        f"be trusted: look for an arm that fails or is slow, for bots, and for decisions that were not logged"
    )


def _rounded(wanted: float) -> str:
    return f"{wanted:,.0f}" if abs(wanted - round(wanted)) < 0.05 or wanted >= 1000 else f"{wanted:,.1f}"
