"""All checks of a world, in the order of a click's life."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from headrace.base.errors import HeadraceError
from headrace.base.telemetry import get_logger
from headrace.verify import check_log, check_page, check_trial
from headrace.verify.case import Case, Check, Found, LeftOutError
from headrace.verify.report import Line, State

CHECKS: tuple[Check, ...] = (*check_log.CHECKS, *check_page.CHECKS, *check_trial.CHECKS)


def check(case: Case, *, checks: Sequence[Check] = CHECKS, told: Callable[[Line], None] = lambda _: None) -> list[Line]:
    """Returns what each check has found in a world; `told` hears of each as it is known."""
    lines = []
    for one in checks:
        lines.append(_ask(one, case))
        told(lines[-1])
    return lines


def _ask(check: Check, case: Case) -> Line:
    state: State
    try:
        found = check.ask(case)
    except LeftOutError as reason:
        found, state = Found(str(reason)), "left out"
    except HeadraceError as error:
        found, state = Found(f"it cannot be asked: {error}", type(error).__name__), "fails"
    except Exception as error:  # noqa: BLE001 - what breaks on a room's rows is a fault found, and the others are asked
        get_logger("verify").exception("%s", check.name)
        found, state = Found(f"it breaks: {error}", type(error).__name__), "fails"
    else:
        state = "fails" if found.witness else "holds"
    return Line(
        name=check.name,
        room=check.room,
        state=state,
        text=found.text,
        false_alarm=check.false_alarm,
        witness=found.witness,
    )
