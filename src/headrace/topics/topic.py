"""A topic: a named, partitioned, durable log of records that anybody may read again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Protocol, Self

import msgspec

from headrace.base.errors import CallError, PositionError, RecordError
from headrace.base.urls import Url

DEFAULT_PARTITIONS = 4
DEFAULT_DEADLINE_SECONDS = 10.0
DEFAULT_LEASE_SECONDS = 6.0
MAX_RECORD_BYTES = 1_000_000
MAX_PARTITIONS = 1024
MAX_READ_BYTES = 8 << 20
"""A read ends at about so many bytes, with one record of each partition at least: a backlog must not fill memory."""

_PORTION = 10_000
# How long an idle consumer may take to notice that its topic was created anew.
_INCARNATION_CHECK_SECONDS = 1.0


class Record(msgspec.Struct, array_like=True, gc=False):
    """What a producer appends. A `time_us` of 0 is stamped by the machine's clock at append.

    Every topic keeps times to the millisecond, as Kafka does, so that a copy equals its source.
    """

    key: bytes | None
    value: bytes | None
    time_us: int = 0
    headers: tuple[tuple[str, bytes], ...] = ()


class Message(Record, array_like=True, gc=False):
    """A record as it stands in a topic, with its place."""

    partition: int = -1
    offset: int = -1


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do beyond append and read."""

    durable: bool
    """An appended record survives kill -9 of every process here."""
    shared: bool
    """Several processes may append at once."""
    dense: bool
    """Offsets have no holes."""


@dataclass(frozen=True)
class Description:
    """What a topic is. A topic that is dropped and made again has another incarnation."""

    name: str
    partitions: int
    incarnation: str
    retention_seconds: int | None = None


class Bounds(msgspec.Struct, frozen=True):
    """The first offset that can be read and the one that the next record will get."""

    start: int
    end: int


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a record was put."""

    partition: int
    offset: int


class Position(msgspec.Struct, frozen=True):
    """How far a group has read a partition: the next offset, in one incarnation of the topic."""

    incarnation: str
    partition: int
    offset: int


class GroupPosition(msgspec.Struct, frozen=True):
    """One saved position of a group, as `headrace topic groups` lists it."""

    group: str
    topic: str
    position: Position
    generation: int


class Membership(Protocol):
    """The right to commit for a group, until somebody newer joins it."""

    def saved(self) -> dict[int, Position]:
        """Returns the group's saved positions by partition."""

    def commit(self, positions: Mapping[int, Position]) -> None:
        """Saves positions; raises FencedError once somebody newer has joined."""

    def close(self) -> None:
        """Gives the right back."""


class Move(msgspec.Struct, frozen=True):
    """One step of a partition: what came of its records, and the offset that is read next."""

    partition: int
    offset: int
    outputs: Mapping[str, Sequence[Record]] = {}
    """Records by the topic they go to, where they stand in the same partition as their source."""


class Share(Protocol):
    """One member's part of a group that several members share; a partition has one holder at a time."""

    def held(self) -> frozenset[int]:
        """Returns the partitions that this member holds, and says that it is alive.

        Call it more often than the lease is long. What was read of a partition that is no longer
        among them must be dropped before the next call; one that was lost and has come back is left
        out of one answer. Raises PositionError once the topic is another.
        """

    def saved(self, partition: int) -> Position | None:
        """Returns the group's saved position of a partition that is held; raises PositionError for one elsewhere."""

    def transact(self, moves: Sequence[Move], *, deadline_seconds: float) -> None:
        """Appends the outputs and saves the offsets: of each partition all or nothing.

        Raises FencedError if a partition is held no longer, or if somebody else moved its position.
        After any other error the outcome is unknown: open the share anew and ask where it stands.
        """

    def close(self) -> None:
        """Gives the partitions back, so that other members need not wait for the lease to end."""


class Sender(Protocol):
    """Appends for an asyncio server: many callers, one commit."""

    async def append(self, name: str, records: Sequence[Record]) -> None:
        """Returns once the records are durable; raises an OutsideError if not in time."""

    def stalled_seconds(self) -> float:
        """Returns for how long the topic has not answered; 0 while all is well."""

    async def close(self) -> None:
        """Waits for what was handed over, then lets go."""


