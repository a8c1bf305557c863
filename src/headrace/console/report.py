"""A trial as one HTML file: the verdict in words, its health, then the effect. It asks nobody, and runs no script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from headrace.base.errors import CallError
from headrace.console.charts import Point, Range, band, bars, forest
from headrace.console.figures import capitalise, format_chance, format_seconds, format_share, format_tick, format_time
from headrace.console.frame import MARK, Html, badge, code, document, facts, figures, panel, put, table, tag
from headrace.console.health import BADGES, list_checks
from headrace.console.lift import follow
from headrace.experiments.analyse import trial_scope
from headrace.experiments.experiment import ARMS, Trial
from headrace.experiments.verdict import OUTCOMES, Guardrail, Outcome, Verdict
from headrace.loop import find_trial_of
from headrace.project import OpenProject

_STYLES = ("tokens.css", "console.css")
_WORDS: Mapping[Outcome, tuple[str, str]] = {
    "better": ("good", "The treatment is better"),
    "worse": ("bad", "The treatment is worse"),
    "undecided": ("", "No difference was found"),
    "early": ("warn", "It is too early to say"),
    "unhealthy": ("bad", "The trial itself is not sound"),
    "empty": ("warn", "There is nothing to compare"),
}
_OWN = """
.report { padding-block: var(--s6) var(--s7) }
.report .kicker { display: flex; align-items: center; gap: .6rem; color: var(--soft); font-weight: 600 }
.report h1 { margin-top: var(--s5) }
.report ul { padding-left: 1.2rem; display: grid; gap: var(--s2); max-width: 52rem }
.report .kicker svg { width: 28px; height: 28px; flex: none }
.report .say { margin-top: var(--s3) }
.report .badge { white-space: normal }
.report .facts > dd { max-width: 46rem }
@media print {
  @page { margin: 14mm }
  * { print-color-adjust: exact }
  body { background: #fff }
  .report { padding: 0 }
  .panel, .figures { break-inside: avoid; box-shadow: none }
  .scroll { overflow: visible }
}
"""


def save_report(project: OpenProject, verdict: Verdict, path: Path, *, is_final: bool) -> None:
    """Writes the report to a file; raises CallError where that cannot be."""
    try:
        path.write_text(write_report(project, verdict, is_final=is_final), encoding="utf-8")
    except OSError as error:
        raise CallError(f"--html {path}: {error.strerror}. Name a file that can be written") from error


def write_report(project: OpenProject, verdict: Verdict, *, is_final: bool) -> str:
    """Returns the report on a trial's verdict, or on what it would be now."""
    trial = find_trial_of(project, verdict)
    looks = follow(project, trial, trial_scope(trial, cutoff_us=verdict.cutoff_us, positions=verdict.positions))
    body = put(
        _head(project, verdict, is_final=is_final),
        _health(verdict),
        figures(_list_figures(verdict)),
        *_effect(trial, verdict),
        _over_time(trial, looks),
        _plan(trial, verdict),
        _counting(trial, verdict),
        _audit(trial, verdict),
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = put(tag("meta", http_equiv="content-security-policy", content=policy), tag("style", Html(_styles())))
    main = put(tag("main", body, class_="report"), _foot(verdict))
    return document(f"{verdict.trial} · experiment report", head, main) + "\n"


def _styles() -> str:
    assets = resources.files("headrace.console").joinpath("assets")
    found = "".join(assets.joinpath(name).read_text(encoding="utf-8") for name in _STYLES)
    # On paper everybody reads the light one.
    return found.replace("(prefers-color-scheme: light)", "print, (prefers-color-scheme: light)") + _OWN


def _head(project: OpenProject, verdict: Verdict, *, is_final: bool) -> Html:
    kind, words = _WORDS[verdict.outcome]
    state = "Verdict" if is_final else "As it would be now: the trial goes on"
    return put(
        tag("p", Html(MARK), f"Headrace · {project.declared.name} · experiment report", class_="kicker"),
        tag("h1", words),
        tag("p", _say(verdict), class_="say"),
        tag("p", badge(kind, verdict.outcome), f" {state}, {format_time(verdict.made_us)[:16]} UTC", class_="lead"),
    )


def _say(verdict: Verdict) -> str:
    """Returns the verdict in words."""
    told = [f"Trial {verdict.trial} on the page {verdict.page}."]
    if verdict.outcome not in ("better", "worse"):
        told.append(f"{OUTCOMES[verdict.outcome].capitalize()}.")
    if verdict.lift is not None and verdict.lift_interval is not None and verdict.outcome not in ("unhealthy", "empty"):
        low, high = verdict.lift_interval
        told.append(
            f"{verdict.goal} changes by {format_share(verdict.lift)} against control; the {_share(verdict)} interval "
            f"reaches from {format_share(low)} to {format_share(high)}."
        )
    fallen = [one.name for one in verdict.guardrails if one.is_worse]
    return " ".join([*told, *([f"The guardrail {' and '.join(fallen)} got worse."] if fallen else [])])


def _share(verdict: Verdict) -> str:
    return f"{100 * (1 - verdict.alpha):g} %"


def _list_figures(verdict: Verdict) -> Iterator[tuple[str, object, object]]:
    interval = verdict.lift_interval
    note = f"{format_share(interval[0])} to {format_share(interval[1])}" if interval else "not estimable"
    yield "Lift", "-" if verdict.lift is None else format_share(verdict.lift), note
    yield "p value", "-" if verdict.p is None else format_chance(verdict.p), f"alpha {verdict.alpha:g}"
    visitors = verdict.control.visitors + verdict.treatment.visitors
    yield (
        "Visitors",
        f"{visitors:,}",
        f"planned {2 * verdict.planned:,}" if verdict.planned else "no number was planned",
    )
    lasted = format_seconds((verdict.cutoff_us - verdict.started_us) / 1e6)
    yield "Lasted", lasted, f"from {format_time(verdict.started_us)[:16]}"


# Health.


def _health(verdict: Verdict) -> Html:
    checks = list(list_checks(verdict))
    rows = [(badge(BADGES[one.mark], capitalise(one.name)), one.text) for one in checks]
    failed = any(one.mark == "bad" for one in checks)
    note = "Where one of these fails, no number below can be trusted." if failed else "Read first: nothing here fails."
    return panel("Health", facts(rows), note=note)


# Effect.


def _effect(trial: Trial, verdict: Verdict) -> Iterator[Html]:
    rows = list(_list_ranges(verdict))
    if rows:
        chart = forest(
            rows, label=f"Lift of the goal and the guardrails, {_share(verdict)} intervals", form=format_tick
        )
        note = f"The goal, and below it the guardrails: relative to control, with {_share(verdict)} intervals."
        yield panel("Effect", chart, _unjudged(verdict), note=note)
    arms = (verdict.control, verdict.treatment)
    heads = ("Arm", "Visitors", "Pages", "Views", "Clicks", verdict.goal, "Bundle")
    cells = [
        (name, arm.visitors, arm.pages, arm.views, arm.clicks, "-" if arm.ratio is None else f"{arm.ratio:.5f}", found)
        for name, arm, found in zip(ARMS, arms, (code(trial.bundle_of(arm), short=True) for arm in ARMS), strict=True)
    ]
    listed = [table("Arms", heads, cells, numbers=range(1, 6))]
    if verdict.guardrails:
        names = ("Guardrail", "Control", "Treatment", "Change", "p")
        listed.append(tag("h3", "Guardrails"))
        listed.append(table("Guardrails", names, map(_guardrail_row, verdict.guardrails), numbers=(1, 2, 3, 4)))
    yield panel("Both arms", *listed)


def _list_ranges(verdict: Verdict) -> Iterator[Range]:
    for name, lift, interval in (
        (verdict.goal, verdict.lift, verdict.lift_interval),
        *((one.name, one.lift, one.lift_interval) for one in verdict.guardrails),
    ):
        if lift is not None and interval is not None:
            low, high = interval
            text = f"{format_share(lift)} ({100 * low:+.1f} to {100 * high:+.1f})"
            yield Range(name, low, lift, high, text)


def _unjudged(verdict: Verdict) -> Html:
    found = [f"{one.name} cannot be judged: {one.reason}." for one in verdict.guardrails if one.p is None]
    return tag("p", " ".join(found), class_="note") if found else Html("")


def _guardrail_row(found: Guardrail) -> Sequence[object]:
    arms = ("-" if value is None else f"{value:.4g}" for value in (found.control, found.treatment))
    change = "-" if found.lift is None else format_share(found.lift)
    name = put(found.name, " ", badge("bad", "worse")) if found.is_worse else found.name
    return (name, *arms, change, "-" if found.p is None else format_chance(found.p))


def _over_time(trial: Trial, looks: Sequence[Mapping[str, Any]]) -> Html:
    points = [
        Point(look["at_us"], look["interval"][0], look["lift"], look["interval"][1])
        for look in looks
        if look["lift"] is not None and look["interval"] is not None
    ]
    if len(points) < 2:
        return panel("Lift over time", tag("p", "There were too few visitors to draw it.", class_="note"))
    times = (format_time(int(points[0].x))[:16], format_time(int(points[-1].x))[:16])
    chart = band(points, label=f"Lift of {trial.goal} over time", form=format_tick, times=times)
    note = (
        "What somebody would have found who had looked then. Whoever stops at the first interval that leaves 0 finds "
        "lifts that are not there: only the last one counts."
    )
    return panel("Lift over time", chart, note=note)


# The plan, and what it was counted from.


def _plan(trial: Trial, verdict: Verdict) -> Html:
    rows = [
        (f"{name}, came", float(arm.visitors), f"{arm.visitors:,}")
        for name, arm in zip(ARMS, (verdict.control, verdict.treatment), strict=True)
    ]
    if trial.planned:
        rows.insert(0, ("Planned for each arm", float(trial.planned), f"{trial.planned:,}"))
    told = f"To show a lift of {trial.mde:.0%} {trial.power:.0%} of the time, at alpha {trial.alpha:g}."
    return panel("Visitors", bars(rows, label="Visitors of each arm, and how many were planned"), note=told)


def _counting(trial: Trial, verdict: Verdict) -> Html:
    within, lateness = (format_seconds(part / 1e6) for part in (trial.within_us, trial.lateness_us))
    sentences = (
        "A visitor is in the arm that a hash of its id and the trial's seed gives, from its first page on.",
        (
            f"{trial.goal} is {trial.above} by {trial.below}: an item counts as viewed once for each page, and as "
            f"clicked if its first click came within {within} of its first view."
        ),
        (
            "The ratio of an arm is a ratio of sums, and its error that of visitors, not of views: whoever sees many "
            "items is one person who varies."
        ),
        (
            f"Exposures before {format_time(verdict.cutoff_us)[:19]} count: what followed them had {within} to happen "
            f"and {lateness} to arrive."
        ),
        "Robots, visitors seen in both arms, and pages that were withdrawn as unlogged are left out.",
    )
    why = [tag("li", reason) for reason in verdict.reasons]
    reasons = put(tag("h3", "Why this outcome"), tag("ul", *why)) if why else ""
    return panel("How it was counted", tag("ul", *[tag("li", one) for one in sentences]), reasons)


def _audit(trial: Trial, verdict: Verdict) -> Html:
    rows: list[tuple[str, object]] = [
        ("Trial", code(verdict.trial)),
        ("Seed", code(trial.seed)),
        ("Began", f"{format_time(verdict.started_us)[:19]} UTC"),
        ("Cut-off", f"{format_time(verdict.cutoff_us)[:19]} UTC"),
        ("Read", f"{format_time(verdict.made_us)[:19]} UTC"),
    ]
    for topic, positions in verdict.positions.items():
        listed = ", ".join(f"{partition}/{offset}" for partition, offset in enumerate(positions))
        rows.append((f"{topic} up to", put(code(listed), " of ", code(verdict.incarnations.get(topic, "unknown")))))
    bundles = zip(ARMS, (verdict.control_bundle, verdict.treatment_bundle), strict=True)
    rows += [(f"Bundle of {arm}", code(name_hash)) for arm, name_hash in bundles]
    note = "With these anybody who has the lake finds the same numbers: later rows change nothing."
    return panel("For the audit", facts(rows), tag("pre", f"headrace explain {verdict.trial}", tabindex=0), note=note)


def _foot(verdict: Verdict) -> Html:
    return tag("footer", f"Headrace, trial {verdict.trial}. Times are UTC, by the project's clock.")
