"""One member's part of a shared group on Kafka: its group is the lease, its transactions are the fence."""

# ruff: noqa: SLF001 - librdkafka names its own errors with a leading underscore

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from headrace.base.errors import CallError, FencedError, HeadraceError
from headrace.topics.kafka_cluster import LOGGER, MARKS_TOPIC, UNKNOWN, Cluster, cause_of
from headrace.topics.kafka_group import FENCED, group_id_of, leave_group, read_position
from headrace.topics.kafka_mover import Mover
from headrace.topics.topic import Description, Move, Position, check_output, check_records, other_incarnation

# A broker grants no shorter session unless its group.min.session.timeout.ms says so.
MIN_LEASE_SECONDS = 6.0

_ASK_SECONDS = 10.0
_POLL_SECONDS = 0.02
_CHECK_SECONDS = 1.0
_MAX_THREADS = 32

_MEMBER_SETTINGS: Mapping[str, Any] = {
    "group.protocol": "classic",
    "partition.assignment.strategy": "range",
    "heartbeat.interval.ms": 1000,
    "enable.auto.commit": False,
    "auto.offset.reset": "error",
}
# Told about the connection or the topic, while librdkafka goes on trying; `held` looks at the topic itself.
_IGNORED = UNKNOWN | {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError._MAX_POLL_EXCEEDED,
}


