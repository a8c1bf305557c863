"""The file of an embedded log: its format, what the one writer does to it, and how it is read."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from headrace.base import fault
from headrace.base.clock import machine_us
from headrace.base.errors import FencedError, FormatError, FullError, HeadraceError, PositionError, UnavailableError
from headrace.base.sqlite import connect, migrate, shrink_log, transaction
from headrace.topics import sqlite_frames as frames
from headrace.topics import sqlite_shares as shares
from headrace.topics.topic import Bounds, Message

# A row's number is its place: topic, partition, offset of its first record.
_OFFSET_BITS = 40
_PARTITION_BITS = 10
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1

_REST_SECONDS = 5.0
_BUSY_REST_SECONDS = 0.05
_EXPIRED_ROWS_AT_ONCE = 1_000
_UNKNOWN_LEASE_SECONDS = 6.0
_PRODUCER_AGE_US = 24 * 3600 * 1_000_000

FORMAT = (
    """
    create table topics(
        id integer primary key autoincrement, name text not null unique, partitions integer not null,
        incarnation text not null, retention_seconds integer);
    create table log(
        id integer primary key, count integer not null, newest_us integer not null, blob blob not null);
    create table ends(
        topic integer, partition integer, next integer not null, newest_us integer not null,
        primary key (topic, partition)) without rowid;
    create table groups(
        name text, topic text, generation integer not null, primary key (name, topic)) without rowid;
    create table positions(
        name text, topic text, partition integer, incarnation text not null, position integer not null,
        primary key (name, topic, partition)) without rowid;
    create table producers(
        id text primary key, sequence integer not null, answer blob not null, used_us integer not null)
        without rowid;
    """,
    """
    create table shares(
        name text, topic text, partition integer, member text not null, session text not null,
        generation integer not null, primary key (name, topic, partition)) without rowid;
    """,
)


def row_id(topic: int, partition: int, offset: int) -> int:
    """Returns the number of the row that starts at an offset."""
    return (topic << _PARTITION_BITS | partition) << _OFFSET_BITS | offset


@dataclass
class _End:
    next: int
    newest_us: int


@dataclass(frozen=True)
class _Topic:
    id: int
    partitions: int
    incarnation: str
    retention_seconds: int | None


class SqliteStore:
    """The one writer's view of the file. Frames are answered after their commit, never before."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self._path = path
        self.topics: dict[str, _Topic] = {}
        self.ends: dict[tuple[int, int], _End] = {}
        self.producers: dict[str, tuple[int, bytes]] = {}
        self.members: dict[tuple[str, str], dict[str, shares.Member]] = {}
        self._rested_at = time.monotonic()
        self._load()
        self._greet()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Returns the store of a file, made or migrated if need be. The caller holds the lock."""
        connection = connect(path)
        migrate(connection, FORMAT, what=str(path))
        return cls(connection, path)

    def commit(self, data: Sequence[bytes]) -> list[bytes]:
        """Returns the answers to all frames, which are committed together."""
        fault.point("topics.received")
        asked = [frames.read_frame(one) for one in data]
        if all(isinstance(frame, frames.Ping) for frame in asked):
            return [frames.pack(frames.Answer(0, []))] * len(asked)
        try:
            with transaction(self.connection):
                turn = _Turn(self)
                answers = [turn.take(frame) for frame in asked]
                turn.write()
                fault.point("topics.written")
        except sqlite3.Error as error:
            self._load()
            refusal = outside_error(error)
            return [frames.pack(frames.refuse(getattr(frame, "sequence", 0), refusal)) for frame in asked]
        fault.point("topics.synced")
        self.ends.update(turn.ends)
        self.producers.update(turn.producers)
        if turn.changed:
            self._load()
        return answers

    def rest(self) -> None:
        """Forgets rows that are too old and producers that are gone, a little at a time."""
        now = time.monotonic()
        if now - self._rested_at < _REST_SECONDS:
            return
        self._rested_at = now
        now_us = machine_us()
        try:
            shrink_log(self.connection, self._path)
            with transaction(self.connection):
                for topic in self.topics.values():
                    if topic.retention_seconds is not None:
                        self._expire(topic, now_us - topic.retention_seconds * 1_000_000)
                old = (now_us - _PRODUCER_AGE_US,)
                gone = self.connection.execute("delete from producers where used_us < ? returning id", old)
                for (producer,) in gone.fetchall():
                    self.producers.pop(producer, None)
        except (sqlite3.OperationalError, FileNotFoundError):
            # A full disk, a reader in the way, or no log yet: the next rest tries again.
            return

    def close(self) -> None:
        """Tidies up once more, since a guest is rarely here for long, and closes the file."""
        self._rested_at = float("-inf")
        self.rest()
        self.connection.close()

    def _load(self) -> None:
        rows = self.connection.execute("select name, id, partitions, incarnation, retention_seconds from topics")
        self.topics = {name: _Topic(*values) for name, *values in rows}
        self.ends = {
            (topic.id, partition): _read_end(self.connection, topic.id, partition)
            for topic in self.topics.values()
            for partition in range(topic.partitions)
        }
        rows = self.connection.execute("select id, sequence, answer from producers")
        self.producers = {producer: (sequence, answer) for producer, sequence, answer in rows}

    def _greet(self) -> None:
        """Counts the holders of partitions as alive: a new writer cannot know when they were heard of last."""
        now = time.monotonic()
        rows = self.connection.execute("select distinct name, topic, member, session from shares where member <> ''")
        for group, topic, member, session in rows:
            members = self.members.setdefault((group, topic), {})
            members[member] = shares.Member(session, _UNKNOWN_LEASE_SECONDS, now)

    def _expire(self, topic: _Topic, before_us: int) -> None:
        """Deletes the rows that are too old, as many as a commit may wait for, the rest soon."""
        for partition in range(topic.partitions):
            place = (topic.id, partition)
            start = read_bounds(self.connection, *place).start
            keep = _row_at_or_after(self.connection, *place, before_us)
            if keep <= start:
                continue
            end = self.ends[place]
            self.connection.execute(
                "insert or replace into ends values (?, ?, ?, ?)", (*place, end.next, end.newest_us)
            )
            deleted = self.connection.execute(
                "delete from log where id in (select id from log where id >= ? and id < ? order by id limit ?)",
                (row_id(*place, 0), row_id(*place, keep), _EXPIRED_ROWS_AT_ONCE),
            ).rowcount
            if deleted == _EXPIRED_ROWS_AT_ONCE:
                self._rested_at = time.monotonic() - _REST_SECONDS + _BUSY_REST_SECONDS


class _Turn:
    """One transaction: what the frames ask for, seen on top of what is committed."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._connection = store.connection
        self._rows: list[tuple[int, int, int, bytes]] = []
        self.ends: dict[tuple[int, int], _End] = {}
        self.producers: dict[str, tuple[int, bytes]] = {}
        self.changed = False

    def take(self, frame: frames.Frame | frames.Answer) -> bytes:
        """Returns the answer to a frame, to be sent if the transaction commits."""
        try:
            if isinstance(frame, frames.Answer):
                return frames.pack(frame)
            if isinstance(frame, frames.Append | frames.Transact):
                return self._append(frame)
            return frames.pack(frames.Answer(0, self._change(frame)))
        except HeadraceError as error:
            return frames.pack(frames.refuse(getattr(frame, "sequence", 0), error))

    def write(self) -> None:
        """Writes all rows with as few steps as possible: each step gives the interpreter lock away."""
        _insert_many(self._connection, "log", 4, self._rows)
        now_us = machine_us()
        used = [(producer, sequence, answer, now_us) for producer, (sequence, answer) in self.producers.items()]
        _insert_many(self._connection, "producers", 4, used)

    def _append(self, frame: frames.Append | frames.Transact) -> bytes:
        known = self.producers.get(frame.producer) or self._store.producers.get(frame.producer)
        if known is not None and frame.sequence <= known[0]:
            return known[1]
        ends = [self._end(part) for part in frame.parts]
        if isinstance(frame, frames.Transact):
            self._move(frame)
        bases = []
        for part, end in zip(frame.parts, ends, strict=True):
            newest_us = max(end.newest_us, part.newest_us)
            self._rows.append((row_id(part.topic, part.partition, end.next), part.count, newest_us, part.blob))
            bases.append(end.next)
            end.next += part.count
            end.newest_us = newest_us
        answer = frames.pack(frames.Answer(frame.sequence, bases))
        self.producers[frame.producer] = (frame.sequence, answer)
        return answer

    def _end(self, part: frames.Part) -> _End:
        place = (part.topic, part.partition)
        if place not in self.ends:
            known = self._store.ends.get(place)
            if known is None:
                raise UnavailableError(f"topic number {part.topic} is gone, look its name up again")
            self.ends[place] = _End(known.next, known.newest_us)
        return self.ends[place]

    def _change(self, frame: frames.Frame) -> list[int]:
        match frame:
            case frames.Ping():
                return []
            case frames.Commit():
                return self._commit(frame)
            case frames.Renew():
                return shares.renew(self._connection, self._members(frame), frame, self._topic(frame).partitions)
            case frames.Leave():
                shares.leave(self._connection, self._members(frame), frame)
                return []
            case frames.Join():
                row = self._connection.execute(
                    "insert into groups values (?, ?, 1) "
                    "on conflict do update set generation = generation + 1 returning generation",
                    (frame.group, frame.topic),
                ).fetchone()
                return [row[0]]
            case frames.Create():
                self._connection.execute(
                    "insert or ignore into topics(name, partitions, incarnation, retention_seconds) "
                    "values (?, ?, ?, ?)",
                    (frame.topic, frame.partitions, frame.incarnation, frame.retention_seconds),
                )
            case frames.Alter():
                self._connection.execute(
                    "update topics set retention_seconds = ? where name = ?", (frame.retention_seconds, frame.topic)
                )
            case frames.Drop():
                self._drop(frame.topic)
        self.changed = True
        return []

    def _members(self, frame: frames.Renew | frames.Leave) -> dict[str, shares.Member]:
        return self._store.members.setdefault((frame.group, frame.topic), {})

    def _topic(self, frame: frames.Commit | frames.Transact | frames.Renew) -> _Topic:
        topic = self._store.topics.get(frame.topic)
        if topic is None or topic.incarnation != frame.incarnation:
            raise PositionError(
                f"topic {frame.topic!r} was created anew, group {frame.group!r} read another one. "
                f"Choose where to go on with: headrace topic replay {frame.topic} --group {frame.group} --to earliest"
            )
        return topic

    def _move(self, frame: frames.Transact) -> None:
        """Saves the positions of a shared group, all of them or none."""
        self._topic(frame)
        for partition, generation, expected, _ in frame.moves:
            shares.check_holder(self._connection, frame, partition, generation)
            self._check_expected(frame, partition, expected)
        for partition, _, _, position in frame.moves:
            self._save(frame, partition, position)

    def _commit(self, frame: frames.Commit) -> list[int]:
        self._topic(frame)
        (generation,) = self._connection.execute(
            "select generation from groups where name = ? and topic = ?", (frame.group, frame.topic)
        ).fetchone()
        if generation != frame.generation:
            raise FencedError(
                f"group {frame.group!r} of topic {frame.topic!r}: generation {frame.generation} was taken over "
                f"by generation {generation}"
            )
        moves = [(p, position) for p, expected, position in frame.moves if self._is_new(frame, p, expected, position)]
        for partition, position in moves:
            self._save(frame, partition, position)
        return []

    def _save(self, frame: frames.Commit | frames.Transact, partition: int, position: int) -> None:
        self._connection.execute(
            "insert or replace into positions values (?, ?, ?, ?, ?)",
            (frame.group, frame.topic, partition, frame.incarnation, position),
        )

    def _is_new(self, frame: frames.Commit, partition: int, expected: int, position: int) -> bool:
        """Returns whether a position is yet to be saved; raises FencedError if somebody else moved it."""
        if self._position(frame, partition) == (position, frame.incarnation):
            # The same commit, sent again because its answer was lost.
            return False
        self._check_expected(frame, partition, expected)
        return True

    def _check_expected(self, frame: frames.Commit | frames.Transact, partition: int, expected: int) -> None:
        row = self._position(frame, partition)
        found = row[0] if row else -1
        if found != expected:
            raise FencedError(
                f"group {frame.group!r} of topic {frame.topic!r}, partition {partition}: expected position "
                f"{expected}, found {found}; somebody else moved it"
            )

    def _position(self, frame: frames.Commit | frames.Transact, partition: int) -> tuple[int, str] | None:
        row: tuple[int, str] | None = self._connection.execute(
            "select position, incarnation from positions where name = ? and topic = ? and partition = ?",
            (frame.group, frame.topic, partition),
        ).fetchone()
        return row

    def _drop(self, name: str) -> None:
        topic = self._store.topics.get(name)
        if topic is None:
            # The same drop, sent again because its answer was lost.
            return
        first, last = row_id(topic.id, 0, 0), row_id(topic.id + 1, 0, 0) - 1
        self._connection.execute("delete from log where id between ? and ?", (first, last))
        self._connection.execute("delete from ends where topic = ?", (topic.id,))
        self._connection.execute("delete from topics where id = ?", (topic.id,))
        self._connection.execute("delete from shares where topic = ?", (name,))


