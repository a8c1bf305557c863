"""Experiments: what a trial is about, whether it is healthy, and what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from headrace.base.errors import DeadlineError, HeadraceError
from headrace.base.http import Request, Response
from headrace.console import charts
from headrace.console.desk import Desk, button, lazily, pending, segment
from headrace.console.figures import capitalise, format_chance, format_seconds, format_share, format_tick, format_time
from headrace.console.frame import (
    NOTHING,
    Html,
    Sheet,
    address,
    badge,
    code,
    empty,
    facts,
    figures,
    link,
    offsets,
    panel,
    put,
    table,
    tag,
    when,
)
from headrace.console.guard import audited, read_form, see
from headrace.console.health import BADGES, list_checks
from headrace.experiments.verdict import OUTCOMES, Verdict

_LEAD = "Every experiment of the project, what it asks of visitors, and what they answered."
_NEXT = ("/lineage", "what any of this came from, down to the clicks")
_KINDS = {"better": "good", "worse": "bad", "unhealthy": "bad", "undecided": "warn", "early": "warn", "empty": "warn"}
_ARMS = ("control", "treatment")


class Experiments:
    """The pages /experiments and /experiments/NAME, and the form that ends a trial."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def all(self, request: Request) -> Sheet:
        """Returns the experiments that the project declares."""
        sheet = Sheet("/experiments", "Experiments", _LEAD, NOTHING, _NEXT)
        found = await self._desk.ask(request, "experiments")
        if found is None:
            return pending(request, sheet, "Opening the registry")
        if not found:
            text = "project.py declares none: give it an Experiment on a page, and name it in Project(experiments=...)."
            return replace(sheet, body=empty("No experiments", text))
        return replace(sheet, body=put(*map(_summary, found)))

    async def one(self, request: Request) -> Sheet:
        """Returns an experiment: verdict, health, lift, arms, plan."""
        name = segment(request, "experiments")
        lead = "What a trial asked of visitors, and what they answered."
        sheet = Sheet("/experiments", name, lead, NOTHING, _NEXT, crumb=link("Experiments", "/experiments"))
        asked = {"name": name, "trial": request.query.get("trial", "")}
        if "lift" in request.query:
            return replace(sheet, body=await self._follow(request, asked))
        found = await self._desk.ask(request, "experiment", **asked)
        if found is None:
            return pending(request, sheet, "Reading the trial from the lake")
        return replace(sheet, body=_body(request, found))

    async def _follow(self, request: Request, asked: Mapping[str, str]) -> Html:
        try:
            return _over_time(await self._desk.ask(request, "lift", **asked))
        except HeadraceError as error:
            return panel("Over time", note=f"It cannot be drawn: {error}", id="over-time")

    async def stop(self, request: Request) -> Response:
        """Ends a trial, and shows its verdict."""
        form = read_form(request)
        name, trial = form.get("experiment", ""), form.get("trial", "")
        async with audited(request, "experiment stop", subject=name, given={"trial": trial}):
            try:
                await self._desk.changer.ask("stop", name=name, trial=trial)
            except DeadlineError as error:
                raise DeadlineError(f"{error}; a command may take longer\nheadrace experiment stop {name}") from error
        return see(address(f"/experiments/{name}"))


def _summary(row: Mapping[str, Any]) -> Html:
    lift = "" if row["lift"] is None else f", lift {format_share(row['lift'])}"
    state = (
        badge(_KINDS.get(row["outcome"], ""), row["outcome"] + lift)
        if row["outcome"]
        else badge("warn" if row["state"] == "running" else "", row["state"])
    )
    serves = (
        put(row["champion_model"], " ", link(code(row["champion"], short=True), f"/models/{row['champion']}"))
        if row["champion"]
        else "its fallback"
    )
    shown = facts(
        (
            ("State", state),
            ("Goal", f"{row['goal']}, to find a lift of {100 * row['mde']:g} % {100 * row['power']:g} times in 100"),
            ("Guardrails", ", ".join(row["guardrails"]) or "none"),
            ("Page", put(row["page"], ", served by ", serves)),
            ("Trial", row["trial"] or "not started"),
        )
    )  # fmt: skip
    return panel(row["experiment"], shown, tag("p", link("Open it", f"/experiments/{row['experiment']}")))


# One experiment.


