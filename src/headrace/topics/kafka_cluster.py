"""A Kafka cluster: how clients are configured, what its errors mean, and what an administrator asks."""

# ruff: noqa: SLF001 - librdkafka names its own errors with a leading underscore

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import msgspec
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, TopicPartition
from confluent_kafka import TopicCollection as Names
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # exported all the same
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from headrace.base.errors import (
    CallError,
    DeadlineError,
    HeadraceError,
    OverloadedError,
    PositionError,
    RecordError,
    UnavailableError,
    UrlError,
    unknown_name,
)
from headrace.base.telemetry import get_logger
from headrace.base.urls import Url
from headrace.topics.topic import Description

# Holds no record. A group commits its incarnation here too, since a broker forgets the
# positions in a topic that is deleted, and the group could not tell the next one from it.
MARKS_TOPIC = "headrace.groups"

LOGGER = get_logger("topics.kafka")

_OFFSETS: Any = OffsetSpec

_ASK_SECONDS = 5.0
_WAIT_SECONDS = 0.01
# One whose owner died stays open until somebody takes its place: it is not waited for.
_MARKERS_SECONDS = 1.0
# The broker makes a static member's id of its name, a dash and a UUID.
_UUID_LENGTH = 37
# Every client of a broker that is down tells of it several times a second.
_RECENT_SECONDS = 10.0
_RETENTION = "retention.ms"
# Kafka refuses times over an hour ahead unless told so; a world's clock may well be ahead.
_ANY_TIME = {"message.timestamp.type": "CreateTime", "message.timestamp.after.max.ms": str(2**63 - 1)}

UNKNOWN = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})
_MOVING = UNKNOWN | {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.OFFSET_NOT_AVAILABLE,
    KafkaError._NOENT,
}

_PASSING = frozenset({KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError.COORDINATOR_LOAD_IN_PROGRESS})

FoundT = TypeVar("FoundT")

_MEANINGS: Mapping[int, type[HeadraceError]] = {
    KafkaError._MSG_TIMED_OUT: DeadlineError,
    KafkaError.REQUEST_TIMED_OUT: DeadlineError,
    KafkaError._QUEUE_FULL: OverloadedError,
    KafkaError.THROTTLING_QUOTA_EXCEEDED: OverloadedError,
    KafkaError.MSG_SIZE_TOO_LARGE: RecordError,
    KafkaError.RECORD_LIST_TOO_LARGE: RecordError,
    KafkaError.INVALID_RECORD: RecordError,
    KafkaError.INVALID_TIMESTAMP: RecordError,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: CallError,
    KafkaError.GROUP_AUTHORIZATION_FAILED: CallError,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: CallError,
    KafkaError.SASL_AUTHENTICATION_FAILED: CallError,
    KafkaError._AUTHENTICATION: CallError,
    KafkaError.INVALID_REPLICATION_FACTOR: CallError,
    KafkaError.INVALID_PARTITIONS: CallError,
    KafkaError.INVALID_CONFIG: CallError,
    KafkaError.POLICY_VIOLATION: CallError,
    KafkaError.TOPIC_EXCEPTION: CallError,
    KafkaError._AUTO_OFFSET_RESET: PositionError,
    KafkaError.OFFSET_OUT_OF_RANGE: PositionError,
}


def cause_of(error: KafkaException | KafkaError) -> KafkaError:
    """Returns the error that an exception of librdkafka carries."""
    cause: KafkaError = error.args[0] if isinstance(error, KafkaException) else error
    return cause


def meaning(error: KafkaException | KafkaError, what: str) -> HeadraceError:
    """Returns what an error of Kafka means to the caller; unless known it may be retried."""
    cause = cause_of(error)
    return _MEANINGS.get(cause.code(), UnavailableError)(f"{what}: Kafka says {cause.name()}, {cause.str()}")


class Options(msgspec.Struct):
    """What may follow the `?` in a kafka:// URL."""

    linger_ms: float = 1.0
    """How long a record waits for company before it is sent."""
    replication: int = -1
    """Replicas of a topic made here; -1 leaves it to the broker."""


