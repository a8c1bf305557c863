"""What the checks have found: a line each, and the newest report of a project."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

FILE = "verify.json"
"""The newest report, in the state folder of a project."""

State = Literal["holds", "fails", "left out"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What one check has found in one world."""

    name: str
    """What is checked, as a sentence that is true while it holds."""
    room: str
    """The room of the house that it judges."""
    state: State
    text: str
    """What was counted."""
    false_alarm: float = 0.0
    """How often it fails where nothing is wrong; 0 for what is counted exactly."""
    witness: str | None = None
    """The first event, visitor or page that shows it, where it fails."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What all checks have found."""

    made_us: int
    """By the machine's clock."""
    seed: int
    """The world's, of several that of the first."""
    worlds: int
    seconds: float
    lines: tuple[Line, ...]

    @property
    def holds(self) -> bool:
        """Whether no line fails."""
        return all(line.state != "fails" for line in self.lines)


def write_report(folder: Path, report: Report) -> None:
    """Puts a report in the place of the newest one."""
    fresh = folder / f"{FILE}.new"
    fresh.write_bytes(msgspec.json.encode(report))
    fresh.replace(folder / FILE)


def read_report(folder: Path) -> Report | None:
    """Returns the newest report of a state folder; None if nothing was checked yet."""
    path = folder / FILE
    return msgspec.json.decode(path.read_bytes(), type=Report) if path.exists() else None
