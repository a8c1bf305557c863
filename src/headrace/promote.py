"""Promotion: the newest challenger past the gate, then a trial, then a verdict, then a champion or a refusal.

It is driven by the registry's rows alone: each call reads where things stand and goes one step on. Whoever is killed in
the middle of a step finds the rows as they were before it or after it.
"""

from __future__ import annotations

from headrace.base.errors import CallError, FencedError, StopError
from headrace.endpoints.endpoint import Page
from headrace.endpoints.serving import TRIAL
from headrace.engines.engine import quote_text
from headrace.events.decision import DECISIONS
from headrace.experiments.analyse import exposures_sql, read_visitors, trial_scope
from headrace.experiments.experiment import ARMS, Trial, decode_trial
from headrace.experiments.promotion import CHALLENGER, Standing, decode_refusal
from headrace.learn import read_offline_gate
from headrace.loop import LONGEST_US, find_champion, find_verdict_on, save_verdict, start, stop
from headrace.project import OpenProject
from headrace.survey import find_experiment, read_plan

_MINUTE_US = 60_000_000
_SHOWN = 12
# Fewer counts are needed if a look comes a little late, and visitors do not come evenly.
_SHARE = 1.05


def advance(project: OpenProject, name: str) -> Standing:
    """Returns where the promotion stands, one step further if one can be taken."""
    experiment = find_experiment(project, name)
    entry = project.registry.newest(TRIAL).get(name)
    trial = decode_trial(entry.value) if entry else None
    if trial is not None and trial.status == "running":
        return _watch(project, trial)
    if trial is not None:
        verdict = find_verdict_on(project, trial)
        if verdict is None:
            return _judge(project, name)
        save_verdict(project, verdict)
    page = experiment.on
    if not isinstance(page, Page):
        return Standing("idle", f"{page.name!r} is no page")
    challenger = find_challenger(project, page)
    return _try(project, name, challenger) if challenger else _rest(project, page)


def _rest(project: OpenProject, page: Page) -> Standing:
    """Returns why there is nothing to try."""
    ranker = page.ranker.name
    newest = next(iter(project.registry.bundles(ranker)), None)
    gate = read_offline_gate(project, newest.hash) if newest else None
    if newest is not None and gate is not None and not gate.passed:
        return Standing(
            "refused", f"the offline gate refuses {newest.hash[:_SHOWN]} of {ranker}: {'; '.join(gate.reasons)}"
        )
    return Standing("idle", f"no bundle of {ranker} waits that has passed the gate and was not tried on {page.name!r}")


def find_challenger(project: OpenProject, page: Page) -> str | None:
    """Returns the newest bundle of a page's ranker past the gate; None if it was tried already or serves."""
    rows = project.registry
    trials = [decode_trial(row.value) for name in rows.newest(TRIAL) for row in rows.entries(TRIAL, name)]
    tried = {trial.treatment for trial in trials if trial.page == page.name}
    tried |= {decode_refusal(row.value).bundle for row in project.registry.entries(CHALLENGER, page.name)}
    champion = find_champion(project, page.name)
    if champion is not None:
        tried.add(champion.bundle)
    for fitted in project.registry.bundles(page.ranker.name):
        if fitted.hash in tried:
            # What is older than this one is not worth a trial any more.
            return None
        gate = read_offline_gate(project, fitted.hash)
        if gate is not None and gate.passed:
            return fitted.hash
    return None


def _try(project: OpenProject, name: str, challenger: str) -> Standing:
    """Starts the trial of a challenger, unless nothing could come of it."""
    later_us, told = project.clock.now_us() + _MINUTE_US, challenger[:_SHOWN]
    try:
        plan = read_plan(project, name)
        if not plan.needed:
            why = "their ratio is 0 or they are all alike, so nothing says how many a trial needs"
            return Standing("waits", f"{told}: {plan.visitors:,} visitors were logged, and {why}", later_us)
        if plan.days is None or plan.days * 86_400e6 > LONGEST_US:
            return Standing("waits", f"{told}: {_too_few(plan.needed, plan.visitors_per_day)}", later_us)
        trial = start(project, name, challenger=challenger)
    except (StopError, CallError) as error:
        return Standing("waits", f"{told}: {error}", later_us)
    text = f"trial {trial.id} tests {told} against {trial.control[:_SHOWN]}, {trial.planned:,} visitors an arm"
    return Standing("started", text, _first_count_us(trial))


