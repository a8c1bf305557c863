"""The settler: folds `clicks` into `events` and `failed`, each click once, whatever dies."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby, islice
from pathlib import Path

from msgspec import UNSET

from headrace.base import fault
from headrace.base.clock import machine_us
from headrace.base.errors import FencedError, OutsideError
from headrace.base.telemetry import Metric, Metrics, get_logger
from headrace.collect.app import CLICKS
from headrace.collect.dimensions import Dimensions
from headrace.collect.memory import Home, Memory
from headrace.events import settled
from headrace.events.settle import Outcome, Rules, restore, settle, visitor_key
from headrace.events.settled import EVENTS, FAILED, PROGRESS_HEADERS, FailedEvent, Progress, SettledEvent
from headrace.events.taxonomy import FUNNEL
from headrace.topics import Message, Move, Record, Topic, Topics

GROUP = "settler"

METRICS = (
    Metric("headrace_settle_events_total", "Events settled."),
    Metric("headrace_settle_failed_total", "Events that failed, by reason.", labels={"reason": (*settled.REASONS,)}),
    Metric("headrace_settle_repeats_total", "Clicks that had been settled or had failed before."),
    Metric("headrace_settle_commits_total", "Transactions."),
    Metric("headrace_settle_funnel_total", "Events settled on the way of a choice.", labels={"event": FUNNEL}),
    Metric("headrace_settle_lag_records", "Clicks that wait to be settled.", "gauge"),
)

_PORTION = 8192
_WAIT_SECONDS = 0.2
_RENEW_SECONDS = 0.5
# A commit costs as much as a hundred events, and a reader of the lake waits for a second at least.
_PAUSE_SECONDS = 0.05
_SAVE_SECONDS = 1.0
_DEADLINE_SECONDS = 10.0
# On Kafka every other offset may be the marker of a transaction.
_LAST_RECORDS = 64

_LOGGER = get_logger("settler")


class Settler:
    """One member of the group that settles; each partition is settled by one member at a time."""

    def __init__(self, topics: Topics, rules: Rules, folder: Path, *, member: str, metrics: Metrics) -> None:
        self._topics = topics
        self._rules = rules
        self._incarnation = topics.describe(CLICKS).incarnation
        self._dimensions = Dimensions(topics, rules.dimensions)
        # Before a lease runs: a large dimension takes longer to read than one lasts.
        self._dimensions.refresh()
        self._share = topics.share(CLICKS, GROUP, member=member, lease_seconds=6.0)
        # Last: nothing may fail between taking it and `run`, which gives it back.
        try:
            self._home = Home.take(folder, member)
        except OutsideError:
            self._share.close()
            raise
        self._memories: dict[int, Memory] = {}
        self._renewed_at = self._saved_at = float("-inf")
        self._is_unsaved = False
        self._events = metrics.count("headrace_settle_events_total")
        self._repeats = metrics.count("headrace_settle_repeats_total")
        self._commits = metrics.count("headrace_settle_commits_total")
        self._lag = metrics.count("headrace_settle_lag_records")
        self._funnel = {name: metrics.count("headrace_settle_funnel_total", name) for name in FUNNEL}
        self._failed = {name: metrics.count("headrace_settle_failed_total", name) for name in settled.REASONS}

    def run(self, stop: threading.Event) -> None:
        """Settles until it is told to stop; any error is for the caller, who starts a new settler."""
        try:
            while not stop.is_set():
                stop.wait(_PAUSE_SECONDS if self.turn() < _PORTION // 2 else 0)
            self._save()
        finally:
            self.close()

    def turn(self) -> int:
        """Settles what has come since the last turn, and returns how many clicks those were."""
        now = time.monotonic()
        if now - self._renewed_at > _RENEW_SECONDS:
            self._renew()
        if not self._memories:
            return 0
        offsets = {partition: memory.state.offset for partition, memory in self._memories.items()}
        messages = self._topics.read(CLICKS, offsets, max_records=_PORTION, wait_seconds=_WAIT_SECONDS)
        if messages:
            self._commit(messages)
        if self._is_unsaved and now - self._saved_at > _SAVE_SECONDS:
            self._save()
        return len(messages)

    def close(self) -> None:
        """Gives the partitions back."""
        for memory in self._memories.values():
            memory.close()
        self._memories.clear()
        self._share.close()
        self._home.close()

    def _renew(self) -> None:
        for partition in sorted(self._hold() - self._memories.keys()):
            self._memories[partition] = self._take(partition)
        self._dimensions.refresh()
        bounds = self._topics.bounds(CLICKS)
        self._lag.set(sum(bounds[p].end - memory.state.offset for p, memory in self._memories.items()))

    def _hold(self) -> frozenset[int]:
        """Says that this member is alive, forgets what it no longer holds, and returns what it does."""
        held = self._share.held()
        self._renewed_at = time.monotonic()
        for partition in self._memories.keys() - held:
            _LOGGER.info("partition %d goes to another settler", partition)
            self._memories.pop(partition).close()
        return held

    def _commit(self, messages: Sequence[Message]) -> None:
        moves, outcomes = [], []
        # Kafka hands the partitions out mixed, and each may move once in a transaction.
        for partition, group in groupby(sorted(messages, key=_partition), _partition):
            memory = self._memories[partition]
            outcome = settle(memory.state, list(group), self._rules)
            memory.touch(visitor_key(event.visitor, event.user_id) for event in outcome.events)
            moves.append(Move(partition, memory.state.offset, _outputs(outcome, memory)))
            outcomes.append(outcome)
        fault.point("settle.folded")
        self._share.transact(moves, deadline_seconds=_DEADLINE_SECONDS)
        fault.point("settle.committed")
        self._is_unsaved = True
        self._commits.add()
        for outcome in outcomes:
            self._events.add(len(outcome.events))
            self._repeats.add(outcome.repeats)
            for event in outcome.events:
                if event.event in self._funnel:
                    self._funnel[event.event].add()
            for failure in outcome.failures:
                self._failed[failure.reason].add()

    def _save(self) -> None:
        for memory in self._memories.values():
            memory.save(self._incarnation, before_us=memory.state.newest_us - self._rules.window_us)
        fault.point("settle.saved")
        self._saved_at = time.monotonic()
        self._is_unsaved = False

    def _take(self, partition: int) -> Memory:
        """Returns the memory of a partition at the group's position, caught up by what was settled since."""
        saved = self._share.saved(partition)
        bound = self._topics.bounds(CLICKS)[partition]
        position = bound.start if saved is None else saved.offset
        if saved is None and bound.start:
            _LOGGER.error("partition %d: %d clicks are gone that were never settled", partition, bound.start)
        memory = Memory.open(self._home.partition(partition), partition, self._incarnation, position=position)
        memory.state.histories = self._dimensions
        with ExitStack() as stack:
            # A settler that cannot begin is begun anew again and again, and must not leave files open.
            stack.callback(memory.close)
            self._catch_up(memory, position)
            stack.pop_all()
        return memory

    def _catch_up(self, memory: Memory, position: int) -> None:
        began_at, lagged = time.monotonic(), position - memory.state.offset
        rows = self._settled_since(memory, position)
        while portion := list(islice(rows, _PORTION)):
            restore(memory.state, portion)
            memory.touch(visitor_key(row.visitor, row.user_id) for row in portion if isinstance(row, SettledEvent))
            memory.save(self._incarnation, before_us=memory.state.newest_us - self._rules.window_us)
        memory.state.offset = position
        if lagged:
            seconds = time.monotonic() - began_at
            _LOGGER.info("partition %d: caught up over %d clicks in %.2f s", memory.state.partition, lagged, seconds)

    def _settled_since(self, memory: Memory, position: int) -> Iterator[SettledEvent | FailedEvent | Progress]:
        """Yields what was settled from the memory's offset on, in the order of `clicks`."""
        state = memory.state
        since_us = state.newest_us or self._oldest_needed(state.partition, position)
        streams = [self._tail(name, state.partition, since_us) for name in (EVENTS, FAILED)]
        rows = heapq.merge(*streams, key=lambda row: row.src_offset)
        return (row for row in rows if row.src_offset >= state.offset)

    def _oldest_needed(self, partition: int, position: int) -> int:
        """Returns the time before which nothing matters to the click at `position`."""
        messages = self._topics.read(CLICKS, {partition: position}, max_records=1, wait_seconds=0)
        next_us = messages[0].time_us if messages else machine_us()
        return max(min(next_us, machine_us()) - self._rules.window_us, 0)

    def _tail(self, name: str, partition: int, since_us: int) -> Iterator[SettledEvent | FailedEvent | Progress]:
        bound = self._topics.bounds(name)[partition]
        # The last records tell how many there were, however old they are.
        offset = max(min(self._topics.offsets_at(name, since_us)[partition], bound.end - _LAST_RECORDS), bound.start)
        for message in Topic(self._topics, name).read_to_ends({partition: offset}):
            if settled.is_ours(message.value or b""):
                yield _row(name, message)
            else:
                _LOGGER.error("topic %s, partition %d, offset %d is none of ours", name, partition, message.offset)
            # Catching up may take longer than a lease.
            if time.monotonic() - self._renewed_at > _RENEW_SECONDS and partition not in self._hold():
                raise FencedError(
                    f"partition {partition} of {CLICKS!r} went to another settler while this one caught up"
                )


