"""Alerts: what is wrong, said once while it lasts, with its figures and what to do."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol

import msgspec

FILE = "alerts.jsonl"
"""The book's file in the project's state; lines are only ever added."""

KINDS = {
    "lag": "a reader of a topic stays behind",
    "freshness": "the lake takes nothing more",
    "lateness": "events come long after they have happened",
    "failed": "events cannot be settled",
    "duplicates": "clients send the same events again and again",
    "srm": "the arms of a trial do not get the visitors that their weights promise",
    "skew": "features are served that the events do not give",
    "drift": "what features are counted from has changed",
    "scores": "a bundle scores other than it did",
    "bots": "robots are a large part of the visits",
    "dead-role": "a process dies again and again, stays away, or fails at its work",
    "disk": "the disk fills up",
}

_CALM_US = 10_000_000

Evidence = Mapping[str, float | int | str]


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the book; a closed one has the id of the open one before it."""

    id: str
    """`a-` and a number."""
    at_us: int
    """When it was written, by the machine's clock."""
    project_us: int
    """When it was written, by the project's clock."""
    kind: str
    """One of KINDS."""
    subject: str
    """What it is about, such as a feature or a process."""
    state: Literal["open", "closed"]
    text: str
    """What was found, with its figures."""
    advice: str
    """What to do."""
    evidence: dict[str, float | int | str] = {}
    """The figures."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What a judge finds wrong at one look."""

    kind: str
    subject: str
    text: str
    advice: str
    evidence: dict[str, float | int | str] = {}
    is_clear: bool = True
    """If not, it keeps an alert open, and opens none."""


class Now(msgspec.Struct, frozen=True):
    """The instant of a look."""

    machine_us: int
    project_us: int
    watched_us: int
    """For how long has been looked: it stands still while the machine sleeps, or everything is stopped."""


class Judge(Protocol):
    """Takes in what happens, in its own way, and says at a look what is wrong; what it does not say is well again."""

    def judge(self, now: Now) -> Iterable[Finding]:
        """Returns what is wrong."""


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Alert).decode


class Book:
    """The alerts of a project: one is opened once, and closed when nothing was found of it for ten seconds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        self._open: dict[tuple[str, str], Alert] = {}
        self._found_us: dict[tuple[str, str], int] = {}
        for alert in read_alerts(path):
            self._number = max(self._number, int(alert.id.rpartition("-")[2]))
            if alert.state == "open":
                self._open[alert.kind, alert.subject] = alert

    @property
    def standing(self) -> Collection[Alert]:
        """The alerts that are open."""
        return self._open.values()

    def note(self, findings: Iterable[Finding], now: Now, *, is_whole: bool = True) -> list[Alert]:
        """Returns the alerts that begin or end with what was found at a look, and writes them down.

        None ends with a look that was not whole: what was not looked at may last.
        """
        changed = []
        for found in findings:
            key = (found.kind, found.subject)
            if found.is_clear or key in self._open:
                self._found_us[key] = now.watched_us
            if found.is_clear and key not in self._open:
                self._number += 1
                changed.append(_alert_of(found, f"a-{self._number}", now))
        if not is_whole:
            self._found_us |= dict.fromkeys(self._open, now.watched_us)
        for key, alert in self._open.items():
            # Those of before a restart get their time, too.
            if now.watched_us - self._found_us.setdefault(key, now.watched_us) > _CALM_US:
                closed = msgspec.structs.replace(
                    alert, at_us=now.machine_us, project_us=now.project_us, state="closed", advice="It is over."
                )
                changed.append(closed)
        if changed:
            self._write(changed)
        return changed

    def _write(self, alerts: Iterable[Alert]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            for alert in alerts:
                # A line that a kill has torn ends here.
                file.write(b"\n" * (not _ends_line(self._path)) + _encode(alert) + b"\n")
                file.flush()
                key = (alert.kind, alert.subject)
                if alert.state == "open":
                    self._open[key] = alert
                else:
                    del self._open[key], self._found_us[key]


def _alert_of(found: Finding, name: str, now: Now) -> Alert:
    return Alert(
        id=name,
        at_us=now.machine_us,
        project_us=now.project_us,
        kind=found.kind,
        subject=found.subject,
        state="open",
        text=found.text,
        advice=found.advice,
        evidence=found.evidence,
    )


def _ends_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"", b"\n")


def read_alerts(path: Path) -> list[Alert]:
    """Returns the newest state of each alert, the oldest alert first; none without a file."""
    found: dict[str, Alert] = {}
    for alert, _ in read_lines(path):
        found[alert.id] = alert
    return list(found.values())


def read_lines(path: Path, start: int = 0) -> Iterator[tuple[Alert, int]]:
    """Yields each line from a place in the file on, with the place behind it; a torn line is passed over."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                start += len(line)
                if not line.endswith(b"\n"):
                    return
                try:
                    yield _decode(line), start
                except msgspec.MsgspecError:
                    continue
    except FileNotFoundError:
        return