def _insert_many(connection: sqlite3.Connection, table: str, columns: int, rows: Sequence[tuple[Any, ...]]) -> None:
    row = f"({', '.join('?' * columns)})"
    for start in range(0, len(rows), 32):
        portion = rows[start : start + 32]
        values = [value for one in portion for value in one]
        sql = f"insert or replace into {table} values {', '.join([row] * len(portion))}"  # noqa: S608 - our own names
        connection.execute(sql, values)


def outside_error(error: sqlite3.Error) -> HeadraceError:
    """Returns what a failed write means to the caller."""
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return FullError(f"the disk is full ({error})")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return FormatError(f"the topic file is damaged ({error}). Restore it from a copy")
    return UnavailableError(f"the topic file cannot be written ({error})")


def read_bounds(connection: sqlite3.Connection, topic: int, partition: int) -> Bounds:
    """Returns the first and the next offset of a partition."""
    first, last = row_id(topic, partition, 0), row_id(topic, partition, _OFFSET_MASK)
    # The end first: rows that come in between must not look as if they had been forgotten.
    end = _read_end(connection, topic, partition).next
    row = connection.execute("select min(id) from log where id between ? and ?", (first, last)).fetchone()
    return Bounds(end if row[0] is None else row[0] & _OFFSET_MASK, end)


