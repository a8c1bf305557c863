"""Reads Kafka from any offsets that are asked for, with consumers that stay where they were left."""

# ruff: noqa: SLF001 - librdkafka names its own errors with a leading underscore

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as KafkaMessage

from headrace.base.errors import PositionError, UnavailableError
from headrace.topics.kafka_cluster import LOGGER, UNKNOWN, Cluster
from headrace.topics.topic import MAX_READ_BYTES, Bounds, Message, check_range

# How long the broker may take to hand over what it says it has.
_FETCH_SECONDS = 10.0
_MAX_READERS = 4
_AT_ONCE = 256

_SETTINGS = {
    "group.id": "headrace-reader",  # never joined, never committed
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "isolation.level": "read_committed",
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 50,
    "fetch.queue.backoff.ms": 10,
    "queued.min.messages": 50_000,
    "queued.max.messages.kbytes": 16_384,
}

# Told about the connection, while librdkafka goes on trying.
_PASSING = frozenset({KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE, KafkaError._TIMED_OUT})


def read_bounds(cluster: Cluster, name: str, partitions: Sequence[int]) -> list[Bounds]:
    """Returns the first offset and the end of what is committed, by partition."""
    starts = cluster.starts(name, partitions)
    ends = cluster.settled_ends(name, partitions)
    return [Bounds(start, max(start, end)) for start, end in zip(starts, ends, strict=True)]


class Reader:
    """One consumer of one topic, used by one caller at a time."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.offsets: dict[int, int] = {}
        self._cluster = cluster
        self._ends: dict[int, int] = {}
        self._consumer = Consumer(cluster.settings | _SETTINGS, logger=LOGGER)
        # Without it the first fetch comes a second late.
        self._consumer.list_topics(name, timeout=_FETCH_SECONDS)

    def read(self, offsets: Mapping[int, int], max_records: int, wait_seconds: float) -> list[Message]:
        """Returns messages from the offsets on; an empty list only if the broker has none."""
        if not self.stands_at(offsets):
            self._go_to(offsets)
        self.offsets = dict(offsets)
        deadline = time.monotonic() + wait_seconds
        found, left = self._take(max_records, wait_seconds), wait_seconds
        while not found and left > 0:
            left = deadline - time.monotonic()
            found = self._take(max_records, max(left, 0.0))
        return found or self._take_what_stands(max_records)

    def stands_at(self, offsets: Mapping[int, int]) -> bool:
        """Says whether the next message read is the first from these offsets on.

        Behind the last record there may be markers of transactions, and no difference between their offsets.
        """
        return offsets.keys() == self.offsets.keys() and all(
            self.offsets[partition] <= offset <= self._ends[partition] for partition, offset in offsets.items()
        )

    def close(self) -> None:
        """Ends the consumer."""
        self._consumer.close()

    def _go_to(self, offsets: Mapping[int, int]) -> None:
        partitions = list(offsets)
        for partition, bound in zip(partitions, read_bounds(self._cluster, self.name, partitions), strict=True):
            check_range(self.name, partition, offsets[partition], bound)
        self._consumer.assign([TopicPartition(self.name, p, offset) for p, offset in offsets.items()])
        self.offsets = dict(offsets)
        self._ends = dict(offsets)

    def _take_what_stands(self, max_records: int) -> list[Message]:
        """Returns what the broker has by now, which may still be on its way here."""
        ends = dict(zip(self.offsets, self._cluster.ends(self.name, list(self.offsets)), strict=True))
        deadline = time.monotonic() + _FETCH_SECONDS
        found: list[Message] = []
        # The end of a partition may be past its last record: markers of transactions have offsets.
        while not found and any(self._ends[partition] < end for partition, end in ends.items()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise UnavailableError(f"the brokers hand nothing of topic {self.name!r} over, {_FETCH_SECONDS:g} s")
            found = self._take(max_records, left)
        return found

    def _take(self, max_records: int, wait_seconds: float) -> list[Message]:
        # `consume(many, seconds)` would wait the seconds out unless so many came.
        heard = self._consumer.consume(1, wait_seconds)
        size = 0
        while heard and len(heard) < max_records and size < MAX_READ_BYTES:
            more = self._consumer.consume(min(max_records - len(heard), _AT_ONCE), 0.0)
            if not more:
                break
            heard += more
            size += sum([len(message.value() or b"") for message in more])
        found: list[Message] = []
        for message in heard:
            self._hear(message, found)
        return found

    def _hear(self, message: KafkaMessage, found: list[Message]) -> None:
        error, partition, offset = message.error(), message.partition(), message.offset()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            self._refuse(error)
        elif partition is None or offset is None:
            return
        elif error is not None:
            self._ends[partition] = offset
        else:
            found.append(_read_message(message, partition, offset))
            self.offsets[partition] = self._ends[partition] = offset + 1

    def _refuse(self, error: KafkaError) -> None:
        if error.code() in _PASSING:
            return
        if error.code() in UNKNOWN:
            self._cluster.describe(self.name)
            raise PositionError(f"topic {self.name!r} was dropped and created anew while it was read")
        raise self._cluster.failure(error, f"reading topic {self.name!r}")


class Readers:
    """Readers of many topics; whoever asks for the offsets at which one stands gets that one."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._free: dict[str, list[Reader]] = {}

    def read(self, name: str, offsets: Mapping[int, int], max_records: int, wait_seconds: float) -> list[Message]:
        """Returns messages from the offsets on."""
        try:
            reader = self._lend(name, offsets)
        except KafkaException as error:
            raise self._cluster.failure(error, f"reading topic {name!r}") from error
        sound = False
        try:
            found = reader.read(offsets, max_records, wait_seconds)
            sound = True
        except KafkaException as error:
            raise self._cluster.failure(error, f"reading topic {name!r}") from error
        finally:
            self._take_back(reader, sound)
        return found

    def close(self, name: str = "") -> None:
        """Ends the readers of one topic, or all."""
        with self._lock:
            names = [name] if name else list(self._free)
            gone = [reader for one in names for reader in self._free.pop(one, [])]
        for reader in gone:
            reader.close()

    def _lend(self, name: str, offsets: Mapping[int, int]) -> Reader:
        with self._lock:
            free = self._free.get(name, [])
            for reader in free:
                if reader.stands_at(offsets):
                    free.remove(reader)
                    return reader
            if len(free) >= _MAX_READERS:
                return free.pop(0)
        return Reader(self._cluster, name)

    def _take_back(self, reader: Reader, sound: bool) -> None:
        surplus = reader
        if sound:
            with self._lock:
                free = self._free.setdefault(reader.name, [])
                free.append(reader)
                if len(free) <= _MAX_READERS:
                    return
                surplus = free.pop(0)
        surplus.close()


def _read_message(message: KafkaMessage, partition: int, offset: int) -> Message:
    found: Any = message.headers()
    # A Java producer may leave a header's value out.
    headers = tuple((name, value or b"") for name, value in found) if found else ()
    return Message(message.key(), message.value(), message.timestamp()[1] * 1000, headers, partition, offset)
