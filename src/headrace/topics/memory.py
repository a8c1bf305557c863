"""Topics in this process's memory: for tests and first steps, gone when the process ends."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import msgspec

from headrace.base.clock import machine_us
from headrace.base.errors import FencedError, unknown_name
from headrace.base.ids import make_id
from headrace.base.urls import Url
from headrace.topics.partition import partition_for
from headrace.topics.topic import (
    MAX_READ_BYTES,
    Bounds,
    Capabilities,
    Description,
    GroupPosition,
    Message,
    Move,
    Place,
    Position,
    Record,
    Sender,
    Share,
    check_existing,
    check_output,
    check_partitions,
    check_range,
    check_records,
    other_incarnation,
    share_of,
    size_of,
    stamped,
)


class _Options(msgspec.Struct):
    """memory:// has no options."""


@dataclass
class _Partition:
    messages: list[Message] = field(default_factory=list)
    start: int = 0

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.start, self.start + len(self.messages))

    def expire(self, before_us: int) -> None:
        kept = next((i for i, m in enumerate(self.messages) if m.time_us >= before_us), len(self.messages))
        del self.messages[:kept]
        self.start += kept


@dataclass
class _Member:
    session: int
    lease_seconds: float
    heard_at: float


@dataclass
class _Group:
    generation: int = 0
    positions: dict[int, Position] = field(default_factory=dict)
    members: dict[str, _Member] = field(default_factory=dict)
    holders: dict[int, tuple[str, int]] = field(default_factory=dict)

    def join_member(self, name: str, lease_seconds: float) -> int:
        older = self.members.get(name)
        session = older.session + 1 if older else time.monotonic_ns()
        self.members[name] = _Member(session, lease_seconds, time.monotonic())
        self.release(name)
        return session

    def release(self, name: str) -> None:
        self.holders = {p: holder for p, holder in self.holders.items() if holder[0] != name}

    def expire(self) -> None:
        now = time.monotonic()
        for name in [name for name, one in self.members.items() if now - one.heard_at > one.lease_seconds]:
            del self.members[name]
            self.release(name)


@dataclass
class _Stored:
    description: Description
    partitions: list[_Partition]

    def append(self, index: int, record: Record) -> Place:
        partition = self.partitions[index]
        offset = partition.bounds.end
        partition.messages.append(Message(record.key, record.value, record.time_us, record.headers, index, offset))
        return Place(index, offset)