def _too_few(needed: int, per_day: float) -> str:
    return (
        f"a trial needs {needed:,} visitors in each arm, and {per_day:,.0f} come in a day to both: more than the "
        f"{LONGEST_US // 86_400_000_000} days that one lasts at most. Ask for a larger mde, or wait for more traffic"
    )


def _first_count_us(trial: Trial) -> int:
    """Returns when the first visitors of a trial are before a cut-off."""
    return trial.started_us + trial.within_us + trial.lateness_us + 1


def _watch(project: OpenProject, trial: Trial) -> Standing:
    """Ends a trial that has the visitors that were planned, or lasts for too long."""
    now_us = project.clock.now_us()
    counted = count_visitors(project, trial, now_us=now_us)
    fewest = min(counted)
    if now_us - trial.started_us >= LONGEST_US or (trial.planned and fewest >= trial.planned):
        return _judge(project, trial.experiment)
    text = f"trial {trial.id} runs: {' and '.join(f'{one:,}' for one in counted)} of {trial.planned:,} visitors an arm"
    return Standing("runs", text, _again_us(trial, fewest, now_us))


def _again_us(trial: Trial, fewest: int, now_us: int) -> int:
    """Returns when the visitors planned will have come, if they come as until now, or the trial is twice as old."""
    end_us = trial.started_us + LONGEST_US
    counted_us = now_us - _first_count_us(trial)
    if counted_us <= 0:
        return _first_count_us(trial)
    if not trial.planned or not fewest:
        return min(now_us + counted_us, end_us)
    needed_us = int(_SHARE * counted_us * (trial.planned - fewest) / fewest) + 1
    # The first few foretell little: who counts one of 33 after 20 s would else be back in 11 min.
    return min(now_us + min(needed_us, counted_us), end_us)


def count_visitors(project: OpenProject, trial: Trial, *, now_us: int) -> tuple[int, ...]:
    """Returns how many visitors of each arm are before the cut-off that a verdict now would have.

    Who was not in one arm alone, and robots, are found only if there are enough without looking for them.
    """
    if DECISIONS not in project.tables.names():
        return (0,) * len(ARMS)
    cutoff_us = now_us - trial.within_us - trial.lateness_us
    sql = f"""SELECT arm, count(DISTINCT visitor)::BIGINT AS visitors FROM {DECISIONS}
WHERE trial = {quote_text(trial.id)} AND visitor IS NOT NULL AND NOT bot
  AND received_us >= {trial.started_us:d} AND received_us < {cutoff_us:d}
GROUP BY arm"""  # noqa: S608 - every text in it is quoted, and every number one of ours
    found = {row["arm"]: row["visitors"] for row in project.query(sql).table().to_pylist()}
    counts = tuple(found.get(arm, 0) for arm in ARMS)
    if not trial.planned or min(counts) < trial.planned:
        return counts
    ends = {topic: tuple(bound.end for bound in project.topics.bounds(topic)) for topic in trial.positions}
    scope = trial_scope(trial, cutoff_us=cutoff_us, positions=ends)
    visitors = read_visitors(project.query(exposures_sql(scope)).table())
    kept = visitors.arms[visitors.counted]
    return tuple(int((kept == number).sum()) for number in range(len(ARMS)))


def _judge(project: OpenProject, name: str) -> Standing:
    """Gives the verdict on a trial, and with it the page its champion or the challenger its refusal."""
    try:
        verdict = stop(project, name)
    except FencedError:
        raise
    except StopError as error:
        # Such as a topic that was made anew: only somebody can help.
        return Standing("waits", str(error), project.clock.now_us() + _MINUTE_US)
    champion = find_champion(project, verdict.page)
    lift = "" if verdict.lift is None else f", lift {100 * verdict.lift:+.1f} %"
    told = f"trial {verdict.trial} is {verdict.outcome}{lift}"
    if champion is not None and champion.trial == verdict.trial:
        return Standing(
            "decided", f"{told}: {champion.bundle[:_SHOWN]} serves {verdict.page} from now on", verdict.made_us
        )
    refusal = decode_refusal(project.registry.newest(CHALLENGER)[verdict.page].value)
    return Standing("decided", f"{told}: {refusal.bundle[:_SHOWN]} is refused: {refusal.reason}", verdict.made_us)
