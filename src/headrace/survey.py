"""What is known before a trial: the visitors whom a page was logged for, split anew as A/A, and what they foretell."""

from __future__ import annotations

from dataclasses import dataclass

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
    visitors = _enough(experiment, _logged(project, experiment), what="the A/A gate")
    gate = split_again(visitors, seed=f"aa/{name}", splits=splits, weights=(0.5, 0.5), alpha=experiment.alpha)
    return gate, _needed(experiment, _measure(visitors))


def _enough(experiment: Experiment, visitors: Visitors, *, what: str) -> Visitors:
    num_visitors = int(visitors.counted.sum())
    if num_visitors < LEAST_VISITORS:
        raise StopError(
            f"{num_visitors} visitors were logged on the page {experiment.on.name!r} outside of a trial, "
            f"{experiment.goal.within} ago or earlier; {what} needs {LEAST_VISITORS}. Let the page serve for a while"
        )
    return visitors


def _logged(project: OpenProject, experiment: Experiment, *, newest_us: int | None = None) -> Visitors:
    """Returns the visitors that a page was logged for outside of any trial; of late only, if a time is given."""
    if CLICKS not in project.topics.names() or DECISIONS not in project.topics.names():
        raise StopError("nothing was logged yet. Run the project with: headrace up")
    # Taken before the wait: what is older than it was on its way to the lake then, if it came in time at all.
    now_us = project.clock.now_us()
    ends = wait_for_lake(project)
    if DECISIONS not in project.tables.names() or EVENTS not in project.tables.names():
        raise StopError(f"no page was logged yet. Ask for one: POST /v1/page with {experiment.on.name!r}")
    goal = experiment.goal
    cutoff_us = now_us - goal.within_us
    scope = Scope(
        where=f"trial IS NULL AND page = {quote_text(experiment.on.name)}",
        above=goal.above,
        below=goal.below,
        within_us=goal.within_us,
        cutoff_us=cutoff_us,
        positions=ends,
        starts={topic: (0,) * len(places) for topic, places in ends.items()},
        since_us=0 if newest_us is None else cutoff_us - newest_us,
    )
    return read_visitors(project.query(exposures_sql(scope)).table())


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
    visitors = _enough(experiment, _logged(project, experiment), what="a plan")
    base = _measure(visitors)
    first_us = int(visitors.first_us[visitors.counted].min())
    logged_us = max(project.clock.now_us() - experiment.goal.within_us - first_us, 1)
    total = int(visitors.counted.sum())
    if logged_us < _DAY_US:
        per_day = total * _DAY_US / logged_us
    else:
        per_day = float(_logged(project, experiment, newest_us=_DAY_US).counted.sum())
    needed, mde = _needed(experiment, base), None
    if needed and per_day >= 4:
        mde = reachable_mde(
            base.estimate or 0.0,
            base.visitor_variance or 0.0,
            visitors=int(per_day / 2),
            alpha=experiment.alpha,
            power=experiment.power,
        )
    return Plan(total, logged_us, base.estimate, needed, per_day, mde)
