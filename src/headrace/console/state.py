"""What a running project leaves beside its data: which roles run, where they listen, in which processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from headrace.base.errors import CallError
from headrace.project import OpenProject

# Whoever asks whether a role runs holds its lock for an instant, too.
_TRIES, _TRY_SECONDS = 10, 0.01


def read_state(project: OpenProject, role: str) -> dict[str, Any]:
    """Returns what the supervisor of a role wrote down last: its url and process ids."""
    state: dict[str, Any] = json.loads(_state_path(project, role).read_text(encoding="utf-8"))
    return state


def is_running(project: OpenProject, role: str) -> bool:
    """Returns whether an `up` on this machine runs a role of the project."""
    path = _state_path(project, role).with_suffix(".lock")
    try:
        with path.open("a", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def write_state(project: OpenProject, role: str, url: str | None, pids: dict[str, int]) -> None:
    """Writes down where a role listens and which processes it has."""
    path = _state_path(project, role)
    state = {"role": role, "url": url, "supervisor": os.getpid(), "pids": pids}
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    temporary.replace(path)


@contextlib.contextmanager
def sole(project: OpenProject, role: str) -> Iterator[None]:
    """Holds the role's lock: a second `up` of the same role would fight over its door."""
    path = _state_path(project, role).with_suffix(".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        if not any(_locks(file) for _ in range(_TRIES)):
            raise CallError(f"role {role!r} of {str(project.folder)!r} runs already. See: headrace status")
        yield


def _locks(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(_TRY_SECONDS)
        return False
    return True


def _state_path(project: OpenProject, role: str) -> Path:
    return project.profile.state / "run" / f"{role}.json"
