"""Appends to Kafka: a thread hears the delivery reports, callers wait for theirs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from headrace.base.clock import machine_us
from headrace.base.errors import DeadlineError, HeadraceError, OverloadedError
from headrace.topics.kafka_cluster import LOGGER, UNKNOWN, Cluster, cause_of
from headrace.topics.topic import Place, Record, check_records

_POLL_SECONDS = 0.1
_CHECK_SECONDS = 0.05
_CONNECT_SECONDS = 5.0
_RECORD_OVERHEAD_BYTES = 64
# What librdkafka and the broker's default allow: our largest record with its headers and frame.
_MAX_MESSAGE_BYTES = 1_048_588
_MAX_WAITING_RECORDS = 10_000_000

# A blocking append gives up at its caller's deadline; what is queued may still be written so long.
_DELIVERY_SECONDS = 30.0
_WAITING_BYTES = 64 << 20

Report = Callable[[KafkaError | None, Message], None]


class Pump:
    """A producer, and the thread that hears what became of its records."""

    def __init__(
        self, cluster: Cluster, *, delivery_seconds: float, waiting_bytes: int, heard: Callable[[], None]
    ) -> None:
        settings: dict[str, Any] = {
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": cluster.options.linger_ms,
            # Nothing may be written long after its caller was told that it was not.
            "delivery.timeout.ms": max(int(delivery_seconds * 1000), int(cluster.options.linger_ms) + 1),
            "message.max.bytes": _MAX_MESSAGE_BYTES,
            "queue.buffering.max.kbytes": 2 * (waiting_bytes >> 10) + 2048,
            "queue.buffering.max.messages": _MAX_WAITING_RECORDS,
        }
        self._producer = Producer(cluster.settings | settings, logger=LOGGER)
        self._heard = heard
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="headrace-kafka-reports", daemon=True)
        self._thread.start()

    def connect(self, cluster: Cluster) -> None:
        """Waits for a broker: a producer that is used before it knows one rests for half a second."""
        try:
            self._producer.list_topics(timeout=_CONNECT_SECONDS)
        except KafkaException as error:
            raise cluster.failure(error, "connecting a producer") from error

    def send(self, name: str, record: Record, now_ms: int, report: Report) -> None:
        """Hands one record over; `report` is called in the pump's thread, or this raises KafkaException."""
        try:
            self._producer.produce(
                name,
                record.value,
                record.key,
                on_delivery=report,
                timestamp=record.time_us // 1000 or now_ms,
                headers=list(record.headers) if record.headers else None,
            )
        except BufferError as error:
            raise KafkaException(KafkaError(KafkaError._QUEUE_FULL)) from error  # noqa: SLF001 - librdkafka's name

    def close(self, wait_seconds: float) -> None:
        """Waits for what was handed over, then ends the thread."""
        self._producer.flush(wait_seconds)
        self._stopping = True
        self._thread.join()
        self._heard()

    def _run(self) -> None:
        while not self._stopping:
            # One wake-up for all reports of a poll: per record it would cost more than the record.
            if self._producer.poll(_POLL_SECONDS):
                self._heard()


class Append:
    """The records of one append, until all of them are reported."""

    __slots__ = ("_finished", "count", "deadline", "error", "future", "heard", "places", "pump", "size")

    def __init__(self, pump: Pump, count: int, finished: Callable[[Append], None]) -> None:
        self.pump = pump
        self.count = count
        self.heard = 0
        self.error: KafkaError | None = None
        self.places: list[Place | None] = []
        self.size = 0
        self.deadline = 0.0
        self.future: asyncio.Future[None] | None = None
        self._finished = finished

    def report(self, error: KafkaError | None, _: Message) -> None:
        """Counts one record as written or failed, in the pump's thread."""
        if error is not None:
            self.error = error
        self.heard += 1
        if self.heard == self.count:
            self._finished(self)

    def place(self, index: int, error: KafkaError | None, message: Message) -> None:
        """Counts one record and notes its place."""
        partition, offset = message.partition(), message.offset()
        if error is None and partition is not None and offset is not None:
            self.places[index] = Place(partition, offset)
        self.report(error, message)

    def cut(self, count: int, error: KafkaError) -> None:
        """Ends the append after the `count` records that were handed over."""
        self.error = error
        self.count = count
        # The last of them may have been heard just before: finishing twice does no harm.
        if self.heard == count:
            self._finished(self)


