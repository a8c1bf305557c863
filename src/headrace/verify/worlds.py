"""Many worlds: what the checks found in each, and how often the verdicts told the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
from scipy import special

from headrace.experiments.verdict import Verdict
from headrace.stats.intervals import binomial_band
from headrace.verify.report import Line
from headrace.verify.truth import Truth

_FALSE_ALARM = 1e-6
_MOST_ERRORS = 5.0
FEWEST = 5
"""With fewer verdicts nothing is said of how often they hold."""


class World(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one world."""

    seed: int
    lines: tuple[Line, ...]
    pages: int
    events: int
    seconds: float
    outcome: str | None = None
    """The verdict's; None where no trial was held."""
    alpha: float = 0.05
    difference: float | None = None
    error: float | None = None
    """The standard error of the difference."""
    lift: float | None = None
    true_difference: float | None = None
    true_lift: float | None = None
    is_inside: bool | None = None
    """Whether the interval holds the truth."""
    is_promoted: bool = False


def describe(verdict: Verdict | None, truth: Truth | None) -> dict[str, object]:
    """Returns what a world says of its verdict, as fields of `World`."""
    if verdict is None or truth is None:
        return {}
    return {
        "outcome": verdict.outcome,
        "alpha": verdict.alpha,
        "difference": verdict.difference,
        "error": error_of(verdict),
        "lift": verdict.lift,
        "true_difference": truth.difference,
        "true_lift": truth.lift,
        "is_inside": truth.is_inside(verdict) if verdict.difference_interval is not None else None,
    }


def error_of(verdict: Verdict) -> float | None:
    """Returns the standard error of a verdict's difference, from its interval; None where it has none."""
    if verdict.difference_interval is None or verdict.df is None:
        return None
    low, high = verdict.difference_interval
    return (high - low) / 2 / -float(special.stdtrit(verdict.df, verdict.alpha / 2))


def join_lines(worlds: Sequence[World]) -> list[Line]:
    """Returns a line for each check over all worlds, and those that only many can answer."""
    if len(worlds) == 1:
        return list(worlds[0].lines)
    joined = [_join([world.lines[number] for world in worlds], worlds) for number in range(len(worlds[0].lines))]
    return [*joined, *_many(worlds)]


def _join(lines: Sequence[Line], worlds: Sequence[World]) -> Line:
    first = lines[0]
    failing = [(world.seed, line) for world, line in zip(worlds, lines, strict=True) if line.state == "fails"]
    holds = sum(line.state == "holds" for line in lines)
    text = f"holds in {holds} of {len(lines)} worlds; in the first: {first.text}"
    if not failing:
        return msgspec.structs.replace(
            first, state="holds" if holds else "left out", text=text if holds else first.text
        )
    seed, worst = failing[0]
    return msgspec.structs.replace(
        first,
        state="fails",
        text=f"fails in {len(failing)} of {len(lines)} worlds; in seed {seed}: {worst.text}",
        witness=f"seed {seed}: {worst.witness}",
    )


def _many(worlds: Sequence[World]) -> list[Line]:
    judged = [one for one in worlds if one.is_inside is not None and one.error]
    if len(judged) < FEWEST:
        return []
    return [_coverage(judged), _centre(judged), _promoted(judged)]


def _coverage(judged: Sequence[World]) -> Line:
    missed = [one for one in judged if not one.is_inside]
    # Half of a two-sided band's false alarms lie on one side. Covering more often is no fault: what one visitor would
    # do in the other arm is no chance, so the error is smaller than told.
    most = binomial_band(len(judged), judged[0].alpha, false_alarm=2 * _FALSE_ALARM)[1]
    text = f"{len(judged) - len(missed)} of {len(judged)} hold the truth, at least {len(judged) - most} must"
    witness = f"seed {missed[0].seed}" if len(missed) > most else None
    return _line("95 % intervals hold the truth as often as they say", text, witness)


def _centre(judged: Sequence[World]) -> Line:
    scores = [(one.difference - one.true_difference) / one.error for one in judged]  # type: ignore[operator]  # judged
    mean = math.fsum(scores) / len(scores)
    spread = math.sqrt(math.fsum((one - mean) ** 2 for one in scores) / (len(scores) - 1))
    worst = max(judged, key=lambda one: abs(one.difference - one.true_difference) / one.error)  # type: ignore[operator]
    text = (
        f"off by {mean:+.2f} standard errors on average, at most {_MOST_ERRORS / math.sqrt(len(scores)):.2f} may be; "
        f"the errors told are {1 / spread:.2f} times those made"
    )
    failed = abs(mean) > _MOST_ERRORS / math.sqrt(len(scores))
    return _line("verdicts err to both sides alike", text, f"seed {worst.seed}" if failed else None)


def _promoted(judged: Sequence[World]) -> Line:
    promoted = [one for one in judged if one.is_promoted]
    worse = [one for one in judged if (one.true_lift or 0.0) <= 0]
    wrong = [one for one in worse if one.is_promoted]
    # Who is worse in truth is found better in half of alpha's share at most.
    most = binomial_band(len(worse), judged[0].alpha / 2, false_alarm=2 * _FALSE_ALARM)[1] if worse else 0
    text = (
        f"{len(promoted)} of {len(judged)} promoted, {len(promoted) - len(wrong)} of them with a true lift above 0; "
        f"of {len(worse)} that are worse {most} may be"
    )
    return _line("what is promoted is better in truth", text, f"seed {wrong[0].seed}" if len(wrong) > most else None)


def _line(name: str, text: str, witness: str | None) -> Line:
    state = "fails" if witness else "holds"
    return Line(
        name=name,
        room="experiments",
        state=state,  # type: ignore[arg-type]  # one of its words
        text=text,
        false_alarm=_FALSE_ALARM,
        witness=witness,
    )
