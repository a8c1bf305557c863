"""The durable log: append, read, groups, retention, replay. It carries bytes and knows no events."""

from __future__ import annotations

from pathlib import Path

from headrace.base.urls import Registry, Scheme, Url
from headrace.topics.partition import partition_for
from headrace.topics.topic import (
    DEFAULT_PARTITIONS,
    Bounds,
    Capabilities,
    Consumer,
    Description,
    GroupPosition,
    Message,
    Move,
    Place,
    Position,
    Record,
    Sender,
    Share,
    Topic,
    Topics,
    replay,
)

__all__ = [
    "SCHEMES",
    "Bounds",
    "Capabilities",
    "Consumer",
    "Description",
    "GroupPosition",
    "Message",
    "Move",
    "Place",
    "Position",
    "Record",
    "Sender",
    "Share",
    "Topic",
    "Topics",
    "open_topic",
    "open_topics",
    "partition_for",
    "replay",
]

SCHEMES = Registry(
    noun="topic",
    group="headrace.topics",
    schemes={
        "memory": Scheme("headrace.topics.memory:MemoryTopics"),
        "sqlite": Scheme("headrace.topics.sqlite:SqliteTopics"),
        "kafka": Scheme("headrace.topics.kafka:KafkaTopics", extra="kafka"),
    },
)


def open_topics(url: Url | str, *, root: Path | str = ".") -> Topics:
    """Returns the open topics of a URL; local paths are resolved against `root`."""
    topics: Topics = SCHEMES.open(url, root=root)
    return topics


def open_topic(url: Url | str, name: str, *, root: Path | str = ".", create: bool = False) -> Topic:
    """Returns one open topic, made first if `create` is set and it does not stand."""
    topics = open_topics(url, root=root)
    if create:
        topics.create(name, partitions=DEFAULT_PARTITIONS, retention_seconds=None)
    else:
        topics.describe(name)
    return Topic(topics, name)
