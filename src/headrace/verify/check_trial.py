"""Checks of the experiment: who was in which arm, what counts for whom, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from headrace.experiments.analyse import Visitors, judge, trial_scope
from headrace.experiments.assign import arms_of, assign, buckets
from headrace.experiments.experiment import ARMS
from headrace.learn import reproduce
from headrace.loop import LONGEST_US, find_champion
from headrace.verify.case import INSTEAD, Case, Check, Found, LeftOutError
from headrace.verify.worlds import error_of

_FALSE_ALARM = 1e-6
_SPLITS = 2_000
_STRANGERS = 20_000
_SRM = 0.001
# Of fewer chi-square accuses too often.
_FEW = 50
_FEWEST_CLICKERS = 20
# What four standard errors leave out.
_MISSED = 6.3e-5


def hash_arm(seed: str, visitor: str) -> int:
    """Returns the arm of a visitor in two even halves by GrowthBook's hash, version 2, written down once more.

    >>> [hash_arm("exp-carousel", visitor) for visitor in ("u1", "u2", "u3", "u4")]
    [0, 1, 0, 0]
    """

    def fnv(text: str) -> int:
        number = 0x811C9DC5
        for letter in text:
            number = ((number ^ ord(letter)) * 0x01000193) % (1 << 32)
        return number

    return int(fnv(str(fnv(seed + visitor))) % 10_000 >= 5_000)


def _is_assigned_by_hash(case: Case) -> Found:
    trial = case.trial
    pages = [(page.anonymous_id, page.arm, page.served_us) for page in case.record.pages if page.anonymous_id]
    asked = [(visitor, arm) for visitor, arm, at_us in pages if arm and at_us >= trial.started_us]
    for visitor, arm in asked:
        if arm != ARMS[hash_arm(trial.seed, visitor)]:
            return Found(f"{len(asked):,} pages", f"visitor {visitor} is in {arm}, the hash says the other arm")
    # From the first page that knows of the trial until the trial ends nobody is left out.
    first_us = min((at_us for _, arm, at_us in pages if arm and at_us >= trial.started_us), default=trial.stopped_us)
    lost = (visitor for visitor, arm, at_us in pages if not arm and first_us < at_us < trial.stopped_us)
    witness = next((f"visitor {visitor} came to the trial and is in no arm" for visitor in lost), None)
    num_visitors = len({visitor for visitor, _ in asked})
    return Found(f"{len(asked):,} pages of {num_visitors:,} visitors, each in one arm", witness)


def _is_assignment_even(case: Case) -> Found:
    trial = case.trial
    strangers = [f"stranger-{number}" for number in range(_STRANGERS)]
    treated = sum(assign(trial.seed, one, trial.weights) == 1 for one in strangers)
    p = float(stats.binomtest(treated, len(strangers), 0.5).pvalue)
    text = f"{treated:,} of {len(strangers):,} strangers are treated, p = {p:.2g}"
    return Found(text, f"trial {trial.id}" if p < _FALSE_ALARM else None)


def _differences(case: Case) -> Iterator[tuple[str, tuple[Any, ...], tuple[Any, ...]]]:
    """Yields each visitor who counts otherwise here than in the exposures: name, told there, counted here."""
    own = case.exposed
    told = {row.visitor: row for row in case.told}
    nobody = ("", 0, 0, 0)
    for visitor in sorted({*own, *told}):
        row = told.get(visitor)
        counts = (row.arm, row.pages, row.views, row.clicks) if row is not None and not row.bot else nobody
        mine = own[visitor].told if visitor in own else nobody
        if counts != mine:
            yield visitor, counts, mine


def _is_counted(case: Case, place: int, noun: str) -> Found:
    own = case.exposed
    total = sum(int(one.told[place]) for one in own.values())
    for visitor, counts, mine in _differences(case):
        if counts[place] != mine[place]:
            return Found(f"{total:,} {noun}", f"visitor {visitor}: {counts[place]} {noun}, there are {mine[place]}")
    return Found(f"{total:,} {noun} of {len(own):,} visitors")


def _is_enrolled_with_an_id(case: Case) -> Found:
    """Holds what counts against what clients have: a page whose answer had no id may count for nobody."""
    known = set(case.record.recommended)
    counted = {page for one in case.exposed.values() for page in one.pages}
    strange = sorted(counted - known)
    found = _is_counted(case, 1, "pages")
    if found.witness is None and len(strange) > case.record.unanswered:
        return Found(found.text, f"recommendation {strange[0]} was answered to nobody")
    return Found(f"{found.text}, {case.record.unlogged:,} had no id", found.witness)


def _are_clicks_joined(case: Case) -> Found:
    found = _is_counted(case, 3, "clicks")
    return found if found.witness else Found(found.text, _is_counted(case, 2, "views").witness)


def _are_people_alone_enrolled(case: Case) -> Found:
    told = case.told
    wrong = [row.visitor for row in told if row.bot != case.is_bot(row.visitor)]
    text = f"{len(told):,} exposed, {sum(row.bot for row in told):,} of them robots"
    return Found(text, f"visitor {wrong[0]}" if wrong else None)


def _visitors(case: Case) -> Visitors:
    """Returns those who count, each in one arm, as the analysis takes them."""
    own = {name: one for name, one in sorted(case.exposed.items()) if len(one.arms) == 1}
    size = len(own)
    return Visitors(
        names=list(own),
        arms=np.array([ARMS.index(next(iter(one.arms))) for one in own.values()], np.int8),
        num_arms=np.ones(size, np.int64),
        bots=np.zeros(size, bool),
        first_us=np.zeros(size, np.int64),
        pages=np.array([len(one.pages) for one in own.values()], np.int64),
        views=np.array([one.views for one in own.values()], np.int64),
        clicks=np.array([one.clicks for one in own.values()], np.int64),
    )


def _are_p_values_even(case: Case) -> Found:
    """Splits the same visitors again and again: where nothing differs, each p value is as likely as any other."""
    trial, visitors = case.trial, _visitors(case)
    clickers = int((visitors.clicks > 0).sum())
    if clickers < _FEWEST_CLICKERS:
        # The p values of so few are a handful of numbers, which are as even as they can be.
        raise LeftOutError(f"{clickers} visitors have clicked, {_FEWEST_CLICKERS} are needed")
    scope = trial_scope(trial, cutoff_us=case.judged.cutoff_us, positions=case.judged.positions)
    found = []
    for mine in buckets([f"verify/{trial.id}/{number}" for number in range(_SPLITS)], visitors.names):
        split = replace(visitors, arms=arms_of(mine, trial.weights))
        p = judge(trial, split, made_us=case.judged.made_us, scope=scope).p
        found.append(1.0 if p is None else p)
    even = float(stats.kstest(found, "uniform").pvalue)
    below = sum(one < trial.alpha for one in found)
    text = f"{below:,} of {len(found):,} splits differ at p < {trial.alpha:g}, evenness p = {even:.2g}"
    return Found(text, f"trial {trial.id}" if even < _FALSE_ALARM else None)


def _follows_from_numbers(case: Case) -> Found:
    """Makes the verdict once more by the plain formulas: counts, ratio of sums, its error, Welch."""
    verdict, trial = case.judged, case.trial
    mine = _visitors(case)
    columns = (np.ones(len(mine.names)), mine.pages, mine.views, mine.clicks)
    counts = [tuple(int(one[mine.arms == arm].sum()) for one in columns) for arm in (0, 1)]
    arms = [(one.visitors, one.pages, one.views, one.clicks) for one in (verdict.control, verdict.treatment)]
    sides = [
        (mine.clicks[mine.arms == arm].astype(float), mine.views[mine.arms == arm].astype(float)) for arm in (0, 1)
    ]
    ratios = [float(above.sum() / below.sum()) if below.any() else math.nan for above, below in sides]
    difference, p, half = ratios[1] - ratios[0], math.nan, math.nan
    if min(len(above) for above, _ in sides) > 1 and not math.isnan(difference):
        rests = [(above - one * below) / below.mean() for one, (above, below) in zip(ratios, sides, strict=True)]
        errors = [(float(one.var(ddof=1)) / len(one), len(one) - 1) for one in rests]
        p, half = _welch(abs(difference), errors, alpha=verdict.alpha)
    told = f"{ratios[0]:.4%} and {ratios[1]:.4%}, p = {p:.3g}: {verdict.outcome}"
    numbers = [difference, difference / (ratios[0] or math.nan), p, difference - half, difference + half]
    found = (verdict.difference, verdict.lift, verdict.p, *(verdict.difference_interval or (None, None)))
    near = np.allclose(
        numbers, [math.nan if one is None else one for one in found], rtol=1e-6, atol=1e-12, equal_nan=True
    )
    outcome = _decide(case, [arm[0] for arm in counts], p, difference)
    if counts != arms or not near or outcome != verdict.outcome:
        return Found(told, f"trial {trial.id}: p = {verdict.p}, {verdict.outcome}; its numbers say {outcome}")
    return Found(told)


def _welch(difference: float, errors: list[tuple[float, int]], *, alpha: float) -> tuple[float, float]:
    """Returns Welch's p and half the interval; NaN where nobody differs. Each error is a variance and its degrees."""
    total = sum(variance for variance, _ in errors)
    if not total:
        return math.nan, math.nan
    df = total**2 / sum(variance**2 / own for variance, own in errors)
    return 2 * float(stats.t.sf(difference / total**0.5, df)), float(stats.t.isf(alpha / 2, df)) * total**0.5


