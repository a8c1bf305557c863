"""Moves one partition on Kafka: a producer whose transactions carry the outputs and the saved offset."""

# ruff: noqa: SLF001 - librdkafka names its own errors with a leading underscore

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from headrace.base.clock import machine_us
from headrace.base.errors import FencedError, HeadraceError, UnavailableError
from headrace.topics.kafka_cluster import LOGGER, Cluster, cause_of
from headrace.topics.kafka_group import FENCED
from headrace.topics.topic import Move, Record

_OPEN_SECONDS = 10.0
_ABORT_SECONDS = 5.0
_POLL_SECONDS = 0.02

_SETTINGS: Mapping[str, Any] = {
    # Only a backstop: whoever takes a partition over ends the transaction that hangs there.
    "transaction.timeout.ms": 20_000,
    "linger.ms": 5,
    # Until the markers of one transaction are written, the next is told to wait: by default 100 ms.
    "retry.backoff.ms": 10,
    "batch.size": 262_144,
    "batch.num.messages": 10_000,
    # What the broker's default allows: our largest record with its headers and frame.
    "message.max.bytes": 1_048_588,
    "queue.buffering.max.messages": 1_000_000,
    "delivery.report.only.error": True,
}
_REFUSED = FENCED | {
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
    KafkaError.REBALANCE_IN_PROGRESS,
}


class Mover:
    """The one that may write for a partition of a group, until another bears the same id.

    The id names the partition and not the member, so that `open` ends the transaction in which an
    older holder died, and fences one that only sleeps. Whatever the group committed before lies
    then within the bounds of its topics, and can be read.
    """

    def __init__(self, cluster: Cluster, transactional_id: str) -> None:
        self._cluster = cluster
        self._what = f"transactions of {transactional_id!r}"
        self._producer = Producer(
            cluster.settings | dict(_SETTINGS) | {"transactional.id": transactional_id}, logger=LOGGER
        )
        self._failed: KafkaError | None = None

    def open(self) -> None:
        """Fences older ones, and returns once their transactions have ended."""
        try:
            self._producer.init_transactions(_OPEN_SECONDS)
        except KafkaException as error:
            raise self.meaning(error) from error

    def begin(self, move: Move, deadline: float) -> None:
        """Begins a transaction with the outputs of a move."""
        now_ms = machine_us() // 1000
        try:
            self._producer.begin_transaction()
            for name, records in move.outputs.items():
                for record in records:
                    self._send(name, move.partition, record, (now_ms, deadline))
        except KafkaException as error:
            raise self.meaning(error) from error

    def commit(self, place: TopicPartition, metadata: object, deadline: float) -> None:
        """Ends the transaction with the offset of the source, or raises with nothing written."""
        try:
            self._producer.send_offsets_to_transaction([place], metadata, _left(deadline))
            self._producer.commit_transaction(_left(deadline))
        except KafkaException as error:
            raise self.meaning(error) from error

    def abort(self) -> None:
        """Ends the transaction, if one is open: readers wait for one that nobody ends."""
        with suppress(KafkaException):
            self._producer.abort_transaction(_ABORT_SECONDS)

    def meaning(self, error: KafkaException) -> HeadraceError:
        """Returns what an error means to the holder."""
        cause = cause_of(error)
        if cause.code() in _REFUSED:
            return FencedError(f"{self._what}: somebody else took over, Kafka says {cause.name()}, {cause.str()}")
        # A commit says only that records were refused; their own reports say why.
        return self._cluster.failure(self._failed or cause, self._what)

    def _send(self, name: str, partition: int, record: Record, times: tuple[int, float]) -> None:
        now_ms, deadline = times
        while True:
            try:
                self._producer.produce(
                    name,
                    record.value,
                    record.key,
                    partition,
                    on_delivery=self._note,
                    timestamp=record.time_us // 1000 or now_ms,
                    headers=list(record.headers) if record.headers else None,
                )
            except BufferError as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(f"{self._what}: Kafka does not take the records in time") from error
                self._producer.poll(_POLL_SECONDS)
            else:
                return

    def _note(self, error: KafkaError | None, _: Message) -> None:
        # Records of an aborted transaction are purged: that is no reason but a consequence.
        if error is not None and error.code() != KafkaError._PURGE_QUEUE:
            self._failed = self._failed or error


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.001)
