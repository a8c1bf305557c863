"""Loading a dimension: its new and changed members, then the markers that bring them into force."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from headrace.base.errors import CallError
from headrace.collect.app import CLICKS
from headrace.collect.dimensions import Dimensions
from headrace.events.dimension import MARKER, VERSION, Dimension, History, Marker, Member, Scalar, encode, fault_of
from headrace.topics import Record, Topic, Topics, partition_for

_PORTION = 5_000
_DEADLINE_SECONDS = 30.0


@dataclass(frozen=True)
class Loaded:
    """What came of a load."""

    new: int
    changed: int
    unchanged: int
    """How many members were known just so, and were not written again."""
    offset: int
    """Where the dimension's topic ends: what the markers say."""


def make_dimension(topics: Topics, dimension: Dimension) -> Topic:
    """Returns the topic of a dimension, made if it does not stand: one partition that keeps its records for ever."""
    topics.create(dimension.name, partitions=1, retention_seconds=None)
    return Topic(topics, dimension.name)


def load_members(
    topics: Topics,
    dimension: Dimension,
    *,
    members: Mapping[str, Mapping[str, Scalar]],
    now_us: int,
    told: Callable[[int], None] = lambda _: None,
) -> Loaded:
    """Returns what came of loading members by their keys; clicks at higher offsets are settled with them.

    All are checked before the first is written. The topic `clicks` must stand. A load that was killed is completed by
    the same one again, since the markers are sent even if nothing is new. `told` hears how many were written so far.
    """
    for key, attributes in members.items():
        if (fault := fault_of(key, attributes)) is not None:
            place = f"dimension {dimension.name!r}, member {key!r}"
            raise CallError(f"{place}{f', attribute {fault[0]!r}' if fault[0] else ''}: {fault[1]}")
    partitions = topics.describe(CLICKS).partitions
    topic = make_dimension(topics, dimension)
    dimensions = Dimensions(topics, (dimension.name,))
    dimensions.refresh()
    history = dimensions.history(dimension.name)
    new = sum(history.at(key, history.end) is None for key in members)
    records = list(_changes(history, members, now_us))
    end = max(_append(topic, records, told), history.end)
    Topic(topics, CLICKS).append(_markers(topic, end, partitions), deadline_seconds=_DEADLINE_SECONDS)
    return Loaded(new, len(records) - new, len(members) - len(records), end)


def _changes(history: History, members: Mapping[str, Mapping[str, Scalar]], now_us: int) -> Iterator[Record]:
    for key, attributes in members.items():
        known, found = _known(attributes), history.at(key, history.end)
        # As bytes: to Python 1, 1.0 and True are one.
        if found is None or _sorted(_known(found)) != _sorted(known):
            yield Record(key.encode(), encode(Member(version=VERSION, key=key, attributes=known, received_us=now_us)))


def _known(attributes: Mapping[str, Scalar]) -> dict[str, Scalar]:
    return {name: value for name, value in attributes.items() if value is not None}


def _sorted(attributes: Mapping[str, Scalar]) -> bytes:
    return encode(dict(sorted(attributes.items())))


def _append(topic: Topic, records: Sequence[Record], told: Callable[[int], None]) -> int:
    """Returns the offset behind the last record that was appended; 0 for none."""
    end = 0
    for start in range(0, len(records), _PORTION):
        portion = records[start : start + _PORTION]
        end = topic.append(portion, deadline_seconds=_DEADLINE_SECONDS)[-1].offset + 1
        told(start + len(portion))
    return end


def _markers(topic: Topic, end: int, partitions: int) -> list[Record]:
    """Returns a marker for each partition of `clicks`."""
    incarnation = topic.describe().incarnation
    value = encode(Marker(version=VERSION, name=topic.name, incarnation=incarnation, offset=end))
    return [Record(_key_to(p, partitions), b"", headers=((MARKER, value),)) for p in range(partitions)]


def _key_to(partition: int, partitions: int) -> bytes:
    keys = (f"dimension-{number}".encode() for number in itertools.count())
    return next(key for key in keys if partition_for(key, partitions) == partition)
