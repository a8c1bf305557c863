"""Verify: what the checks of the whole loop found, from the newest report."""

from __future__ import annotations

import asyncio

import msgspec

from headrace.base.http import Request
from headrace.console.desk import Desk
from headrace.console.figures import count_of, format_seconds
from headrace.console.frame import NOTHING, Html, Sheet, badge, code, empty, figures, panel, put, table, tag, when
from headrace.verify.report import Line, Report, read_report

_LEAD = "Whether the loop does what it promises, counted from outside in a world whose truth is known."
_COMMAND = "headrace verify --worlds 1"
_KINDS = {"holds": "good", "fails": "bad", "left out": ""}


class Verify:
    """The page /verify."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: Request) -> Sheet:
        """Returns the newest report."""
        del request
        try:
            report = await asyncio.to_thread(read_report, self._desk.project.profile.state)
            body = _unchecked() if report is None else _checked(report)
        except msgspec.MsgspecError as error:
            text = f"What stands in this project is no report of this Headrace: {error}. A new one takes its place."
            body = empty("The report cannot be read", text, _COMMAND)
        return Sheet("/verify", "Verify", _LEAD, body, ("/live", "the same loop while it runs"))


def _unchecked() -> Html:
    text = (
        "No report stands in this project. The command plays whole worlds and leaves one here; the demo does the same "
        "with its own world at its end."
    )
    return empty("Nothing was checked yet", text, _COMMAND)


def _checked(report: Report) -> Html:
    counts = {state: sum(line.state == state for line in report.lines) for state in _KINDS}
    judged = counts["holds"] + counts["fails"]
    kind = "good" if report.holds else "bad"
    say = tag("p", badge(kind, f"{counts['holds']} of {count_of(judged, 'check')} hold"), class_="say")
    shown = figures(
        (
            ("Hold", tag("span", counts["holds"], class_="good"), ""),
            ("Fail", tag("span", counts["fails"], class_="bad" if counts["fails"] else None), ""),
            ("Left out", counts["left out"], "nothing to judge them by"),
            ("Worlds", f"{report.worlds:,}", f"seed {report.seed:,}"),
            ("Took", format_seconds(report.seconds), when(report.made_us)),
        )
    )
    fails = [line for line in report.lines if line.state == "fails"]
    failing = _listed("What fails", fails) if fails else NOTHING
    note = "A false alarm is how often a check fails where nothing is wrong; what is counted exactly has none."
    return put(
        say, shown, failing, _listed("All checks", [line for line in report.lines if line.state != "fails"], note=note)
    )


def _listed(title: str, lines: list[Line], *, note: str = "") -> Html:
    rows = [
        (
            badge(_KINDS[line.state], line.state),
            put(line.name, tag("p", line.text, class_="note"), _witness(line)),
            tag("code", line.room),
            f"1 in {1 / line.false_alarm:,.0f}" if line.false_alarm else tag("span", "none", class_="soft"),
        )
        for line in lines
    ]
    heads = ("state", "what is checked, and what was counted", "room", "false alarm")
    return panel(title, table(title, heads, rows, wide=1), note=note)


def _witness(line: Line) -> Html:
    return tag("p", "First seen in ", code(line.witness)) if line.witness else NOTHING
