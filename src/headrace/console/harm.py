"""The faults of `headrace break`: each acts by traffic, signals and files alone, as the world would."""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import shutil
import signal
import sqlite3
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit
from uuid import uuid4
from zlib import crc32

import msgspec

from headrace.base.clock import machine_us
from headrace.base.errors import CallError, StopError, unknown_name
from headrace.collect.dimensions import Dimensions
from headrace.collect.keys import Keys
from headrace.console.show import format_bytes
from headrace.console.state import is_running, read_state
from headrace.endpoints.serving import find_trials
from headrace.events.dimension import text_of
from headrace.events.visit import write_time
from headrace.experiments.assign import assign
from headrace.experiments.promotion import CHAMPION, decode_champion
from headrace.features import Column
from headrace.features.tiles import pack, unpack
from headrace.features.updater import rebuild
from headrace.lookout import late_us_of
from headrace.models import open_bundle
from headrace.project import ROLES, WORK, OpenProject
from headrace.stream import find_columns, find_sources

_LOOK_SECONDS = 0.1
_BATCH = 100
_BATCHES_A_SECOND = 20
_CLICKS_A_SECOND = 300
_PAGES_A_SECOND = 200
_PAGE_CONNECTIONS = 8
_REPLY_SECONDS = 5.0
_LIVES_SECONDS = 1.5
_SAFE_BYTES = 300e6
_MUCH_BYTES = 5e9
_PIECE_BYTES = 1 << 20
# One person in so many is served a wrong value.
_PERSONS = 4

_BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0"
_CRAWLER = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"


@dataclass(frozen=True)
class Victim:
    """The running project that is harmed, and how it was asked for."""

    project: OpenProject
    given: argparse.Namespace

    def url(self, role: str) -> str:
        """Returns where a role listens; raises CallError if it does not run."""
        if not is_running(self.project, role):
            raise CallError(f"no {role} runs. Start the project with: headrace up")
        return str(read_state(self.project, role)["url"])


Harm = Callable[[threading.Event], None]
"""Goes on until the event is set, and leaves everything as it was before, as far as that can be done."""


@dataclass(frozen=True)
class Fault:
    """One way to break a project."""

    kind: str
    """The kind of the alert that must come."""
    does: str
    undo: str
    prepare: Callable[[Victim], Harm]
    """Returns what does the harm; raises CallError where there is nothing to break."""


# Traffic.


class _Door:
    """One connection to a door; what is not taken is sent again as long as the harm lasts."""

    def __init__(self, url: str, stop: threading.Event, *, key: str = "") -> None:
        parts = urlsplit(url)
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_REPLY_SECONDS)
        self._headers = {
            "content-type": "application/json",
            "authorization": f"Basic {b64encode(f'{key}:'.encode()).decode()}",
        }
        self._stop = stop

    def post(self, path: str, body: Any) -> None:
        """Posts JSON; raises StopError if the door refuses it for good."""
        while not self._stop.is_set():
            try:
                self._connection.request("POST", path, msgspec.json.encode(body), self._headers)
                with self._connection.getresponse() as answer:
                    told = answer.read()
            except (OSError, http.client.HTTPException):
                self._connection.close()
                self._stop.wait(_LOOK_SECONDS)
                continue
            if answer.status == 200:
                return
            if answer.status not in (429, 503):
                raise StopError(f"the door answers {answer.status}: {told[:300].decode(errors='replace')}")
            self._stop.wait(_LOOK_SECONDS)


def _find_key(victim: Victim) -> str:
    if not Keys.read(victim.project.profile.settings.keys).name_of(victim.given.key):
        raise CallError(f"the write key {victim.given.key!r} is none of this project's. Give one with --key")
    return str(victim.given.key)


def _send(victim: Victim, make: Callable[[], list[dict[str, Any]]]) -> Harm:
    """Returns the harm of sending what `make` makes, again and again."""
    url, key = victim.url("collector"), _find_key(victim)

    def harm(stop: threading.Event) -> None:
        door = _Door(url, stop, key=key)
        while not stop.wait(1 / _BATCHES_A_SECOND):
            sent_at = write_time(victim.project.clock.now_us())
            door.post("/v1/batch", {"batch": make(), "sentAt": sent_at})

    return harm


def _event(victim: Victim, *, ago_us: int = 0, agent: str = _BROWSER, **more: Any) -> dict[str, Any]:
    at_us = victim.project.clock.now_us() - ago_us
    return {
        "type": "page",
        "name": "Home",
        "messageId": f"break-{uuid4()}",
        "anonymousId": str(uuid4()),
        "timestamp": write_time(at_us),
        "context": {"userAgent": agent},
        **more,
    }


