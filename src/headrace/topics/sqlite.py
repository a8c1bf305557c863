"""Topics in one SQLite file, for a laptop or a single machine: durable, and shared by processes."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec

from headrace.base.clock import machine_us
from headrace.base.errors import CallError, DeadlineError, HeadraceError, UnavailableError, unknown_name
from headrace.base.ids import make_id
from headrace.base.sqlite import Link, Seat, check_format, connect, one_view
from headrace.base.urls import Url
from headrace.topics import sqlite_frames as frames
from headrace.topics.partition import partition_for
from headrace.topics.sqlite_sender import SqliteSender
from headrace.topics.sqlite_share import SqliteShare
from headrace.topics.sqlite_store import FORMAT, SqliteStore, outside_error, read_bounds, read_offset_at, read_rows
from headrace.topics.topic import (
    DEFAULT_DEADLINE_SECONDS,
    MAX_READ_BYTES,
    Bounds,
    Capabilities,
    Description,
    GroupPosition,
    Message,
    Place,
    Position,
    Record,
    Sender,
    Share,
    check_existing,
    check_partitions,
    check_range,
    share_of,
    size_of,
    stamped,
)

_FILE = "topics.db"
_POLL_SECONDS = 0.01
_PATIENCE_SECONDS = 1.0
_FRAME_ROWS = 64
_FRAME_BYTES = 8 << 20


class _Options(msgspec.Struct):
    """sqlite:// topics have no options."""


@dataclass(frozen=True)
class _Found:
    id: int
    description: Description


