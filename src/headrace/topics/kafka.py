"""Topics on a Kafka cluster: for many machines, and for tools that already speak to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from headrace.base.urls import Url
from headrace.topics.kafka_cluster import Cluster
from headrace.topics.kafka_group import KafkaMembership, read_groups
from headrace.topics.kafka_reader import Readers, read_bounds
from headrace.topics.kafka_sender import Appender, KafkaSender
from headrace.topics.kafka_share import KafkaShare
from headrace.topics.topic import (
    Bounds,
    Capabilities,
    Description,
    GroupPosition,
    Membership,
    Message,
    Place,
    Record,
    Sender,
    Share,
    check_existing,
    check_partitions,
)


class KafkaTopics:
    """The topics of one cluster. An appended record is acknowledged by all in-sync replicas."""

    capabilities: ClassVar[Capabilities] = Capabilities(durable=True, shared=True, dense=False)

    def __init__(self, url: Url) -> None:
        self._cluster = Cluster(url)
        self._appender = Appender(self._cluster)
        self._readers = Readers(self._cluster)

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the topics of the brokers that the URL names; they are first asked by the first call."""
        return cls(url)

    def names(self) -> list[str]:
        """Returns the names of all topics, sorted."""
        return self._cluster.names()

    def describe(self, name: str) -> Description:
        """Returns what a topic is."""
        return self._cluster.describe(name)

    def create(self, name: str, *, partitions: int, retention_seconds: int | None) -> Description:
        """Returns the new topic, or the one that stands."""
        check_partitions(name, partitions)
        found = self._cluster.create(name, partitions, retention_seconds)
        check_existing(found, partitions)
        return found

    def alter(self, name: str, *, retention_seconds: int | None) -> Description:
        """Changes how long records are kept."""
        return self._cluster.alter(name, retention_seconds)

    def drop(self, name: str) -> None:
        """Deletes a topic."""
        self._cluster.drop(name)
        self._readers.close(name)

    def bounds(self, name: str) -> list[Bounds]:
        """Returns the first offset and the end of what is committed, by partition."""
        return read_bounds(self._cluster, name, range(self._cluster.count_partitions(name)))

    def append(self, name: str, records: Sequence[Record], *, deadline_seconds: float) -> list[Place]:
        """Returns the places of the records once all in-sync replicas have them."""
        return self._appender.append(name, records, deadline_seconds)

    def read(self, name: str, offsets: Mapping[int, int], *, max_records: int, wait_seconds: float) -> list[Message]:
        """Returns messages from the given offsets on."""
        return self._readers.read(name, offsets, max_records, wait_seconds)

    def offsets_at(self, name: str, time_us: int) -> list[int]:
        """Returns the first offsets whose records are not older than `time_us`."""
        partitions = range(self._cluster.count_partitions(name))
        time_ms = max(-(-time_us // 1000), 0)
        found = self._cluster.offsets_at(name, partitions, time_ms)
        ends = self._cluster.ends(name, partitions)
        return [end if offset < 0 else offset for offset, end in zip(found, ends, strict=True)]

    def join(self, name: str, group: str) -> Membership:
        """Returns the membership that fences every older one."""
        return KafkaMembership(self._cluster, self._cluster.describe(name), group)

    def share(self, name: str, group: str, *, member: str, lease_seconds: float) -> Share:
        """Returns a member's part of a group; a lease is 6 s at least, the shortest that brokers grant."""
        return KafkaShare(
            self._cluster, self._cluster.describe(name), group, member=member, lease_seconds=lease_seconds
        )

    def groups(self, name: str) -> list[GroupPosition]:
        """Returns the saved positions of all groups."""
        return read_groups(self._cluster, name)

    def open_sender(self, *, deadline_seconds: float, max_pending_bytes: int) -> Sender:
        """Returns an asyncio sender with a producer of its own."""
        return KafkaSender(self._cluster, deadline_seconds=deadline_seconds, max_pending_bytes=max_pending_bytes)

    def close(self) -> None:
        """Finishes what was handed over and ends all consumers."""
        self._appender.close()
        self._readers.close()
