"""The right to commit for a group on Kafka: one static member, so that a newer one fences the older."""

# ruff: noqa: SLF001 - librdkafka names its own errors with a leading underscore

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from headrace.base.errors import DeadlineError, FencedError, StopError, UnavailableError
from headrace.topics.kafka_cluster import LOGGER, MARKS_TOPIC, Cluster, cause_of
from headrace.topics.topic import Description, GroupPosition, Position

# Kafka's groups span topics, ours belong to one; no topic's name has this character.
_SEPARATOR = "/"

# The broker knows a static member by this name and fences the older of two that bear it.
_NAME = "headrace"

_JOIN_SECONDS = 20.0
_LEAVE_SECONDS = 2.0
_COMMIT_SECONDS = 5.0
_POLL_SECONDS = 0.01
_RETRY_SECONDS = 0.05

_SETTINGS = {
    "group.instance.id": _NAME,
    "group.protocol": "classic",
    # A newer member need not wait for it; a restart of the broker should fit in.
    "session.timeout.ms": 45_000,
    "heartbeat.interval.ms": 1000,
    "max.poll.interval.ms": 86_400_000,
    "enable.auto.commit": False,
    "auto.offset.reset": "error",
}
FENCED = frozenset(
    {
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.UNKNOWN_MEMBER_ID,
        KafkaError._FENCED,
        KafkaError._FATAL,
    }
)
_PASSING = frozenset(
    {
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError._WAIT_COORD,
        KafkaError._TRANSPORT,
    }
)


