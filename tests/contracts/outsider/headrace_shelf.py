"""Topics on a shelf: one file per topic, rewritten at every change. Small, slow and correct."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

import msgspec

from headrace.base.clock import machine_us
from headrace.base.errors import CallError, FencedError, PositionError, UnknownNameError, unknown_name
from headrace.base.urls import Url
from headrace.topics import (
    Bounds,
    Capabilities,
    Description,
    GroupPosition,
    Message,
    Move,
    Place,
    Position,
    Record,
    partition_for,
)
from headrace.topics.topic import (
    MAX_READ_BYTES,
    check_existing,
    check_partitions,
    check_range,
    check_records,
    other_incarnation,
    stamped,
)


class Options(msgspec.Struct):
    """shelf:// has no options."""


class Seat(msgspec.Struct):
    """One member of a shared group: who has it, and until when."""

    session: str
    until: float


class Group(msgspec.Struct):
    """How far a group has come. It outlives the topic that it reads."""

    generation: int = 0
    positions: dict[int, Position] = {}
    seats: dict[str, Seat] = {}
    holders: dict[int, str] = {}
    """The session that holds a partition."""

    def expire(self) -> None:
        """Forgets members that were not heard of, and whatever nobody holds any more."""
        self.seats = {name: seat for name, seat in self.seats.items() if seat.until > time.monotonic()}
        sessions = {seat.session for seat in self.seats.values()}
        self.holders = {p: session for p, session in self.holders.items() if session in sessions}


class Shelf(msgspec.Struct):
    """All that one file holds."""

    description: Description | None = None
    messages: list[list[Message]] = []
    starts: list[int] = []
    groups: dict[str, Group] = {}

    def bounds(self) -> list[Bounds]:
        """Forgets what is too old, and says what is left."""
        assert self.description is not None
        seconds = self.description.retention_seconds
        for partition, messages in enumerate(self.messages):
            while seconds is not None and messages and messages[0].time_us < machine_us() - seconds * 1_000_000:
                del messages[0]
                self.starts[partition] += 1
        return [Bounds(start, start + len(m)) for start, m in zip(self.starts, self.messages, strict=True)]

    def put(self, record: Record, partition: int | None = None) -> Place:
        """Adds one record, by its key unless told where."""
        if partition is None:
            partition = partition_for(record.key, len(self.messages))
        kept = stamped(record, machine_us())
        offset = self.starts[partition] + len(self.messages[partition])
        self.messages[partition].append(Message(kept.key, kept.value, kept.time_us, kept.headers, partition, offset))
        return Place(partition, offset)