def _read_end(connection: sqlite3.Connection, topic: int, partition: int) -> _End:
    first, last = row_id(topic, partition, 0), row_id(topic, partition, _OFFSET_MASK)
    row = connection.execute(
        "select id, count, newest_us from log where id between ? and ? order by id desc limit 1", (first, last)
    ).fetchone()
    if row:
        return _End((row[0] & _OFFSET_MASK) + row[1], row[2])
    row = connection.execute(
        "select next, newest_us from ends where topic = ? and partition = ?", (topic, partition)
    ).fetchone()
    return _End(*row) if row else _End(0, 0)


def read_rows(
    connection: sqlite3.Connection, topic: int, partition: int, offset: int, limits: tuple[int, int]
) -> list[Message]:
    """Returns messages of a partition from `offset` on, up to so many records and about so many bytes."""
    max_records, max_bytes = limits
    if max_records <= 0:
        return []
    first, last = row_id(topic, partition, 0), row_id(topic, partition, _OFFSET_MASK)
    target = row_id(topic, partition, offset)
    cursor = connection.execute(
        "select id, count, blob from log where id between "
        "coalesce((select max(id) from log where id between ? and ?), ?) and ? order by id",
        (first, target, target, last),
    )
    messages: list[Message] = []
    size = 0
    try:
        for number, count, blob in cursor:
            base = number & _OFFSET_MASK
            if base + count > offset:
                found = frames.unpack_records(blob, partition, base)
                messages += found[offset - base :] if base < offset else found
                size += frames.unpacked_bytes(blob)
            if len(messages) >= max_records or size >= max_bytes:
                break
    finally:
        # An open cursor holds a read transaction, and the log could not be checkpointed.
        cursor.close()
    return messages[:max_records]