class KafkaMembership:
    """Joined, but with nothing assigned: it commits, and reads nothing."""

    def __init__(self, cluster: Cluster, topic: Description, group: str) -> None:
        self._cluster = cluster
        self._topic = topic.name
        self._description = topic
        self._what = f"group {group!r} of topic {topic.name!r}"
        self._joined = False
        self._lost = False
        self._generation = 0
        self._asked = 0
        self._answered = 0
        self._answer: KafkaError | None = None
        cluster.ensure_marks()
        group_id = group_id_of(topic.name, group)
        self._refuse_shared(group_id)
        self._consumer = Consumer(
            cluster.settings | _SETTINGS | {"group.id": group_id, "on_commit": self._committed_now}, logger=LOGGER
        )
        try:
            self._join()
            self._generation = max(self._read_mark().offset, 0) + 1
        except (UnavailableError, FencedError):
            self._consumer.close()
            raise

    def saved(self) -> dict[int, Position]:
        """Returns the group's saved positions by partition."""
        asked = [TopicPartition(self._topic, partition) for partition in range(self._description.partitions)]
        found = [read_position(place) for place in self._committed(asked) if place.offset >= 0]
        mark = self._read_mark()
        if not found and mark.metadata and mark.metadata != self._description.incarnation:
            # The broker has forgotten the positions together with the topic they were in.
            return {0: Position(mark.metadata, 0, 0)}
        return {position.partition: position for position in found}

    def commit(self, positions: Mapping[int, Position]) -> None:
        """Saves positions; raises FencedError once somebody newer has joined."""
        offsets = [TopicPartition(self._topic, p.partition, p.offset, p.incarnation) for p in positions.values()]
        if not offsets:
            return
        offsets.append(TopicPartition(MARKS_TOPIC, 0, self._generation, offsets[0].metadata))
        deadline = time.monotonic() + _COMMIT_SECONDS
        while not self._try_commit(offsets, deadline):
            time.sleep(_RETRY_SECONDS)

    def close(self) -> None:
        """Leaves the group, so that the members of a share need not wait for a session to end."""
        leave_group(self._consumer)

    def _refuse_shared(self, group_id: str) -> None:
        members = sorted(self._cluster.group_members(group_id).keys() - {_NAME})
        if members:
            raise StopError(
                f"{self._what} is shared by {', '.join(members)}. Stop what runs there, then try again; "
                "a member that died is forgotten when its lease ends"
            )

    def _join(self) -> None:
        # Not to the topic, whose partitions would be lost to the members of a share that comes at the same time.
        self._consumer.subscribe(
            [MARKS_TOPIC], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
        )
        deadline = time.monotonic() + _JOIN_SECONDS
        while not self._joined:
            self._check(_POLL_SECONDS)
            if time.monotonic() > deadline:
                raise UnavailableError(f"{self._what}: Kafka lets nobody join")
        self._member = self._consumer.memberid()

    def _assigned(self, consumer: Consumer, _: list[TopicPartition]) -> None:
        consumer.assign([])
        self._joined = True

    def _revoked(self, consumer: Consumer, _: list[TopicPartition]) -> None:
        self._lost = True
        # A member that rejoined by itself would fence the newer one that has taken over meanwhile;
        # one that was fenced cannot, nor can it do anything else.
        with suppress(KafkaException):
            consumer.unsubscribe()

    def _check(self, wait_seconds: float) -> None:
        """Hears what the broker has told this member; nothing but that is ever polled."""
        message = self._consumer.poll(wait_seconds)
        error = message.error() if message is not None else None
        if self._lost or (error is not None and error.code() in FENCED):
            raise self._fenced()

    def _fenced(self) -> FencedError:
        return FencedError(
            f"{self._what}: generation {self._generation} was taken over by a newer one, or its session ended"
        )

    def _try_commit(self, offsets: list[TopicPartition], deadline: float) -> bool:
        self._check(0.0)
        # Without a member id this would be a commit from outside, which an empty group takes from anybody.
        if self._consumer.memberid() != self._member:
            raise self._fenced()
        self._asked += 1
        try:
            # A blocking commit would wait for a lost broker until the session is lost too.
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._asked -= 1
            return self._judge(cause_of(error))
        while self._answered < self._asked:
            if time.monotonic() > deadline:
                raise DeadlineError(f"{self._what}: Kafka did not take a commit within {_COMMIT_SECONDS:g} s")
            self._check(_POLL_SECONDS)
        return self._answer is None or self._judge(self._answer)

    def _committed_now(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        self._answered += 1
        refused = [place.error for place in places if place.error is not None]
        self._answer = error or (refused[0] if refused else None)

    def _judge(self, error: KafkaError) -> bool:
        if error.code() in FENCED:
            raise self._fenced()
        if error.code() in _PASSING:
            return False
        raise self._cluster.failure(error, f"{self._what}: saving positions")

    def _read_mark(self) -> TopicPartition:
        return self._committed([TopicPartition(MARKS_TOPIC, 0)])[0]

    def _committed(self, asked: list[TopicPartition]) -> list[TopicPartition]:
        what = f"{self._what}: reading its positions"
        try:
            found = self._consumer.committed(asked, timeout=_COMMIT_SECONDS)
        except KafkaException as error:
            raise self._cluster.failure(error, what) from error
        for place in found:
            if place.error is not None:
                raise self._cluster.failure(place.error, what)
        return found


def leave_group(consumer: Consumer) -> None:
    """Leaves a group and ends the consumer; one that only closes stays a static member until its session ends."""
    with suppress(KafkaException):
        consumer.unsubscribe()
        deadline = time.monotonic() + _LEAVE_SECONDS
        while consumer.memberid() and time.monotonic() < deadline:
            consumer.poll(_POLL_SECONDS)
    consumer.close()


def group_id_of(topic: str, group: str) -> str:
    """Returns the id that the broker knows a group of a topic by."""
    return f"{topic}{_SEPARATOR}{group}"


def read_groups(cluster: Cluster, topic: str) -> list[GroupPosition]:
    """Returns the saved positions of all groups that read a topic."""
    found = []
    asked = [TopicPartition(topic, partition) for partition in range(cluster.count_partitions(topic))]
    asked.append(TopicPartition(MARKS_TOPIC, 0))
    for group_id in cluster.group_ids(topic + _SEPARATOR):
        group = group_id.removeprefix(topic + _SEPARATOR)
        *places, mark = cluster.group_offsets(group_id, asked)
        positions = [read_position(place) for place in places if place.offset >= 0]
        found += [GroupPosition(group, topic, one, max(mark.offset, 0)) for one in positions]
    return found


def read_position(place: TopicPartition) -> Position:
    """Returns a position as the group committed it, with the incarnation beside the offset."""
    return Position(place.metadata or "", place.partition, place.offset)
