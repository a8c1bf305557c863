"""What pipelines have done: a file of rows that are only added, and the runs that they tell of."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from headrace.base.errors import CallError, FormatError, UnavailableError
from headrace.base.sqlite import connect, migrate, told, transaction

State = Literal["running", "done", "failed", "broken off"]

_STEPS = (
    """
    create table if not exists rows (
        id integer primary key autoincrement, pipeline text not null, run integer not null, step text not null,
        event text not null, at_us integer not null, value blob not null
    ) strict;
    create index if not exists rows_by_run on rows (pipeline, run, id)
    """,
)
_PATIENCE_SECONDS = 5.0
_NUMBER = re.compile(r"\b\d[\d,.]*")

SEEN, BEGUN, RESUMED, STARTED, DONE, FAILED, NOTED = (
    "seen", "begun", "resumed", "started", "done", "failed", "noted",
)  # fmt: skip


class Value(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a row says beside its event."""

    due_us: int | None = None
    """When the run was due; nothing for one that somebody asked for."""
    attempt: int = 0
    seconds: float = 0.0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    text: str = ""
    """What went wrong, or what is noted."""


@dataclass(frozen=True)
class StepRun:
    """What became of a step in a run."""

    name: str
    state: State
    attempts: int = 0
    seconds: float = 0.0
    """How long its last attempt took."""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    error: str = ""
    """Why its last attempt failed."""


@dataclass(frozen=True)
class Run:
    """One run of a pipeline, as the rows tell it."""

    pipeline: str
    number: int
    due_us: int | None
    began_us: int
    state: State
    steps: tuple[StepRun, ...] = ()
    ended_us: int | None = None
    error: str = ""
    resumed: int = 0
    """How often it went on after it was broken off."""

    @property
    def done(self) -> frozenset[str]:
        """The steps that need not run again."""
        return frozenset(step.name for step in self.steps if step.state == "done")


@dataclass(frozen=True)
class Note:
    """Something else that happened around a pipeline, such as what its experiment waits for."""

    pipeline: str
    at_us: int
    text: str


@dataclass
class _Telling:
    """A run while its rows are read."""

    number: int
    due_us: int | None
    began_us: int
    steps: dict[str, StepRun] = field(default_factory=dict)
    state: State = "running"
    ended_us: int | None = None
    error: str = ""
    resumed: int = 0


