"""Child processes that are started anew when they die, and that never outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import TracebackType
from typing import Any, Self

import msgspec

from headrace.base.errors import DeadlineError, HeadraceError, UnavailableError
from headrace.base.telemetry import get_logger, start_logging

_PR_SET_PDEATHSIG = 1
_TICK_SECONDS = 0.02
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
_STEADY_SECONDS = 10.0
_STOP_SECONDS = 0.8
_LOOP_STOP_SECONDS = 0.6
_LOOK_SECONDS = 0.05
_PATIENCE_SECONDS = 3.0
_OPEN_FILES = 65_536


def find_user() -> str:
    """Returns the name of the user that this process runs as; the number of one without a name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


@dataclass(frozen=True)
class Program:
    """What a child runs: `module:function`, called with a Life and these arguments."""

    name: str
    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()
    log: str = ""
    """The file for its stderr; nothing for this process's own."""
    after: tuple[str, ...] = ()
    """The programs that it lets become ready first, for a few seconds at most; it is loaded meanwhile."""


class _Spec(msgspec.Struct):
    target: str
    arguments: dict[str, Any]
    parent: int
    life: int
    ready: int
    go: int | None = None
    """It is loaded at once, and begins when the other end of this is closed."""


@dataclass(frozen=True)
class Life:
    """A child's tie to its parent."""

    ready_descriptor: int

    def tell_ready(self) -> None:
        """Tells the parent that this child does its work now."""
        with contextlib.suppress(OSError):
            os.write(self.ready_descriptor, b"1")


@dataclass
class _Child:
    program: Program
    process: subprocess.Popen[bytes]
    ready_descriptor: int
    go_descriptor: int | None
    """The child waits until it is closed; None if it waits no longer."""
    started_at: float
    ready: bool = False

    def go(self) -> None:
        """Lets it begin."""
        if self.go_descriptor is not None:
            os.close(self.go_descriptor)
            self.go_descriptor = None

    def close(self) -> None:
        """Forgets it once it has ended."""
        self.go()
        os.close(self.ready_descriptor)