def _is_mismatched(sizes: list[int]) -> bool:
    """Returns whether two even arms differ too much: by chi-square; of few visitors by the binomial tails."""
    if sum(sizes) < _FEW:
        return bool(sum(sizes) and stats.binomtest(sizes[1], sum(sizes), 0.5).pvalue < _SRM)
    return bool(stats.chisquare(sizes).pvalue < _SRM)


def _decide(case: Case, sizes: list[int], p: float, difference: float) -> str:
    verdict = case.judged
    if _is_mismatched(sizes) or verdict.multiple > 0.01 * sum(sizes):
        return "unhealthy"
    if math.isnan(p):
        return "empty"
    if p < verdict.alpha:
        fallen = any(one.is_worse for one in verdict.guardrails)
        return "better" if difference > 0 and not fallen else "worse"
    return "early" if min(sizes) < verdict.planned else "undecided"


def _is_champion_by_verdict(case: Case) -> Found:
    verdict, trial = case.judged, case.trial
    champion = find_champion(case.project, verdict.page)
    serves = champion.bundle if champion is not None else ""
    fewest = min(verdict.control.visitors, verdict.treatment.visitors)
    in_full = fewest >= trial.planned or trial.stopped_us - trial.started_us >= LONGEST_US
    wins = verdict.outcome == "better" and in_full
    text = f"{verdict.outcome}: {serves[:8] or 'the fallback'} serves"
    if serves not in ({verdict.treatment_bundle} if wins else {"", verdict.control_bundle}):
        return Found(text, f"trial {trial.id}, bundle {serves}")
    fallback = case.project.declared.pages[0].fallback.name
    usual = serves or case.project.registry.bundles(fallback)[0].hash
    shown = case.served
    if shown is not None and shown.bundle != usual and not INSTEAD & set(shown.degraded):
        return Found(text, f"the page is served by bundle {shown.bundle}")
    return Found(text)


