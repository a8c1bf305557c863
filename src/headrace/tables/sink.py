"""The sink: moves a topic into its table, each record once, whatever dies.

A table holds, in the commit of the rows themselves, how far it has read each partition. The sink
seeks there and appends through the very snapshot that it read the position from: who is too late
is refused by the table, not by a lock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from headrace.base import fault
from headrace.base.errors import FencedError, FormatError, PositionError
from headrace.base.telemetry import LATENCY_BUCKETS, Metric, Metrics, get_logger
from headrace.tables.codec import Codec
from headrace.tables.table import Table
from headrace.topics import Bounds, Message, Topics

GROUP = "sink"
INCARNATION = "headrace.incarnation"
TOPIC = "headrace.topic"

_LOGS = ("events", "failed", "decisions")

METRICS = (
    Metric("headrace_sink_rows_total", "Rows committed to tables."),
    Metric("headrace_sink_commits_total", "Commits to tables.", labels={"topic": (*_LOGS, "dimensions")}),
    Metric("headrace_sink_conflicts_total", "Commits that were refused because somebody else had moved the table."),
    Metric(
        "headrace_sink_lag_records",
        "Records of a topic that its table lacks.",
        "gauge",
        labels={"topic": (*_LOGS, "dimensions")},
    ),
    Metric("headrace_sink_skipped_total", "Records that were no rows and have been passed over."),
    Metric("headrace_sink_commit_seconds", "Time of a commit.", "histogram", buckets=(*LATENCY_BUCKETS, 10.0, 30.0)),
)

_PORTION = 8192
_WAIT_SECONDS = 0.2
_RENEW_SECONDS = 0.5
# Text that is no UTF-8, nesting without end, and numbers beyond 64 bits have errors of their own.
_UNREADABLE = (ValueError, RecursionError, OverflowError)
_LOGGER = get_logger("sink")


@dataclass(frozen=True)
class Flush:
    """When what was read is committed."""

    seconds: float = 5.0
    rows: int = 20_000
    """As many are sorted and written at once: 50,000 took 280 MB, 20,000 take 150."""
    bytes: int = 16 << 20
    advance_seconds: float = 60.0
    """How long a position may move on without a row before that alone is committed."""
    reload_commits: int = 50
    """How many commits one snapshot may make: they grow slower with each, 8 to 86 ms in 400."""


@dataclass
class _Buffer:
    """What was read of the partitions that are held and is not in the table yet."""

    offsets: dict[int, int] = field(default_factory=dict)
    """Where the next read goes on."""
    committed: dict[int, int] = field(default_factory=dict)
    """Where the table stands."""
    batches: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    since: float = 0.0

    def moved(self) -> dict[int, int]:
        """Returns the partitions that were read further than the table stands."""
        return {p: offset for p, offset in self.offsets.items() if offset > self.committed[p]}


class Sink:
    """Moves one topic into one table, for the partitions that this member holds."""

    def __init__(
        self, topics: Topics, topic: str, table: Table, codec: Codec, *, member: tuple[str, Flush], metrics: Metrics
    ) -> None:
        self._topics = topics
        self._topic = topic
        self._table = table
        self._codec = codec
        self._member, self._flush_when = member
        self._incarnation = topics.describe(topic).incarnation
        check_incarnation(table, topic, self._incarnation)
        if not set(codec.schema.names) <= set(table.schema.names):
            table.evolve(codec.schema)
        self._share = topics.share(topic, GROUP, member=self._member, lease_seconds=6.0)
        self._buffer = _Buffer()
        self._loaded_version = table.version
        self._renewed_at = float("-inf")
        self._rows = metrics.count("headrace_sink_rows_total")
        label = topic if topic in _LOGS else "dimensions"
        self._commits = metrics.count("headrace_sink_commits_total", label)
        self._lag = metrics.count("headrace_sink_lag_records", label)
        self._skipped = metrics.count("headrace_sink_skipped_total")
        self._conflicts = metrics.count("headrace_sink_conflicts_total")
        self._seconds = metrics.measure("headrace_sink_commit_seconds")

    def run(self, stop: threading.Event) -> None:
        """Moves records until it is told to stop; any error is for the caller, who starts a new sink."""
        try:
            while not stop.is_set():
                if not self.turn():
                    stop.wait(_WAIT_SECONDS if not self._buffer.offsets else 0)
            self.flush()
        finally:
            self._share.close()

    @property
    def offsets(self) -> Mapping[int, int]:
        """Where the next read goes on in each partition that is held."""
        return self._buffer.offsets

    def turn(self) -> int:
        """Reads what has come, commits what is due, and returns how many records were read."""
        self._renew()
        if not self._buffer.offsets:
            return 0
        wait_seconds = min(_WAIT_SECONDS, max(self._seconds_left(), 0.0))
        messages = self._topics.read(self._topic, self._buffer.offsets, max_records=_PORTION, wait_seconds=wait_seconds)
        self._take(messages)
        if self._is_due():
            self.flush()
        return len(messages)

    def flush(self) -> None:
        """Commits what was read; what somebody else was faster with is dropped and read again."""
        buffer = self._buffer
        moved = buffer.moved()
        if not moved:
            return
        try:
            if self._table.version - self._loaded_version >= self._flush_when.reload_commits:
                self._reload()
                self._check_unmoved(buffer.committed)
            self._check_topic()
            fault.point("sink.committing")
            began_at = time.monotonic()
            self._append(moved)
            self._seconds.observe(time.monotonic() - began_at)
            fault.point("sink.committed")
        except FencedError as error:
            _LOGGER.info("%s; reading again", error)
            self._conflicts.add()
            self._seek(buffer.offsets)
            return
        self._rows.add(buffer.rows)
        self._commits.add()
        self._buffer = _Buffer(buffer.offsets, {**buffer.committed, **moved}, since=time.monotonic())

    def _append(self, moved: Mapping[int, int]) -> None:
        positions = {self._app(partition): offset for partition, offset in moved.items()}
        note = {
            "topic": self._topic,
            "incarnation": self._incarnation,
            "offsets": {str(p): [self._buffer.committed[p], offset] for p, offset in moved.items()},
            "producer": self._member,
        }
        if self._buffer.batches:
            rows = pa.Table.from_batches(self._buffer.batches).sort_by(self._codec.sort_by)
            self._table.append(rows, positions=positions, note=note)
        else:
            self._table.advance(positions, note)

    def _app(self, partition: int) -> str:
        return f"{self._incarnation}/{partition}"

    def _take(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        buffer = self._buffer
        if not buffer.moved():
            buffer.since = time.monotonic()
        rows = [message for message in messages if message.headers != self._codec.passed_over]
        if rows:
            batch = self._decode(rows)
            buffer.batches.append(batch)
            buffer.rows += batch.num_rows
            buffer.bytes += batch.nbytes
        for message in messages:
            buffer.offsets[message.partition] = message.offset + 1

    def _decode(self, messages: Sequence[Message]) -> pa.RecordBatch:
        try:
            return self._codec.read(messages)
        except _UNREADABLE:
            return self._codec.read([message for message in messages if self._is_row(message)])

    def _is_row(self, message: Message) -> bool:
        """Returns whether a record is a row; raises FormatError for a row that this version cannot read."""
        value = message.value or b""
        place = f"topic {self._topic!r}, partition {message.partition}, offset {message.offset}"
        try:
            self._codec.read([message])
        except _UNREADABLE as error:
            if self._codec.is_ours(value):
                raise FormatError(f"{place} holds a row that this Headrace cannot read: {error}") from error
            # Somebody has appended it by hand; no table may stand still for that.
            _LOGGER.warning("%s is no row and is passed over: %s", place, error)
            self._skipped.add()
            return False
        return True

    def _is_due(self) -> bool:
        buffer, when = self._buffer, self._flush_when
        if buffer.rows >= when.rows or buffer.bytes >= when.bytes:
            return True
        return bool(buffer.moved()) and self._seconds_left() <= 0

    def _seconds_left(self) -> float:
        """Returns how long what was read may wait, at most as long as nothing has been read."""
        seconds = self._flush_when.seconds if self._buffer.rows else self._flush_when.advance_seconds
        return self._buffer.since + seconds - time.monotonic() if self._buffer.moved() else seconds

    def _renew(self) -> None:
        now = time.monotonic()
        if now - self._renewed_at < _RENEW_SECONDS:
            return
        self._renewed_at = now
        try:
            held = self._share.held()
        except PositionError as error:
            raise PositionError(
                f"topic {self._topic!r} was created anew, table {self._table.name!r} was filled from the one before. "
                f"{_choose(self._table.name, self._topic)}"
            ) from error
        if held != self._buffer.offsets.keys():
            # Whoever held a new one may have committed since this snapshot was taken.
            self._seek(held)
        ends = {p: bound.end for p, bound in enumerate(self._topics.bounds(self._topic))}
        self._lag.set(sum(ends[p] - offset for p, offset in self._buffer.committed.items()))

    def _seek(self, partitions: Iterable[int]) -> None:
        """Drops what was read and goes to where the table stands."""
        self._reload()
        bounds = self._topics.bounds(self._topic)
        committed = {p: self._position(p, bounds[p]) for p in sorted(partitions)}
        self._buffer = _Buffer(dict(committed), committed, since=time.monotonic())

    def _reload(self) -> None:
        self._table.reload()
        self._loaded_version = self._table.version

    def _position(self, partition: int, bound: Bounds) -> int:
        position = self._table.position(self._app(partition))
        if position is None:
            return bound.start
        if not bound.start <= position <= bound.end:
            raise PositionError(
                f"table {self._table.name!r} stands at {position} of topic {self._topic!r}, partition {partition}, "
                f"which has {bound.start} to {bound.end}. {_choose(self._table.name, self._topic)}"
            )
        return position

    def _check_topic(self) -> None:
        """Raises PositionError unless all that was read came from the topic that this sink was made for."""
        # A lease tells of another topic within half a second; a longer one of the same name is read on until then.
        found = self._topics.describe(self._topic).incarnation
        if found != self._incarnation:
            raise PositionError(
                f"topic {self._topic!r} was created anew: it is {found} now, table {self._table.name!r} was filled "
                f"from {self._incarnation}. {_choose(self._table.name, self._topic)}"
            )

    def _check_unmoved(self, committed: Mapping[int, int]) -> None:
        for partition, expected in committed.items():
            found = self._table.position(self._app(partition))
            if found is not None and found != expected:
                raise FencedError(
                    f"table {self._table.name!r}: partition {partition} stands at {found}, not at {expected}"
                )


def check_incarnation(table: Table, topic: str, incarnation: str) -> None:
    """Raises PositionError for a table that was made of another topic of this name."""
    found = table.properties.get(INCARNATION)
    if found != incarnation:
        raise PositionError(
            f"table {table.name!r} was made of incarnation {found} of topic {topic!r}, which was created anew and is "
            f"{incarnation} now. {_choose(table.name, topic)}"
        )


def _choose(table: str, topic: str) -> str:
    return f"Choose where to go on with: headrace topic replay {topic} --fresh {table} | --continue {table}"
