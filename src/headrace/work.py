"""The process `work`: the runner, which takes what pipelines fit to the verdict, and the watcher, which looks on.

It imports neither Arrow nor DuckDB nor Numba: whatever fits, reads the lake or judges is a process of its own, which
may be killed or crash without taking anything with it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from headrace.base.errors import HeadraceError, StopError, unknown_name
from headrace.base.process import Companion, Life, Loops, Program
from headrace.base.telemetry import get_logger
from headrace.collect.app import CLICKS
from headrace.endpoints.serving import TRIAL
from headrace.experiments.promotion import Standing
from headrace.lookout import look_out, post_alerts
from headrace.pipelines import Action, Pipeline, Run, StoppedError, Tools
from headrace.project import WORK, OpenProject, note_failure, open_project

_LOOK_SECONDS = 0.5
_TICK_SECONDS = 0.02
# A look at a trial takes a process about 1 s of CPU.
_SHORTEST_LOOK_SECONDS = 2.0
_LONGEST_LOOK_SECONDS = 300.0
_ANSWER_BYTES = 60_000
_SHOWN_BYTES = 4_000


class FailedError(StopError):
    """The process of a step has ended without an answer: it was killed, or it crashed."""


class _Problem(msgspec.Struct, frozen=True):
    """What a child says of an error of ours."""

    kind: str
    message: str


class _Answer(msgspec.Struct, frozen=True):
    """What a child says in the end."""

    found: msgspec.Raw = msgspec.Raw(b"null")
    problem: _Problem | None = None


@dataclass(frozen=True)
class Child:
    """A function of this module that runs in a process of its own, called with the open project and its arguments."""

    name: str
    function: str
    arguments: Mapping[str, Any]


def run_work(life: Life, *, folder: str, profile: str, roles: Sequence[str]) -> None:
    """Runs the roles of a project's work in this process until it is told to stop."""
    with open_project(folder, profile=profile) as project:
        # One child at a time: each takes a quarter of a gigabyte while it reads the lake.
        turn = threading.Lock()
        loops = {loop: partial(_run_loop, folder, profile, loop, turn) for role in roles for loop in WORK[role]}
        Loops(loops, noted=partial(note_failure, project)).run(life)


def _run_loop(folder: str, profile: str, loop: str, turn: threading.Lock, stop: threading.Event) -> None:
    with open_project(folder, profile=profile) as project:
        LOOPS[loop](project, turn, stop)


def find_pipeline(project: OpenProject, name: str) -> Pipeline:
    """Returns a pipeline that the project declares."""
    pipelines = {pipeline.name: pipeline for pipeline in project.declared.pipelines}
    if name not in pipelines:
        raise unknown_name("pipeline", name, pipelines)
    return pipelines[name]


# Running pipelines.


def _run_due(project: OpenProject, turn: threading.Lock, stop: threading.Event) -> None:
    """Runs whatever is due, or was broken off, until it is told to stop."""
    runner = project.runner
    while not stop.wait(_LOOK_SECONDS):
        for pipeline in project.declared.pipelines:
            now_us = project.clock.now_us()
            due_us = runner.due_us(pipeline, now_us)
            if runner.history.is_held(pipeline.name) or (due_us is None and not runner.broken_off(pipeline)):
                continue
            try:
                run = run_pipeline(project, pipeline, due_us=due_us, stop=stop, turn=turn)
            except StoppedError:
                return
            if run.state == "failed":
                get_logger("runner").error("pipeline %s, run %d: %s", pipeline.name, run.number, run.error)