class Topics(Protocol):
    """What every topic backend implements; `testing.check_topics` holds it to this."""

    capabilities: ClassVar[Capabilities]

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the open topics of a URL."""

    def names(self) -> list[str]:
        """Returns the names of all topics, sorted."""

    def describe(self, name: str) -> Description:
        """Returns what a topic is; raises UnknownNameError."""

    def create(self, name: str, *, partitions: int, retention_seconds: int | None) -> Description:
        """Returns the new topic; one that stands with the same partitions is returned as it is."""

    def alter(self, name: str, *, retention_seconds: int | None) -> Description:
        """Changes how long records are kept; None keeps them for ever."""

    def drop(self, name: str) -> None:
        """Deletes a topic. Its groups stop loudly when they meet another of the same name."""

    def bounds(self, name: str) -> list[Bounds]:
        """Returns the first and the next offset of each partition."""

    def append(self, name: str, records: Sequence[Record], *, deadline_seconds: float) -> list[Place]:
        """Returns the places of the records once they are durable."""

    def read(self, name: str, offsets: Mapping[int, int], *, max_records: int, wait_seconds: float) -> list[Message]:
        """Returns messages from the given offsets on, in order within each partition.

        At most `max_records`, and about MAX_READ_BYTES. An empty list means that none came within
        `wait_seconds`. An offset outside the bounds raises PositionError.
        """

    def offsets_at(self, name: str, time_us: int) -> list[int]:
        """Returns, per partition, the first offset whose record is not older than `time_us`."""

    def join(self, name: str, group: str) -> Membership:
        """Returns the membership that fences every older one of the group."""

    def share(self, name: str, group: str, *, member: str, lease_seconds: float) -> Share:
        """Returns a member's part of a group; it takes over what an older member of its name held.

        The partitions of a member that is not heard of for `lease_seconds` go to the others.
        """

    def groups(self, name: str) -> list[GroupPosition]:
        """Returns the saved positions of all groups that read the topic."""

    def open_sender(self, *, deadline_seconds: float, max_pending_bytes: int) -> Sender:
        """Returns an asyncio sender; call it inside a running loop."""

    def close(self) -> None:
        """Finishes what was handed over and releases everything."""


@dataclass(frozen=True)
class Topic:
    """One topic of an open backend.

    >>> import headrace.topics
    >>> clicks = headrace.topics.open_topic("memory://", "clicks", create=True)
    >>> clicks.append([Record(b"ann", b"hello")])
    [Place(partition=2, offset=0)]
    >>> [message.value for message in clicks.read()]
    [b'hello']
    """

    topics: Topics
    name: str

    def describe(self) -> Description:
        """Returns what this topic is."""
        return self.topics.describe(self.name)

    def append(self, records: Sequence[Record], *, deadline_seconds: float = DEFAULT_DEADLINE_SECONDS) -> list[Place]:
        """Returns the places of the records once they are durable."""
        check_records(records)
        return self.topics.append(self.name, records, deadline_seconds=deadline_seconds)

    def bounds(self) -> list[Bounds]:
        """Returns the first and the next offset of each partition."""
        return self.topics.bounds(self.name)

    def read(
        self,
        offsets: Mapping[int, int] | None = None,
        *,
        max_records: int = 10_000,
        wait_seconds: float = 0.0,
    ) -> list[Message]:
        """Returns messages from `offsets` on, by default from the start of every partition."""
        start = offsets if offsets is not None else {p: b.start for p, b in enumerate(self.bounds())}
        return self.topics.read(self.name, start, max_records=max_records, wait_seconds=wait_seconds)

    def read_to_ends(
        self, offsets: Mapping[int, int] | None = None, *, max_records: int = sys.maxsize
    ) -> Iterator[Message]:
        """Yields messages from `offsets` on, by default all, up to where each partition ends when it begins.

        At most `max_records`; partitions take turns.

        >>> import headrace.topics
        >>> clicks = headrace.topics.open_topic("memory://", "clicks", create=True)
        >>> places = clicks.append([Record(b"ann", b"hello"), Record(b"ann", b"again")])
        >>> [message.value for message in clicks.read_to_ends({2: 1})]
        [b'again']
        """
        bounds = self.bounds()
        places = dict(offsets) if offsets is not None else {p: bound.start for p, bound in enumerate(bounds)}
        left = max_records
        while left > 0 and any(offset < bounds[p].end for p, offset in places.items()):
            messages = self.read(places, max_records=min(left, _PORTION))
            if not messages:
                # Before the end stands nothing but markers of transactions.
                return
            places.update({message.partition: message.offset + 1 for message in messages})
            wanted = [message for message in messages if message.offset < bounds[message.partition].end]
            left -= len(wanted)
            yield from wanted

    def share(self, group: str, *, member: str, lease_seconds: float = DEFAULT_LEASE_SECONDS) -> Share:
        """Returns a member's part of `group`, whose partitions are divided among its members."""
        return self.topics.share(self.name, group, member=member, lease_seconds=lease_seconds)

    def consume(self, group: str) -> Consumer:
        """Returns the consumer that takes `group` over, at its saved positions."""
        return Consumer(self, group)