def _partition(message: Message) -> int:
    return message.partition


def _outputs(outcome: Outcome, memory: Memory) -> dict[str, list[Record]]:
    events = [
        Record((event.visitor or event.user_id or "").encode(), settled.encode(event), event.log_us)
        for event in outcome.events
    ]
    if outcome.is_silent or outcome.markers:
        events.append(_progress(memory))
    failures = [
        Record(None if failure.key is None else failure.key.encode(), settled.encode(failure), failure.log_us)
        for failure in outcome.failures
    ]
    return {name: records for name, records in ((EVENTS, events), (FAILED, failures)) if records}


def _progress(memory: Memory) -> Record:
    state = memory.state
    progress = Progress(
        version=settled.VERSION,
        src_offset=state.offset - 1,
        log_us=state.newest_us,
        settled=state.settled,
        failed=state.failed,
        dimensions=dict(sorted(state.dimensions.items())) or UNSET,
    )
    return Record(None, settled.encode(progress), state.newest_us, PROGRESS_HEADERS)


def _row(name: str, message: Message) -> SettledEvent | FailedEvent | Progress:
    value = message.value or b""
    if name == FAILED:
        return settled.decode_failed(value)
    if message.headers == PROGRESS_HEADERS:
        return settled.decode_progress(value)
    return settled.decode_settled(value)
