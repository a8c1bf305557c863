"""The loop, joined: test the assignment, start a trial, give its verdict."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa

from headrace.base.errors import CallError, FormatError, StopError, UnavailableError, unknown_name
from headrace.collect.app import CLICKS
from headrace.endpoints.endpoint import Page
from headrace.endpoints.serving import TRIAL, find_trials
from headrace.engines.engine import quote_text
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS
from headrace.experiments.analyse import (
    Scope,
    Visitors,
    degraded_sql,
    exposures_sql,
    judge,
    read_visitors,
    split_again,
    trial_scope,
)
from headrace.experiments.experiment import ARMS, VERSION, Experiment, Gate, Trial, decode_trial, encode_trial
from headrace.experiments.verdict import VERDICTS, Exposure, Verdict, decode_verdict, encode_verdict
from headrace.experiments.verdict import VERSION as VERDICT_VERSION
from headrace.learn import wait_for_lake
from headrace.models import Model, open_bundle
from headrace.models.registry import Entry
from headrace.project import OpenProject
from headrace.stats.compare import Ratio, ratio
from headrace.stats.moments import measure_ratio
from headrace.stats.power import reachable_mde, visitors_per_arm

VERDICT = "verdict"
"""The kind of the registry's rows that hold verdicts."""

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


def start(project: OpenProject, name: str, *, gate: bool = True) -> Trial:
    """Returns the trial that begins now; raises StopError if the A/A gate refuses."""
    experiment = find_experiment(project, name)
    page = experiment.on
    if not isinstance(page, Page):
        raise CallError(f"experiment {name!r} is on {page.name!r}, which is no page")
    before = _newest_id(project, TRIAL, name)
    running = find_trials(project.registry).get(page.name)
    if running is not None:
        raise CallError(
            f"trial {running.id!r} runs on the page {page.name!r} already. "
            f"End it first: headrace experiment stop {running.experiment}"
        )
    last = project.registry.newest(TRIAL).get(name)
    if last is not None and not _is_judged(project, name, decode_trial(last.value).id):
        raise CallError(
            f"trial {decode_trial(last.value).id!r} has ended and has no verdict yet. "
            f"Ask for it first: headrace experiment stop {name}"
        )
    control = _newest_bundle(project, page.fallback)
    treatment = _newest_bundle(project, page.carousels[0].ranker)
    found, planned = read_gate(project, name) if gate else (None, 0)
    if found is not None and not found.is_passed:
        raise StopError(
            f"the A/A gate refuses: {found.significant} of {found.splits} splits of the same visitors differ at "
            f"p < {found.alpha:g}, at most {found.band[1]} may. The test would find lifts that are not there"
        )
    number = len({decode_trial(one.value).id for one in project.registry.entries(TRIAL, name)}) + 1
    goal, now_us = experiment.goal, project.clock.now_us()
    trial = Trial(
        version=VERSION,
        id=f"{name}-{number}",
        experiment=name,
        page=page.name,
        seed=f"{name}-{number}-{now_us}",
        control=control,
        treatment=treatment,
        per_row=page.per_row,
        explore=page.explore,
        started_us=now_us,
        positions={topic: tuple(bound.end for bound in project.topics.bounds(topic)) for topic in (DECISIONS, EVENTS)},
        incarnations={topic: project.topics.describe(topic).incarnation for topic in (DECISIONS, EVENTS)},
        goal=goal.name,
        above=goal.above.name,
        above_item=goal.above.item or "",
        below=goal.below.name,
        below_item=goal.below.item or "",
        within_us=goal.within_us,
        lateness_us=experiment.lateness_us,
        alpha=experiment.alpha,
        mde=experiment.mde,
        power=experiment.power,
        planned=planned,
        gate=found,
        definition=page.definition,
    )
    _write(project, TRIAL, name, encode_trial(trial), over=before)
    return trial


def _newest_bundle(project: OpenProject, model: Model) -> str:
    found = project.registry.bundles(model.name)
    if not found:
        raise CallError(f"there is no bundle of {model.name!r} yet. Fit one with: headrace model fit {model.name}")
    try:
        open_bundle(project.registry.load(found[0].hash))
    except FormatError as error:
        raise CallError(
            f"the newest bundle of {model.name!r} cannot serve: {error}. Fit another: headrace model fit {model.name}"
        ) from error
    return found[0].hash


def _newest_id(project: OpenProject, kind: str, name: str) -> int:
    newest = project.registry.newest(kind).get(name)
    return newest.id if newest else 0


def _write(project: OpenProject, kind: str, name: str, value: bytes, *, over: int) -> None:
    """Writes a row over the one that stood there when its writer began: of two at once, one is refused."""
    project.registry.write(Entry(over, kind, name, value, project.clock.now_us(), getpass.getuser()))


def _is_judged(project: OpenProject, name: str, trial: str) -> bool:
    verdict = find_verdict(project, name)
    return verdict is not None and verdict.trial == trial


def find_trial(project: OpenProject, name: str) -> Trial:
    """Returns the newest trial of an experiment, also of one that the project no longer declares."""
    entry = project.registry.newest(TRIAL).get(name)
    if entry is None:
        find_experiment(project, name)
        raise CallError(f"experiment {name!r} was not started yet. Start it with: headrace experiment start {name}")
    return decode_trial(entry.value)


def find_trial_of(project: OpenProject, verdict: Verdict) -> Trial:
    """Returns the trial that a verdict is about."""
    rows = [decode_trial(entry.value) for entry in project.registry.entries(TRIAL, verdict.experiment)]
    return next(one for one in reversed(rows) if one.id == verdict.trial)