class Consumer:
    """Reads a topic for a group and saves how far it came; the newest consumer of a group wins."""

    def __init__(self, topic: Topic, group: str) -> None:
        self.topic = topic
        self.group = group
        self._description = topic.describe()
        self._checked_at = time.monotonic()
        self._idle_ends: dict[int, int] = {}
        self._membership = topic.topics.join(topic.name, group)
        try:
            saved = self._membership.saved()
            self._committed = {p: position.offset for p, position in saved.items()}
            self._offsets = _starting_offsets(topic, group, self._description, saved)
        except PositionError:
            self._membership.close()
            raise

    @property
    def positions(self) -> dict[int, Position]:
        """Where the next `poll` goes on, by partition."""
        incarnation = self._description.incarnation
        return {p: Position(incarnation, p, offset) for p, offset in self._offsets.items()}

    def poll(self, *, max_records: int = 10_000, wait_seconds: float = 0.5) -> list[Message]:
        """Returns the next messages, or an empty list when none came in time."""
        now = time.monotonic()
        if now - self._checked_at > _INCARNATION_CHECK_SECONDS:
            self._check_incarnation()
            self._checked_at = now
        messages = self.topic.topics.read(
            self.topic.name, self._offsets, max_records=max_records, wait_seconds=wait_seconds
        )
        for message in messages:
            self._offsets[message.partition] = message.offset + 1
        if not messages and not self.topic.topics.capabilities.dense:
            self._skip_holes()
        return messages

    def _skip_holes(self) -> None:
        """Goes behind the markers of transactions: all before the ends of the last idle poll was delivered."""
        for partition, end in self._idle_ends.items():
            self._offsets[partition] = max(self._offsets[partition], end)
        self._idle_ends = {partition: bound.end for partition, bound in enumerate(self.topic.bounds())}

    def commit(self) -> None:
        """Saves the positions of all that was polled; raises FencedError if somebody newer joined.

        The first commit saves every partition: one that had no records yet must not look as if nobody read it.
        """
        moved = {p: position for p, position in self.positions.items() if position.offset != self._committed.get(p)}
        if moved:
            self._membership.commit(moved)
            self._committed.update({p: position.offset for p, position in moved.items()})

    def close(self) -> None:
        """Gives the group back without saving anything."""
        self._membership.close()

    def _check_incarnation(self) -> None:
        found = self.topic.describe().incarnation
        if found != self._description.incarnation:
            raise other_incarnation(self.topic.name, self.group, self._description.incarnation, found)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def replay(topic: Topic, group: str, offsets: Mapping[int, int]) -> dict[int, Position]:
    """Returns the new positions of `group`, whose running consumer is fenced by this."""
    description = topic.describe()
    for partition, (offset, bound) in enumerate(zip(_dense(offsets), topic.bounds(), strict=True)):
        check_range(topic.name, partition, offset, bound)
    positions = {p: Position(description.incarnation, p, offset) for p, offset in offsets.items()}
    membership = topic.topics.join(topic.name, group)
    try:
        membership.commit(positions)
    finally:
        membership.close()
    return positions


def stamped(record: Record, now_us: int) -> Record:
    """Returns the record with the time that a topic keeps: its own or that of its append.

    >>> stamped(Record(None, b"hello"), 1_700_000_000_123_456).time_us
    1700000000123000
    """
    time_us = record.time_us or now_us
    time_us -= time_us % 1000
    return record if record.time_us == time_us else Record(record.key, record.value, time_us, record.headers)


