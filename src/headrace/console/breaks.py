"""headrace break: does a running project harm on purpose, and shows the alert that the watcher raises of it.

The watcher is told nothing: it has to see it.
"""

from __future__ import annotations

import argparse
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from headrace.base.errors import CallError, HeadraceError, UnavailableError, unknown_name
from headrace.console.harm import FAULTS, Harm, Victim
from headrace.console.show import print_facts, print_lines, shown
from headrace.console.state import is_running
from headrace.project import OpenProject, open_project
from headrace.watch.alert import FILE, Alert, read_alerts

_LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class _Outcome:
    alert: Alert | None
    seconds: float
    """Until the alert was there, or none was waited for any longer."""
    problem: HeadraceError | None
    """Why the harm could not be done, or not be undone."""


def break_it(given: argparse.Namespace) -> int:
    """Does the harm until its alert is there; returns 1 if none came in time."""
    if given.fault not in FAULTS:
        raise unknown_name("fault", given.fault, FAULTS)
    fault = FAULTS[given.fault]
    with open_project(given.project, profile=given.profile) as project:
        victim = Victim(project, given)
        if not is_running(project, "watcher"):
            raise CallError("no watcher runs that could notice it. Start the project with: headrace up")
        before = {alert.id: alert for alert in _read(project)}
        standing = [one for one in before.values() if one.kind == fault.kind and one.state == "open"]
        if standing:
            raise CallError(f"the alert {standing[0].id} of this kind is open already: {standing[0].text}")
        harm = fault.prepare(victim)
        if not given.json:
            print_facts((("break", f"{given.fault}: {fault.does}"), ("undo", fault.undo)))
        outcome = _wait(harm, partial(_find, project, fault.kind, set(before)), seconds=given.seconds)
        known = {*before, outcome.alert.id if outcome.alert else ""}
        others = [one for one in _read(project) if one.id not in known]
    if outcome.alert is not None or outcome.problem is None:
        _report(given, outcome, others)
    if outcome.problem is not None:
        raise outcome.problem
    return int(outcome.alert is None)


def _read(project: OpenProject) -> list[Alert]:
    return read_alerts(project.profile.state / FILE)


def _find(project: OpenProject, kind: str, before: set[str]) -> Alert | None:
    return next((one for one in _read(project) if one.kind == kind and one.id not in before), None)


def _wait(harm: Harm, find: Callable[[], Alert | None], *, seconds: float) -> _Outcome:
    """Lets harm be done until there is something to be found; it always ends in order."""
    stop = threading.Event()
    problems: list[HeadraceError] = []

    def act() -> None:
        try:
            harm(stop)
        except HeadraceError as error:
            problems.append(error)
        except (OSError, sqlite3.Error) as error:
            problems.append(UnavailableError(f"the harm could not be done, or not be undone: {error}"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    # Under nohup a terminal may be closed.
    ends = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in ends}
    thread = threading.Thread(target=act, name="harm")
    began_at, took, found = time.monotonic(), 0.0, None
    thread.start()
    try:
        while found is None and took < seconds and not problems:
            time.sleep(_LOOK_SECONDS)
            found, took = find(), time.monotonic() - began_at
    finally:
        stop.set()
        thread.join()
        for number, action in before.items():
            signal.signal(number, action)
    return _Outcome(found, took, problems[0] if problems else None)


def _report(given: argparse.Namespace, outcome: _Outcome, others: Sequence[Alert]) -> None:
    found, seconds = outcome.alert, outcome.seconds
    if given.json:
        alert = None if found is None else msgspec.to_builtins(found)
        print_lines([{"fault": given.fault, "seconds": round(seconds, 2), "alert": alert, "others": len(others)}])
    elif found is None:
        print(f"no alert came within {seconds:.0f} s. What the watcher sees: headrace status")
    else:
        told = (("alert", f"{found.id}, {found.kind}, after {seconds:.1f} s: {found.text}"), ("advice", found.advice))
        print_facts([(name, shown(text)) for name, text in told])
        for one in others:
            print(f"also       {one.id}, {one.kind}: {shown(one.text)}")
