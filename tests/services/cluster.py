"""Kafka and HDFS side by side, as the places of one project that are gone after its test."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from headrace.topics.kafka_cluster import MARKS_TOPIC
from headrace.topics.kafka_group import leave_group
from running import wait_until
from services.hdfs import Hdfs
from services.kafka import Broker

_COUNT = itertools.count()
_LEAVE_SECONDS = 10.0
_TOPICS = frozenset(("clicks", "events", "failed", "decisions", "items"))


@dataclass(frozen=True)
class Cluster:
    """Where a project keeps its topics and tables."""

    kafka: Broker
    hdfs: Hdfs
    path: str

    @property
    def topics(self) -> str:
        """The URL of the topics."""
        return self.kafka.url

    @property
    def tables(self) -> str:
        """The URL of the tables; a call that hangs is given up soon."""
        return f"{self.hdfs.url}{self.path}?deadline_seconds=10"

    def files(self) -> list[str]:
        """Returns the lake's files as the name node lists them, below the lake."""
        return [path.removeprefix(f"{self.path}/") for path in self.hdfs.listing(self.path)]


@contextlib.contextmanager
def cluster_of(kafka: Broker, hdfs: Hdfs) -> Iterator[Cluster]:
    """Yields the places of a new project, and takes its topics and groups away at the end."""
    clear(kafka)
    yield Cluster(kafka, hdfs, f"/lake-of-project-{next(_COUNT)}")
    clear(kafka)


def clear(kafka: Broker) -> None:
    """Takes a project's topics away, and its groups: what they note of a topic tells one made anew from it."""
    admin = AdminClient({"bootstrap.servers": kafka.address, "log_level": 0})
    for group in admin.list_consumer_groups().result().valid:
        if group.group_id.partition("/")[0] in _TOPICS:
            _delete_group(admin, kafka, group.group_id)
    topics = [name for name in admin.list_topics(timeout=10).topics if name in _TOPICS]
    for gone in admin.delete_topics(topics).values() if topics else ():
        gone.result()
    wait_until(lambda: not {*admin.list_topics(timeout=10).topics} & _TOPICS, what="the topics are gone")


def _delete_group(admin: AdminClient, kafka: Broker, group: str) -> None:
    for member in admin.describe_consumer_groups([group])[group].result().members:
        _take_out(kafka, group, member.group_instance_id)
    deadline = time.monotonic() + _LEAVE_SECONDS
    while True:
        try:
            admin.delete_consumer_groups([group])[group].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.NON_EMPTY_GROUP or time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


def _take_out(kafka: Broker, group: str, member: str) -> None:
    """Joins by the name of a member that was killed, and leaves: else it stays for its session, of up to a minute."""
    settings = {"bootstrap.servers": kafka.address, "group.id": group, "group.instance.id": member, "log_level": 0}
    consumer = Consumer(settings | {"session.timeout.ms": 6000, "partition.assignment.strategy": "range"})
    joined: list[object] = []
    consumer.subscribe([MARKS_TOPIC], on_assign=lambda *_: joined.append(True))
    wait_until(lambda: consumer.poll(0.05) or joined, what=f"{member} of {group} has joined")
    leave_group(consumer)