class Appender:
    """Appends for callers that block."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._changed = threading.Condition()
        self._making = threading.Lock()
        self._pump: Pump | None = None

    def append(self, name: str, records: Sequence[Record], deadline_seconds: float) -> list[Place]:
        """Returns the places of the records once the broker has acknowledged all of them."""
        deadline = time.monotonic() + deadline_seconds
        self._cluster.count_partitions(name)
        if not records:
            return []
        done = threading.Event()
        append = Append(self._open(), len(records), lambda _: done.set())
        append.places = [None] * len(records)
        try:
            now_ms = machine_us() // 1000
            for index, record in enumerate(records):
                self._send(append, name, record, (now_ms, index), deadline)
        except KafkaException as error:
            raise self._failure(append, cause_of(error), name) from error
        if not done.wait(max(deadline - time.monotonic(), 0.0)):
            raise _too_late(deadline_seconds)
        if append.error is not None:
            raise self._failure(append, append.error, name)
        return [place for place in append.places if place is not None]

    def close(self) -> None:
        """Waits for what was handed over."""
        with self._making:
            pump, self._pump = self._pump, None
        if pump is not None:
            pump.close(_DELIVERY_SECONDS)

    def _open(self) -> Pump:
        with self._making:
            if self._pump is None:
                self._pump = Pump(
                    self._cluster,
                    delivery_seconds=_DELIVERY_SECONDS,
                    waiting_bytes=_WAITING_BYTES,
                    heard=self._wake,
                )
                self._pump.connect(self._cluster)
            return self._pump

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _send(self, append: Append, name: str, record: Record, mark: tuple[int, int], deadline: float) -> None:
        now_ms, index = mark
        while True:
            try:
                append.pump.send(name, record, now_ms, partial(append.place, index))
            except KafkaException as error:
                left = deadline - time.monotonic()
                if not isinstance(error.__cause__, BufferError) or left <= 0:
                    raise
                with self._changed:
                    self._changed.wait(min(left, _POLL_SECONDS))
            else:
                return

    def _failure(self, append: Append, error: KafkaError, name: str) -> HeadraceError:
        if error.fatal():
            with self._making:
                if self._pump is append.pump:
                    self._pump = None
            append.pump.close(0.0)
        return self._cluster.failure(error, f"appending to topic {name!r}")


class KafkaSender:
    """Appends for an asyncio server; what is handed over but not acknowledged is bounded in bytes."""

    def __init__(self, cluster: Cluster, *, deadline_seconds: float, max_pending_bytes: int) -> None:
        self._cluster = cluster
        self._loop = asyncio.get_running_loop()
        self._deadline_seconds = deadline_seconds
        self._max_pending_bytes = max_pending_bytes
        self._lookups: dict[str, asyncio.Task[int]] = {}
        self._known: set[str] = set()
        self._waiting: deque[Append] = deque()
        self._finished: deque[Append] = deque()
        self._pending_bytes = 0
        self._check: asyncio.TimerHandle | None = None
        self._pump = self._open()

    async def append(self, name: str, records: Sequence[Record]) -> None:
        """Returns once the broker has acknowledged the records."""
        check_records(records)
        if name not in self._known:
            await self._find(name)
        if not records:
            return
        future: asyncio.Future[None] = self._loop.create_future()
        self._send(future, name, records)
        if self._check is None:
            self._check = self._loop.call_later(_CHECK_SECONDS, self._expire)
        try:
            await future
        except KafkaException as error:
            if cause_of(error).code() in UNKNOWN:
                self._known.discard(name)
                await self._find(name)
            raise self._cluster.failure(error, f"appending to topic {name!r}") from error

    def stalled_seconds(self) -> float:
        """Returns for how long the oldest append has been waiting."""
        self._prune()
        if not self._waiting:
            return 0.0
        return max(time.monotonic() - self._waiting[0].deadline + self._deadline_seconds, 0.0)

    async def close(self) -> None:
        """Waits for what was handed over, then ends the thread."""
        await asyncio.to_thread(self._pump.close, self._deadline_seconds)
        self._settle()
        self._give_up(float("inf"))
        if self._check is not None:
            self._check.cancel()

    def _open(self) -> Pump:
        return Pump(
            self._cluster,
            delivery_seconds=self._deadline_seconds,
            waiting_bytes=self._max_pending_bytes,
            heard=self._wake,
        )

    async def _find(self, name: str) -> None:
        # A producer would have the broker make an unknown topic, with the broker's defaults.
        lookup = self._lookups.get(name)
        if lookup is None:
            lookup = asyncio.create_task(asyncio.to_thread(self._look_up, name))
            self._lookups[name] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(name))
        try:
            await asyncio.wait_for(asyncio.shield(lookup), self._deadline_seconds)
        except TimeoutError as error:
            raise _too_late(self._deadline_seconds) from error
        self._known.add(name)

    def _look_up(self, name: str) -> int:
        count = self._cluster.count_partitions(name)
        self._pump.connect(self._cluster)
        return count

    def _send(self, future: asyncio.Future[None], name: str, records: Sequence[Record]) -> None:
        size = 0
        for record in records:
            size += len(record.value or b"") + len(record.key or b"") + _RECORD_OVERHEAD_BYTES
        if self._pending_bytes + size > self._max_pending_bytes:
            raise OverloadedError(f"{self._pending_bytes:,} bytes are waiting for the topic already")
        append = Append(self._pump, len(records), self._finished.append)
        append.future, append.size = future, size
        append.deadline = time.monotonic() + self._deadline_seconds
        self._waiting.append(append)
        self._pending_bytes += size
        now_ms = machine_us() // 1000
        for index, record in enumerate(records):
            try:
                append.pump.send(name, record, now_ms, append.report)
            except KafkaException as error:
                append.cut(index, cause_of(error))
                break
        self._wake()

    def _wake(self) -> None:
        if self._finished and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        while self._finished:
            append = self._finished.popleft()
            self._pending_bytes -= append.size
            append.size = 0
            error = append.error
            if error is not None and error.fatal() and append.pump is self._pump:
                LOGGER.error("the producer is lost, another takes its place: %s", error.str())
                self._pump = self._open()
                self._loop.run_in_executor(None, append.pump.close, 0.0)
            if append.future is None or append.future.done():
                continue
            if error is None:
                append.future.set_result(None)
            else:
                append.future.set_exception(KafkaException(error))

    def _prune(self) -> None:
        while self._waiting and (self._waiting[0].future is None or self._waiting[0].future.done()):
            self._waiting.popleft()

    def _expire(self) -> None:
        self._give_up(time.monotonic())
        self._check = self._loop.call_later(_CHECK_SECONDS, self._expire) if self._waiting else None

    def _give_up(self, now: float) -> None:
        self._prune()
        for append in self._waiting:
            if append.deadline >= now:
                break
            if append.future is not None and not append.future.done():
                append.future.set_exception(_too_late(self._deadline_seconds))
        self._prune()


def _too_late(deadline_seconds: float) -> DeadlineError:
    return DeadlineError(f"Kafka did not acknowledge within {deadline_seconds:g} s; the records may still arrive")
