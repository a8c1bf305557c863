"""Every error Headrace raises on purpose.

HeadraceError
├── CallError                 the call is wrong                         exit code 2
│   ├── UrlError              a URL that cannot be read
│   │   ├── UnknownSchemeError
│   │   ├── UnknownOptionError
│   │   └── SecretError
│   ├── MissingExtraError     the backend's package is not installed
│   ├── UnsupportedError      this backend cannot do that, others can
│   ├── UnknownNameError      no topic, role, profile ... of that name
│   ├── ProjectError          the project file or headrace.toml is wrong
│   ├── RecordError           a record that no topic may hold
│   └── RequestError          an HTTP request that is refused with a status
├── StopError                 going on would lose or double something   exit code 1
│   ├── FencedError           somebody newer took over
│   ├── PositionError         a saved position does not fit the topic
│   └── FormatError           bytes on disk that this version cannot read
└── OutsideError              something outside is unavailable; retry   exit code 3
    ├── UnavailableError      nobody answers
    ├── DeadlineError         not done in time; it may still happen
    ├── FullError             the disk is full
    └── OverloadedError       too much is waiting already

Whether to try again is the class: only an OutsideError may be retried.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class HeadraceError(Exception):
    """The root of all errors that Headrace raises on purpose."""

    exit_code: ClassVar[int] = 1


class CallError(HeadraceError):
    """The call is wrong, and repeating it changes nothing."""

    exit_code = 2


class UrlError(CallError):
    """A URL that cannot be read."""


class UnknownSchemeError(UrlError):
    """No backend answers to the scheme of a URL."""


class UnknownOptionError(UrlError):
    """A URL carries an option that its backend does not have."""


class SecretError(UrlError):
    """A secret stands in a URL, or the variable that should hold it is not set."""


class MissingExtraError(CallError):
    """The backend's package is not installed."""


class UnsupportedError(CallError):
    """This backend cannot do what was asked; the message names those that can."""


class UnknownNameError(CallError):
    """No topic, role, profile or key has the name that was asked for."""


class ProjectError(CallError):
    """The project file or headrace.toml is wrong; the message gives the place."""


class RecordError(CallError):
    """A record that no topic may hold: too large, or of the wrong type."""


class RequestError(CallError):
    """An HTTP request that is refused; `status` says how."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StopError(HeadraceError):
    """Going on would lose or double something, so the caller must stop."""


class FencedError(StopError):
    """Somebody newer took over; what this one still holds must be dropped."""


class PositionError(StopError):
    """A saved position does not fit the topic: another incarnation, or out of range."""


class FormatError(StopError):
    """Bytes on disk that this version of Headrace cannot read."""


class OutsideError(HeadraceError):
    """Something outside is unavailable; the same call may work later."""

    exit_code = 3
    retry_after_seconds: ClassVar[int] = 1


class UnavailableError(OutsideError):
    """Nobody answers at the other end."""


class DeadlineError(OutsideError):
    """Not done in time. It may still happen, so repeat it under the same id."""


class FullError(OutsideError):
    """The disk is full; service resumes by itself once there is room."""


class OverloadedError(OutsideError):
    """Too much is waiting already; the caller should slow down."""


def did_you_mean(name: str, known: Iterable[str], *, suffix: str = "") -> str:
    """Returns ` Did you mean X?` when a known name is near, else nothing.

    >>> did_you_mean("clcks", ["clicks", "events"])
    ' Did you mean clicks?'
    >>> did_you_mean("zebra", ["clicks", "events"])
    ''
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}{suffix}?" if near else ""


def unknown_name(noun: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Returns the error for a name that nothing has, with the nearest and all known.

    >>> print(unknown_name("topic", "clcks", ["clicks", "events"]))
    no topic 'clcks'. Did you mean clicks?  known: clicks, events
    """
    names = sorted(known)
    listed = ", ".join(names) if names else "none yet"
    return UnknownNameError(f"no {noun} {name!r}.{did_you_mean(name, names)}  known: {listed}")
