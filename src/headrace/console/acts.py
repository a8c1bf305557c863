"""The command line's part of the audit log: what a command changes is written down before, and what became of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from headrace.base.audit import FILE, Act, audited, check_audit, write_line
from headrace.base.clock import machine_us
from headrace.base.errors import UnavailableError
from headrace.base.process import find_user
from headrace.console.figures import count_of
from headrace.profile import find_folder, state_of

SHELL = "shell"
"""The level of whoever may run commands here."""
MOVED = "moved"

_OWN = ("command", "word", "verb", "project", "json")


def run_audited(given: argparse.Namespace, run: Callable[[argparse.Namespace], Any]) -> int:
    """Returns the exit code of a command that changes something, which is written into the audit log of its project."""
    state = state_of(find_folder(Path(given.project)))
    positional = [one.names[0] for one in given.command.arguments if not one.names[0].startswith("-")]
    values = {
        name: str(value) for name, value in vars(given).items() if name not in _OWN and value not in (None, False)
    }
    subject = values.pop(positional[0], "") if positional else ""
    with audited(state, Act(find_user(), SHELL, given.command.words, subject, values)) as outcome:
        code = int(run(given) or 0)
        if code:
            outcome.text = f"exit code {code}"
    return code


def note_rows(state: Path, what: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes down what an act has moved, a line for each row: what was asked for tells too little of it."""
    for row in rows:
        given = {name: str(value) for name, value in row.items() if value is not None}
        subject = given.pop("table", "") or given.pop("topic", "")
        write_line(state, Act(find_user(), SHELL, what, subject, given), MOVED, at_us=machine_us())


def describe_audit(state: Path) -> dict[str, Any]:
    """Returns whether the audit log stands as it was written."""
    try:
        found = check_audit(state)
    except UnavailableError as error:
        nothing = {"lines": None, "unchained": None, "whole": False, "head": "", "torn_bytes": 0}
        return {**nothing, "damages": [str(error)]}
    return {
        "lines": found.num_lines,
        "unchained": found.num_unchained,
        "whole": found.is_whole,
        "head": found.head,
        "torn_bytes": found.torn_bytes,
        "damages": list(found.damages),
    }


def show_audit(found: dict[str, Any]) -> None:
    """Prints whether the audit log stands as it was written, and where it does not."""
    if found["whole"]:
        head = f", head {found['head'][:12]}" if found["head"] else ""
        print(f"audit      {count_of(found['lines'], 'line')}, whole{head}")
    if found["whole"] and found["unchained"]:
        proof = "the chain holds them as they stood when it began" if found["head"] else "nothing proves them so far"
        print(f"audit      {count_of(found['unchained'], 'line')} from before lines were chained: {proof}")
    for damage in found["damages"]:
        print(f"audit      {FILE} is not whole: {damage}")
    if found["torn_bytes"]:
        print(f"audit      the last line is torn: somebody died at it, and began nothing ({found['torn_bytes']} bytes)")
