"""The loop, joined: start a trial, give its verdict, and let what won serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from headrace.base import fault
from headrace.base.errors import CallError, FormatError, StopError, UnavailableError, unknown_name
from headrace.endpoints.endpoint import Page
from headrace.endpoints.serving import TRIAL, find_trials
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS
from headrace.experiments.analyse import degraded_sql, exposures_sql, judge, read_visitors, trial_scope
from headrace.experiments.experiment import ARMS, VERSION, Experiment, Gate, Trial, decode_trial, encode_trial
from headrace.experiments.guardrail import judge_guardrail
from headrace.experiments.metric import freeze
from headrace.experiments.promotion import (
    CHALLENGER,
    CHAMPION,
    Champion,
    How,
    Refusal,
    decode_champion,
    encode_promotion,
)
from headrace.experiments.promotion import VERSION as PROMOTION_VERSION
from headrace.experiments.verdict import OUTCOMES, VERDICTS, Exposure, Verdict, decode_verdict, encode_verdict
from headrace.experiments.verdict import VERSION as VERDICT_VERSION
from headrace.learn import make_entry, read_offline_gate, wait_for_lake
from headrace.models import Model, open_bundle
from headrace.project import OpenProject
from headrace.survey import find_experiment, read_gate

VERDICT = "verdict"
"""The kind of the registry's rows that hold verdicts."""

LONGEST_US = 28 * 86_400_000_000
"""How long a trial lasts at most, by the project's clock; so it is judged then whoever has come."""


def start(project: OpenProject, name: str, *, gate: bool = True, challenger: str | None = None) -> Trial:
    """Returns the trial that begins now; raises StopError if the A/A gate refuses.

    It tests the challenger's bundle, by default the newest of what ranks, against what serves the page now.
    """
    experiment = find_experiment(project, name)
    page = experiment.on
    if not isinstance(page, Page):
        raise CallError(f"experiment {name!r} is on {page.name!r}, which is no page")
    before = _newest_id(project, TRIAL, name)
    _refuse_second(project, name, page)
    arms = _find_arms(project, page, challenger)
    found, planned = _pass_aa(project, name) if gate else (None, 0)
    trial = _make_trial(project, experiment, page, arms, (found, planned))
    fault.point("promote.starting")
    _write(project, TRIAL, name, encode_trial(trial), over=before)
    fault.point("promote.started")
    return trial


def _refuse_second(project: OpenProject, name: str, page: Page) -> None:
    running = find_trials(project.registry).get(page.name)
    if running is not None:
        raise CallError(
            f"trial {running.id!r} runs on the page {page.name!r} already. "
            f"End it first: headrace experiment stop {running.experiment}"
        )
    last = project.registry.newest(TRIAL).get(name)
    if last is not None and find_verdict_on(project, decode_trial(last.value)) is None:
        raise CallError(
            f"trial {decode_trial(last.value).id!r} has ended and has no verdict yet. "
            f"Ask for it first: headrace experiment stop {name}"
        )


def _find_arms(project: OpenProject, page: Page, challenger: str | None) -> tuple[str, str]:
    """Returns the bundles of control and treatment, both of which open."""
    champion = find_champion(project, page.name)
    if champion is not None and champion.bundle:
        control = _openable(project, champion.bundle, f"the champion of the page {page.name!r}")
    else:
        control = _newest_bundle(project, page.fallback)
    ranker = page.ranker
    if challenger is None:
        treatment = _newest_bundle(project, ranker)
    else:
        treatment = _openable(project, challenger, f"the challenger of the page {page.name!r}")
    if treatment == control:
        raise CallError(
            f"the newest bundle of {ranker.name!r} serves the page {page.name!r} already, so there is nothing to test. "
            f"Fit another: headrace model fit {ranker.name}"
        )
    said = read_offline_gate(project, treatment)
    if said is not None and not said.passed:
        raise StopError(
            f"the offline gate refuses the bundle {treatment} of {ranker.name!r}: {'; '.join(said.reasons)}. "
            f"Fit another: headrace model fit {ranker.name}"
        )
    return control, treatment


def _pass_aa(project: OpenProject, name: str) -> tuple[Gate, int]:
    found, planned = read_gate(project, name)
    if not found.is_passed:
        raise StopError(
            f"the A/A gate refuses: {found.significant} of {found.splits} splits of the same visitors differ at "
            f"p < {found.alpha:g}, at most {found.band[1]} may. The test would find lifts that are not there"
        )
    return found, planned