class ShelfTopics:
    """What an outsider's backend looks like."""

    capabilities: ClassVar[Capabilities] = Capabilities(durable=True, shared=True, dense=True)

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    @classmethod
    def from_url(cls, url: Url) -> ShelfTopics:
        url.read_options(Options)
        return cls(url.local_path())

    def names(self) -> list[str]:
        return sorted(path.stem for path in self._folder.glob("*.shelf") if self._load(path.stem).description)

    def describe(self, name: str) -> Description:
        description = self._load(name).description
        if description is None:
            raise unknown_name("topic", name, self.names())
        return description

    def create(self, name: str, *, partitions: int, retention_seconds: int | None) -> Description:
        check_partitions(name, partitions)
        with self._locked():
            shelf = self._load(name)
            if shelf.description is None:
                made = Description(name, partitions, os.urandom(8).hex(), retention_seconds)
                shelf = Shelf(made, [[] for _ in range(partitions)], [0] * partitions, shelf.groups)
                self._save(name, shelf)
        found = self.describe(name)
        check_existing(found, partitions)
        return found

    def alter(self, name: str, *, retention_seconds: int | None) -> Description:
        with self.change(name) as shelf:
            shelf.description = replace(self.describe(name), retention_seconds=retention_seconds)
        return shelf.description

    def drop(self, name: str) -> None:
        with self.change(name) as shelf:
            shelf.description, shelf.messages, shelf.starts = None, [], []

    def bounds(self, name: str) -> list[Bounds]:
        self.describe(name)
        return self._load(name).bounds()

    def append(self, name: str, records: Sequence[Record], *, deadline_seconds: float) -> list[Place]:
        del deadline_seconds
        with self.change(name) as shelf:
            return [shelf.put(record) for record in records]

    def read(self, name: str, offsets: Mapping[int, int], *, max_records: int, wait_seconds: float) -> list[Message]:
        deadline = time.monotonic() + wait_seconds
        while True:
            self.describe(name)
            shelf = self._load(name)
            bounds = shelf.bounds()
            found: list[Message] = []
            for partition, offset in offsets.items():
                check_range(name, partition, offset, bounds[partition])
                found += shelf.messages[partition][offset - bounds[partition].start :]
            if found or time.monotonic() >= deadline:
                sizes = accumulate(len(message.value or b"") for message in found)
                return [
                    m for m, size in zip(found[:max_records], sizes, strict=False) if size <= MAX_READ_BYTES
                ] or found[:1]
            time.sleep(0.01)

    def offsets_at(self, name: str, time_us: int) -> list[int]:
        self.describe(name)
        shelf = self._load(name)
        return [
            next((m.offset for m in messages if m.time_us >= time_us), bound.end)
            for messages, bound in zip(shelf.messages, shelf.bounds(), strict=True)
        ]

    def join(self, name: str, group: str) -> Member:
        with self.change(name) as shelf:
            found = shelf.groups.setdefault(group, Group())
            found.generation += 1
            return Member(self, name, group, found.generation)

    def share(self, name: str, group: str, *, member: str, lease_seconds: float) -> ShelfShare:
        share = ShelfShare(self, self.describe(name), group, member, lease_seconds)
        with self.change(name) as shelf:
            shelf.groups.setdefault(group, Group()).seats[member] = share.seat()
        return share

    def groups(self, name: str) -> list[GroupPosition]:
        return [
            GroupPosition(group, name, position, found.generation)
            for group, found in sorted(self._load(name).groups.items())
            for _, position in sorted(found.positions.items())
        ]

    def open_sender(self, *, deadline_seconds: float, max_pending_bytes: int) -> ShelfSender:
        del deadline_seconds, max_pending_bytes
        return ShelfSender(self)

    def close(self) -> None:
        pass

    def put(self, move: Move) -> None:
        """Writes the outputs of a move, while the caller has the lock."""
        for name, records in move.outputs.items():
            check_records(records)
            if move.partition >= self.describe(name).partitions:
                raise CallError(f"topic {name!r} has no partition {move.partition}")
        for name, records in move.outputs.items():
            shelf = self._load(name)
            for record in records:
                shelf.put(record, move.partition)
            self._save(name, shelf)

    @contextmanager
    def change(self, name: str) -> Iterator[Shelf]:
        """Gives the shelf of a topic to one caller at a time, and writes it back."""
        with self._locked():
            self.describe(name)
            shelf = self._load(name)
            yield shelf
            self._save(name, shelf)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _load(self, name: str) -> Shelf:
        try:
            return msgspec.msgpack.decode((self._folder / f"{name}.shelf").read_bytes(), type=Shelf)
        except FileNotFoundError:
            return Shelf()

    def _save(self, name: str, shelf: Shelf) -> None:
        fresh = self._folder / "fresh"
        fresh.write_bytes(msgspec.msgpack.encode(shelf))
        fresh.replace(self._folder / f"{name}.shelf")


@dataclass
class Member:
    """Commits until somebody newer joins."""

    topics: ShelfTopics
    topic: str
    group: str
    generation: int

    def saved(self) -> dict[int, Position]:
        return {
            one.position.partition: one.position for one in self.topics.groups(self.topic) if one.group == self.group
        }

    def commit(self, positions: Mapping[int, Position]) -> None:
        with self.topics.change(self.topic) as shelf:
            found = shelf.groups[self.group]
            if found.generation != self.generation:
                raise FencedError(f"group {self.group!r}: generation {found.generation} took {self.generation} over")
            found.positions.update(positions)

    def close(self) -> None:
        pass