def _body(request: Request, found: Mapping[str, Any]) -> Html:
    trial, verdict = found["row"], found["verdict"]
    if trial is None:
        text = (
            f"It will compare what serves {found['page']!r} with the newest bundle that passed the gate, on "
            f"{found['goal']}. Its pipeline starts it as soon as one waits, and so does the command."
        )
        return empty("Not started yet", text, f"headrace experiment start {found['experiment']}")
    ending = _ending(request, found)
    if verdict is None:
        why = found["problem"] or "The lake holds nothing of it yet."
        return put(empty("Nothing to read yet", why, "headrace status"), ending, _plan(found))
    return put(
        panel("The verdict", *_judged(verdict)) if found["is_final"] else _so_far(found, ending),
        _health(msgspec.convert(verdict, Verdict)),
        _lift(verdict),
        lazily(
            address(f"/experiments/{found['experiment']}", lift="1", trial=trial["id"]),
            "over-time",
            "Reading the trial at earlier cut-offs",
        ),
        _arms(verdict),
        _guardrails(verdict),
        _plan(found),
        _provenance(verdict, found),
    )


def _ending(request: Request, found: Mapping[str, Any]) -> Html:
    """Returns the form that brings the verdict, as long as there is none; it is about the newest trial."""
    if found["is_final"] or found["row"]["id"] != found["trial"]:
        return NOTHING
    text = "Stop and judge" if found["row"]["status"] == "running" else "Judge it"
    return button(request, text, "/experiments/stop", experiment=found["experiment"], trial=found["trial"])


def _judged(verdict: Mapping[str, Any]) -> tuple[Html, ...]:
    outcome = verdict["outcome"]
    head = tag("p", badge(_KINDS[outcome], outcome.capitalize()), ": ", OUTCOMES[outcome], ".", class_="say")
    words = tag("p", _in_words(verdict), class_="say") if verdict["lift"] is not None else NOTHING
    reasons = tag("ul", *[tag("li", reason) for reason in verdict["reasons"]], class_="reasons")
    return head, words, reasons if verdict["reasons"] else NOTHING


def _so_far(found: Mapping[str, Any], ending: Html) -> Html:
    verdict = found["verdict"]
    note = (
        f"Not final, the trial goes on. Who stops at the first p below {verdict['alpha']:g} finds lifts that are not "
        "there; wait for the visitors that were planned."
    )
    if found["row"]["status"] != "running":
        note = "The trial has ended and is not judged yet: the lake lacked something when it was to be."
    return panel("So far", *_judged(verdict), ending, note=note)


def _in_words(verdict: Mapping[str, Any]) -> str:
    lift, interval, share = verdict["lift"], verdict["lift_interval"], f"{100 * (1 - verdict['alpha']):g} %"
    higher = "higher" if lift >= 0 else "lower"
    text = f"The treatment's {verdict['goal']} was {abs(100 * lift):,.1f} % {higher} than the control's"
    if interval is None:
        return f"{text}."
    return (
        f"{text}; an interval that holds the truth in {share} of trials goes from {format_share(interval[0])} to "
        f"{format_share(interval[1])}."
    )


def _health(verdict: Verdict) -> Html:
    rows = [(badge(BADGES[one.mark], capitalise(one.name)), one.text) for one in list_checks(verdict)]
    return panel("Health first", facts(rows), note="Where a check fails, nothing below can be trusted.")


def _lift(verdict: Mapping[str, Any]) -> Html:
    if verdict["lift"] is None or verdict["lift_interval"] is None:
        difference = verdict["difference"]
        text = "It cannot be estimated" + ("." if difference is None else f"; the difference is {difference:+.5f}.")
        return panel("Lift", note=text)
    rows = [_range(verdict["goal"], verdict)]
    rows += [
        _range(one["name"], one) for one in verdict["guardrails"] if one["lift"] is not None and one["lift_interval"]
    ]
    note = f"The treatment relative to the control; p {format_chance(verdict['p'])}, alpha {verdict['alpha']:g}."
    label = f"Lift of {verdict['goal']}: {rows[0].text}"
    return panel("Lift", charts.forest(rows, label=label, form=format_tick), note=note)


def _range(name: str, found: Mapping[str, Any]) -> charts.Range:
    low, high = found["lift_interval"]
    text = f"{format_share(found['lift'])} [{format_share(low)}, {format_share(high)}]"
    return charts.Range(name, low, found["lift"], high, text)