def _duplicate(victim: Victim) -> Harm:
    batch = [_event(victim) for _ in range(_BATCH)]
    return _send(victim, lambda: batch)


def _late(victim: Victim) -> Harm:
    ago_us = 2 * late_us_of(victim.project.clock)
    return _send(victim, lambda: [_event(victim, ago_us=ago_us) for _ in range(_BATCH)])


def _bots(victim: Victim) -> Harm:
    return _send(victim, lambda: [_event(victim, agent=_CRAWLER) for _ in range(_BATCH)])


def _drift(victim: Victim) -> Harm:
    column, name = _find_input(victim.project)
    dimensions = Dimensions(victim.project.topics, [column.dimension])
    dimensions.refresh()
    history, end = dimensions.history(column.dimension), dimensions.end(column.dimension)
    texts = {item: text_of((history.at(item, end) or {}).get(name)) for item in history.members(end)}
    counts = Counter(text for text in texts.values() if text is not None)
    if not counts:
        raise CallError(f"the dimension {column.dimension!r} is empty. Load it with: headrace table load FILE")
    rarest = min(counts, key=lambda text: (counts[text], text))
    items = [item for item, text in texts.items() if text == rarest]

    def make() -> list[dict[str, Any]]:
        return [
            _event(victim, type="track", event=column.event, properties=_place(column.item, items[n % len(items)]))
            for n in range(_CLICKS_A_SECOND // _BATCHES_A_SECOND)
        ]

    return _send(victim, make)


def _find_input(project: OpenProject) -> tuple[Column, str]:
    """Returns a column that is counted by an attribute, and the attribute."""
    for column in project.declared.columns:
        for name in (*column.by, column.value):
            if name.startswith("@") and column.dimension:
                return column, name.removeprefix("@")
    raise CallError("no feature of the project is counted by an attribute of items, so none can drift")


def _place(path: str, item: str) -> dict[str, Any]:
    """Returns properties with an item at a path.

    >>> _place("products[].product_id", "item-7")
    {'products': [{'product_id': 'item-7'}]}
    """
    name, _, rest = path.partition(".")
    inner: Any = _place(rest, item) if rest else item
    return {name.removesuffix("[]"): [inner] if name.endswith("[]") else inner}


def _srm(victim: Victim) -> Harm:
    url = victim.url("endpoint")
    trial = next(iter(find_trials(victim.project.registry).values()), None)
    if trial is None:
        raise CallError("no trial runs, so there are no arms. Start one with: headrace experiment start NAME")

    def flood(stop: threading.Event) -> None:
        door = _Door(url, stop)
        while not stop.wait(_PAGE_CONNECTIONS / _PAGES_A_SECOND):
            visitor = str(uuid4())
            while assign(trial.seed, visitor, trial.weights) != 0:
                visitor = str(uuid4())
            door.post("/v1/page", {"page": trial.page, "anonymous_id": visitor, "context": {"userAgent": _BROWSER}})

    def harm(stop: threading.Event) -> None:
        with ThreadPoolExecutor(_PAGE_CONNECTIONS) as pool:
            for one in [pool.submit(flood, stop) for _ in range(_PAGE_CONNECTIONS)]:
                one.result()

    return harm


# Files and signals.


def _skew(victim: Victim) -> Harm:
    project = victim.project
    url = project.profile.url("online")
    state = project.online.read_state() if url.scheme == "sqlite" else None
    if state is None:
        raise CallError(f"the online store {url} cannot be broken: only a file of sqlite:// that serves can")
    if not any(column.by[0] == "person" for column in _serving_columns(project)):
        raise CallError("no page is ranked by features of people now. Wait for a trial or a champion that reads some")

    def harm(stop: threading.Event) -> None:
        done: set[tuple[bytes, int]] = set()
        try:
            while not stop.is_set():
                _damage(url.local_path(), done)
                stop.wait(1.0)
        finally:
            rebuild(project.online, find_columns(project), find_sources(project), now_us=machine_us())

    return harm


def _serving_columns(project: OpenProject) -> list[Column]:
    trials, champions = find_trials(project.registry).values(), project.registry.newest(CHAMPION).values()
    serving = [name for trial in trials for name in (trial.control, trial.treatment)]
    serving += [name for one in champions if (name := decode_champion(one.value).bundle)]
    return [column for name in serving for column in open_bundle(project.registry.load(name)).columns]


def _damage(path: Path, done: set[tuple[bytes, int]]) -> None:
    """Counts two more for one person in four than there was, wherever that was not done yet."""
    with contextlib.closing(sqlite3.connect(path, timeout=_REPLY_SECONDS, isolation_level=None)) as connection:
        connection.execute("begin immediate")
        (generation,) = connection.execute("select generation from generations where serves").fetchone()
        rows = connection.execute(
            "select entity, partition, value from blobs where generation = ? and not watched", (generation,)
        ).fetchall()
        for entity, partition, value in rows:
            place = (entity, partition)
            if crc32(entity) % _PERSONS == 0 and place not in done:
                connection.execute(
                    "update blobs set value = ? where generation = ? and entity = ? and partition = ?",
                    (_spoil(value, place), generation, *place),
                )
                done.add(place)
        connection.execute("commit")


def _spoil(value: bytes, place: tuple[bytes, int]) -> bytes:
    blob = unpack(value, place)
    for rests in blob.families.values():
        for tiles in (tiles for hops in rests.values() for tiles in hops.values() if tiles):
            newest = max(tiles)
            count = tiles[newest]
            tiles[newest] = count + 2 if isinstance(count, int) else count
    return pack(blob, place)


def _kill(victim: Victim) -> Harm:
    role = victim.given.role
    if role not in ROLES:
        raise unknown_name("role", role, ROLES)
    if role in WORK:
        raise CallError(f"the process of {role!r} is the watcher's own, which cannot see its own death; take another")
    if not is_running(victim.project, role):
        raise CallError(f"no {role} runs. Start the project with: headrace up")

    def harm(stop: threading.Event) -> None:
        killed: set[int] = set()
        # Of an `up` that has ended the ids are anybody's.
        while not stop.wait(_LOOK_SECONDS) and is_running(victim.project, role):
            fresh = set(read_state(victim.project, role)["pids"].values()) - killed
            # Each lives for a moment: it is meant to come back, and to die again.
            if fresh and not stop.wait(_LIVES_SECONDS if killed else 0.0):
                for pid in fresh:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                killed |= fresh

    return harm


def _disk(victim: Victim) -> Harm:
    project = victim.project
    limit = project.profile.settings.watch.free_gb * 1e9
    left = 0.8 * limit
    if left < _SAFE_BYTES:
        raise CallError(
            f"[watch] free_gb = {limit / 1e9:g} cannot be gone below without danger: at least "
            f"{format_bytes(int(_SAFE_BYTES))} stay free. Set it to 0.5 or more"
        )
    path = project.profile.state / "break.ballast"
    # What a kill -9 of the last one has left.
    path.unlink(missing_ok=True)
    size = int(shutil.disk_usage(project.folder).free - left)
    if size <= 0:
        raise CallError("the disk is as full already")
    if size > _MUCH_BYTES and not victim.given.yes:
        raise CallError(f"this takes {format_bytes(size)} of the disk for a moment; say --yes to that")

    def harm(stop: threading.Event) -> None:
        try:
            with path.open("wb") as file:
                _fill(file, size, stop)
                stop.wait()
        finally:
            path.unlink(missing_ok=True)

    return harm


def _fill(file: BinaryIO, size: int, stop: threading.Event) -> None:
    """Takes so many bytes of the disk; where they can't be asked for, as on macOS, they are written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    while size > 0 and not stop.is_set():
        size -= file.write(bytes(min(size, _PIECE_BYTES)))
    file.flush()


_ENDS = "it ends by itself with the alert, or with Ctrl-C"

FAULTS: dict[str, Fault] = {
    "duplicate": Fault("duplicates", "one batch of 100 events is sent again and again", _ENDS, _duplicate),
    "late": Fault("lateness", "events are sent that happened hours ago", _ENDS, _late),
    "skew": Fault(
        "skew",
        "in the online store's file one person in four gets two clicks more than there were",
        f"{_ENDS}; then the store is made anew from the lake, as headrace feature backfill does",
        _skew,
    ),
    "srm": Fault("srm", "fresh visitors ask for pages, all of whom fall into the control arm", _ENDS, _srm),
    "bots": Fault("bots", "crawlers come, each as a visitor of its own", _ENDS, _bots),
    "drift": Fault("drift", "fresh visitors click what was rare until now, and nothing else", _ENDS, _drift),
    "kill": Fault("dead-role", "the process of a role is killed as soon as it is back", _ENDS, _kill),
    "disk": Fault(
        "disk", "a file without content takes the room that should be free", f"{_ENDS}, and is removed", _disk
    ),
}
"""The faults by name."""
