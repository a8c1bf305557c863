"""What a run of the tests cost and how large the house is, told at its end; overspending fails in CI.

The seconds of all rooms together must hold. A single room may take two fifths more than its own: so much the same
tests differ from hour to hour on one machine, and a run that keeps its whole must not fail by chance.
"""

import os
import tomllib
from collections import defaultdict
from pathlib import Path

import services

_BUDGET = Path(__file__).parent / "budget.toml"
_NOISE = 1.4
_spent = defaultdict(float)


def room_of(nodeid):
    """Returns whose seconds a test spends: its folder under tests, `tests` for the files beside them, or `src`."""
    parts = nodeid.partition("::")[0].split("/")
    return parts[1] if parts[0] == "tests" and len(parts) > 2 else parts[0]


def overspent(spent, budget):
    """Returns what cost more than it may, in sentences."""
    rooms = [
        f"{room} took {seconds:.1f} s of its {budget.get(room, 0)} s"
        for room, seconds in sorted(spent.items())
        if seconds > _NOISE * budget.get(room, 0)
    ]
    whole, allowed = sum(spent.values()), sum(budget.values())
    return [*rooms, *([f"all rooms together took {whole:.1f} s of their {allowed} s"] if whole > allowed else [])]


def must_hold():
    """Returns whether this run is one in which overspending fails: elsewhere the machine may be any."""
    return os.environ.get("CI") == "true" or os.environ.get(services.REQUIRED) == "required"


def pytest_runtest_logreport(report):
    _spent[room_of(report.nodeid)] += report.duration


def pytest_sessionfinish(session):
    if hasattr(session.config, "workerinput"):
        return
    if must_hold() and overspent(_spent, _read()) and session.exitstatus == 0:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    if not _spent:
        return
    if {"src", "tests"} <= set(_spent):
        _tell_sizes(terminalreporter)
    budget = _read()
    terminalreporter.section("seconds per room of tests")
    for room, seconds in sorted(_spent.items()):
        terminalreporter.write_line(f"{room:<12} {seconds:7.1f} of {budget.get(room, 0):5.0f}")
    # Last, since it decides.
    for sentence in overspent(_spent, budget):
        terminalreporter.write_line(f"OVER BUDGET: {sentence}")


def _tell_sizes(terminalreporter):
    # Only a whole run pays for these imports.
    from test_architecture import MODULES, SOURCE, count_code_lines
    from test_architecture import room_of as room_of_module

    sizes, long = defaultdict(int), []
    for path in MODULES:
        sizes[room_of_module(path)] += count_code_lines(path)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        long += [f"{path.relative_to(SOURCE)} {lines}"] if lines > 400 else []
    terminalreporter.section("lines of code per room")
    for room, lines in sorted(sizes.items()):
        terminalreporter.write_line(f"{room:<12} {lines:6,}")
    terminalreporter.write_line(f"{'all':<12} {sum(sizes.values()):6,}")
    terminalreporter.write_line(f"files over 400 lines: {', '.join(long) or 'none'}")


def _read():
    return tomllib.loads(_BUDGET.read_text(encoding="utf-8"))["seconds"]
