"""headrace plan: what a profile needs, what can be reached, and what the project would make; it changes nothing."""

from __future__ import annotations

import argparse
import os
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import msgspec

from headrace.base.errors import (
    CallError,
    FormatError,
    HeadraceError,
    MissingExtraError,
    OutsideError,
    UnavailableError,
)
from headrace.base.urls import Registry, Url
from headrace.collect.app import CLICKS
from headrace.console.show import print_lines, print_table, shown
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS, FAILED
from headrace.project import OpenProject, open_project

State = Literal["ok", "new", "missing", "unreachable", "bad"]

STATES: dict[State, str] = {
    "ok": "stands and answers",
    "new": "would be made by headrace up",
    "missing": "needs a package that is not installed",
    "unreachable": "does not answer",
    "bad": "is written wrongly, or is something else",
}
"""What the state of a URL means."""

_SCHEMES = {
    "topics": "headrace.topics:SCHEMES",
    "tables": "headrace.tables:SCHEMES",
    "engine": "headrace.engines:SCHEMES",
    "online": "headrace.features.online:SCHEMES",
    "registry": "headrace.models.registry:SCHEMES",
    "runner": "headrace.pipelines:SCHEMES",
    "clock": "headrace.base.clock:SCHEMES",
}
# What stands in the project's folder though its URL names no file.
_FILES = {"local": ".headrace/runs.db", "stepped": ".headrace/clock.stepped", "world": ".headrace/clock.json"}
_CONNECT_SECONDS = 2.0
_ASK_SECONDS = 4.0


class Found(msgspec.Struct, frozen=True):
    """What is to be said of one URL of a profile."""

    noun: str
    url: str
    state: State
    text: str
    names: tuple[str, ...] = ()
    """What it has, of topics and tables that answer."""


def plan(given: argparse.Namespace) -> int:
    """Says whether all that a profile names can be reached; returns 3 if something can't, 2 if something is wrong."""
    with open_project(given.project, profile=given.profile) as project:
        found = [_look(project, noun) for noun in project.profile.urls.__struct_fields__]
        declared = list(_declared(project, found))
        title = f"profile {project.profile.name} of project {project.declared.name}"
    if given.json:
        print_lines({"kind": "url", **msgspec.structs.asdict(one)} for one in found)
        print_lines({"kind": "declared", **one} for one in declared)
    else:
        print(shown(title) + "\n")
        print_table(("noun", "url", "state", ""), [(one.noun, one.url, one.state, one.text) for one in found])
        print()
        print_table(("declared", "names"), [(one["noun"], ", ".join(one["names"]) or "-") for one in declared])
    states = {one.state for one in found}
    return 2 if states & {"bad", "missing"} else 3 if "unreachable" in states else 0


def _declared(project: OpenProject, found: list[Found]) -> Iterator[dict[str, Any]]:
    declared = project.declared
    for noun in ("pages", "experiments", "pipelines", "models", "features", "dimensions", "events"):
        yield {"noun": noun, "names": [one.name for one in getattr(declared, noun)]}
    topics = next(one for one in found if one.noun == "topics")
    needed = [CLICKS, EVENTS, FAILED, DECISIONS, *(one.name for one in declared.dimensions)]
    yield {"noun": "topics to be made", "names": [name for name in needed if name not in topics.names]}


# URLs.


def _look(project: OpenProject, noun: str) -> Found:
    """Returns what is to be said of the URL of a noun."""
    # A URL that cannot be parsed may hold a password.
    text = "-"
    try:
        url = project.profile.url(noun)
        text = str(url)
        module, _, name = _SCHEMES[noun].partition(":")
        schemes: Registry = getattr(import_module(module), name)
        backend = schemes.find(url)
        if url.address:
            names = _ask(url, backend)
            return Found(noun, text, "ok", f"answers{_counted(names, noun)}", names)
        _try(url, backend)
        return _look_at(noun, url, text)
    except MissingExtraError as error:
        return Found(noun, text, "missing", str(error))
    except OutsideError as error:
        return Found(noun, text, "unreachable", str(error))
    except HeadraceError as error:
        return Found(noun, text, "bad", str(error))


def _counted(names: tuple[str, ...], noun: str) -> str:
    return f", has {len(names):,} {noun}" if noun in ("topics", "tables") else ""


def _ask(url: Url, backend: Any) -> tuple[str, ...]:
    """Returns the names that a backend elsewhere has; raises OutsideError if nobody answers."""
    _connect(url)
    if url.scheme == "hdfs":
        url = replace(url, options={**url.options, "deadline_seconds": str(_ASK_SECONDS)})
    with closing(backend.from_url(url)) as opened:
        return tuple(opened.names()) if hasattr(opened, "names") else ()


def _connect(url: Url) -> None:
    """Raises OutsideError unless one of a URL's addresses takes a connection: clients try for long."""
    tried = []
    for address in url.address.split(","):
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise CallError(f"{str(url)!r}: {address!r} has no port. Write it as {url.scheme}://host:port")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            tried.append(f"{address}: {error.strerror or error}")
        else:
            return
    raise UnavailableError(f"nobody answers at {'; '.join(tried)}")


def _try(url: Url, backend: Any) -> None:
    """Raises CallError if a backend of this machine refuses its URL: it is opened in a folder that is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"/{url.path.rstrip('/').rpartition('/')[2]}" if len(url.path) > 1 else url.path
        opened = backend.from_url(replace(url, root=Path(folder), path=path))
        if hasattr(opened, "close"):
            opened.close()


def _look_at(noun: str, url: Url, text: str) -> Found:
    """Returns what is to be said of files of this machine, without opening anything for writing."""
    place = url.root / _FILES[url.scheme] if url.scheme in _FILES else None
    if len(url.path) > 1:
        place = url.local_path()
    if place is None:
        return Found(noun, text, "ok", "is part of Headrace")
    above = next(folder for folder in (place, *place.parents) if folder.exists())
    if not os.access(above, os.W_OK):
        raise UnavailableError(f"{str(above)!r} may not be written by this user")
    if above != place:
        return Found(noun, text, "new", f"{str(place)!r} will be made")
    names = _names_at(noun, place)
    return Found(noun, text, "ok", f"stands{_counted(names, noun)}", names)


def _names_at(noun: str, place: Path) -> tuple[str, ...]:
    if noun == "tables":
        return tuple(sorted(log.parent.name for log in place.glob("*/_delta_log")))
    path = place / "topics.db" if noun == "topics" else place
    if not path.is_file() or path.suffix != ".db":
        return ()
    rows = _read_sqlite(path, "select name from topics order by name" if noun == "topics" else "select 1")
    return tuple(str(row[0]) for row in rows) if noun == "topics" else ()


def _read_sqlite(path: Path, sql: str) -> list[Any]:
    """Returns the answer of a file that is not changed: SQLite would leave files of its log beside it."""
    is_open = all(path.with_name(f"{path.name}-{end}").exists() for end in ("wal", "shm"))
    uri = f"{path.absolute().as_uri()}?mode=ro{'' if is_open else '&immutable=1'}"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_CONNECT_SECONDS)) as connection:
            connection.execute("select count(*) from sqlite_master").fetchall()
            return connection.execute(sql).fetchall()
    except sqlite3.OperationalError as error:
        raise UnavailableError(f"{str(path)!r} does not answer: {error}") from error
    except sqlite3.DatabaseError as error:
        raise FormatError(f"{str(path)!r} is no file of Headrace: {error}") from error