class MemoryTopics:
    """The reference for what a topic does, in plain lists."""

    capabilities: ClassVar[Capabilities] = Capabilities(durable=False, shared=False, dense=True)

    def __init__(self) -> None:
        self._stored: dict[str, _Stored] = {}
        self._groups: dict[tuple[str, str], _Group] = {}
        self.changed = threading.Condition(threading.RLock())

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns empty topics."""
        url.read_options(_Options)
        return cls()

    def names(self) -> list[str]:
        """Returns the names of all topics, sorted."""
        return sorted(self._stored)

    def describe(self, name: str) -> Description:
        """Returns what a topic is."""
        return self._find(name).description

    def create(self, name: str, *, partitions: int, retention_seconds: int | None) -> Description:
        """Returns the new topic, or the one that stands."""
        check_partitions(name, partitions)
        with self.changed:
            if name in self._stored:
                check_existing(self._stored[name].description, partitions)
                return self._stored[name].description
            made = Description(name, partitions, make_id(machine_us(), os.urandom(10)), retention_seconds)
            self._stored[name] = _Stored(made, [_Partition() for _ in range(partitions)])
            return made

    def alter(self, name: str, *, retention_seconds: int | None) -> Description:
        """Changes how long records are kept."""
        stored = self._find(name)
        stored.description = replace(stored.description, retention_seconds=retention_seconds)
        return stored.description

    def drop(self, name: str) -> None:
        """Deletes a topic; its groups find out when they come back."""
        self._find(name)
        del self._stored[name]

    def bounds(self, name: str) -> list[Bounds]:
        """Returns the first and the next offset of each partition."""
        self._expire(self._find(name))
        return [partition.bounds for partition in self._find(name).partitions]

    def append(self, name: str, records: Sequence[Record], *, deadline_seconds: float) -> list[Place]:
        """Returns the places of the records."""
        del deadline_seconds
        stored = self._find(name)
        now_us = machine_us()
        with self.changed:
            places = [
                stored.append(partition_for(record.key, len(stored.partitions)), stamped(record, now_us))
                for record in records
            ]
            self.changed.notify_all()
        return places

    def append_outputs(self, move: Move, *, source: str) -> None:
        """Appends what came of one partition of `source` to all its topics, or to none of them."""
        found = {name: self._find(name) for name in move.outputs}
        for name, stored in found.items():
            check_records(move.outputs[name])
            check_output(name, len(stored.partitions), source=source, partition=move.partition)
        now_us = machine_us()
        for name, stored in found.items():
            for record in move.outputs[name]:
                stored.append(move.partition, stamped(record, now_us))
        self.changed.notify_all()

    def find_group(self, name: str, group: str) -> _Group:
        """Returns what is known of a group."""
        return self._groups.setdefault((name, group), _Group())

    def read(self, name: str, offsets: Mapping[int, int], *, max_records: int, wait_seconds: float) -> list[Message]:
        """Returns messages from the given offsets on."""
        deadline = time.monotonic() + wait_seconds
        with self.changed:
            while True:
                found = self._take(self._find(name), offsets, max_records)
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                self.changed.wait(left)

    def offsets_at(self, name: str, time_us: int) -> list[int]:
        """Returns the first offsets whose records are not older than `time_us`."""
        found = []
        for partition in self._find(name).partitions:
            newest, running = 0, []
            for message in partition.messages:
                newest = max(newest, message.time_us)
                running.append(newest)
            found.append(partition.start + bisect_left(running, time_us))
        return found

    def join(self, name: str, group: str) -> _Membership:
        """Returns the membership that fences every older one."""
        self._find(name)
        found = self._groups.setdefault((name, group), _Group())
        found.generation += 1
        return _Membership(name, group, found, found.generation)

    def share(self, name: str, group: str, *, member: str, lease_seconds: float) -> Share:
        """Returns a member's part of a group."""
        found = self._groups.setdefault((name, group), _Group())
        with self.changed:
            session = found.join_member(member, lease_seconds)
        return _MemoryShare(self, self.describe(name), group, member, session)

    def groups(self, name: str) -> list[GroupPosition]:
        """Returns the saved positions of all groups."""
        return [
            GroupPosition(group, topic, position, found.generation)
            for (topic, group), found in sorted(self._groups.items())
            for _, position in sorted(found.positions.items())
            if topic == name
        ]

    def open_sender(self, *, deadline_seconds: float, max_pending_bytes: int) -> Sender:
        """Returns a sender that appends at once."""
        del deadline_seconds, max_pending_bytes
        return _MemorySender(self)

    def close(self) -> None:
        """Nothing to release."""

    def _find(self, name: str) -> _Stored:
        if name not in self._stored:
            raise unknown_name("topic", name, self._stored)
        return self._stored[name]

    def _take(self, stored: _Stored, offsets: Mapping[int, int], max_records: int) -> list[Message]:
        self._expire(stored)
        found: list[Message] = []
        share, max_bytes = share_of(max_records, offsets), share_of(MAX_READ_BYTES, offsets)
        for index, offset in offsets.items():
            partition = stored.partitions[index]
            check_range(stored.description.name, index, offset, partition.bounds)
            first = offset - partition.start
            size = 0
            for message in partition.messages[first : first + min(share, max_records - len(found))]:
                found.append(message)
                size += size_of(message)
                if size >= max_bytes:
                    break
        return found

    def _expire(self, stored: _Stored) -> None:
        seconds = stored.description.retention_seconds
        if seconds is not None:
            for partition in stored.partitions:
                partition.expire(machine_us() - seconds * 1_000_000)