def check_records(records: Sequence[Record]) -> int:
    """Returns the bytes of all records; raises RecordError for one that no backend may hold."""
    total = 0
    for index, record in enumerate(records):
        if not _is_sound(record):
            raise RecordError(
                f"record {index}: key and value must be bytes or None, headers (str, bytes), time_us 0 to 2**63 - 1, "
                f"got {record!r:.300}"
            )
        size = size_of(record)
        if size > MAX_RECORD_BYTES:
            raise RecordError(f"record {index} has {size:,} bytes, a topic takes at most {MAX_RECORD_BYTES:,}")
        total += size
    return total


def _is_sound(record: Record) -> bool:
    # Exact types: a bytearray cannot be hashed, and a wrong header would make its whole row unreadable.
    if type(record.time_us) is not int or not 0 <= record.time_us < 1 << 63:
        return False
    for data in (record.key, record.value):
        if data is not None and type(data) is not bytes:
            return False
    for name, value in record.headers:
        if type(name) is not str or type(value) is not bytes or not (name.isascii() or _is_utf8(name)):
            return False
    return True


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def size_of(record: Record) -> int:
    """Returns the bytes of a record's key, value and headers.

    >>> size_of(Record(b"ann", b"hello", headers=(("door", b"x"),)))
    13
    """
    size = len(record.value or b"") + len(record.key or b"")
    for name, value in record.headers:
        size += len(name) + len(value)
    return size


def check_partitions(name: str, partitions: int) -> None:
    """Raises CallError unless a topic may have that many partitions and that name."""
    if not 1 <= partitions <= MAX_PARTITIONS:
        raise CallError(f"topic {name!r}: partitions == {partitions}, must be 1 to {MAX_PARTITIONS}")
    if not name or len(name) > 200 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise CallError(f"topic name {name!r}: use 1 to 200 letters, digits, '.', '_' and '-'")


def check_output(name: str, partitions: int, *, source: str, partition: int) -> None:
    """Raises CallError unless a topic has the partition of the source that is written into it."""
    if partition >= partitions:
        raise CallError(
            f"topic {name!r} has {partitions} partitions and none for partition {partition} of {source!r}: "
            "topics that are written together have the same number"
        )


def check_range(name: str, partition: int, offset: int, bound: Bounds) -> None:
    """Raises PositionError for an offset outside the bounds of its partition."""
    if not bound.start <= offset <= bound.end:
        raise PositionError(
            f"topic {name!r}, partition {partition}: offset {offset} is outside {bound.start} to {bound.end}. "
            f"Choose where to go on with: headrace topic replay {name} --group GROUP --to earliest"
        )


def share_of(max_records: int, offsets: Mapping[int, int]) -> int:
    """Returns how many records each partition may give, so that a busy one cannot starve the others.

    >>> share_of(10, {0: 5, 1: 0, 2: 0})
    4
    """
    return -(-max_records // max(len(offsets), 1))


def check_existing(found: Description, partitions: int) -> None:
    """Raises CallError when a topic that stands has another number of partitions."""
    if found.partitions != partitions:
        raise CallError(
            f"topic {found.name!r} stands with {found.partitions} partitions, asked for {partitions}. "
            "The number is fixed at creation; replay into a new topic instead"
        )


def _starting_offsets(
    topic: Topic, group: str, description: Description, saved: Mapping[int, Position]
) -> dict[int, int]:
    offsets = {}
    for partition, bound in enumerate(topic.bounds()):
        position = saved.get(partition)
        if position is None:
            offsets[partition] = bound.start
            continue
        if position.incarnation != description.incarnation:
            raise other_incarnation(topic.name, group, position.incarnation, description.incarnation)
        check_range(topic.name, partition, position.offset, bound)
        offsets[partition] = position.offset
    return offsets


def other_incarnation(name: str, group: str, saved: str, found: str) -> PositionError:
    """Returns the error for a group whose topic was dropped and made again."""
    return PositionError(
        f"topic {name!r} was created anew: group {group!r} stands in incarnation {saved}, found {found}. "
        f"Choose where to go on with: headrace topic replay {name} --group {group} --to earliest"
    )


def _dense(offsets: Mapping[int, int]) -> list[int]:
    return [offsets[partition] for partition in sorted(offsets)]