class History:
    """The history of all pipelines of a project, in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._told():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = connect(path)
            self._connection.execute(f"pragma busy_timeout = {int(_PATIENCE_SECONDS * 1000)}")
            migrate(self._connection, _STEPS, what=f"history {path}")

    def add(self, pipeline: str, event: str, at_us: int, *, run: int = 0, step: str = "", value: Value) -> None:
        """Adds a row."""
        row = (pipeline, run, step, event, at_us, msgspec.json.encode(value))
        with self._lock, self._told(), transaction(self._connection):
            self._connection.execute(
                "insert into rows (pipeline, run, step, event, at_us, value) values (?, ?, ?, ?, ?, ?)", row
            )

    def note(self, pipeline: str, text: str, at_us: int) -> None:
        """Adds a note, unless the newest one says the same but for its numbers."""
        newest = self.notes(pipeline, limit=1)
        if not newest or _NUMBER.sub("", newest[0].text) != _NUMBER.sub("", text):
            self.add(pipeline, NOTED, at_us, value=Value(text=text))

    def notes(self, pipeline: str, *, limit: int = 20) -> list[Note]:
        """Returns the newest notes, the newest first."""
        found = self._ask(
            "select pipeline, at_us, value from rows where pipeline = ? and event = ? order by id desc limit ?",
            pipeline,
            NOTED,
            limit,
        )
        return [Note(name, at_us, _decode(value).text) for name, at_us, value in found]

    def first_us(self, pipeline: str, now_us: int) -> int:
        """Returns when a pipeline was seen first, which is now if it was never seen before."""
        found = self._ask("select at_us from rows where pipeline = ? and event = ? limit 1", pipeline, SEEN)
        if found:
            return int(found[0][0])
        self.add(pipeline, SEEN, now_us, value=Value())
        return now_us

    def count_done(self, pipeline: str) -> int:
        """Returns how many runs of a pipeline are done."""
        sql = "select count(*) from rows where pipeline = ? and event = ? and step = ''"
        return int(self._ask(sql, pipeline, DONE)[0][0])

    def last_due_us(self, pipeline: str) -> int | None:
        """Returns when the newest run was due of those that were not asked for by hand."""
        sql = "select max(json_extract(cast(value as text), '$.due_us')) from rows where pipeline = ? and event = ?"
        found: int | None = self._ask(sql, pipeline, BEGUN)[0][0]
        return found

    def runs(self, pipeline: str, *, limit: int = 20) -> list[Run]:
        """Returns the newest runs, the newest first."""
        rows = self._ask(
            "select run, step, event, at_us, value from rows where pipeline = ?1 and run > "
            "(select ifnull(max(run), 0) from rows where pipeline = ?1) - ?2 and run > 0 order by id",
            pipeline,
            limit,
        )
        told: dict[int, _Telling] = {}
        for number, step, event, at_us, value in rows:
            _tell(told, (number, step, event), at_us, _decode(value))
        is_held = any(one.state == "running" for one in told.values()) and self.is_held(pipeline)
        newest = max(told, default=0)
        return [
            _finish(pipeline, told[number], is_running=is_held and number == newest)
            for number in sorted(told, reverse=True)
        ]

    @contextlib.contextmanager
    def hold(self, pipeline: str) -> Iterator[None]:
        """Holds a pipeline: one run at a time. The kernel lets go of it when this process dies."""
        with self._lock_path(pipeline).open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CallError(f"pipeline {pipeline!r} runs already. See: headrace pipeline status") from error
            yield

    def is_held(self, pipeline: str) -> bool:
        """Returns whether a process runs a pipeline now."""
        try:
            descriptor = os.open(self._lock_path(pipeline), os.O_RDONLY)
        except OSError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def _lock_path(self, pipeline: str) -> Path:
        return self._path.with_name(f"{self._path.stem}.{pipeline}.lock")

    def _ask(self, sql: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        with self._lock, self._told():
            rows: list[tuple[Any, ...]] = self._connection.execute(sql, values).fetchall()
            return rows

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with told(f"the history {str(self._path)!r}"):
                yield
        except OSError as error:
            raise UnavailableError(f"cannot write the history {str(self._path)!r}: {error.strerror}") from error


def _decode(value: bytes) -> Value:
    try:
        return msgspec.json.decode(value, type=Value)
    except ValueError as error:
        raise FormatError(f"a row of the history cannot be read: {error}") from error


def _tell(told: dict[int, _Telling], place: tuple[int, str, str], at_us: int, value: Value) -> None:
    number, step, event = place
    run = told.setdefault(number, _Telling(number, value.due_us, at_us))
    if step:
        state: State = "running" if event == STARTED else "done" if event == DONE else "failed"
        run.steps[step] = StepRun(step, state, value.attempt, value.seconds, value.inputs, value.outputs, value.text)
    elif event == RESUMED:
        run.resumed += 1
    elif event in (DONE, FAILED):
        run.state, run.ended_us, run.error = ("done" if event == DONE else "failed"), at_us, value.text


def _finish(pipeline: str, run: _Telling, *, is_running: bool) -> Run:
    state: State = run.state if run.state != "running" or is_running else "broken off"
    steps = tuple(
        replace(step, state="broken off") if (step.state, state) == ("running", "broken off") else step
        for step in run.steps.values()
    )
    return Run(pipeline, run.number, run.due_us, run.began_us, state, steps, run.ended_us, run.error, run.resumed)
