"""The process beside the console that reads the lake for its pages, so that no door imports Arrow, Delta or DuckDB.

It is begun when a page needs it, answers one question at a time, and ends when nobody has asked for a while. One that
is killed, or takes too long and is ended, is begun anew at the next question. What changes something is done by another
such process: no question keeps it waiting, nor it a question.
"""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from headrace.base.errors import DeadlineError, HeadraceError, OverloadedError, StopError, UnavailableError
from headrace.base.process import Companion, Life, Program
from headrace.base.telemetry import get_logger
from headrace.profile import Profile
from headrace.project import OpenProject, open_project

IDLE_SECONDS = 30.0
DEADLINE_SECONDS = 30.0
# A verdict waits a minute for the lake before it says who is late.
CHANGE_SECONDS = 90.0
# Whoever waits longer than this gets a page that says so, and asks again by itself.
PATIENCE_SECONDS = 0.4

# What it computes with takes 150 MB, which nothing else needs: 450 MB in all, 300 MB without.
_HEAVY = ("calibration",)
_MOST_WAITING = 12
_KEPT_SECONDS = 1.0
_MOST_BYTES = 32 << 20
_MOST_MEMORY_BYTES = 1 << 30
_LOOK_SECONDS = 0.02
# As much as a look at pages needs: DuckDB would take 2 GB and all cores.
_MODEST = "duckdb://?memory=256MB&threads=1&spill_limit=2GB"


class _Question(msgspec.Struct):
    name: str
    arguments: dict[str, Any]


class _Answer(msgspec.Struct):
    found: msgspec.Raw = msgspec.Raw(b"null")
    kind: str = ""
    """The class of the error, if there was one."""
    message: str = ""


@dataclass
class _Child:
    companion: Companion
    reading: asyncio.StreamReader
    writing: asyncio.StreamWriter

    async def close(self) -> None:
        self.writing.close()
        await asyncio.to_thread(self.companion.__exit__, None, None, None)


@dataclass
class Reader:
    """Answers questions about the lake, each a function of console/answers.py."""

    project: OpenProject
    idle_seconds: float = IDLE_SECONDS
    deadline_seconds: float = DEADLINE_SECONDS
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _asked: dict[bytes, asyncio.Task[bytes]] = field(default_factory=dict)
    """What is shared, by the question."""
    _open: set[asyncio.Task[bytes]] = field(default_factory=set)
    """What is not answered yet, shared or not."""
    _child: _Child | None = None
    _idle: asyncio.TimerHandle | None = None
    _closing: set[asyncio.Task[None]] = field(default_factory=set)

    async def ask(self, what: str, /, *, patience: float | None = None, **arguments: Any) -> Any:
        """Returns what a function found; raises what it raised, and TimeoutError where `patience` ends before it.

        The question is answered all the same, and whoever asks the same meanwhile or within a second shares the answer.
        """
        question = msgspec.json.encode(_Question(what, arguments), order="deterministic")
        task = self._asked.get(question)
        if task is None:
            if len(self._open) >= _MOST_WAITING:
                raise OverloadedError("too many pages wait for the reader. Try again in a moment")
            task = asyncio.create_task(self._answer(question))
            self._asked[question] = task
            self._open.add(task)
            task.add_done_callback(lambda done: self._forget_later(question, done))
        return msgspec.json.decode(await asyncio.wait_for(asyncio.shield(task), patience))

    def forget(self) -> None:
        """Shares no answer any more that was found before: something has been changed since."""
        self._asked.clear()

    async def close(self) -> None:
        """Ends the process."""
        for task in self._open:
            task.cancel()
        await self._end()

    def pid(self) -> int | None:
        """Returns the process that answers at present."""
        return self._child.companion.pid if self._child else None

    def _forget_later(self, question: bytes, done: asyncio.Task[bytes]) -> None:
        # Whoever asked may have lost patience; the next one hears of an error.
        if not done.cancelled():
            done.exception()
        self._open.discard(done)
        asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._forget, question, done)

    def _forget(self, question: bytes, done: asyncio.Task[bytes]) -> None:
        # Another one may be on its way by now.
        if self._asked.get(question) is done:
            del self._asked[question]

    async def _answer(self, question: bytes) -> bytes:
        async with self._turn:
            if self._idle is not None:
                self._idle.cancel()
            try:
                async with asyncio.timeout(self.deadline_seconds):
                    answer = await self._talk(question)
            except TimeoutError as error:
                await self._end()
                raise DeadlineError(
                    f"the reader had no answer within {self.deadline_seconds:g} s and was ended"
                ) from error
            except (OSError, asyncio.IncompleteReadError) as error:
                await self._end()
                raise UnavailableError(
                    f"the reader's process has ended, as it does where an answer takes more than "
                    f"{_MOST_MEMORY_BYTES >> 20:,} MB; it is begun anew when you ask again"
                ) from error
            except asyncio.CancelledError:
                await self._end()
                raise
            if msgspec.json.decode(question, type=_Question).name in _HEAVY:
                await self._end()
            else:
                self._idle = asyncio.get_running_loop().call_later(self.idle_seconds, self._end_idle)
        found = msgspec.json.decode(answer, type=_Answer)
        if found.kind:
            raise _error_of(found.kind, found.message)
        return bytes(found.found)

    async def _talk(self, question: bytes) -> bytes:
        if self._child is not None and self._child.companion.poll() is not None:
            # It died while nobody asked, which is nothing that whoever asks now must hear of.
            await self._end()
        if self._child is None:
            self._child = await self._begin()
        self._child.writing.write(question + b"\n")
        await self._child.writing.drain()
        size = int.from_bytes(await self._child.reading.readexactly(4), "big")
        return await self._child.reading.readexactly(size)

    async def _begin(self) -> _Child:
        ours, theirs = socket.socketpair()
        arguments = {
            "folder": str(self.project.folder),
            "profile": self.project.profile.name,
            "descriptor": theirs.fileno(),
        }
        program = Program("reader", "headrace.console.reader:run_reader", arguments, descriptors=(theirs.fileno(),))
        # In this thread: the kernel ends a child with the thread that has begun it.
        with theirs:
            companion = Companion(program)
        reading, writing = await asyncio.open_connection(sock=ours, limit=_MOST_BYTES)
        return _Child(companion, reading, writing)

    def _end_idle(self) -> None:
        task = asyncio.create_task(self._end_if_idle())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _end_if_idle(self) -> None:
        async with self._turn:
            await self._end()

    async def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.close()