def _over_time(found: Sequence[Mapping[str, Any]] | None) -> Html:
    looks = [one for one in found or () if one["lift"] is not None and one["interval"] is not None]
    if len(looks) < 2:
        return panel("Over time", note="Too few visitors so far to draw a line.", id="over-time")
    points = [charts.Point(one["at_us"], one["interval"][0], one["lift"], one["interval"][1]) for one in looks]
    times = (format_time(looks[0]["at_us"])[5:16], format_time(looks[-1]["at_us"])[5:16])
    first = next((one for one in looks if not one["interval"][0] <= 0 <= one["interval"][1]), None)
    peek = "" if first is None else (
        f" Whoever looked at these {len(looks)} points would have stopped at {format_time(first['at_us'])[5:16]}, "
        f"with {format_share(first['lift'])}, from {sum(first['visitors']):,} visitors.")  # fmt: skip
    drawn = charts.band(
        points,
        label="Lift with its interval at earlier cut-offs",
        form=format_tick,
        times=times,
    )
    note = "What exposures before each instant say, with the interval of a single look." + peek
    return panel("Over time", drawn, note=note, id="over-time")


def _arms(verdict: Mapping[str, Any]) -> Html:
    rows = [
        (badge(name, name), one["visitors"], one["pages"], one["views"], one["clicks"],
         "-" if one["ratio"] is None else f"{one['ratio']:.5f}",
         link(code(verdict[f"{name}_bundle"], short=True), f"/models/{verdict[f'{name}_bundle']}"))
        for name in _ARMS for one in [verdict[name]]
    ]  # fmt: skip
    heads = ("arm", "visitors", "pages", "views", "clicks", verdict["goal"], "bundle")
    return panel("Both arms", table("Both arms", heads, rows, numbers=(1, 2, 3, 4, 5)))


def _guardrails(verdict: Mapping[str, Any]) -> Html:
    if not verdict["guardrails"]:
        return NOTHING
    rows = []
    for one in verdict["guardrails"]:
        if one["p"] is None:
            rows.append((one["name"], badge("warn", "cannot be judged"), "-", "-", one["reason"] or ""))
            continue
        change = "-" if one["lift"] is None else format_share(one["lift"])
        state = badge("bad", "worse") if one["is_worse"] else badge("good", "not worse")
        rows.append(
            (
                one["name"],
                state,
                f"{one['control']:.5g}",
                f"{one['treatment']:.5g}",
                f"{change}, p {format_chance(one['p'])}",
            )
        )
    heads = ("metric", "state", "control", "treatment", "change")
    note = "What must not get worse: where one does, the treatment is not better, whatever the goal says."
    return panel("Guardrails", table("Guardrails", heads, rows, numbers=(2, 3)), note=note)


def _plan(found: Mapping[str, Any]) -> Html:
    trial, verdict = found["row"], found["verdict"]
    planned = trial["planned"]
    came = min(verdict[arm]["visitors"] for arm in _ARMS) if verdict else 0
    end_us = trial["stopped_us"] or found["now_us"]
    shown = figures(
        (
            ("Planned in each arm", f"{planned:,}" if planned else "-", f"for a lift of {100 * trial['mde']:g} %"),
            ("Came to the smaller arm", f"{came:,}", f"{100 * came / planned:.0f} % of the plan" if planned else ""),
            ("Ran for", format_seconds((end_us - trial["started_us"]) / 1e6), "by the project's clock"),
            ("Explored", f"{100 * trial['explore']:g} %", "of places, in both arms"),
        )
    )
    return put(shown)


def _others(found: Mapping[str, Any]) -> Html:
    place = f"/experiments/{found['experiment']}"
    return put(*[put(link(one["id"], place, trial=one["id"]), " ") for one in found["others"]]) or put("none")


def _provenance(verdict: Mapping[str, Any], found: Mapping[str, Any]) -> Html:
    read = [
        ("Read up to", put(link(topic, f"/tables/{topic}"), " ", offsets(places)))
        for topic, places in verdict["positions"].items()
    ]  # fmt: skip
    shown = facts(
        (
            ("Trial", code(verdict["trial"])),
            ("Began", when(verdict["started_us"])),
            ("Read", when(verdict["made_us"])),
            ("Exposures before", when(verdict["cutoff_us"])),
            ("Waits for a click", f"{found['within']}, and {found['lateness']} more for late events"),
            *read,
            ("Assigned by", code(found["row"]["seed"])),
            ("Other trials", _others(found)),
        )
    )
    walk = tag("p", link("Walk from this trial, both ways", "/lineage", id=verdict["trial"]))
    note = "Whoever reads the same rows up to the same offsets gets the same numbers."
    return panel("What it was read from", shown, walk, note=note)