def read_offset_at(connection: sqlite3.Connection, topic: int, partition: int, time_us: int) -> int:
    """Returns the first offset whose record is not older than `time_us`."""
    end = _read_end(connection, topic, partition).next
    base = _row_at_or_after(connection, topic, partition, time_us)
    if base >= end:
        return end
    _, count, _ = _row_at(connection, topic, partition, base)
    messages = read_rows(connection, topic, partition, base, (count, 1))
    return next((message.offset for message in messages if message.time_us >= time_us), end)


def _row_at_or_after(connection: sqlite3.Connection, topic: int, partition: int, time_us: int) -> int:
    """Returns the first offset of the first row that is not wholly older than `time_us`.

    `newest_us` never falls from row to row, so the row can be found by halving.
    """
    bounds = read_bounds(connection, topic, partition)
    low, high = bounds.start, bounds.end
    while low < high:
        base, count, newest_us = _row_at(connection, topic, partition, (low + high) // 2)
        if newest_us < time_us:
            low = base + count
        else:
            high = base
    return low


def _row_at(connection: sqlite3.Connection, topic: int, partition: int, offset: int) -> tuple[int, int, int]:
    number, count, newest_us = connection.execute(
        "select id, count, newest_us from log where id <= ? order by id desc limit 1",
        (row_id(topic, partition, offset),),
    ).fetchone()
    return number & _OFFSET_MASK, count, newest_us
