"""What is known before a trial: the visitors whom a page was logged for, split anew as A/A, and what they foretell."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from headrace.base.errors import StopError, unknown_name
from headrace.collect.app import CLICKS
from headrace.engines.engine import quote_text
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS
from headrace.experiments.analyse import Scope, Visitors, exposures_sql, read_visitors, split_again
from headrace.experiments.experiment import Experiment, Gate
from headrace.learn import wait_for_lake
from headrace.project import OpenProject
from headrace.stats.compare import Ratio, ratio
from headrace.stats.moments import measure_ratio
from headrace.stats.power import reachable_mde, visitors_per_arm

SPLITS = 1_000
LEAST_VISITORS = 100
"""With fewer logged visitors the A/A gate could not tell anything."""

_DAY_US = 86_400_000_000
_SPANS_US = tuple(int(days * _DAY_US) for days in (0.125, 0.25, 0.5, 1, 2, 4, 7, 14, 28))


def find_experiment(project: OpenProject, name: str) -> Experiment:
    """Returns an experiment that the project declares."""
    experiments = {experiment.name: experiment for experiment in project.declared.experiments}
    if name not in experiments:
        raise unknown_name("experiment", name, experiments)
    return experiments[name]


def read_gate(project: OpenProject, name: str, *, splits: int = SPLITS) -> tuple[Gate, int]:
    """Returns the A/A gate over the visitors that an experiment's page was logged for, and how many are needed per arm.

    It has no traffic of its own: visitors outside of any trial are split anew by other seeds.
    """
    experiment = find_experiment(project, name)
    scope = _find_scope(project, experiment)
    visitors = _enough(experiment, _read(project, scope), what="the A/A gate")
    gate = split_again(visitors, seed=f"aa/{name}", splits=splits, weights=(0.5, 0.5), alpha=experiment.alpha)
    return gate, _find_needed(project, experiment, scope, visitors)


def _enough(experiment: Experiment, visitors: Visitors, *, what: str) -> Visitors:
    num_visitors = int(visitors.counted.sum())
    if num_visitors < LEAST_VISITORS:
        raise StopError(
            f"{num_visitors} visitors were logged on the page {experiment.on.name!r} outside of a trial, "
            f"{experiment.goal.within} ago or earlier; {what} needs {LEAST_VISITORS}. Let the page serve for a while"
        )
    return visitors


def _find_scope(project: OpenProject, experiment: Experiment) -> Scope:
    """Returns what a page was logged for outside of any trial."""
    if CLICKS not in project.topics.names() or DECISIONS not in project.topics.names():
        raise StopError("nothing was logged yet. Run the project with: headrace up")
    # Taken before the wait: what is older than it was on its way to the lake then, if it came in time at all.
    now_us = project.clock.now_us()
    ends = wait_for_lake(project)
    if DECISIONS not in project.tables.names() or EVENTS not in project.tables.names():
        raise StopError(f"no page was logged yet. Ask for one: POST /v1/page with {experiment.on.name!r}")
    goal = experiment.goal
    return Scope(
        where=f"trial IS NULL AND page = {quote_text(experiment.on.name)}",
        above=goal.above,
        below=goal.below,
        within_us=goal.within_us,
        cutoff_us=now_us - goal.within_us,
        positions=ends,
        starts={topic: (0,) * len(places) for topic, places in ends.items()},
    )


def _read(project: OpenProject, scope: Scope, *, newest_us: int | None = None) -> Visitors:
    """Returns the visitors of a scope; those of late only, if a time is given."""
    since_us = 0 if newest_us is None else scope.cutoff_us - newest_us
    return read_visitors(project.query(exposures_sql(replace(scope, since_us=since_us))).table())


def _find_needed(project: OpenProject, experiment: Experiment, scope: Scope, visitors: Visitors) -> int:
    """Returns how many visitors an arm needs, told by the shortest time of late that has brought so many.

    Of each visitor a trial sees what such a time sees. Over all that was logged everybody has more pages, so that
    fewer visitors would seem to do: in the demo's world 50 after two days, where a trial of some hours needs 250.
    """
    first_us = int(visitors.first_us[visitors.counted].min())
    short: tuple[int, int] | None = None
    for newest_us in (*(span_us for span_us in _SPANS_US if span_us < scope.cutoff_us - first_us), None):
        late = visitors if newest_us is None else _read(project, scope, newest_us=newest_us)
        came = int(late.counted.sum())
        needed = _needed(experiment, _measure(late)) if came else 0
        if needed and came < 2 * needed:
            short = (came, needed)
        elif needed and came >= LEAST_VISITORS:
            return meet(short, (came, needed)) if short else needed
    return short[1] if short else 0


def meet(short: tuple[int, int], enough: tuple[int, int]) -> int:
    """Returns how many visitors an arm needs in the time that brings just so many to both.

    It lies between two times: one that brings too few, and a longer one that brings enough, each as who came and how
    many an arm needs then. Between them both change by powers of the time.

    >>> meet((400, 300), (800, 150)), meet((390, 200), (800, 80))
    (245, 198)
    """
    least, most = (math.log(came / (2 * needed)) for came, needed in (short, enough))
    share = least / (least - most)
    return math.ceil(math.exp((1 - share) * math.log(short[1]) + share * math.log(enough[1])) - 1e-9)


def _measure(visitors: Visitors) -> Ratio:
    kept = visitors.counted
    return ratio(measure_ratio(visitors.clicks[kept], visitors.views[kept]))


def _needed(experiment: Experiment, base: Ratio) -> int:
    if not base.estimate or not base.visitor_variance:
        return 0
    return visitors_per_arm(
        base.estimate, base.visitor_variance, mde=experiment.mde, alpha=experiment.alpha, power=experiment.power
    )


@dataclass(frozen=True)
class Plan:
    """What a trial of an experiment would take, told from the visitors that its page was logged for."""

    visitors: int
    """How many were logged, outside of any trial."""
    logged_us: int
    """Since when, as the time from the first of them until what is read ends."""
    ratio: float | None
    """The goal's ratio over all of them."""
    needed: int
    """How many visitors an arm needs; 0 if the ratio or its variance is 0, so that nothing can be told."""
    visitors_per_day: float
    """How many come in a day, in both arms: those of the newest day, or as many as a day of what was logged has."""
    daily_mde: float | None
    """The smallest lift that the visitors of one day show."""

    @property
    def days(self) -> float | None:
        """How many days bring the visitors needed, if each day brings new ones."""
        return 2 * self.needed / self.visitors_per_day if self.needed and self.visitors_per_day else None


def read_plan(project: OpenProject, name: str) -> Plan:
    """Returns what a trial of an experiment would take."""
    experiment = find_experiment(project, name)
    scope = _find_scope(project, experiment)
    visitors = _enough(experiment, _read(project, scope), what="a plan")
    base = _measure(visitors)
    first_us = int(visitors.first_us[visitors.counted].min())
    logged_us = max(scope.cutoff_us - first_us, 1)
    total = int(visitors.counted.sum())
    if logged_us < _DAY_US:
        per_day = total * _DAY_US / logged_us
    else:
        per_day = float(_read(project, scope, newest_us=_DAY_US).counted.sum())
    needed, mde = _find_needed(project, experiment, scope, visitors), None
    if needed and per_day >= 4:
        mde = reachable_mde(
            base.estimate or 0.0,
            base.visitor_variance or 0.0,
            visitors=int(per_day / 2),
            alpha=experiment.alpha,
            power=experiment.power,
        )
    return Plan(total, logged_us, base.estimate, needed, per_day, mde)