class SqliteTopics:
    """Reads the file itself; hands everything that changes it to the one writer."""

    capabilities: ClassVar[Capabilities] = Capabilities(durable=True, shared=True, dense=True)

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / _FILE
        self._inherited: list[object] = []
        self._begin()
        os.register_at_fork(after_in_child=_begin_anew(weakref.ref(self)))

    def _begin(self) -> None:
        self._seat = Seat(self._path, lambda: SqliteStore.open(self._path))
        self._link = Link(self._seat)
        self._producer = make_id(machine_us(), os.urandom(10))
        self._sequence = 0
        self._appending = threading.Lock()
        self._reading = threading.Lock()
        self._reader: sqlite3.Connection | None = None

    def begin_anew(self) -> None:
        """Forgets what a forked child has inherited: as its parent's twin, its appends would pass for repeats."""
        self._seat.abandon()
        self._link.close()
        # SQLite's connections may be neither used nor closed by a child.
        self._inherited += [self._reader, self._seat]
        self._begin()

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the topics in the folder that the URL names."""
        url.read_options(_Options)
        return cls(url.local_path())

    @property
    def is_writer(self) -> bool:
        """Whether this process writes the file at present."""
        return self._seat.held

    def names(self) -> list[str]:
        """Returns the names of all topics, sorted."""
        return [row[0] for row in self._query("select name from topics order by name")]

    def describe(self, name: str) -> Description:
        """Returns what a topic is."""
        return self.find(name).description

    def create(self, name: str, *, partitions: int, retention_seconds: int | None) -> Description:
        """Returns the new topic, or the one that stands."""
        check_partitions(name, partitions)
        incarnation = make_id(machine_us(), os.urandom(10))
        self._ask(frames.Create(name, partitions, incarnation, retention_seconds))
        found = self.describe(name)
        check_existing(found, partitions)
        return found

    def alter(self, name: str, *, retention_seconds: int | None) -> Description:
        """Changes how long records are kept."""
        self.find(name)
        self._ask(frames.Alter(name, retention_seconds))
        return self.describe(name)

    def drop(self, name: str) -> None:
        """Deletes a topic."""
        self.find(name)
        self._ask(frames.Drop(name))

    def bounds(self, name: str) -> list[Bounds]:
        """Returns the first and the next offset of each partition."""
        with self._view(name) as (reader, found):
            return [read_bounds(reader, found.id, p) for p in range(found.description.partitions)]

    def append(self, name: str, records: Sequence[Record], *, deadline_seconds: float) -> list[Place]:
        """Returns the places of the records once they are durable."""
        found = self.find(name)
        split: dict[int, list[int]] = {}
        for index, record in enumerate(records):
            split.setdefault(partition_for(record.key, found.description.partitions), []).append(index)
        places: list[Place | None] = [None] * len(records)
        deadline = time.monotonic() + deadline_seconds
        for portions in _frames_of(records, split):
            self._append_rows(found.id, records, portions, places, deadline)
        return [place for place in places if place is not None]

    def read(self, name: str, offsets: Mapping[int, int], *, max_records: int, wait_seconds: float) -> list[Message]:
        """Returns messages from the given offsets on."""
        deadline = time.monotonic() + wait_seconds
        while True:
            version = self._version()
            messages = self._read_once(name, offsets, max_records)
            if messages:
                return messages
            # An unchanged version costs 2 us to see, so that waiting costs next to nothing.
            while self._version() == version:
                left = deadline - time.monotonic()
                if left <= 0:
                    return []
                time.sleep(min(_POLL_SECONDS, left))

    def offsets_at(self, name: str, time_us: int) -> list[int]:
        """Returns the first offsets whose records are not older than `time_us`."""
        with self._view(name) as (reader, found):
            return [read_offset_at(reader, found.id, p, time_us) for p in range(found.description.partitions)]

    def join(self, name: str, group: str) -> _Membership:
        """Returns the membership that fences every older one."""
        found = self.find(name)
        generation = self._ask(frames.Join(group, name))[0]
        member = _Membership(self, name, found.description.incarnation, group, generation)
        # A commit says where it found the group; a replay commits without having asked.
        member.saved()
        return member

    def share(self, name: str, group: str, *, member: str, lease_seconds: float) -> Share:
        """Returns a member's part of a group."""
        self._seat.resident = True
        # A busy settler would be a slow writer to the doors, and the doors' clients wait for it.
        self._seat.patience_seconds = _PATIENCE_SECONDS
        return SqliteShare(
            self._ask,
            lambda: self.groups(name),
            self._resolve,
            topic=self.describe(name),
            group=group,
            member=(member, lease_seconds),
        )

    def groups(self, name: str) -> list[GroupPosition]:
        """Returns the saved positions of all groups."""
        rows = self._query(
            "select p.name, p.partition, p.incarnation, p.position, coalesce(s.generation, g.generation, 0) "
            "from positions p left join groups g on g.name = p.name and g.topic = p.topic "
            "left join shares s on s.name = p.name and s.topic = p.topic and s.partition = p.partition "
            "where p.topic = ? order by p.name, p.partition",
            (name,),
        )
        return [GroupPosition(row[0], name, Position(row[2], row[1], row[3]), row[4]) for row in rows]

    def open_sender(self, *, deadline_seconds: float, max_pending_bytes: int) -> Sender:
        """Returns an asyncio sender with a connection of its own."""
        self._seat.resident = True
        return SqliteSender(
            self._seat, self._resolve, deadline_seconds=deadline_seconds, max_pending_bytes=max_pending_bytes
        )

    def close(self) -> None:
        """Releases the file; if this process was its writer, the next one takes over."""
        self._link.close()
        self._seat.close()
        with self._reading:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def find(self, name: str) -> _Found:
        """Returns a topic with its number in the file."""
        with self._view(name) as (_, found):
            return found

    def commit(self, frame: frames.Commit) -> None:
        """Saves a group's positions, unless it was taken over."""
        self._ask(frame)

    def _resolve(self, name: str) -> tuple[int, int]:
        found = self.find(name)
        return found.id, found.description.partitions

    def _ask(self, frame: frames.Frame, deadline_seconds: float = DEFAULT_DEADLINE_SECONDS) -> list[int]:
        try:
            data = self._link.ask(frames.pack(frame), deadline_seconds=deadline_seconds)
        except sqlite3.Error as error:
            raise outside_error(error) from error
        answer = frames.read_answer(data)
        failure = frames.error_of(answer)
        if failure is not None:
            raise failure
        return answer.numbers

    def _append_rows(
        self,
        topic: int,
        records: Sequence[Record],
        portions: Sequence[tuple[int, Sequence[int]]],
        places: list[Place | None],
        deadline: float,
    ) -> None:
        now_us = machine_us()
        parts = [
            frames.pack_part(topic, partition, [stamped(records[index], now_us) for index in indices])
            for partition, indices in portions
        ]
        if not self._appending.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise DeadlineError(f"other appends of this process to {self._path} took all the time there was")
        try:
            self._sequence += 1
            left = deadline - time.monotonic()
            bases = self._ask(frames.Append(self._producer, self._sequence, parts), left)
        finally:
            self._appending.release()
        for (partition, indices), base in zip(portions, bases, strict=True):
            for step, index in enumerate(indices):
                places[index] = Place(partition, base + step)

    def _read_once(self, name: str, offsets: Mapping[int, int], max_records: int) -> list[Message]:
        messages: list[Message] = []
        share, max_bytes = share_of(max_records, offsets), share_of(MAX_READ_BYTES, offsets)
        with self._view(name) as (reader, found):
            for partition, offset in offsets.items():
                if not 0 <= partition < found.description.partitions:
                    raise CallError(
                        f"topic {name!r} has partitions 0 to {found.description.partitions - 1}, not {partition}"
                    )
                check_range(name, partition, offset, read_bounds(reader, found.id, partition))
                limits = min(share, max_records - len(messages)), max_bytes
                messages += read_rows(reader, found.id, partition, offset, limits)
        return messages

    def _version(self) -> int:
        rows = self._query("pragma data_version")
        return rows[0][0] if rows else 0

    def _query(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._reading:
            reader = self._open()
            try:
                return [] if reader is None else reader.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise outside_error(error) from error

    @contextlib.contextmanager
    def _view(self, name: str) -> Iterator[tuple[sqlite3.Connection, _Found]]:
        """Yields the reader and a topic, in one read transaction."""
        with self._reading:
            reader = self._open()
            if reader is None:
                raise unknown_name("topic", name, [])
            try:
                with one_view(reader):
                    yield reader, _find(reader, name)
            except sqlite3.Error as error:
                raise outside_error(error) from error

    def _open(self) -> sqlite3.Connection | None:
        if self._reader is None and self._path.exists():
            try:
                self._reader = self._open_reader()
            except sqlite3.Error as error:
                raise outside_error(error) from error
        return self._reader

    def _open_reader(self) -> sqlite3.Connection | None:
        try:
            return _open_reader(self._path)
        except UnavailableError:
            # Of an older format: whoever writes next migrates it, and that may be this process.
            self._ask(frames.Ping())
            return _open_reader(self._path)


def _open_reader(path: Path) -> sqlite3.Connection | None:
    reader = connect(path, read_only=True)
    try:
        if not reader.execute("select count(*) from sqlite_master").fetchone()[0]:
            # Made by a writer that died, or met a full disk, before it could fill it.
            reader.close()
            return None
        check_format(reader, len(FORMAT), what=str(path))
    except (HeadraceError, sqlite3.Error):
        reader.close()
        raise
    return reader


def _find(reader: sqlite3.Connection, name: str) -> _Found:
    row = reader.execute(
        "select id, partitions, incarnation, retention_seconds from topics where name = ?", (name,)
    ).fetchone()
    if row is None:
        raise unknown_name("topic", name, [known for (known,) in reader.execute("select name from topics")])
    return _Found(row[0], Description(name, *row[1:]))


def _begin_anew(topics: weakref.ref[SqliteTopics]) -> Callable[[], None]:
    def in_child() -> None:
        found = topics()
        if found is not None:
            found.begin_anew()

    return in_child


@dataclass
class _Membership:
    topics: SqliteTopics
    topic: str
    incarnation: str
    group: str
    generation: int
    expected: dict[int, int] = field(default_factory=dict)

    def saved(self) -> dict[int, Position]:
        found = {
            group.position.partition: group.position
            for group in self.topics.groups(self.topic)
            if group.group == self.group
        }
        self.expected = {partition: position.offset for partition, position in found.items()}
        return found

    def commit(self, positions: Mapping[int, Position]) -> None:
        moves = [(p, self.expected.get(p, -1), position.offset) for p, position in positions.items()]
        self.topics.commit(frames.Commit(self.group, self.topic, self.incarnation, self.generation, moves))
        self.expected.update({p: position.offset for p, position in positions.items()})

    def close(self) -> None:
        pass


def _frames_of(
    records: Sequence[Record], split: Mapping[int, Sequence[int]]
) -> Iterator[list[tuple[int, Sequence[int]]]]:
    """Yields the rows of one frame after the other: partition and indices of its records."""
    rows: list[tuple[int, Sequence[int]]] = []
    size = 0
    for partition, indices in split.items():
        for cut in frames.cut_rows([records[index] for index in indices]):
            portion = indices[cut]
            added = sum(size_of(records[index]) for index in portion)
            if rows and (len(rows) == _FRAME_ROWS or size + added > _FRAME_BYTES):
                yield rows
                rows, size = [], 0
            rows.append((partition, portion))
            size += added
    if rows:
        yield rows
