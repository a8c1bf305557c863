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
    Bounds,
    Capabilities,
    Description,
    GroupPosition,
    Message,
    Place,
    Position,
    Record,
    Sender,
    check_existing,
    check_partitions,
    check_range,
    share_of,
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
class _Group:
    generation: int = 0
    positions: dict[int, Position] = field(default_factory=dict)


@dataclass
class _Stored:
    description: Description
    partitions: list[_Partition]


class MemoryTopics:
    """The reference for what a topic does, in plain lists."""

    capabilities: ClassVar[Capabilities] = Capabilities(durable=False, shared=False, dense=True)

    def __init__(self) -> None:
        self._stored: dict[str, _Stored] = {}
        self._groups: dict[tuple[str, str], _Group] = {}
        self._changed = threading.Condition()

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
        with self._changed:
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
        places = []
        with self._changed:
            for record in records:
                index = partition_for(record.key, len(stored.partitions))
                partition = stored.partitions[index]
                offset = partition.bounds.end
                kept = stamped(record, now_us)
                partition.messages.append(Message(kept.key, kept.value, kept.time_us, kept.headers, index, offset))
                places.append(Place(index, offset))
            self._changed.notify_all()
        return places

    def read(self, name: str, offsets: Mapping[int, int], *, max_records: int, wait_seconds: float) -> list[Message]:
        """Returns messages from the given offsets on."""
        deadline = time.monotonic() + wait_seconds
        with self._changed:
            while True:
                found = self._take(self._find(name), offsets, max_records)
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                self._changed.wait(left)

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
        share = share_of(max_records, offsets)
        for index, offset in offsets.items():
            partition = stored.partitions[index]
            check_range(stored.description.name, index, offset, partition.bounds)
            first = offset - partition.start
            found.extend(partition.messages[first : first + min(share, max_records - len(found))])
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
class _MemorySender:
    topics: MemoryTopics

    async def append(self, name: str, records: Sequence[Record]) -> None:
        self.topics.append(name, records, deadline_seconds=0)
        await asyncio.sleep(0)

    def stalled_seconds(self) -> float:
        return 0.0

    async def close(self) -> None:
        pass