@dataclass
class _Membership:
    topic: str
    group: str
    found: _Group
    generation: int

    def saved(self) -> dict[int, Position]:
        return dict(self.found.positions)

    def commit(self, positions: Mapping[int, Position]) -> None:
        if self.generation != self.found.generation:
            raise FencedError(
                f"group {self.group!r} of topic {self.topic!r}: generation {self.generation} was taken over "
                f"by generation {self.found.generation}"
            )
        self.found.positions.update(positions)

    def close(self) -> None:
        pass


@dataclass
class _MemoryShare:
    topics: MemoryTopics
    topic: Description
    group: str
    member: str
    session: int
    known: frozenset[int] = frozenset()
    released: list[int] = field(default_factory=list)
    expected: dict[int, Position | None] = field(default_factory=dict)

    def held(self) -> frozenset[int]:
        with self.topics.changed:
            group = self._group()
            own = (self.member, self.session)
            member = group.members.setdefault(self.member, _Member(self.session, 6.0, 0.0))
            if member.session != self.session:
                raise FencedError(f"{self._what()}: a newer member of the name {self.member!r} took over")
            member.heard_at = time.monotonic()
            group.expire()
            for partition in self.released:
                if group.holders.get(partition) == own:
                    del group.holders[partition]
            names = sorted(group.members)
            due = {p for p in range(self.topic.partitions) if names[p % len(names)] == self.member}
            new = due - group.holders.keys()
            for partition in new:
                group.holders[partition] = own
                self.expected.pop(partition, None)
            held = {p for p, holder in group.holders.items() if holder == own}
            self.released = sorted(held - due)
            # One that was lost and came back is left out once, so that the caller drops what it knows of it.
            self.known = frozenset(held & due - (new & self.known))
            return self.known

    def saved(self, partition: int) -> Position | None:
        group = self._group()
        self._check(group, partition)
        found = group.positions.get(partition)
        if found is not None and found.incarnation != self.topic.incarnation:
            raise other_incarnation(self.topic.name, self.group, found.incarnation, self.topic.incarnation)
        self.expected[partition] = found
        return found

    def transact(self, moves: Sequence[Move], *, deadline_seconds: float) -> None:
        del deadline_seconds
        with self.topics.changed:
            group = self._group()
            for move in moves:
                self._check(group, move.partition)
                if move.partition not in self.expected:
                    self.saved(move.partition)
                if group.positions.get(move.partition) != self.expected[move.partition]:
                    raise FencedError(f"{self._what()}: somebody else moved partition {move.partition}")
                self.topics.append_outputs(move, source=self.topic.name)
                position = Position(self.topic.incarnation, move.partition, move.offset)
                group.positions[move.partition] = self.expected[move.partition] = position

    def close(self) -> None:
        with self.topics.changed:
            group = self.topics.find_group(self.topic.name, self.group)
            found = group.members.get(self.member)
            if found is not None and found.session == self.session:
                del group.members[self.member]
                group.release(self.member)

    def _group(self) -> _Group:
        found = self.topics.describe(self.topic.name).incarnation
        if found != self.topic.incarnation:
            raise other_incarnation(self.topic.name, self.group, self.topic.incarnation, found)
        return self.topics.find_group(self.topic.name, self.group)

    def _check(self, group: _Group, partition: int) -> None:
        group.expire()
        if group.holders.get(partition) != (self.member, self.session):
            raise FencedError(f"{self._what()}: partition {partition} is not held by {self.member!r}")

    def _what(self) -> str:
        return f"group {self.group!r} of topic {self.topic.name!r}"


@dataclass
class _MemorySender:
    topics: MemoryTopics

    async def append(self, name: str, records: Sequence[Record]) -> None:
        self.topics.append(name, records, deadline_seconds=0)
        await asyncio.sleep(0)

    def stalled_seconds(self) -> float:
        return 0.0

    async def close(self) -> None:
        pass
