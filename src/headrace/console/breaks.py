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
from functools import partial

import msgspec

from headrace.base.errors import CallError, HeadraceError, UnavailableError, unknown_name
from headrace.console.harm import FAULTS, Harm, Victim
from headrace.console.show import print_facts, print_lines, shown
from headrace.console.state import is_running
from headrace.project import OpenProject, open_project
from headrace.watch.alert import FILE, Alert, read_alerts

_LOOK_SECONDS = 0.1


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
        began_at = time.monotonic()
        found = _wait(harm, partial(_find, project, fault.kind, set(before)), seconds=given.seconds)
        took = time.monotonic() - began_at
        others = [one for one in _read(project) if one.id not in before and one != found]
    _report(given, (found, took), others)
    return int(found is None)


def _read(project: OpenProject) -> list[Alert]:
    return read_alerts(project.profile.state / FILE)


def _find(project: OpenProject, kind: str, before: set[str]) -> Alert | None:
    return next((one for one in _read(project) if one.kind == kind and one.id not in before), None)


def _wait(harm: Harm, find: Callable[[], Alert | None], *, seconds: float) -> Alert | None:
    """Lets harm be done until there is something to be found; it always ends in order."""
    stop = threading.Event()
    problems: list[HeadraceError] = []

    def act() -> None:
        try:
            harm(stop)
        except HeadraceError as error:
            problems.append(error)
        except (OSError, sqlite3.Error) as error:
            problems.append(UnavailableError(f"the harm could not be done: {error}"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    thread = threading.Thread(target=act, name="harm")
    deadline, found = time.monotonic() + seconds, None
    thread.start()
    try:
        while found is None and time.monotonic() < deadline and not problems:
            time.sleep(_LOOK_SECONDS)
            found = find()
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGTERM, before)
    if found is None and problems:
        raise problems[0]
    return found


def _report(given: argparse.Namespace, answer: tuple[Alert | None, float], others: Sequence[Alert]) -> None:
    found, seconds = answer
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