def _error_of(kind: str, message: str) -> HeadraceError:
    """Returns an error like the one that the reader has met."""
    found = getattr(import_module("headrace.base.errors"), kind, None) or StopError
    try:
        error: HeadraceError = found(message)
    except TypeError:
        error = StopError(message)
    return error


# The process.


def run_reader(life: Life, *, folder: str, profile: str, descriptor: int) -> None:
    """Answers questions that come through a socket, until it is closed."""
    os.set_inheritable(descriptor, False)
    # Whoever collects or serves comes first.
    os.nice(5)
    answers = import_module("headrace.console.answers").ANSWERS
    threading.Thread(target=_end_when_large, name="memory", daemon=True).start()
    with socket.socket(fileno=descriptor) as line, line.makefile("rwb") as file:
        opened = open_project(folder, profile=profile)
        with OpenProject(opened.folder, _modest(opened)) as project:
            life.tell_ready()
            for question in file:
                answer = _look_up(project, answers, msgspec.json.decode(question, type=_Question))
                file.write(len(answer).to_bytes(4, "big") + answer)
                file.flush()
    # Not by way of the interpreter's end: threads of Arrow abort the process there.
    os._exit(0)


def _end_when_large() -> None:
    """Ends this process when it takes more memory than a page is worth, whatever it does at that moment.

    DuckDB's limit does not hold what is handed out as Arrow: 2,000 rows of long lists took 5.7 GB.
    """
    while _memory_bytes() < _MOST_MEMORY_BYTES:
        time.sleep(_LOOK_SECONDS)
    get_logger("reader").error("more than %d MB are needed for one answer: the reader ends", _MOST_MEMORY_BYTES >> 20)
    os._exit(1)


def _memory_bytes() -> int:
    """Returns what this process holds; where the kernel does not say so, the most that it has held."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _modest(opened: OpenProject) -> Profile:
    """Returns the profile, its engine held to little memory and one core unless headrace.toml says more."""
    if opened.profile.urls.engine != "duckdb://":
        return opened.profile
    return replace(opened.profile, urls=msgspec.structs.replace(opened.profile.urls, engine=_MODEST))


def _look_up(project: OpenProject, answers: Mapping[str, Any], question: _Question) -> bytes:
    try:
        found = msgspec.json.encode(answers[question.name](project, **question.arguments), enc_hook=str)
    except HeadraceError as error:
        return msgspec.json.encode(_Answer(kind=type(error).__name__, message=str(error)))
    except Exception:  # noqa: BLE001 - a bug must cost one page, and be seen
        get_logger("reader").exception("%s %r failed", question.name, question.arguments)
        return msgspec.json.encode(_Answer(kind="StopError", message="the reader met a fault of its own: see the log"))
    return msgspec.json.encode(_Answer(found=msgspec.Raw(found)))
