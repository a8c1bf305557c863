"""A verdict as people read it: its health first, then the arms, the lift and what it means."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.text import Text

from headrace.console.figures import count_of, format_chance
from headrace.console.health import Mark, list_checks
from headrace.console.show import format_time, shown
from headrace.experiments.experiment import ARMS
from headrace.experiments.verdict import OUTCOMES, Arm, Guardrail, Verdict
from headrace.verify.truth import Truth

WIDTH = 80
"""No line is longer, so that it reads in any terminal and in a pipe."""

_NAME_WIDTH = 14
_BAR_WIDTH = 61
_GOOD, _BAD, _NOTED = "✓", "✗", "·"
_MARKS: Mapping[Mark, str] = {"good": _GOOD, "bad": _BAD, "noted": _NOTED}
_STYLES = {_GOOD: "green", _BAD: "bold red", _NOTED: "dim"}
_OUTCOME_STYLES = {"better": "bold green", "worse": "bold red", "unhealthy": "bold red"}


def print_verdict(verdict: Verdict, *, truth: Truth | None = None) -> None:
    """Prints a verdict, with the truth beside it where a world knows one."""
    console = Console(highlight=False, soft_wrap=True)
    for line in verdict_lines(verdict, truth=truth):
        console.print(line)


def verdict_lines(verdict: Verdict, *, truth: Truth | None = None) -> list[Text]:
    """Returns the lines of a verdict, none wider than `WIDTH`."""
    return [
        Text(shown(f"trial {verdict.trial} on the page {verdict.page}, goal {verdict.goal}"), style="bold"),
        Text(),
        *_health(verdict),
        Text(),
        *_arms(verdict),
        Text(),
        *_lift(verdict, truth),
        *_guardrails(verdict),
        *_outcome(verdict),
        Text(),
        *_provenance(verdict),
    ]


def _fact(name: str, text: str, *, mark: str = " ", style: str = "") -> list[Text]:
    """Returns the lines of one fact, its mark and name before it."""
    wrapped = textwrap.wrap(shown(text), WIDTH - _NAME_WIDTH - 2, break_on_hyphens=False) or [""]
    lines = []
    for number, part in enumerate(wrapped):
        head = f"{mark} {name:<{_NAME_WIDTH}}" if not number else " " * (_NAME_WIDTH + 2)
        line = Text(head if part else head.rstrip())
        line.stylize(_STYLES.get(mark, ""), 0, 1)
        lines.append(line.append(part, style=style))
    return lines


# Health.


def _health(verdict: Verdict) -> Iterator[Text]:
    for check in list_checks(verdict):
        yield from _fact(check.name, check.text, mark=_MARKS[check.mark])


# Arms and lift.


def _arms(verdict: Verdict) -> Iterator[Text]:
    head = f"  {'arm':<{_NAME_WIDTH}}{'visitors':>10}{'pages':>11}{'views':>13}{'clicks':>11}  {verdict.goal[:9]:>9}"
    yield Text(shown(head), style="bold")
    for name, arm in zip(ARMS, (verdict.control, verdict.treatment), strict=True):
        yield Text(_arm_row(name, arm))


def _arm_row(name: str, arm: Arm) -> str:
    ratio = "-" if arm.ratio is None else f"{arm.ratio:.5f}"
    counts = f"{arm.visitors:>10,}{arm.pages:>11,}{arm.views:>13,}{arm.clicks:>11,}"
    return f"  {name:<{_NAME_WIDTH}}{counts}  {ratio:>9}"


def _lift(verdict: Verdict, truth: Truth | None) -> Iterator[Text]:
    share = f"{100 * (1 - verdict.alpha):g} % interval"
    if verdict.lift is not None and verdict.lift_interval is not None:
        low, high = verdict.lift_interval
        yield from _fact("lift", f"{_percent(verdict.lift)}, {share} {_percent(low)} to {_percent(high)}")
        for line in _bar((low, verdict.lift, high), truth.lift if truth else None):
            yield Text(f"  {line}".rstrip())
    elif verdict.p is not None:
        yield from _fact("lift", "not estimable: the control's ratio cannot be told from 0, see the difference")
    if truth is not None:
        yield from _fact("true lift", _compared(truth, verdict))
    if verdict.p is not None:
        yield from _fact("p", f"{format_chance(verdict.p)}, alpha {verdict.alpha:g}")
    if verdict.difference is not None and verdict.difference_interval is not None:
        low, high = verdict.difference_interval
        yield from _fact("difference", f"{verdict.difference:+.5f}, {share} {low:+.5f} to {high:+.5f}")


def _compared(truth: Truth, verdict: Verdict) -> str:
    """Returns the truth, and whether the interval holds it."""
    if verdict.lift_interval is not None:
        where = "inside" if truth.is_inside(verdict) else "OUTSIDE"
        return f"{_percent(truth.lift)}, {where} the interval (x): the world knows it, over {truth.pages:,} pages"
    return f"{_percent(truth.lift)}, a difference of {truth.difference:+.5f}, over {truth.pages:,} pages"


def _bar(numbers: tuple[float, float, float], truth: float | None) -> list[str]:
    """Returns an interval drawn around 0, which stands in the middle, with its scale below."""
    low, estimate, high = numbers
    reach = 1.1 * max(abs(low), abs(high), abs(truth or 0.0)) or 1.0
    half = _BAR_WIDTH // 2

    def place(value: float) -> int:
        return half + round(half * value / reach)

    cells = ["┄"] * _BAR_WIDTH
    cells[place(low) : place(high) + 1] = "━" * (place(high) + 1 - place(low))
    cells[half] = "┼" if place(low) <= half <= place(high) else "│"
    cells[place(low)], cells[place(high)], cells[place(estimate)] = "├", "┤", "●"
    if truth is not None:
        cells[place(truth)] = "x"
    left, right = _percent(-reach), _percent(reach)
    scale = f"{left:<{half}}0{right:>{half}}"
    return ["".join(cells), scale]


def _guardrails(verdict: Verdict) -> Iterator[Text]:
    for found in verdict.guardrails:
        mark = _NOTED if verdict.outcome == "unhealthy" or found.p is None else _BAD if found.is_worse else _GOOD
        yield from _fact("guardrail", _guardrail_text(found, verdict.alpha), mark=mark)


def _guardrail_text(found: Guardrail, alpha: float) -> str:
    if found.p is None:
        return f"{found.name} cannot be judged: {found.reason}"
    arms = f"{found.name} {found.control:.5g} in control, {found.treatment:.5g} in treatment"
    share = f"{100 * (1 - alpha):g} % interval"
    if found.lift is not None and found.lift_interval is not None:
        low, high = found.lift_interval
        change = f"{_percent(found.lift)}, {share} {_percent(low)} to {_percent(high)}"
    else:
        low, high = found.difference_interval or (0.0, 0.0)
        change = f"difference {found.difference:+.5g}, {share} {low:+.5g} to {high:+.5g}"
    return f"{arms}: {change}, p {format_chance(found.p)}"


# Outcome and provenance.


def _outcome(verdict: Verdict) -> Iterator[Text]:
    if verdict.lift is not None or verdict.p is not None:
        yield Text()
    text = f"{verdict.outcome.upper()}: {OUTCOMES[verdict.outcome]}"
    yield from _fact("outcome", text, style=_OUTCOME_STYLES.get(verdict.outcome, "bold"))
    for reason in verdict.reasons:
        yield from _fact("", reason)


def _provenance(verdict: Verdict) -> Iterator[Text]:
    lasted = f"began {format_time(verdict.started_us)[:19]}, read {format_time(verdict.made_us)[:19]} UTC"
    yield from _fact("trial", lasted)
    planned = f"{count_of(verdict.planned, 'visitor')} per arm" if verdict.planned else "no number of visitors"
    yield from _fact("planned", planned)
    yield from _fact("cut-off", f"exposures before {format_time(verdict.cutoff_us)[:19]} UTC count")
    for topic, offsets in verdict.positions.items():
        listed = ", ".join(f"{partition}/{offset}" for partition, offset in enumerate(offsets))
        yield from _fact("read up to", f"{topic} {listed}")
    for arm, bundle in zip(ARMS, (verdict.control_bundle, verdict.treatment_bundle), strict=True):
        yield from _fact("bundle", f"{bundle} ({arm})")


def _percent(share: float) -> str:
    """Returns a share as people write a lift.

    >>> _percent(0.2134), _percent(-0.05), _percent(12.3)
    ('+21.3 %', '-5.0 %', '+1,230 %')
    """
    return f"{100 * share:+,.0f} %" if abs(share) >= 10 else f"{100 * share:+.1f} %"