def _is_true(case: Case) -> Found:
    verdict, truth = case.judged, case.truth
    error = error_of(verdict)
    if verdict.difference is None or not error:
        raise LeftOutError(f"the trial is {verdict.outcome}")
    far = abs(verdict.difference - truth.difference) / error
    missed = 2 * float(stats.t.sf(far, verdict.df))
    lift = "" if verdict.lift is None else f"lift {verdict.lift:+.1%}, "
    text = f"{lift}true {truth.lift:+.1%}: {far:.1f} standard errors"
    return Found(text, f"trial {case.trial.id}" if missed < _MISSED else None)


def _is_reproduced(case: Case) -> Found:
    found = reproduce(case.project, case.trial.treatment)
    witness = None if found.is_same else f"bundle {found.bundle.hash}: {', '.join(found.differences)}"
    return Found(f"bundle {found.bundle.hash[:8]} and {found.again.hash[:8]}", witness)


CHECKS = (
    Check("the challenger is fitted again to the same bytes", "models", _is_reproduced),
    Check("each visitor is in the arm of the hash", "experiments", _is_assigned_by_hash),
    Check("the hash gives each arm its share", "experiments", _is_assignment_even, _FALSE_ALARM),
    Check("people count and robots don't", "experiments", _are_people_alone_enrolled),
    Check("no page without an id counts", "experiments", _is_enrolled_with_an_id),
    Check("every click in time is joined to its page", "experiments", _are_clicks_joined),
    Check("where nothing differs, p values are even", "stats", _are_p_values_even, _FALSE_ALARM),
    Check("the verdict follows from its numbers", "experiments", _follows_from_numbers),
    Check("the champion follows from the verdict", "experiments", _is_champion_by_verdict),
    Check("the true lift is near the lift that was found", "experiments", _is_true, _MISSED),
)