@dataclass
class ShelfShare:
    """Holds every so many-th partition, as long as its seat is taken."""

    topics: ShelfTopics
    topic: Description
    group: str
    member: str
    lease_seconds: float
    session: str = field(default_factory=lambda: os.urandom(8).hex())
    known: frozenset[int] = frozenset()
    expected: dict[int, Position | None] = field(default_factory=dict)

    def seat(self) -> Seat:
        return Seat(self.session, time.monotonic() + self.lease_seconds)

    def held(self) -> frozenset[int]:
        with self._change() as group:
            group.expire()
            if group.seats.get(self.member, self.seat()).session != self.session:
                raise FencedError(f"group {self.group!r}: a newer member took the name {self.member!r}")
            group.seats[self.member] = self.seat()
            names = sorted(group.seats)
            due = {p for p in range(self.topic.partitions) if names[p % len(names)] == self.member}
            held = {p for p, session in group.holders.items() if session == self.session}
            # What is not due is dropped now and given back by the next call.
            for partition in held - due - self.known:
                del group.holders[partition]
            new = due - group.holders.keys()
            group.holders |= dict.fromkeys(new, self.session)
            self.expected = {p: position for p, position in self.expected.items() if p not in new}
            # One that was lost and came back is left out once.
            self.known = frozenset(due & (held | new) - (new & self.known))
            return self.known

    def saved(self, partition: int) -> Position | None:
        with self._change() as group:
            return self._saved(group, partition)

    def transact(self, moves: Sequence[Move], *, deadline_seconds: float) -> None:
        del deadline_seconds
        for move in moves:
            with self._change() as group:
                if move.partition not in self.expected:
                    self._saved(group, move.partition)
                self._check(group, move.partition)
                if group.positions.get(move.partition) != self.expected[move.partition]:
                    raise FencedError(f"group {self.group!r}: somebody else moved partition {move.partition}")
                # Whoever pulls the plug between these files doubles what went first: a shelf has no transactions.
                self.topics.put(move)
                position = Position(self.topic.incarnation, move.partition, move.offset)
                group.positions[move.partition] = self.expected[move.partition] = position

    def close(self) -> None:
        with suppress(PositionError, UnknownNameError), self._change() as group:
            if group.seats.get(self.member, self.seat()).session == self.session:
                group.seats.pop(self.member, None)
            group.expire()

    @contextmanager
    def _change(self) -> Iterator[Group]:
        with self.topics.change(self.topic.name) as shelf:
            assert shelf.description is not None
            if shelf.description.incarnation != self.topic.incarnation:
                found = shelf.description.incarnation
                raise other_incarnation(self.topic.name, self.group, self.topic.incarnation, found)
            yield shelf.groups[self.group]

    def _check(self, group: Group, partition: int) -> None:
        group.expire()
        if group.holders.get(partition) != self.session:
            raise FencedError(f"group {self.group!r}: partition {partition} is not held by {self.member!r}")

    def _saved(self, group: Group, partition: int) -> Position | None:
        self._check(group, partition)
        found = group.positions.get(partition)
        if found is not None and found.incarnation != self.topic.incarnation:
            raise other_incarnation(self.topic.name, self.group, found.incarnation, self.topic.incarnation)
        self.expected[partition] = found
        return found


@dataclass
class ShelfSender:
    """Appends at once, one caller after the other."""

    topics: ShelfTopics

    async def append(self, name: str, records: Sequence[Record]) -> None:
        self.topics.append(name, records, deadline_seconds=0)
        await asyncio.sleep(0)

    def stalled_seconds(self) -> float:
        return 0.0

    async def close(self) -> None:
        pass