def find_verdict(project: OpenProject, name: str) -> Verdict | None:
    """Returns the newest verdict of an experiment."""
    entry = project.registry.newest(VERDICT).get(name)
    return decode_verdict(entry.value) if entry else None


def look(project: OpenProject, name: str) -> Verdict:
    """Returns what a trial would find if it were stopped now; a verdict that was given is returned as it is."""
    trial = find_trial(project, name)
    given = find_verdict(project, name)
    if given is not None and given.trial == trial.id:
        return given
    made_us = project.clock.now_us()
    return judge_trial(project, trial, wait_for_lake(project), made_us)


def judge_again(project: OpenProject, verdict: Verdict) -> Verdict:
    """Returns the verdict anew, from the trial's row and what the lake holds below the recorded positions."""
    trial = find_trial_of(project, verdict)
    return judge_trial(project, trial, verdict.positions, verdict.made_us, cutoff_us=verdict.cutoff_us)


def stop(project: OpenProject, name: str) -> Verdict:
    """Returns the verdict on an experiment's trial, which ends with it; another call returns the same one."""
    before = {kind: _newest_id(project, kind, name) for kind in (TRIAL, VERDICT)}
    trial = find_trial(project, name)
    given = find_verdict(project, name)
    if given is None or given.trial != trial.id:
        if trial.status == "running":
            stopped = msgspec.structs.replace(trial, status="stopped", stopped_us=project.clock.now_us())
            _write(project, TRIAL, name, encode_trial(stopped), over=before[TRIAL])
        made_us = project.clock.now_us()
        try:
            ends = wait_for_lake(project)
        except UnavailableError as error:
            raise UnavailableError(
                f"trial {trial.id!r} has ended and is not judged yet: {error}. "
                f"Then ask again: headrace experiment stop {name}"
            ) from error
        given = judge_trial(project, trial, ends, made_us)
        _write(project, VERDICT, name, encode_verdict(given), over=before[VERDICT])
    _save(project, given)
    return given


def judge_trial(
    project: OpenProject,
    trial: Trial,
    positions: Mapping[str, Sequence[int]],
    made_us: int,
    *,
    cutoff_us: int | None = None,
) -> Verdict:
    """Returns what a trial's row and the lake below some positions say; exposures from the cut-off on are left out."""
    for topic, incarnation in trial.incarnations.items():
        if project.topics.describe(topic).incarnation != incarnation:
            raise StopError(f"the topic {topic!r} was made anew since trial {trial.id!r} began: it has no verdict")
    cutoff = made_us - trial.within_us - trial.lateness_us if cutoff_us is None else cutoff_us
    scope = trial_scope(trial, cutoff_us=cutoff, positions=positions)
    missing = [name for name in (DECISIONS, EVENTS) if name not in project.tables.names()]
    if missing:
        raise StopError(f"the table {missing[0]!r} does not stand yet: its sink has seen nothing since the trial began")
    visitors = read_visitors(project.query(exposures_sql(scope)).table())
    degraded = project.query(degraded_sql(scope)).table().to_pylist()
    counts: dict[str, int] = {row["what"]: row["pages"] for row in degraded}
    return judge(trial, visitors, made_us=made_us, scope=scope, degraded=counts)


def list_exposures(project: OpenProject, verdict: Verdict) -> list[Exposure]:
    """Returns who was in the trial of a verdict."""
    trial = find_trial_of(project, verdict)
    scope = trial_scope(trial, cutoff_us=verdict.cutoff_us, positions=verdict.positions)
    found = project.query(exposures_sql(scope)).table().to_pylist()
    return [Exposure(version=VERDICT_VERSION, trial=trial.id, **row) for row in found]


def _save(project: OpenProject, verdict: Verdict) -> None:
    """Writes a verdict into the lake, once."""
    table = project.tables.create(
        VERDICTS,
        _SCHEMA,
        partition_by=(),
        description="What trials found: one row for each verdict.",
    )
    # A registry that was lost counts its trials anew.
    app = f"verdict/{verdict.trial}/{verdict.started_us}"
    if table.position(app) is None:
        table.append(pa.Table.from_pylist([_row(verdict)], schema=_SCHEMA), positions={app: 1})


def _row(verdict: Verdict) -> dict[str, Any]:
    plain = {name: getattr(verdict, name) for name in _SCHEMA.names if hasattr(verdict, name)}
    arms = {
        f"{arm}_{name}": value for arm in ARMS for name, value in msgspec.structs.asdict(getattr(verdict, arm)).items()
    }
    intervals = {
        f"{name}_{end}": interval[place] if interval else None
        for name, interval in (("difference", verdict.difference_interval), ("lift", verdict.lift_interval))
        for place, end in enumerate(("low", "high"))
    }
    return {**plain, **arms, **intervals, "verdict": encode_verdict(verdict).decode()}


_COUNTS = ("visitors", "pages", "views", "clicks")
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("trial", "experiment", "page", "goal", "outcome")),
        ("reasons", pa.list_(pa.string())),
        *((name, pa.int64()) for name in ("made_us", "started_us", "cutoff_us", "planned", "multiple", "bots")),
        *((name, pa.string()) for name in ("control_bundle", "treatment_bundle")),
        *((f"{arm}_{name}", pa.int64()) for arm in ARMS for name in _COUNTS),
        *((f"{arm}_ratio", pa.float64()) for arm in ARMS),
        *((name, pa.float64()) for name in ("difference", "difference_low", "difference_high")),
        *((name, pa.float64()) for name in ("lift", "lift_low", "lift_high", "p", "df", "srm_p", "alpha")),
        ("verdict", pa.string()),
    ]
)