def _make_trial(
    project: OpenProject,
    experiment: Experiment,
    page: Page,
    arms: tuple[str, str],
    gate: tuple[Gate | None, int],
) -> Trial:
    """Returns the trial that freezes an experiment, its page and two bundles as they are now."""
    name, goal, now_us = experiment.name, experiment.goal, project.clock.now_us()
    number = len({decode_trial(one.value).id for one in project.registry.entries(TRIAL, name)}) + 1
    return Trial(
        version=VERSION,
        id=f"{name}-{number}",
        experiment=name,
        page=page.name,
        seed=f"{name}-{number}-{now_us}",
        control=arms[0],
        treatment=arms[1],
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
        planned=gate[1],
        gate=gate[0],
        definition=page.definition,
        guardrails=tuple(map(freeze, experiment.guardrails)),
    )


def _newest_bundle(project: OpenProject, model: Model) -> str:
    found = project.registry.bundles(model.name)
    if not found:
        raise CallError(f"there is no bundle of {model.name!r} yet. Fit one with: headrace model fit {model.name}")
    return _openable(project, found[0].hash, f"the newest bundle of {model.name!r}", model=model.name)


def _openable(project: OpenProject, name_hash: str, what: str, *, model: str = "") -> str:
    try:
        open_bundle(project.registry.load(name_hash))
    except FormatError as error:
        again = f" Fit another: headrace model fit {model}" if model else ""
        raise CallError(f"{what} cannot serve: {error}.{again}") from error
    return name_hash


def _newest_id(project: OpenProject, kind: str, name: str) -> int:
    newest = project.registry.newest(kind).get(name)
    return newest.id if newest else 0


def _write(project: OpenProject, kind: str, name: str, value: bytes, *, over: int) -> None:
    """Writes a row over the one that stood there when its writer began: of two at once, one is refused."""
    project.registry.write(make_entry(project, kind, name, value, over=over))


def find_champion(project: OpenProject, page: str) -> Champion | None:
    """Returns what was promoted last to serve a page."""
    entry = project.registry.newest(CHAMPION).get(page)
    return decode_champion(entry.value) if entry else None


def promote(project: OpenProject, page: str, bundle: str, *, how: How = "hand", reason: str = "") -> Champion:
    """Returns the champion that a bundle becomes: it serves a page from then on; nothing lets the fallback serve."""
    before = _newest_id(project, CHAMPION, page)
    declared = _find_page(project, page)
    running = find_trials(project.registry).get(page)
    if running is not None:
        raise CallError(
            f"trial {running.id!r} runs on the page {page!r} and freezes what serves it. "
            f"End it first: headrace experiment stop {running.experiment}"
        )
    models = {model.name for model in declared.models}
    model = project.registry.load(_openable(project, bundle, f"the bundle {bundle}")).name if bundle else ""
    if bundle and model not in models:
        raise unknown_name("model of the page", model, models)
    serves = find_champion(project, page)
    champion = Champion(
        version=PROMOTION_VERSION,
        page=page,
        bundle=bundle,
        model=model,
        how=how,
        before=serves.bundle if serves else "",
        reason=reason,
    )
    _write(project, CHAMPION, page, encode_promotion(champion), over=before)
    return champion


def roll_back(project: OpenProject, page: str, *, reason: str = "") -> Champion:
    """Returns the champion that served before the present one, which serves again; without one the fallback does."""
    _find_page(project, page)
    champion = find_champion(project, page)
    if champion is None:
        raise CallError(f"the page {page!r} has no champion: the newest bundle of its fallback serves it")
    return promote(project, page, champion.before, how="rollback", reason=reason)


def _find_page(project: OpenProject, name: str) -> Page:
    pages = {page.name: page for page in project.declared.pages}
    if name not in pages:
        raise unknown_name("page", name, pages)
    return pages[name]


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


def find_verdict_on(project: OpenProject, trial: Trial) -> Verdict | None:
    """Returns the verdict on a trial, once it was given."""
    verdict = find_verdict(project, trial.experiment)
    return verdict if verdict is not None and verdict.trial == trial.id else None


def look(project: OpenProject, name: str) -> Verdict:
    """Returns what a trial would find if it were stopped now; a verdict that was given is returned as it is."""
    trial = find_trial(project, name)
    given = find_verdict_on(project, trial)
    if given is not None:
        return given
    made_us = project.clock.now_us()
    return judge_trial(project, trial, wait_for_lake(project), made_us)


def judge_again(project: OpenProject, verdict: Verdict) -> Verdict:
    """Returns the verdict anew, from the trial's row and what the lake holds below the recorded positions."""
    trial = find_trial_of(project, verdict)
    return judge_trial(project, trial, verdict.positions, verdict.made_us, cutoff_us=verdict.cutoff_us)