class KafkaShare:
    """A static member that reads nothing, with a mover for each partition it holds.

    After an error of `transact` the share is of no use any more: close it, open another and ask where
    it stands.
    """

    def __init__(self, cluster: Cluster, topic: Description, group: str, *, member: str, lease_seconds: float) -> None:
        self._cluster = cluster
        self._topic = topic
        self._group = group
        self._what = f"group {group!r} of topic {topic.name!r}, member {member!r}"
        self._member = member
        self._lease_seconds = max(lease_seconds, MIN_LEASE_SECONDS)
        self._movers: dict[int, Mover] = {}
        self._assigned: frozenset[int] = frozenset()
        self._known: frozenset[int] = frozenset()
        self._partitions: dict[str, int] = {}
        self._failure: HeadraceError | None = None
        self._joined = self._lost = self._away = self._marked = self._closed = False
        self._member_id = ""
        self._changed = threading.Condition(threading.RLock())
        self._heard_at = self._checked_at = time.monotonic()
        cluster.ensure_marks()
        self._pool = ThreadPoolExecutor(min(topic.partitions, _MAX_THREADS), "headrace-kafka-share")
        self._consumer = self._join()
        self._watch = threading.Thread(target=self._leave_when_silent, name="headrace-kafka-lease", daemon=True)
        self._watch.start()

    def held(self) -> frozenset[int]:
        """Returns the partitions whose movers stand, and says that this member is alive.

        While the members divide the partitions anew, a member that holds some waits, a lease at most.
        All that the group ever committed to a partition that is returned lies within the bounds of
        its topics: a mover is opened only when the transactions of its forerunner have ended.
        """
        with self._changed:
            self._check_usable()
            self._heard_at = time.monotonic()
            if self._lost:
                self._leave()
            if self._away:
                self._come_back()
            self._hear_rebalances()
            self._check_incarnation()
            before, self._known = self._known, frozenset(self._movers)
            opened = self._open_movers()
            # One that was lost and came back is left out once, so that the caller drops what it knows of it.
            self._known |= opened - before
            self._heard_at = time.monotonic()
            return self._known

    def saved(self, partition: int) -> Position | None:
        """Returns the group's saved position of a partition that is held."""
        with self._changed:
            self._check_usable()
            self._check_held(partition)
            place = self._committed(TopicPartition(self._topic.name, partition))
            if place.offset >= 0:
                position = read_position(place)
                self._check_position(position.incarnation)
                return position
            # The broker forgets the positions together with the topic they were in, but not the mark.
            mark = self._committed(TopicPartition(MARKS_TOPIC, 0))
            self._check_position(mark.metadata or self._topic.incarnation)
            return None

    def transact(self, moves: Sequence[Move], *, deadline_seconds: float) -> None:
        """Appends the outputs and saves the offsets, each partition in a transaction of its own."""
        deadline = time.monotonic() + deadline_seconds
        with self._changed:
            self._check_usable()
            self._check_moves(moves)
            try:
                self._mark()
                self._run(moves, deadline)
            except HeadraceError as error:
                self._failure = error
                self._movers.clear()
                raise

    def close(self) -> None:
        """Leaves the group at once; what another member of this name holds is not touched."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            if not self._away:
                self._leave()
        self._watch.join()
        self._pool.shutdown()

    def _member_settings(self) -> dict[str, Any]:
        lease_ms = int(self._lease_seconds * 1000)
        return {
            **_MEMBER_SETTINGS,
            "group.id": group_id_of(self._topic.name, self._group),
            # A process that starts again under this name has its partitions back at once.
            "group.instance.id": self._member,
            "session.timeout.ms": lease_ms,
            # A static member that polls too seldom does not leave but only falls silent: we leave by ourselves.
            "max.poll.interval.ms": 2 * lease_ms,
        }

    def _join(self) -> Consumer:
        consumer = Consumer(self._cluster.settings | self._member_settings(), logger=LOGGER)
        consumer.subscribe(
            [self._topic.name], on_assign=self._note_assigned, on_revoke=self._note_revoked, on_lost=self._note_lost
        )
        return consumer

    def _note_assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        # Assigned to nothing the member keeps its part of the group, and fetches no record.
        consumer.assign([])
        self._member_id = consumer.memberid()
        self._assigned = frozenset(place.partition for place in places if place.topic == self._topic.name)
        self._joined = True
        self._keep(self._assigned)

    def _note_revoked(self, _consumer: Consumer, _places: list[TopicPartition]) -> None:
        # The movers stay for what comes back with the next assignment: a holder in between would fence them.
        self._joined = False

    def _note_lost(self, consumer: Consumer, _places: list[TopicPartition]) -> None:
        self._joined, self._lost = False, True
        self._keep(frozenset())
        # librdkafka would join again by itself, and so fence a newer member of the same name.
        with suppress(KafkaException):
            consumer.unsubscribe()

    def _keep(self, partitions: frozenset[int]) -> None:
        self._movers = {p: mover for p, mover in self._movers.items() if p in partitions}

    def _come_back(self) -> None:
        for name, member_id in self._cluster.group_members(group_id_of(self._topic.name, self._group)).items():
            if name == self._member and member_id != self._member_id:
                raise self._fence()
        self._away = False
        self._consumer = self._join()

    def _hear_rebalances(self) -> None:
        """Hears what the broker told; whoever held something waits for a rebalance rather than lose it."""
        deadline = time.monotonic() + self._lease_seconds
        while True:
            waits = not self._joined and bool(self._movers)
            message = self._consumer.poll(_POLL_SECONDS if waits else 0.0)
            if message is not None:
                self._judge(message.error())
            elif self._joined or not self._movers:
                return
            elif time.monotonic() > deadline:
                self._keep(frozenset())

    def _judge(self, error: KafkaError | None) -> None:
        if error is None or error.code() in _IGNORED:
            return
        if error.code() in FENCED:
            raise self._fence()
        raise self._cluster.failure(error, self._what)

    def _fence(self) -> FencedError:
        self._keep(frozenset())
        self._failure = FencedError(f"{self._what}: a newer member of the same name took over")
        return self._failure

    def _check_usable(self) -> None:
        if self._closed:
            raise CallError(f"{self._what}: the share is closed")
        if self._failure is not None:
            raise type(self._failure)(f"{self._what}: close the share and open another after: {self._failure}")

    def _check_held(self, partition: int) -> None:
        if partition not in self._movers or partition not in self._known:
            raise FencedError(f"{self._what}: partition {partition} is not held")

    def _check_incarnation(self) -> None:
        now = time.monotonic()
        if now - self._checked_at > _CHECK_SECONDS or not self._joined:
            found = self._cluster.incarnation(self._topic.name)
            if found != self._topic.incarnation:
                raise other_incarnation(self._topic.name, self._group, self._topic.incarnation, found)
            self._checked_at = now

    def _check_position(self, incarnation: str) -> None:
        if incarnation != self._topic.incarnation:
            raise other_incarnation(self._topic.name, self._group, incarnation, self._topic.incarnation)

    def _open_movers(self) -> frozenset[int]:
        missing = sorted(self._assigned - self._movers.keys()) if self._joined else []
        opened = dict(zip(missing, self._pool.map(self._open_mover, missing), strict=True))
        self._movers |= {partition: mover for partition, mover in opened.items() if mover is not None}
        return frozenset(partition for partition, mover in opened.items() if mover is not None)

    def _open_mover(self, partition: int) -> Mover | None:
        mover = Mover(self._cluster, f"headrace.{self._topic.name}.{self._group}.{partition}")
        try:
            mover.open()
        except FencedError:
            # Somebody was faster; if this member still has the partition then, the next call tries again.
            return None
        return mover

    def _check_moves(self, moves: Sequence[Move]) -> None:
        for move in moves:
            self._check_held(move.partition)
            for name, records in move.outputs.items():
                check_records(records)
                partitions = self._count_partitions(name)
                check_output(name, partitions, source=self._topic.name, partition=move.partition)
        if len({move.partition for move in moves}) < len(moves):
            raise CallError(f"{self._what}: more than one move of a partition, join them")

    def _count_partitions(self, name: str) -> int:
        # A producer would have the broker make an unknown topic, with the broker's defaults.
        if name not in self._partitions:
            self._partitions[name] = self._cluster.count_partitions(name)
        return self._partitions[name]

    def _mark(self) -> None:
        """Notes the incarnation where the broker keeps it once the topic is gone."""
        if self._marked:
            return
        mark = self._committed(TopicPartition(MARKS_TOPIC, 0))
        if mark.metadata != self._topic.incarnation:
            place = TopicPartition(MARKS_TOPIC, 0, max(mark.offset, 1), self._topic.incarnation)
            try:
                self._consumer.commit(offsets=[place], asynchronous=False)
            except KafkaException as error:
                raise self._meaning(error, "noting the topic's incarnation") from error
        self._marked = True

    def _run(self, moves: Sequence[Move], deadline: float) -> None:
        begun: list[Mover] = []
        try:
            metadata = self._consumer.consumer_group_metadata()
            for move in moves:
                begun.append(self._movers[move.partition])
                begun[-1].begin(move, deadline)
        except HeadraceError:
            for mover in begun:
                mover.abort()
            raise

        def commit(move: Move) -> HeadraceError | None:
            place = TopicPartition(self._topic.name, move.partition, move.offset, self._topic.incarnation)
            mover = self._movers[move.partition]
            try:
                mover.commit(place, metadata, deadline)
            except HeadraceError as error:
                mover.abort()
                return error
            return None

        # Commits spend their time waiting for the broker, so those of all partitions go side by side.
        failures = [failure for failure in self._pool.map(commit, moves) if failure is not None]
        if failures:
            raise next((one for one in failures if isinstance(one, FencedError)), failures[0])

    def _meaning(self, error: KafkaException | KafkaError, what: str) -> HeadraceError:
        if cause_of(error).code() in FENCED:
            return FencedError(f"{self._what}: {what}: somebody else took over, Kafka says {cause_of(error).name()}")
        return self._cluster.failure(error, f"{self._what}: {what}")

    def _committed(self, place: TopicPartition) -> TopicPartition:
        what = "reading the saved position"
        try:
            found = self._consumer.committed([place], timeout=_ASK_SECONDS)[0]
        except KafkaException as error:
            raise self._meaning(error, what) from error
        if found.error is not None:
            raise self._meaning(found.error, what)
        return found

    def _leave_when_silent(self) -> None:
        """Gives the partitions back when nobody calls `held`, though this process beats on."""
        with self._changed:
            while not self._closed:
                left = self._heard_at + self._lease_seconds - time.monotonic()
                if left <= 0 and not self._away:
                    LOGGER.warning("%s: silent for %g s, its partitions go to others", self._what, self._lease_seconds)
                    self._leave()
                self._changed.wait(left if left > 0 else self._lease_seconds)

    def _leave(self) -> None:
        self._keep(frozenset())
        leave_group(self._consumer)
        # Only now: the loss of what it held may be told while it leaves.
        self._joined, self._lost, self._away = False, False, True