class Cluster:
    """One cluster, asked as its administrator."""

    def __init__(self, url: Url) -> None:
        self.options = url.read_options(Options)
        if not url.address or url.path.strip("/"):
            raise UrlError(f"{str(url)!r} must name brokers and nothing else. Write it as kafka://broker:9092")
        self.url = url
        self.settings: dict[str, Any] = {
            "bootstrap.servers": url.address,
            "client.id": "headrace",
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,
            "error_cb": self._note,
            "log_level": 2,  # what is less than critical comes through error_cb
        }
        if url.user:
            self.settings |= {
                "security.protocol": "SASL_PLAINTEXT",
                "sasl.mechanism": "PLAIN",
                "sasl.username": url.user,
                "sasl.password": url.read_secret(),
            }
        self._last_error: KafkaError | None = None
        self._heard_at = 0.0
        self._told_at = -_RECENT_SECONDS
        self._admin = AdminClient(self.settings, logger=LOGGER)
        self._has_marks = False

    def names(self) -> list[str]:
        """Returns the names of all topics but internal ones, sorted."""
        try:
            found = self._admin.list_topics(timeout=_ASK_SECONDS).topics
        except KafkaException as error:
            raise self.failure(error, "listing the topics") from error
        return sorted(name for name in found if not name.startswith("__") and name != MARKS_TOPIC)

    def describe(self, name: str) -> Description:
        """Returns what a topic is; its incarnation is the broker's topic id."""
        resource = ConfigResource(ResourceType.TOPIC, name)
        configs = self._admin.describe_configs([resource], request_timeout=_ASK_SECONDS)[resource]
        topic = self._look_up(name)
        try:
            retention_ms = int(configs.result()[_RETENTION].value)
        except KafkaException as error:
            raise self._unknown_or(name, error) from error
        seconds = None if retention_ms < 0 else retention_ms // 1000
        return Description(name, len(topic.partitions), str(topic.topic_id), seconds)

    def incarnation(self, name: str) -> str:
        """Returns the broker's id of a topic."""
        return str(self._look_up(name).topic_id)

    def count_partitions(self, name: str) -> int:
        """Returns the number of partitions of a topic."""
        return len(self._look_up(name).partitions)

    def create(self, name: str, partitions: int, retention_seconds: int | None) -> Description:
        """Makes a topic, unless it stands, and waits until it can be used."""
        config = {_RETENTION: _milliseconds(retention_seconds), **_ANY_TIME}
        self._make(NewTopic(name, partitions, self.options.replication, config=config))
        found = _until(lambda: self._describe_new(name), f"topic {name!r} was made and does not appear")
        self.ends(name, range(found.partitions))
        return found

    def alter(self, name: str, retention_seconds: int | None) -> Description:
        """Changes the retention of a topic and waits until the change shows."""
        self._look_up(name)
        entry = ConfigEntry(_RETENTION, _milliseconds(retention_seconds), incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[entry])
        done = self._admin.incremental_alter_configs([resource], request_timeout=_ASK_SECONDS)[resource]
        self._result(done, f"altering topic {name!r}")

        def changed() -> Description | None:
            found = self.describe(name)
            return found if found.retention_seconds == retention_seconds else None

        return _until(changed, f"topic {name!r} was altered and does not show it")

    def drop(self, name: str) -> None:
        """Deletes a topic and waits until it is gone."""
        self._look_up(name)
        done = self._admin.delete_topics([name], operation_timeout=_ASK_SECONDS, request_timeout=_ASK_SECONDS)
        self._result(done[name], f"dropping topic {name!r}")
        _until(lambda: name not in self.names() or None, f"topic {name!r} was dropped and is still there")

    def starts(self, name: str, partitions: Sequence[int]) -> list[int]:
        """Returns the first offsets that can be read."""
        return self._offsets(name, partitions, _OFFSETS.earliest())

    def ends(self, name: str, partitions: Sequence[int]) -> list[int]:
        """Returns the ends of what is committed and can be read by now."""
        return self._offsets(name, partitions, _OFFSETS.latest())

    def settled_ends(self, name: str, partitions: Sequence[int]) -> list[int]:
        """Returns the ends of what is committed; transactions that are open now may end first, for a moment.

        A broker says that one is committed before it writes the markers that let its records be read.
        """
        written = self._offsets(name, partitions, _OFFSETS.latest(), IsolationLevel.READ_UNCOMMITTED)
        deadline = time.monotonic() + _MARKERS_SECONDS
        while True:
            ends = self.ends(name, partitions)
            if time.monotonic() > deadline or all(end >= place for end, place in zip(ends, written, strict=True)):
                return ends
            time.sleep(_WAIT_SECONDS)

    def offsets_at(self, name: str, partitions: Sequence[int], time_ms: int) -> list[int]:
        """Returns the first offsets whose records are not older, -1 where there is none."""
        return self._offsets(name, partitions, _OFFSETS.for_timestamp(time_ms))

    def _offsets(
        self,
        name: str,
        partitions: Sequence[int],
        spec: Any,
        isolation: IsolationLevel = IsolationLevel.READ_COMMITTED,
    ) -> list[int]:
        def ask() -> list[int] | None:
            places = [TopicPartition(name, partition) for partition in partitions]
            found = self._admin.list_offsets(
                dict.fromkeys(places, spec),
                isolation_level=isolation,
                request_timeout=_ASK_SECONDS,
            )
            try:
                return [found[place].result().offset for place in places]
            except KafkaException as error:
                if cause_of(error).code() in _MOVING:
                    self._look_up(name)
                    return None
                raise self.failure(error, f"asking for the offsets of topic {name!r}") from error

        return _until(ask, f"topic {name!r} has partitions without a leader")

    def group_ids(self, prefix: str) -> list[str]:
        """Returns the ids of the cluster's consumer groups that start with `prefix`, sorted."""
        found = self._result(self._admin.list_consumer_groups(request_timeout=_ASK_SECONDS), "listing the groups")
        return sorted(group.group_id for group in found.valid if group.group_id.startswith(prefix))

    def group_members(self, group_id: str) -> dict[str, str]:
        """Returns the static members of a group by name, with the ids that the broker gave them."""

        def ask() -> dict[str, str] | None:
            try:
                with warnings.catch_warnings():
                    # Its successor aborts the process when a coordinator goes away: an assertion of librdkafka fails.
                    warnings.filterwarnings("ignore", "list_groups", DeprecationWarning)
                    found: Any = self._admin.list_groups(group_id, timeout=_ASK_SECONDS)
            except KafkaException as error:
                if cause_of(error).code() in _PASSING:
                    return None
                raise self.failure(error, what) from error
            ids = [member.id for group in found for member in group.members if member.id]
            return {member_id[:-_UUID_LENGTH]: member_id for member_id in ids}

        what = f"asking who is in group {group_id!r}"
        return _until(ask, f"{what}: no answer")

    def group_offsets(self, group_id: str, places: Sequence[TopicPartition]) -> list[TopicPartition]:
        """Returns what a group has committed, of the places that are asked for."""
        # A consumer asks what an administrator would, whose question aborts the process when a coordinator goes away.
        # One that waits for open transactions might wait for one whose owner died.
        own = {"group.id": group_id, "isolation.level": "read_uncommitted"}
        consumer = Consumer(self.settings | own, logger=LOGGER)
        try:
            return consumer.committed(list(places), timeout=_ASK_SECONDS)
        except KafkaException as error:
            raise self.failure(error, f"reading group {group_id!r}") from error
        finally:
            consumer.close()

    def ensure_marks(self) -> None:
        """Makes the topic in which groups note incarnations, unless it stands."""
        if not self._has_marks:
            self._make(NewTopic(MARKS_TOPIC, 1, self.options.replication))
            _until(lambda: self._describe_new(MARKS_TOPIC), f"topic {MARKS_TOPIC!r} does not appear")
            self._has_marks = True

    def failure(self, error: KafkaException | KafkaError, what: str) -> HeadraceError:
        """Returns what an error means, with what was wrong with the connection if that explains it."""
        self._admin.poll(0)
        found, last = meaning(error, what), self._last_error
        if (
            last is None
            or not isinstance(found, UnavailableError)
            or time.monotonic() > self._heard_at + _RECENT_SECONDS
        ):
            return found
        kind = _MEANINGS.get(last.code(), UnavailableError)
        return kind(f"{found} ({str(self.url)!r}: {last.name()}, {last.str()})")

    def _note(self, error: KafkaError) -> None:
        # _ALL_BROKERS_DOWN only repeats what came before it, with less detail.
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            return
        now = time.monotonic()
        if now > self._told_at + _RECENT_SECONDS:
            self._told_at = now
            LOGGER.warning("%s: %s", error.name(), error.str())
        self._last_error, self._heard_at = error, now

    def _look_up(self, name: str) -> Any:
        found = self._admin.describe_topics(Names([name]), request_timeout=_ASK_SECONDS)[name]
        try:
            return found.result()
        except KafkaException as error:
            raise self._unknown_or(name, error) from error

    def _unknown_or(self, name: str, error: KafkaException) -> HeadraceError:
        if cause_of(error).code() in UNKNOWN:
            return unknown_name("topic", name, self.names())
        return self.failure(error, f"describing topic {name!r}")

    def _describe_new(self, name: str) -> Description | None:
        return self.describe(name) if name in self._admin.list_topics(timeout=_ASK_SECONDS).topics else None

    def _make(self, topic: NewTopic) -> None:
        made = self._admin.create_topics([topic], operation_timeout=_ASK_SECONDS, request_timeout=_ASK_SECONDS)
        try:
            made[topic.topic].result()
        except KafkaException as error:
            if cause_of(error).code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise self.failure(error, f"making topic {topic.topic!r}") from error

    def _result(self, future: Future[Any], what: str) -> Any:
        try:
            return future.result()
        except KafkaException as error:
            raise self.failure(error, what) from error


def _until(ask: Callable[[], FoundT | None], what: str) -> FoundT:
    """Returns what `ask` finds, asked again and again: a change takes a moment to reach all brokers."""
    deadline = time.monotonic() + _ASK_SECONDS
    while True:
        found = ask()
        if found is not None:
            return found
        if time.monotonic() > deadline:
            raise UnavailableError(f"{what} after {_ASK_SECONDS:g} s")
        time.sleep(_WAIT_SECONDS)


def _milliseconds(retention_seconds: int | None) -> str:
    return "-1" if retention_seconds is None else str(retention_seconds * 1000)
