"""The updater: counts `events` in the online store's tiles, each event once, whatever dies."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa
from msgspec import UNSET, Raw

from headrace.base import fault
from headrace.base.errors import FencedError, FormatError, PositionError
from headrace.base.telemetry import Metric, Metrics, get_logger
from headrace.events.settled import EVENTS, is_row
from headrace.features.feature import Column
from headrace.features.online import Online, Place, State
from headrace.features.tiles import Addition, Blob, Fold, Row, definitions_of, make_blob, pack, read_row, unpack
from headrace.tables import Table
from headrace.tables.sink import INCARNATION
from headrace.topics import Message, Topics

METRICS = (
    Metric("headrace_update_events_total", "Events counted in the online store."),
    Metric("headrace_update_commits_total", "Transactions of the online store."),
    Metric("headrace_update_lag_records", "Records of events that wait to be counted.", "gauge"),
)

_PORTION = 4096
_WAIT_SECONDS = 0.2
# A commit costs as much as fifty events, and a click may take a second to become a value.
_PAUSE_SECONDS = 0.05
_LOOK_SECONDS = 0.5
_COMPARE_SECONDS = 5.0
# Some KB each.
_REMEMBERED = 4_000
_AGAIN = "Make the features anew with: headrace feature backfill"
_LAKE_COLUMNS = (
    "type",
    "event",
    "event_us",
    "person",
    "src_offset",
    "seq",
    "bot",
    "properties",
    "attributes",
    "log_partition",
)

_LOGGER = get_logger("updater")


@dataclass(frozen=True)
class Sources:
    """Where events come from."""

    topics: Topics
    find_lake: Callable[[], Table | None]
    """Returns the table of `events` as it is now; None if there is none yet."""


class Growth:
    """One generation of tiles while it grows; whoever else moves it fences this one."""

    def __init__(self, online: Online, state: State, columns: Sequence[Column]) -> None:
        self.state = state
        self.columns = tuple(columns)
        self._online = online
        self._fold = Fold(columns)
        # Not what the lake knew: the rows of a topic that was created anew begin at 0 again.
        self._followed = list(state.known)
        self._blobs: OrderedDict[Place, Blob] = OrderedDict()

    def follow(self, messages: Sequence[Message]) -> int:
        """Counts what came of the topic, and returns how many events that were."""
        offsets, known = list(self.state.offsets), list(self.state.known)
        rows: list[tuple[int, Row]] = []
        repeats = 0
        for message in messages:
            offsets[message.partition] = message.offset + 1
            if is_row(message.value or b"", message.headers):
                row = _read(message)
                # A log without transactions may hold the same row twice.
                if row.seq >= self._followed[message.partition]:
                    self._followed[message.partition] = known[message.partition] = row.seq + 1
                    rows.append((message.partition, row))
                else:
                    repeats += 1
        if repeats:
            _LOGGER.warning("%d events of %r have the seq of earlier ones and are passed over", repeats, EVENTS)
        self._commit(rows, offsets, known)
        return len(rows)

    def count(self, rows: Sequence[tuple[int, Row]]) -> None:
        """Counts rows from elsewhere, each given once, in any order."""
        known = list(self.state.known)
        for partition, row in rows:
            known[partition] = max(known[partition], row.seq + 1)
        self._commit(rows, self.state.offsets, known)

    def _commit(self, rows: Sequence[tuple[int, Row]], offsets: Sequence[int], known: Sequence[int]) -> None:
        newest_us = list(self.state.newest_us)
        added: dict[Place, list[Addition]] = {}
        for partition, row in rows:
            newest_us[partition] = max(newest_us[partition], row.event_us)
            for entity, addition in self._fold.additions(row):
                added.setdefault((entity, partition), []).append(addition)
        state = msgspec.structs.replace(
            self.state,
            revision=self.state.revision + 1,
            offsets=tuple(offsets),
            known=tuple(known),
            newest_us=tuple(newest_us),
        )
        changes = self._change(added)
        fault.point("update.folded")
        self._online.commit(changes, state, self.state)
        fault.point("update.committed")
        self.state = state

    def _change(self, added: Mapping[Place, list[Addition]]) -> dict[Place, bytes]:
        missing = [place for place in added if place not in self._blobs]
        stored = self._online.load(self.state.generation, missing)
        for place in missing:
            value = stored.get(place)
            self._blobs[place] = make_blob() if value is None else unpack(value, place)
        changes = {}
        for place, additions in added.items():
            blob = self._blobs[place]
            self._fold.extend(blob, additions)
            self._fold.prune(blob)
            changes[place] = pack(blob, place)
            self._blobs.move_to_end(place)
        while len(self._blobs) > _REMEMBERED:
            self._blobs.popitem(last=False)
        return changes


class Rebuild:
    """Makes a generation beside the one that serves: from the lake, then from the topic, until it has caught up."""

    def __init__(self, online: Online, columns: Sequence[Column], sources: Sources, *, now_us: int) -> None:
        self._online = online
        self._topics = sources.topics
        incarnation = self._topics.describe(EVENTS).incarnation
        table = _fitting(sources.find_lake(), incarnation)
        offsets = _starts(self._topics, table, incarnation)
        nothing = (0,) * len(offsets)
        state = State(
            generation=now_us,
            definitions=definitions_of(columns),
            incarnation=incarnation,
            offsets=offsets,
            known=nothing,
            newest_us=nothing,
        )
        online.begin(state, columns)
        self.growth = Growth(online, state, columns)
        self._batches = None if table is None else _lake_rows(table)
        self._num_rows = 0
        self._began_at = time.monotonic()
        _LOGGER.info(
            "generation %d is made from %s", now_us, "the topic" if table is None else f"the lake, {table.uri}"
        )

    def step(self) -> bool:
        """Counts a portion; returns whether the generation serves now."""
        if self._batches is not None:
            self._take(next(self._batches, None))
            return False
        # Under traffic there is always something left: level with what serves is enough.
        if follow(self._topics, self.growth, wait_seconds=_PAUSE_SECONDS) > _PORTION // 2:
            return False
        done = self._online.promote(self.growth.state)
        if done:
            state, seconds = self.growth.state, time.monotonic() - self._began_at
            _LOGGER.info("generation %d serves after %.1f s: %d events", state.generation, seconds, sum(state.known))
        return done

    def _take(self, rows: list[tuple[int, Row]] | None) -> None:
        """Counts rows of the lake; at their end says how many it no longer has."""
        state = self.growth.state
        if rows is not None:
            self.growth.count(rows)
            self._num_rows += len(rows)
            return
        self._batches = None
        gone = sum(state.known) - self._num_rows
        if gone > 0:
            _LOGGER.warning("%d events are in the lake no more; features begin after them", gone)


class Updater:
    """Moves on what serves, and makes it anew where that lacks a column or nothing serves yet.

    Columns that nobody asks for any more are counted until then.
    """

    def __init__(
        self,
        online: Online,
        find_columns: Callable[[], Sequence[Column]],
        sources: Sources,
        *,
        clock: Callable[[], int],
        metrics: Metrics,
    ) -> None:
        self._online = online
        self._find_columns = find_columns
        self._sources = sources
        self._clock = clock
        self._growth: Growth | None = None
        self._rebuild: Rebuild | None = None
        self._is_clean = False
        self._looked_at = self._compared_at = float("-inf")
        self._held: frozenset[str] = frozenset()
        self._events = metrics.count("headrace_update_events_total")
        self._commits = metrics.count("headrace_update_commits_total")
        self._lag = metrics.count("headrace_update_lag_records")

    def run(self, stop: threading.Event) -> None:
        """Counts until it is told to stop; any error is for the caller, who starts a new updater."""
        self.open()
        while not stop.is_set():
            try:
                stop.wait(_PAUSE_SECONDS if self.turn() < _PORTION // 2 else 0)
            except FencedError:
                if not self._was_replaced():
                    raise
                self.open()

    def open(self) -> None:
        """Goes on where the online store stands; raises PositionError if that is another topic."""
        state = self._online.read_state()
        for other in self._online.read_states():
            if state is None or other.generation != state.generation:
                # Half made by somebody who died.
                self._online.drop(other.generation)
        self._growth = self._rebuild = None
        self._is_clean = False
        if state is not None:
            self._serve(Growth(self._online, state, self._online.read_columns(state.generation)))
            self._look()
        self._compare()

    def _serve(self, growth: Growth) -> None:
        self._growth, self._is_clean = growth, False
        self._held = frozenset(column.identity for column in growth.columns)

    def _compare(self) -> None:
        """Begins to make what serves anew if it lacks a column."""
        self._compared_at = time.monotonic()
        columns = self._find_columns()
        if self._growth is None or not self._held.issuperset(column.identity for column in columns):
            self._rebuild = Rebuild(self._online, columns, self._sources, now_us=self._clock())

    def turn(self) -> int:
        """Counts what has come since the last turn, and returns how many records were read, or would be at once."""
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            self._look()
        if self._rebuild is None and time.monotonic() - self._compared_at > _COMPARE_SECONDS:
            self._compare()
        came = 0
        if self._growth is not None:
            before = self._growth.state
            wait_seconds = _WAIT_SECONDS if self._rebuild is None and self._is_clean else 0.0
            came = follow(self._sources.topics, self._growth, wait_seconds=wait_seconds)
            self._note(before, self._growth.state)
        if self._rebuild is not None:
            growth = self._rebuild.growth
            before = growth.state
            if self._rebuild.step():
                self._rebuild = None
                self._serve(growth)
            self._note(before, growth.state)
            return _PORTION
        if not self._is_clean:
            self._is_clean = not self._online.sweep()
        return came

    def _note(self, before: State, after: State) -> None:
        if after != before:
            self._commits.add()
            self._events.add(max(sum(after.known) - sum(before.known), 0))

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        if self._growth is None:
            return
        topics, state = self._sources.topics, self._growth.state
        found = topics.describe(EVENTS).incarnation
        if found != state.incarnation:
            raise PositionError(
                f"the topic {EVENTS!r} was created anew: it is {found} now, the online store has counted "
                f"{state.incarnation}. {_AGAIN}"
            )
        bounds = topics.bounds(EVENTS)
        self._lag.set(sum(bound.end - offset for bound, offset in zip(bounds, state.offsets, strict=True)))

    def _was_replaced(self) -> bool:
        """Returns whether another generation serves than the one that this updater moves on."""
        state = self._online.read_state()
        return state is not None and (self._growth is None or state.generation != self._growth.state.generation)


def follow(topics: Topics, growth: Growth, *, wait_seconds: float) -> int:
    """Counts what the topic holds behind a generation, and returns how many records were read."""
    offsets = dict(enumerate(growth.state.offsets))
    try:
        messages = topics.read(EVENTS, offsets, max_records=_PORTION, wait_seconds=wait_seconds)
    except PositionError as error:
        raise PositionError(f"the online store cannot go on: {error}. {_AGAIN}") from error
    if messages:
        growth.follow(messages)
    return len(messages)


def rebuild(
    online: Online,
    columns: Sequence[Column],
    sources: Sources,
    *,
    now_us: int,
    told: Callable[[State], None] = lambda _: None,
) -> State:
    """Returns the state of a new generation, which serves from then on; `told` hears of each portion."""
    made = Rebuild(online, columns, sources, now_us=now_us)
    while not made.step():
        told(made.growth.state)
    while online.sweep():
        pass
    return made.growth.state


def _read(message: Message) -> Row:
    try:
        return read_row(message.value or b"")
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise FormatError(
            f"topic {EVENTS!r}, partition {message.partition}, offset {message.offset} holds an event that this "
            f"Headrace cannot read: {error}"
        ) from error


def _fitting(table: Table | None, incarnation: str) -> Table | None:
    """Returns the table if it was made of this topic."""
    return table if table is not None and table.properties.get(INCARNATION) == incarnation else None


def _starts(topics: Topics, table: Table | None, incarnation: str) -> tuple[int, ...]:
    """Returns from where on the topic is read: behind what the lake holds."""
    offsets = []
    for partition, bound in enumerate(topics.bounds(EVENTS)):
        offset = (table.position(f"{incarnation}/{partition}") if table else None) or 0
        if offset < bound.start:
            _LOGGER.warning(
                "partition %d: %d records of %r are in no lake and gone from the topic; features begin after them",
                partition,
                bound.start - offset,
                EVENTS,
            )
        offsets.append(max(offset, bound.start))
    return tuple(offsets)


def _lake_rows(table: Table) -> Iterator[list[tuple[int, Row]]]:
    """Yields the events of a table, in whatever order its files are; all of them count, and the order does not."""
    columns = [name for name in _LAKE_COLUMNS if name in table.schema.names]
    for batch in table.scan(columns).batches():
        for start in range(0, batch.num_rows, _PORTION):
            yield list(_rows_of(batch.slice(start, _PORTION)))


def _rows_of(batch: pa.RecordBatch) -> Iterable[tuple[int, Row]]:
    for one in batch.to_pylist():
        partition = one.pop("log_partition")
        for name in ("properties", "attributes"):
            text = one.get(name)
            one[name] = UNSET if text is None else Raw(text.encode())
        yield partition, Row(**one)