def run_pipeline(
    project: OpenProject,
    pipeline: Pipeline,
    *,
    due_us: int | None = None,
    stop: threading.Event | None = None,
    turn: threading.Lock | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Run:
    """Returns a run of a pipeline, done or failed; each step is a process of its own, which waits for its turn."""
    stop, turn = stop or threading.Event(), turn or threading.Lock()

    def pause(seconds: float) -> None:
        if stop.wait(seconds):
            raise StoppedError("told to stop")

    actions: dict[str, Action] = {
        step.name: partial(_fit_apart, project, (pipeline.name, step.name), turn, stop) for step in pipeline.steps
    }
    return project.runner.run(pipeline, actions, Tools(project.clock.now_us, pause, told), due_us=due_us)


def _fit_apart(
    project: OpenProject, names: tuple[str, str], turn: threading.Lock, stop: threading.Event
) -> tuple[str, ...]:
    pipeline, step = names
    child = Child(f"{pipeline}.{step}", "fit_step", {"step": step})
    with turn:
        return msgspec.json.decode(call_apart(project, child, stop), type=tuple[str, ...])


# Promotion.


def _promote(project: OpenProject, turn: threading.Lock, stop: threading.Event) -> None:
    """Takes what pipelines have fitted one step after the other to a verdict, until it is told to stop."""
    watched = [_Watch(project, pipeline, turn) for pipeline in project.declared.pipelines if pipeline.then is not None]
    while not stop.wait(_LOOK_SECONDS):
        for watch in watched:
            try:
                watch.look(stop)
            except StoppedError:
                return


class _Watch:
    """Looks after the experiment that follows a pipeline, whenever there may be something to do."""

    def __init__(self, project: OpenProject, pipeline: Pipeline, turn: threading.Lock) -> None:
        assert pipeline.then is not None
        self._project = project
        self._turn = turn
        self._pipeline = pipeline.name
        self._experiment = pipeline.then.name
        self._seen: tuple[int, int] | None = None
        self._again_us: int | None = None
        self._pause_seconds = _SHORTEST_LOOK_SECONDS
        self._earliest_at = 0.0

    def look(self, stop: threading.Event) -> None:
        """Goes one step on if a look is due: something was fitted or started, or enough time has passed."""
        if time.monotonic() < self._earliest_at:
            return
        seen = self._state()
        is_due = self._again_us is not None and self._project.clock.now_us() >= self._again_us
        if seen == (0, 0) or (seen == self._seen and not is_due):
            return
        # Taken now: what happens during the step is looked at after it.
        self._seen = seen
        try:
            standing = self._step(stop)
        except StoppedError:
            raise
        except HeadraceError as error:
            self._note(f"{self._experiment}: {type(error).__name__}: {error}")
            raise
        self._again_us = standing.again_us
        self._earliest_at = time.monotonic() + self._pause_seconds
        self._pause_seconds = (
            min(2 * self._pause_seconds, _LONGEST_LOOK_SECONDS) if standing.state == "waits" else _SHORTEST_LOOK_SECONDS
        )
        if standing.state not in ("runs", "idle"):
            self._note(f"{self._experiment}: {standing.text}")

    def _state(self) -> tuple[int, int]:
        """Returns what changes when something was fitted, or a trial began or ended."""
        done = self._project.runner.history.count_done(self._pipeline)
        newest = self._project.registry.newest(TRIAL).get(self._experiment)
        return done, newest.id if newest else 0

    def _step(self, stop: threading.Event) -> Standing:
        child = Child(f"{self._pipeline}.{self._experiment}", "advance_step", {"experiment": self._experiment})
        with self._turn:
            return msgspec.json.decode(call_apart(self._project, child, stop), type=Standing)

    def _note(self, text: str) -> None:
        self._project.runner.history.note(self._pipeline, text, self._project.clock.now_us())


LOOPS: dict[str, Callable[[OpenProject, threading.Lock, threading.Event], None]] = {
    "runner": _run_due,
    "promoter": _promote,
    "watcher": look_out,
    "webhook": post_alerts,
}
"""The loops of both roles."""


# Processes of their own.


def call_apart(project: OpenProject, child: Child, stop: threading.Event) -> bytes:
    """Returns what a function has found, as JSON, run in a process of its own; its output goes to a log.

    Raises what the function raised, FailedError if the process ended without an answer, and StoppedError, with the
    process ended, if `stop` is set meanwhile.
    """
    log = _log_path(project, child.name)
    began = log.stat().st_size if log.exists() else 0
    reading, writing = os.pipe()
    try:
        code = _run_program(project, child, (writing, str(log)), stop)
        os.set_blocking(reading, False)
        text = _read_all(reading)
    finally:
        os.close(reading)
    if not text:
        raise FailedError(_explain_end(child.name, code, log, began))
    answer = msgspec.json.decode(text, type=_Answer)
    if answer.problem is not None:
        raise _error_of(answer.problem)
    return bytes(answer.found)


def _log_path(project: OpenProject, name: str) -> Path:
    folder = project.profile.state / "log"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.log"


def _run_program(project: OpenProject, child: Child, ends: tuple[int, str], stop: threading.Event) -> int:
    """Returns the exit code of a child, which has ended."""
    writing, log = ends
    arguments = {
        "folder": str(project.folder),
        "profile": project.profile.name,
        "function": child.function,
        "arguments": dict(child.arguments),
        "answer": writing,
    }
    program = Program(child.name, "headrace.work:run_child", arguments, descriptors=(writing,), log=log)
    try:
        companion = Companion(program)
    finally:
        os.close(writing)
    with companion:
        while (code := companion.poll()) is None:
            if stop.wait(_TICK_SECONDS):
                raise StoppedError(f"told to stop while {child.name} ran")
        return code


def _read_all(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 2 * _ANSWER_BYTES)
    except BlockingIOError:
        return b""


def _explain_end(name: str, code: int, log: Path, began: int) -> str:
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        hint = ", as the kernel does where memory runs out" if -code == signal.SIGKILL else ""
        return f"the process of {name} {how}{hint}; its log is {log}"
    with log.open("rb") as file:
        file.seek(max(began, log.stat().st_size - _SHOWN_BYTES))
        told = file.read().decode("utf-8", "replace").strip().splitlines()
    last = f": {told[-1].strip()}" if told else ""
    return f"the process of {name} has crashed with exit code {code}{last}; its log is {log}"


def _error_of(problem: _Problem) -> HeadraceError:
    """Returns an error like the one that a child has met: whether to try again is its class."""
    errors = import_module("headrace.base.errors")
    kind = getattr(errors, problem.kind, StopError)
    try:
        error: HeadraceError = kind(problem.message)
    except TypeError:
        error = StopError(problem.message)
    return error


def run_child(
    life: Life, *, folder: str, profile: str, function: str, arguments: Mapping[str, Any], answer: int
) -> None:
    """Runs a function of this module, and writes what came of it into `answer`."""
    life.tell_ready()
    os.set_inheritable(answer, False)
    # What user code prints belongs into the log, too.
    os.dup2(2, 1)
    get_logger("work").info("%s %s begins", function, msgspec.json.encode(arguments).decode())
    try:
        with open_project(folder, profile=profile) as project:
            found = FUNCTIONS[function](project, **arguments)
        told = _Answer(msgspec.Raw(msgspec.json.encode(found)))
    except HeadraceError as error:
        get_logger("work").error("%s: %s", type(error).__name__, error)
        told = _Answer(problem=_Problem(type(error).__name__, str(error)[:_SHOWN_BYTES]))
    os.write(answer, msgspec.json.encode(told))
    # Not by way of the interpreter's end: threads of Arrow abort the process there.
    os._exit(0)


def fit_step(project: OpenProject, *, step: str) -> tuple[str, ...]:
    """Returns the hash of the bundle that a model has learned from the lake as it is now."""
    learn = import_module("headrace.learn")
    if CLICKS in project.topics.names():
        # What was clicked before the run is learned from.
        learn.wait_for_lake(project)
    return (learn.fit(project, step).hash,)


def advance_step(project: OpenProject, *, experiment: str) -> Any:
    """Returns where the promotion stands, one step further if one can be taken."""
    return import_module("headrace.promote").advance(project, experiment)


FUNCTIONS: dict[str, Callable[..., Any]] = {"fit_step": fit_step, "advance_step": advance_step}
"""What runs in processes of their own."""
