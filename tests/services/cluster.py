"""Kafka and HDFS side by side, as the places of one project that are gone after its test."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from headrace.topics import open_topics
from services.hdfs import Hdfs
from services.kafka import Broker

_COUNT = itertools.count()
_LEAVE_SECONDS = 10.0


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
    yield Cluster(kafka, hdfs, f"/lake-of-project-{next(_COUNT)}")
    admin = AdminClient({"bootstrap.servers": kafka.address, "log_level": 0})
    topics = [name for name in admin.list_topics(timeout=10).topics if name in ("clicks", "events", "failed")]
    groups = [one.group_id for one in admin.list_consumer_groups().result().valid]
    for group in groups:
        if group.partition("/")[0] in topics:
            _delete_group(admin, kafka, group)
    for gone in admin.delete_topics(topics).values() if topics else ():
        gone.result()


def _delete_group(admin: AdminClient, kafka: Broker, group: str) -> None:
    """Deletes what a group notes of its topic: it outlives the topic, so that one made anew is told from it."""
    topic, _, name = group.partition("/")
    with contextlib.closing(open_topics(kafka.url)) as topics:
        for member in admin.describe_consumer_groups([group])[group].result().members:
            # One that was killed counts as a member for its session, a minute for a keeper.
            share = topics.share(topic, name, member=member.group_instance_id, lease_seconds=6.0)
            # Only who has joined can leave.
            while not share._joined:
                share.held()
            share.close()
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
