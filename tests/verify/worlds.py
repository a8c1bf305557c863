"""Many rehearsed trials, a world each, over two processes: what each found, and what it should have found."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from headrace.experiments.analyse import Visitors
from headrace.experiments.verdict import Verdict
from headrace.models import popularity, taste
from headrace.rehearse import CLICKS, Lift, judge_exposed, rehearse
from headrace.stats.intervals import binomial_band
from headrace.verify.worlds import error_of

PROCESSES = 2
ALPHA = 0.05
# Each of the three checks cries wolf at most once in a million runs.
FALSE_ALARM = 1e-6
MOST_ERRORS = 5.0


@dataclass(frozen=True)
class Trial:
    """A verdict beside the truth."""

    verdict: Verdict
    truth: Lift

    @property
    def z(self) -> float:
        """The verdict's error in standard errors."""
        found, error = self.verdict, error_of(self.verdict)
        assert found.difference is not None
        assert error is not None
        return (found.difference - self.truth.difference) / error


@dataclass(frozen=True)
class Play:
    """What one world's trials found."""

    lift: Trial
    """Taste against popularity."""
    static: Trial | None
    """The same verdict beside the truth at each page's own instant, which is not what a trial finds."""
    lift_doubled: Trial
    """The same trial, had each click of the treatment been counted twice."""
    same: Trial
    """Popularity against itself."""
    same_doubled: Trial
    """The same, had each click of the treatment been counted twice."""
    pages: int


def play(seed: int, *, with_static: bool) -> Play:
    """Returns what the trials of one world found."""
    popular = popularity("popular", CLICKS, half_life="3d")
    found = rehearse(seed, [popular, taste("tastes", CLICKS, base=popular)])
    alike, verdict = found.same
    nothing = Lift(found.truth.control, found.truth.control)
    return Play(
        lift=Trial(found.verdict, found.truth),
        static=Trial(found.verdict, found.static) if with_static else None,
        lift_doubled=Trial(judge_exposed(found.trial, _double(found.visitors)), found.truth),
        same=Trial(verdict, nothing),
        same_doubled=Trial(judge_exposed(found.trial, _double(alike)), nothing),
        pages=found.verdict.control.pages + found.verdict.treatment.pages,
    )


def _double(exposed: Visitors) -> Visitors:
    """Returns the exposures as if each click of the treatment had been counted twice."""
    return replace(exposed, clicks=np.where(exposed.arms == 1, 2 * exposed.clicks, exposed.clicks))


def play_all(worlds: int, *, with_static: bool = False) -> list[Play]:
    """Returns what the trials of so many worlds found, whose seeds are 0, 1, 2 ..."""
    # Forked, a process with threads of Arrow may hang.
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(partial(play, with_static=with_static), range(worlds)))


def check_coverage(trials: Sequence[Trial]) -> None:
    """Asserts that the 95 % intervals hold the truth at least as often as they say.

    More often is no fault: what one visitor would do in the other arm is no chance, so the error is smaller than told.
    """
    missed = sum(not one.truth.is_inside(one.verdict) for one in trials)
    # Half of a two-sided band's false alarms lie on one side.
    most = binomial_band(len(trials), ALPHA, false_alarm=2 * FALSE_ALARM)[1]
    assert missed <= most, f"{missed} of {len(trials)} intervals miss the truth, at most {most} may"


def check_centre(trials: Sequence[Trial]) -> None:
    """Asserts that the verdicts err to both sides alike."""
    mean = sum(one.z for one in trials) / len(trials)
    most = MOST_ERRORS / math.sqrt(len(trials))
    assert abs(mean) <= most, f"the verdicts of {len(trials)} worlds err by {mean:.3f} standard errors on average"


def check_false_positives(trials: Sequence[Trial]) -> None:
    """Asserts that a difference is found where none is as often as alpha says."""
    significant = sum(one.verdict.p is not None and one.verdict.p < ALPHA for one in trials)
    low, high = binomial_band(len(trials), ALPHA, false_alarm=FALSE_ALARM)
    assert low <= significant <= high, f"{significant} of {len(trials)} A/A trials differ, {low} to {high} may"
