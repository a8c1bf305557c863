"""The project's clock, named in the profile by a URL, and the machine's clock beside it.

Event time, sessions, windows and schedules read the project's clock; retention, leases,
time-outs and metrics read the machine's.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

import msgspec

from headrace.base.errors import CallError, FormatError, ProjectError
from headrace.base.urls import Registry, Scheme, Url

_STATE_FILE = Path(".headrace") / "clock.json"
_STEPPED_FILE = Path(".headrace") / "clock.stepped"
_MICROSECONDS = struct.Struct("<q")
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)(s|m|h|d)", re.ASCII)
_UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}

# A supervisor notes the world's time every second, and the others read the note when theirs is older.
# Two seconds after the last note (a frozen supervisor, a full disk) time stands still for them; after
# a kill -9 the world goes on that much later. So its time never runs backwards.
_NOTE_US = 1_000_000
_UNNOTED_US = 2_000_000


class Clock(Protocol):
    """The project's time."""

    def now_us(self) -> int:
        """Returns the project's time in microseconds since 1970, UTC."""


def machine_us() -> int:
    """Returns the machine's time in microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def read_duration(text: str, what: str = "a duration") -> int:
    """Returns the microseconds of a time like 30m, 1h or 3d; raises ProjectError for anything else.

    >>> read_duration("30m") // 1_000_000
    1800
    """
    found = _DURATION.fullmatch(text) if isinstance(text, str) else None
    number = float(found[1]) if found else 0.0
    if not found or not number:
        raise ProjectError(f"{what} is {text!r}; write a number and s, m, h or d, such as '30m' or '3d'")
    return round(number * _UNITS_US[found[2]])


class _NoOptions(msgspec.Struct):
    pass


class RealClock:
    """The machine's own time."""

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the clock of `real://`."""
        url.read_options(_NoOptions)
        return cls()

    def now_us(self) -> int:
        """Returns the machine's time."""
        return machine_us()


class _WorldOptions(msgspec.Struct):
    rate: float = 1.0


class Anchor(msgspec.Struct, frozen=True):
    """One point where the machine's and the world's time are known together."""

    machine_us: int
    world_us: int


class WorldClock:
    """A simulated world's time, which runs `rate` times as fast as the machine's.

    It goes on where it stopped: time in which nothing ran does not pass in the world.
    """

    def __init__(
        self, rate: float, anchor: Anchor, *, path: Path | None = None, machine: Callable[[], int] = machine_us
    ) -> None:
        if not 0 < rate <= 1_000_000:
            raise CallError(f"world://?rate={rate:g}: the rate must be above 0 and at most 1,000,000")
        self.rate = rate
        self.anchor = anchor
        self._path = path
        self._machine = machine
        self._leads = False

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the clock of `world://?rate=3600` at the anchor that the supervisor noted."""
        rate = url.read_options(_WorldOptions).rate
        path = url.root / _STATE_FILE
        try:
            anchor = msgspec.json.decode(path.read_bytes(), type=Anchor)
        except FileNotFoundError:
            now = machine_us()
            anchor = Anchor(now, now)
        except msgspec.DecodeError as error:
            raise FormatError(f"{path} holds no world's time: {error}. Delete it to begin at the present") from error
        return cls(rate, anchor, path=path)

    def now_us(self) -> int:
        """Returns the world's time, which no later start will go behind."""
        now, anchor = self._machine(), self.anchor
        if self._path is None:
            return self._at(anchor, now)
        if not self._leads and now - anchor.machine_us > _NOTE_US:
            with contextlib.suppress(OSError, msgspec.DecodeError):
                anchor = self.anchor = msgspec.json.decode(self._path.read_bytes(), type=Anchor)
        return self._at(anchor, min(now, anchor.machine_us + _UNNOTED_US))

    def resume(self) -> None:
        """Goes on where the world stopped, as its supervisor does once at start."""
        self._leads = True
        self.note()

    def note(self) -> None:
        """Writes the present point down for the next start and for other processes.

        More than two seconds after the one before, as when the machine slept, the world goes on where it stood still.
        """
        if self._path is None:
            return
        now = self._machine()
        passed = min(max(now - self.anchor.machine_us, 0), _UNNOTED_US)
        # Rounded up: who reads this note must not fall behind who went on from the one before.
        noted = Anchor(now, self.anchor.world_us + math.ceil(passed * self.rate))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(msgspec.json.encode(noted))
        temporary.replace(self._path)
        self.anchor = noted

    def _at(self, anchor: Anchor, machine_us: int) -> int:
        return anchor.world_us + int((machine_us - anchor.machine_us) * self.rate)


def begin_world(folder: Path, world_us: int) -> None:
    """Lets the world of a project that has not run yet begin at an instant, rather than at the present."""
    path = folder / _STATE_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(Anchor(machine_us(), world_us)))


class SteppedClock:
    """Time that stands still until somebody steps it; all processes of a project see the same."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(descriptor).st_size < _MICROSECONDS.size:
                os.write(descriptor, _MICROSECONDS.pack(machine_us()))
            self._memory = mmap.mmap(descriptor, _MICROSECONDS.size)
        finally:
            os.close(descriptor)

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the clock of `stepped://`, kept in the project's folder."""
        url.read_options(_NoOptions)
        return cls(url.root / _STEPPED_FILE)

    def now_us(self) -> int:
        """Returns the time of the last step."""
        now: int = _MICROSECONDS.unpack_from(self._memory)[0]
        return now

    def step(self, seconds: float) -> int:
        """Returns the new time, `seconds` later."""
        if seconds < 0:
            raise CallError(f"a stepped clock goes forward only, got {seconds:g} seconds")
        now = self.now_us() + int(seconds * 1_000_000)
        _MICROSECONDS.pack_into(self._memory, 0, now)
        return now


def begin_stepped(folder: Path, at_us: int) -> None:
    """Lets the stepped time of a project that has not run yet stand at an instant, rather than at the present."""
    path = folder / _STEPPED_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_MICROSECONDS.pack(at_us))


SCHEMES = Registry(
    noun="clock",
    group="headrace.clocks",
    schemes={
        "real": Scheme("headrace.base.clock:RealClock"),
        "world": Scheme("headrace.base.clock:WorldClock"),
        "stepped": Scheme("headrace.base.clock:SteppedClock"),
    },
)
