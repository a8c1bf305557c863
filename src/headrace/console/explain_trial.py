"""A trial in a walk: what it froze, what it found, and what serves since."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.console.explain_walk import Link, Node, Sheet
from headrace.console.show import format_time
from headrace.endpoints.serving import TRIAL
from headrace.experiments.experiment import ARMS, Trial, decode_trial
from headrace.experiments.promotion import CHALLENGER, CHAMPION, Champion, decode_champion, decode_refusal
from headrace.experiments.verdict import OUTCOMES, SRM_ALPHA, Verdict, decode_verdict
from headrace.loop import VERDICT
from headrace.models.registry import Entry
from headrace.project import OpenProject


def find_trial(project: OpenProject, wanted: str) -> Trial | None:
    """Returns the trial of an id, else the newest of an experiment, as its last row has it."""
    newest = project.registry.newest(TRIAL)
    for experiment in newest:
        for entry in reversed(project.registry.entries(TRIAL, experiment)):
            trial = decode_trial(entry.value)
            if trial.id == wanted:
                return trial
    return decode_trial(newest[wanted].value) if wanted in newest else None


def list_trials(project: OpenProject) -> list[str]:
    """Returns the ids of all trials."""
    found = (entry for name in project.registry.newest(TRIAL) for entry in project.registry.entries(TRIAL, name))
    return list(dict.fromkeys(decode_trial(entry.value).id for entry in found))


def make_trial(project: OpenProject, wanted: str) -> Node | None:
    """Returns a trial as a node; None if the registry has none of this id."""
    trial = find_trial(project, wanted)
    if trial is None:
        return None
    ended = f", stopped {format_time(trial.stopped_us)[:19]}" if trial.stopped_us else ", runs"
    weights = ", ".join(f"{arm} {weight:.0%}" for arm, weight in zip(ARMS, trial.weights, strict=True))
    gate = "left out"
    if trial.gate is not None:
        found = trial.gate
        sign = "✓" if found.is_passed else "✗"
        gate = f"{sign} {found.significant:,} of {found.splits:,} splits differ, up to {found.band[1]:,} may"
    facts = [
        ("began", f"{format_time(trial.started_us)[:19]}{ended}"),
        ("arms", f"{weights}, by a hash of the visitor and the seed {trial.seed}"),
        ("goal", f"{trial.goal}: {trial.above} by {trial.below}"),
        ("planned", f"{trial.planned:,} visitors an arm, to show {trial.mde:.0%} with power {trial.power:g}"),
        ("A/A", gate),
    ]
    has_verdict = find_verdict(project, trial.id) is not None
    return Node(
        kind="trial",
        id=trial.id,
        title=f"{trial.id} on the page {trial.page}",
        facts=tuple(facts),
        upstream=tuple(Link(f"{arm} is", "bundle", trial.bundle_of(arm)) for arm in reversed(ARMS)),
        downstream=(Link("found", "verdict", trial.id),) if has_verdict else (),
        record={"trial": msgspec.to_builtins(trial)},
    )


def find_verdict(project: OpenProject, trial: str) -> Verdict | None:
    """Returns the verdict on a trial; None if there is none yet."""
    for experiment in project.registry.newest(VERDICT):
        for entry in project.registry.entries(VERDICT, experiment):
            verdict = decode_verdict(entry.value)
            if verdict.trial == trial:
                return verdict
    return None


def make_verdict(project: OpenProject, trial: str) -> Node | None:
    """Returns the verdict on a trial as a node; None if there is none."""
    verdict = find_verdict(project, trial)
    if verdict is None:
        return None
    arms = zip(ARMS, (verdict.control, verdict.treatment), strict=True)
    rows = tuple((name, arm.visitors, arm.pages, arm.views, arm.clicks, arm.ratio) for name, arm in arms)
    columns = ("arm", "visitors", "pages", "views", "clicks", verdict.goal)
    return Node(
        kind="verdict",
        id=trial,
        title=f"{verdict.outcome}: {OUTCOMES[verdict.outcome]}",
        facts=(*_list_health(verdict), *_list_effect(verdict), *_list_refusals(project, trial)),
        sheets=(Sheet("arms", columns, rows),),
        upstream=(Link("of", "trial", trial),),
        downstream=tuple(_list_champions(project, trial)),
        record={"verdict": msgspec.to_builtins(verdict)},
    )


def _list_health(verdict: Verdict) -> Iterator[tuple[str, str]]:
    if verdict.srm_p is not None:
        yield "health", f"{'✗' if verdict.srm_p < SRM_ALPHA else '✓'} sample ratio p {verdict.srm_p:.2g}"
    yield "left out", f"{verdict.multiple:,} visitors in both arms, {verdict.bots:,} robots"


def _list_effect(verdict: Verdict) -> Iterator[tuple[str, str]]:
    if verdict.lift is not None and verdict.lift_interval is not None:
        low, high = verdict.lift_interval
        share = f"{1 - verdict.alpha:.0%} interval"
        yield "lift", f"{verdict.lift:+.1%}, {share} {low:+.1%} to {high:+.1%}, p {verdict.p:.2g}"
    yield "cut-off", f"exposures before {format_time(verdict.cutoff_us)[:19]} count"
    for topic, positions in verdict.positions.items():
        yield "read up to", f"{topic} {', '.join(f'{p}/{offset}' for p, offset in enumerate(positions))}"


def _list_refusals(project: OpenProject, trial: str) -> Iterator[tuple[str, str]]:
    for page in project.registry.newest(CHALLENGER):
        for entry in project.registry.entries(CHALLENGER, page):
            refusal = decode_refusal(entry.value)
            if refusal.trial == trial:
                yield "refused", f"{refusal.bundle} does not serve {page}: {refusal.reason}"


def _list_champions(project: OpenProject, trial: str) -> Iterator[Link]:
    for page in project.registry.newest(CHAMPION):
        for entry in project.registry.entries(CHAMPION, page):
            if decode_champion(entry.value).trial == trial:
                yield Link("promoted", "champion", f"{page}#{entry.id}")


def make_champion(project: OpenProject, wanted: str) -> Node | None:
    """Returns what a page is served by since a row of the registry, `PAGE#ROW`, as a node; None if there is none."""
    page, _, row = wanted.rpartition("#")
    entries = project.registry.entries(CHAMPION, page)
    place = next((number for number, entry in enumerate(entries) if str(entry.id) == row), None)
    if place is None:
        return None
    entry, champion = entries[place], decode_champion(entries[place].value)
    upstream = [Link("won", "verdict", champion.trial)] if champion.trial else []
    upstream += [Link("is", "bundle", champion.bundle)] if champion.bundle else []
    before = entries[max(0, place - 1) : place]
    upstream += [Link("replaced", "champion", f"{page}#{one.id}", _tell_champion(one)) for one in before]
    later = entries[place + 1 : place + 2]
    until = f" until {format_time(later[0].at_us)[:19]}" if later else ", now"
    return Node(
        kind="champion",
        id=wanted,
        title=f"{_name(champion)} serves the page {page}",
        facts=(
            ("since", f"{format_time(entry.at_us)[:19]}{until}, by {champion.how}"),
            *((("why", champion.reason),) if champion.reason else ()),
            ("before", champion.before or "the fallback"),
        ),
        upstream=tuple(upstream),
        downstream=tuple(Link("replaced by", "champion", f"{page}#{one.id}", _tell_champion(one)) for one in later),
        record={"champion": msgspec.to_builtins(champion), "at_us": entry.at_us, "by": entry.by},
    )


def _tell_champion(entry: Entry) -> str:
    return f"{_name(decode_champion(entry.value))} since {format_time(entry.at_us)[:19]}"


def _name(champion: Champion) -> str:
    return f"{champion.model} {champion.bundle[:12]}" if champion.bundle else "the fallback"