class Companion:
    """One program beside this process, which ends with it at the latest.

    with Companion(Program("fit", "headrace.work:run_child", arguments)) as child: ...
    """

    def __init__(self, program: Program) -> None:
        self._life, self._own_end = os.pipe()
        self._child = _spawn(program, self._life)

    def wait_ready(self, seconds: float) -> None:
        """Returns once the program said that it is ready."""
        deadline = time.monotonic() + seconds
        while not _has_byte(self._child.ready_descriptor):
            if self._child.process.poll() is not None:
                raise UnavailableError(f"{self._child.program.name} ended with {self._child.process.returncode}")
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self._child.program.name} was not ready within {seconds:g} s")
            time.sleep(_TICK_SECONDS)

    def poll(self) -> int | None:
        """Returns the exit code of the program, which is below 0 if a signal has ended it; None while it runs."""
        return self._child.process.poll()

    @property
    def pid(self) -> int:
        """The process that runs it."""
        return self._child.process.pid

    def end(self) -> None:
        """Ends the program, unless it has ended."""
        self._child.process.terminate()
        try:
            self._child.process.wait(2 * _STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.process.kill()
            self._child.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        for descriptor in (self._child.ready_descriptor, self._own_end, self._life):
            os.close(descriptor)


class Supervisor:
    """Runs programs until it is told to stop, starting those anew that end."""

    def __init__(self, programs: Sequence[Program], *, changed: Callable[[], None] = lambda: None) -> None:
        self._programs = {program.name: program for program in programs}
        self._children: dict[str, _Child] = {}
        self._pauses: dict[str, float] = {}
        self._due: dict[str, float] = dict.fromkeys(self._programs, 0.0)
        self._changed = changed
        self._stopping = False
        self._began_at = time.monotonic()
        # Children hold the reading end; the kernel closes the other when this process dies.
        self._life, self._own_end = os.pipe()

    def run(
        self,
        *,
        tick: Callable[[], None] = lambda: None,
        is_over: Callable[[], bool] = lambda: False,
        stopping: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts all programs and watches them until SIGTERM, SIGINT, SIGHUP or `is_over`, then stops them in order.

        `tick` is called again and again meanwhile, `stopping` once before the first program is told to stop.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # Under nohup it stays ignored.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._stop)
        try:
            while not (self._stopping or is_over()):
                self._turn()
                tick()
                time.sleep(_TICK_SECONDS)
        finally:
            stopping()
            self._end()

    def all_ready(self) -> bool:
        """Whether every program runs and said that it is ready."""
        return len(self._children) == len(self._programs) and all(c.ready for c in self._children.values())

    def pids(self) -> dict[str, int]:
        """Returns the process id of each program that runs."""
        return {name: child.process.pid for name, child in self._children.items()}

    def _stop(self, number: int, frame: object) -> None:
        del number, frame
        self._stopping = True

    def _turn(self) -> None:
        now = time.monotonic()
        for name in [name for name, due in self._due.items() if due <= now]:
            del self._due[name]
            self._children[name] = _spawn(self._programs[name], self._life)
            self._changed()
        for name, child in list(self._children.items()):
            if child.go_descriptor is not None and self._may_begin(name, now):
                child.go()
            if not child.ready and _has_byte(child.ready_descriptor):
                child.ready = True
                self._changed()
            if child.process.poll() is not None:
                self._bury(name, child, now)

    def _may_begin(self, name: str, now: float) -> bool:
        first = [self._children.get(other) for other in self._programs[name].after]
        return now - self._began_at > _PATIENCE_SECONDS or all(child is not None and child.ready for child in first)

    def _bury(self, name: str, child: _Child, now: float) -> None:
        del self._children[name]
        child.close()
        steady = now - child.started_at > _STEADY_SECONDS
        pause = _FIRST_PAUSE_SECONDS if steady else self._pauses.get(name, _FIRST_PAUSE_SECONDS / 2) * 2
        self._pauses[name] = min(pause, _LONGEST_PAUSE_SECONDS)
        self._due[name] = now + self._pauses[name]
        get_logger("process").warning(
            "%s ended with %s, starting it again in %.1f s", name, child.process.returncode, self._pauses[name]
        )
        self._changed()

    def _end(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        for child in self._children.values():
            child.process.send_signal(signal.SIGTERM)
            # A frozen child cannot hear it.
            child.process.send_signal(signal.SIGCONT)
        for child in self._children.values():
            try:
                child.process.wait(max(deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            child.close()
        self._children.clear()
        os.close(self._own_end)
        os.close(self._life)


Loop = Callable[[threading.Event], None]
"""Does a role's work until the event is set, or raises a HeadraceError and is begun anew."""


class Loops:
    """The loops of one process, a thread each: one that fails is begun anew while the others go on."""

    def __init__(self, loops: Mapping[str, Loop], *, noted: Callable[[str, str], None]) -> None:
        self._loops = loops
        self._noted = noted
        self._stop = threading.Event()
        self._is_told = False

    def run(self, life: Life) -> None:
        """Runs all loops until SIGTERM, and ends the process."""
        signal.signal(signal.SIGTERM, self._tell)
        threads = [
            threading.Thread(target=self._repeat, args=(name, loop), name=name, daemon=True)
            for name, loop in self._loops.items()
        ]
        for thread in threads:
            thread.start()
        life.tell_ready()
        while not self._is_told:
            time.sleep(_LOOK_SECONDS)
            if not all(thread.is_alive() for thread in threads):
                # A fault of ours, whose traceback stands in the log: a fresh process knows nothing of it.
                os._exit(1)
        self._stop.set()
        deadline = time.monotonic() + _LOOP_STOP_SECONDS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))
        # Not by way of the interpreter's end: threads of Arrow abort the process there.
        os._exit(0)

    def _tell(self, *_: object) -> None:
        # An event's own lock could be held here by the very code that the signal has interrupted.
        self._is_told = True

    def _repeat(self, name: str, loop: Loop) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._stop.is_set():
            began_at = time.monotonic()
            try:
                loop(self._stop)
            except HeadraceError as error:
                get_logger(name).error("%s: %s; beginning anew in %.1f s", type(error).__name__, error, pause)
                # On a full disk the log alone tells it.
                with contextlib.suppress(OSError):
                    self._noted(name, f"{type(error).__name__}: {error}")
            else:
                continue
            steady = time.monotonic() - began_at > _STEADY_SECONDS
            self._stop.wait(pause)
            pause = _FIRST_PAUSE_SECONDS if steady else min(pause * 2, _LONGEST_PAUSE_SECONDS)


def _spawn(program: Program, life: int) -> _Child:
    reading, writing = os.pipe()
    going, go = os.pipe() if program.after else (None, None)
    spec = _Spec(program.target, dict(program.arguments), os.getpid(), life, writing, going)
    passed = [one for one in (life, writing, going, *program.descriptors) if one is not None]
    with open(program.log or os.devnull, "ab") as log:  # noqa: PTH123 - an empty name means none
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "headrace.base.process", msgspec.json.encode(spec).decode()],
            pass_fds=passed,
            stderr=log if program.log else None,
        )
    os.close(writing)
    if going is not None:
        os.close(going)
    os.set_blocking(reading, False)
    return _Child(program, process, reading, go, time.monotonic())


def _has_byte(descriptor: int) -> bool:
    try:
        return bool(os.read(descriptor, 1))
    except BlockingIOError:
        return False


def die_with_parent(parent: int, life: int) -> None:
    """Makes the kernel kill this process when its parent dies, however busy it is."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_wait_for_end, args=(life,), daemon=True).start()


def _wait_for_end(life: int) -> None:
    os.read(life, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _open_many_files() -> None:
    """Lifts the soft limit, often 1,024, to the hard one: a door holds 2,000 connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else hard
    if soft not in (resource.RLIM_INFINITY, wanted):
        # macOS allows less than its hard limit says.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def main(text: str) -> None:
    """Runs the program that a supervisor describes in `text`."""
    spec = msgspec.json.decode(text, type=_Spec)
    die_with_parent(spec.parent, spec.life)
    # Ctrl-C and a closed terminal reach its whole group, but the order of stopping is the supervisor's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _open_many_files()
    start_logging()
    module, _, name = spec.target.partition(":")
    try:
        run = getattr(import_module(module), name)
        if spec.go is not None:
            os.read(spec.go, 1)
            os.close(spec.go)
        run(Life(spec.ready), **spec.arguments)
    except HeadraceError as error:
        get_logger("process").error("%s: %s", type(error).__name__, error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(sys.argv[1])