def stop(project: OpenProject, name: str) -> Verdict:
    """Returns the verdict on an experiment's trial, which ends with it; another call returns the same one.

    What follows from it for the page is written together with it: its champion changes, or the challenger is refused.
    """
    # Read before anything else: who changes one of these meanwhile is not written over.
    before = {kind: _newest_id(project, kind, name) for kind in (TRIAL, VERDICT)}
    trial = find_trial(project, name)
    before |= {kind: _newest_id(project, kind, trial.page) for kind in (CHAMPION, CHALLENGER)}
    given = find_verdict_on(project, trial)
    if given is None:
        trial = _end(project, trial, over=before[TRIAL])
        given = _judge_now(project, trial)
        fault.point("promote.judged")
        kind, promotion = _conclude(project, trial, given)
        project.registry.write(
            make_entry(project, VERDICT, name, encode_verdict(given), over=before[VERDICT]),
            make_entry(project, kind, trial.page, encode_promotion(promotion), over=before[kind]),
        )
        fault.point("promote.promoted")
    save_verdict(project, given)
    return given


def _end(project: OpenProject, trial: Trial, *, over: int) -> Trial:
    if trial.status != "running":
        return trial
    stopped = msgspec.structs.replace(trial, status="stopped", stopped_us=project.clock.now_us())
    _write(project, TRIAL, trial.experiment, encode_trial(stopped), over=over)
    fault.point("promote.stopped")
    return stopped


def _judge_now(project: OpenProject, trial: Trial) -> Verdict:
    made_us = project.clock.now_us()
    try:
        ends = wait_for_lake(project)
    except UnavailableError as error:
        raise UnavailableError(
            f"trial {trial.id!r} has ended and is not judged yet: {error}. "
            f"Then ask again: headrace experiment stop {trial.experiment}"
        ) from error
    return judge_trial(project, trial, ends, made_us)


def _conclude(project: OpenProject, trial: Trial, verdict: Verdict) -> tuple[str, Champion | Refusal]:
    """Returns what follows from a verdict for its page: the bundle that it tested, and no newer one, wins or loses."""
    bundles = {one.hash: one.name for one in project.registry.bundles()}
    model = bundles.get(trial.treatment, "")
    serves = find_champion(project, trial.page)
    refused = _find_refusal(trial, verdict, serves, is_known=trial.treatment in bundles)
    if refused:
        refusal = Refusal(
            version=PROMOTION_VERSION,
            page=trial.page,
            bundle=trial.treatment,
            model=model,
            trial=trial.id,
            verdict=verdict.outcome,
            reason=refused,
        )
        return CHALLENGER, refusal
    champion = Champion(
        version=PROMOTION_VERSION,
        page=trial.page,
        bundle=trial.treatment,
        model=model,
        how="verdict",
        trial=trial.id,
        verdict=verdict.outcome,
        before=serves.bundle if serves else "",
        reason=OUTCOMES[verdict.outcome],
    )
    return CHAMPION, champion


def _find_refusal(trial: Trial, verdict: Verdict, serves: Champion | None, *, is_known: bool) -> str:
    """Returns why the bundle of a trial is not promoted, or nothing."""
    if verdict.outcome != "better":
        return "; ".join([OUTCOMES[verdict.outcome], *verdict.reasons])
    fewest = min(verdict.control.visitors, verdict.treatment.visitors)
    if fewest < trial.planned and trial.stopped_us - trial.started_us < LONGEST_US:
        return (
            f"the trial was ended at {fewest:,} visitors in the smaller arm where {trial.planned:,} were planned: who "
            "looks often stops early by chance"
        )
    if not is_known:
        return f"the bundle {trial.treatment} is not in the registry"
    if serves is not None and serves.bundle and serves.bundle != trial.control:
        return f"the bundle {serves.bundle} was promoted meanwhile, which the trial did not compare it with"
    return ""


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

    def ask(sql: str, parameters: Mapping[str, object]) -> pa.Table:
        return project.query(sql, parameters=parameters).table()

    guardrails = [judge_guardrail(trial, metric, visitors, scope=scope, ask=ask) for metric in trial.guardrails]
    return judge(trial, visitors, made_us=made_us, scope=scope, degraded=counts, guardrails=guardrails)


def list_exposures(project: OpenProject, verdict: Verdict) -> list[Exposure]:
    """Returns who was in the trial of a verdict."""
    trial = find_trial_of(project, verdict)
    scope = trial_scope(trial, cutoff_us=verdict.cutoff_us, positions=verdict.positions)
    found = project.query(exposures_sql(scope)).table().to_pylist()
    return [Exposure(version=VERDICT_VERSION, trial=trial.id, **row) for row in found]


def save_verdict(project: OpenProject, verdict: Verdict) -> None:
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
