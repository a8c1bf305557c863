"""Rows to learn from: the features of every label as they were known at its instant, from rows of the lake alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.base.errors import CallError, StopError
from headrace.engines.engine import quote_name, quote_text
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.events.taxonomy import TAXONOMY
from headrace.features.feature import Column
from headrace.features.keys import ABSENT, count_threads, number_part, pair_parts
from headrace.features.window import tail_of

if TYPE_CHECKING:
    from headrace.features.kernel import Events, Found

Ints = NDArray[np.int64]

MILLIONTHS = 1_000_000
MOST = 9e12
"""What is added up lies within this and its negative; anything else counts nothing."""

_OFFSET_BITS = 48
"""A place is a partition and an offset in `clicks` as one number."""

_PIECE = 1 << 18
"""So many rows one thread takes at once."""


class Lake(Protocol):
    """What features are read from."""

    @property
    def at_us(self) -> int:
        """What arrived later does not count."""

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> pa.Table:
        """Returns the answer to one SELECT as Arrow."""

    def items_of(self, event: Event) -> str:
        """Returns a SELECT with a row for each item of an event: all of `events`, `item`, `known` of it as JSON."""


def join(lake: Lake, columns: Sequence[Column], labels: pa.Table) -> pa.Table:
    """Returns a row for every label, in their order, with a column for each feature as it was known then.

    A label has `at_us`, and what the keys are made of: `person`, `item` and attributes of the item such as `@genre`.
    One that was served has `known`, the first `seq` of each partition of `events` that it did not know. One without
    (or with an empty one) knows what was received before it.
    """
    asked = _read_labels(labels, columns)
    found: dict[str, pa.Array] = {}
    sources: dict[_Source, list[Column]] = defaultdict(list)
    for column in columns:
        sources[_Source(column.event, column.item, column.dimension)].append(column)
    for source, of_source in sources.items():
        found.update(_join_source(lake, source, of_source, asked))
    return pa.table({column.name: found[column.name] for column in columns})


@dataclass(frozen=True)
class _Source:
    """Columns that are made of the same rows."""

    event: str
    item: str
    dimension: str


@dataclass(frozen=True)
class _Labels:
    table: pa.Table
    at_us: Ints
    known: Ints
    """What some labels knew of each partition."""
    said: Ints
    """Of each label the row of `known` that it has."""
    served: NDArray[np.bool_]


@dataclass(frozen=True)
class _Rows:
    """The rows of a source that some label has the key of, by key, time and place."""

    table: pa.Table
    """All rows, as they came."""
    order: Ints
    """Of each sorted row its number in the table."""
    starts: Ints
    event_us: Ints

    def column(self, name: str) -> Ints:
        """Returns a column of numbers in this order."""
        return _take(self.table.column(name).to_numpy(), self.order)

    def only(self, kept: NDArray[np.bool_]) -> _Rows:
        """Returns some of the rows."""
        starts = np.concatenate([[0], np.cumsum(kept)])[self.starts]
        return _Rows(self.table, self.order[kept], starts, self.event_us[kept])

    def find_ties(self) -> NDArray[np.bool_]:
        """Returns of each row whether it has the key and event of the one before: an event may name many items."""
        tied = np.zeros(len(self.order), np.bool_)
        tied[1:] = self.event_us[1:] == self.event_us[:-1]
        tied[self.starts[self.starts < len(tied)]] = False
        places, rows = self.table.column("place").to_numpy(), np.flatnonzero(tied)
        tied[rows] = places[self.order[rows]] == places[self.order[rows - 1]]
        return tied


def _take(numbers: Ints, places: Ints) -> Ints:
    """Returns the numbers that stand at places: to fetch them from all over the memory, each thread waits alone."""
    found = np.empty(len(places), np.int64)

    def work(begin: int, end: int) -> None:
        # Without a mode NumPy takes into a copy.
        np.take(numbers, places[begin:end], out=found[begin:end], mode="clip")

    _in_threads(work, len(places))
    return found


def _in_threads(work: Callable[[int, int], None], count: int) -> None:
    """Does the work for pieces of so many rows; little of it at once."""
    bounds = [*range(0, count, _PIECE), count]
    if len(bounds) < 3:
        work(0, count)
        return
    with ThreadPoolExecutor(count_threads()) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))


# Labels.


def _read_labels(labels: pa.Table, columns: Sequence[Column]) -> _Labels:
    needed = {"at_us", *(part for column in columns for part in column.by)}
    for name in sorted(needed - set(labels.schema.names)):
        raise CallError(
            f"the labels have no column {name!r}, which is part of a feature's key. They have: "
            f"{', '.join(labels.schema.names)}"
        )
    if labels.column("at_us").null_count:
        raise CallError("some labels have no at_us, the instant that their features are asked for")
    at_us = labels.column("at_us").cast(pa.int64()).to_numpy()
    nobody = np.zeros(len(at_us), np.bool_)
    if "known" not in labels.schema.names:
        return _Labels(labels, at_us, np.zeros((len(at_us), 0), np.int64), np.arange(len(at_us)), nobody)
    column = labels.column("known").combine_chunks()
    said = np.arange(len(at_us))
    if pa.types.is_dictionary(column.type):
        column, said = column.dictionary, column.indices.to_numpy()
    served = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False) > 0
    return _Labels(labels, at_us, _read_known(column), said, served[said])


def _read_known(column: pa.Array) -> Ints:
    """Returns a row for each list and a column for each partition; 0 where nothing is said."""
    lists = column.cast(pa.list_(pa.int64()))
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    known = np.zeros((len(lengths), int(lengths.max(initial=0))), np.int64)
    known[rows, places] = lists.flatten().fill_null(0).to_numpy(zero_copy_only=False)
    return known


def bounds_of(at_us: Ints, windows: Sequence[int]) -> tuple[Ints, Ints]:
    """Returns, for each instant and window, where it begins, and for each instant where all of them end."""
    tails = np.empty((len(at_us), len(windows)), np.int64)

    def work(begin: int, end: int) -> None:
        for number, window_us in enumerate(windows):
            # The one definition of a window's tail serves whole arrays as well.
            tails[begin:end, number] = tail_of(cast("Any", at_us[begin:end]), window_us)

    _in_threads(work, len(at_us))
    return tails, at_us


# Rows.


def _join_source(lake: Lake, source: _Source, columns: Sequence[Column], labels: _Labels) -> dict[str, pa.Array]:
    table = _read_rows(lake, source, columns, labels)
    names = dict.fromkeys(part for column in columns for part in column.by)
    parts = {name: number_part(labels.table.column(name), table.column(name)) for name in names}
    keys: dict[tuple[str, ...], list[Column]] = defaultdict(list)
    for column in columns:
        keys[column.by].append(column)
    found: dict[str, pa.Array] = {}
    for by, of_key in keys.items():
        of_labels, of_rows, num_keys = pair_parts([parts[part] for part in by])
        rows = _sort(table, of_rows, num_keys)
        asked, again = _find_asked(labels, of_labels)
        for value, text, of_ask in _divide(of_key, table):
            kept = rows if not text else rows.only(table.column(text).is_valid().to_numpy()[rows.order])
            answers = _Ask(kept, labels, asked, of_labels[asked], num_keys, tuple(of_ask)).answer(value)
            found.update({name: one if again is None else one.take(again) for name, one in answers.items()})
    return found


def _find_asked(labels: _Labels, of_labels: Ints) -> tuple[Ints, pa.Array | None]:
    """Returns labels that differ from the one before, and of each label its place among them.

    The items of a page are asked for at one instant: what is the person's is the same for all of them.
    """
    differs = np.ones(len(of_labels), np.bool_)
    differs[1:] = of_labels[1:] != of_labels[:-1]
    for column in (labels.at_us, labels.said):
        differs[1:] |= column[1:] != column[:-1]
    asked = np.flatnonzero(differs)
    return asked, None if len(asked) == len(differs) else pa.array(np.cumsum(differs) - 1)


def _read_rows(lake: Lake, source: _Source, columns: Sequence[Column], labels: _Labels) -> pa.Table:
    tails, heads = bounds_of(labels.at_us, [max(column.window_us for column in columns)])
    if not len(heads):
        heads, tails = np.zeros(1, np.int64), np.zeros((1, 1), np.int64)
    return lake.rows(
        _rows_sql(lake, source, columns, np.unique(labels.served).tolist()),
        {"since": int(tails.min()), "until": int(heads.max()), "at_us": lake.at_us},
    )


def _rows_sql(lake: Lake, source: _Source, columns: Sequence[Column], served: Sequence[bool]) -> str:
    """Returns the SELECT of a source's rows: its keys, when and where each stands, and what is summed or remembered.

    Labels that were served ask for what was known by `seq`, others for what was received.
    """
    needed = {name for column in columns for name in (*column.by, column.value)}
    names = sorted(name for name in needed if name.startswith("@"))
    picked = ["event_us", f"log_partition::BIGINT * {1 << _OFFSET_BITS} + src_offset AS place"]
    picked += [{True: "seq", False: "received_us"}[one] for one in served]
    picked += [name for name in ("person", "item") if name in needed]
    picked += [f"json_extract_string(known, {_path(name[1:])}) AS {quote_name(name)}" for name in names]
    picked += [f"{_number(value)} AS {quote_name(_sum_name(value))}" for value in _summed(columns)]
    rows = f"({lake.items_of(_event_of(source))})" if source.item else EVENTS
    named = "AND item IS NOT NULL AND item != '' " if source.item else ""
    # Names and texts in it are quoted.
    return (
        f"SELECT {', '.join(picked)} FROM {rows} WHERE type = 'track' AND event = {quote_text(source.event)} "  # noqa: S608
        f"AND NOT bot {named}AND event_us >= $since AND event_us < $until AND received_us <= $at_us"
    )


def _event_of(source: _Source) -> Event:
    canonical = TAXONOMY.get(source.event)
    first = source.item.split(".")[0].removesuffix("[]")
    fields = {first: str} if canonical and first not in canonical.__struct_fields__ else {}
    return Event(source.event, item=source.item, fields=fields)


def _path(name: str) -> str:
    return quote_text("$" + "".join(f'."{part}"' for part in name.split(".")))


def _number(path: str) -> str:
    # A text is no number here: what it might mean differs from reader to reader. In JSON it keeps its quotes.
    return f"TRY_CAST(json_extract(properties, {_path(path)})::VARCHAR AS DOUBLE)"


def _summed(columns: Sequence[Column]) -> list[str]:
    return list(dict.fromkeys(column.value for column in columns if column.kind == "total"))


def _sum_name(path: str) -> str:
    return f"sum of {path}"


def scale(numbers: NDArray[np.float64]) -> Ints:
    """Returns numbers in millionths, rounded half up; 0 for what is none, and for what lies beyond MOST.

    >>> scale(np.array([0.1, -0.1, np.nan, 1e13, 0.0000005])).tolist()
    [100000, -100000, 0, 0, 1]
    """
    usable = np.abs(numbers) <= MOST
    return np.floor(np.where(usable, numbers, 0.0) * MILLIONTHS + 0.5).astype(np.int64)


def _sort(table: pa.Table, group: Ints, num_keys: int) -> _Rows:
    """Returns the rows that have a label's key, sorted, whatever order they came in."""
    # Numba is loaded where rows are asked for, and nowhere else.
    kernel = import_module("headrace.features.kernel")
    times, places = (table.column(name).to_numpy() for name in ("event_us", "place"))
    starts, order, sorted_us = kernel.sort_rows(group, times, places, num_keys, threads=count_threads())
    return _Rows(table, order, starts, sorted_us)


# Answers.


def _divide(columns: Sequence[Column], table: pa.Table) -> list[tuple[str, str, list[Column]]]:
    """Returns which columns one pass over the rows answers, what it adds up, and what its rows must have."""
    first = next(iter(_summed(columns)), "")
    asks: dict[tuple[str, str], list[Column]] = defaultdict(list)
    for column in columns:
        lacks = column.kind == "last" and table.column(column.value).null_count > 0
        value = column.value if column.kind == "total" else first
        asks["" if lacks else value, column.value if lacks else ""].append(column)
    return [(value, text, of_ask) for (value, text), of_ask in asks.items()]


@dataclass(frozen=True)
class _Ask:
    """Columns that one pass over sorted rows answers for all labels."""

    rows: _Rows
    labels: _Labels
    asked: Ints
    """The labels that it answers for."""
    group: Ints
    """The number of the key of each of these."""
    num_keys: int
    columns: tuple[Column, ...]

    @cached_property
    def windows(self) -> list[int]:
        """The lengths of its windows."""
        return list(dict.fromkeys(column.window_us for column in self.columns))

    def answer(self, value: str) -> dict[str, pa.Array]:
        """Returns each column, with a value for each label that it answers for."""
        kernel = import_module("headrace.features.kernel")
        remembered = {column.value for column in self.columns if column.kind == "last"}
        found = kernel.make_found(
            len(self.asked), len(self.windows), has_totals=bool(value), has_newest=bool(remembered)
        )
        if len(self.rows.order):
            amount = self._read_amounts(value)
            for served in np.unique(self.labels.served).tolist():
                chosen = (self.labels.served[self.asked] == served) & (self.group >= 0)
                self._evaluate(np.where(chosen, self.group, ABSENT), amount, found, served=served)
        self._check_overflow(found)
        texts = {name: self._find_texts(name, found.newest.max(axis=1)) for name in remembered}
        answers: dict[str, pa.Array] = {}
        for column in self.columns:
            number = self.windows.index(column.window_us)
            if column.kind == "count":
                answers[column.name] = pa.array(found.counts[:, number])
            elif column.kind == "total":
                answers[column.name] = pa.array(found.totals[:, number] / MILLIONTHS)
            else:
                # The newest of all windows is the newest of each that reaches back to it.
                answers[column.name] = pc.if_else(pa.array(found.newest[:, number] >= 0), texts[column.value], None)
        return answers

    def _read_amounts(self, value: str) -> Ints:
        amount = np.zeros(len(self.rows.order), np.int64)
        if value:
            column = self.rows.table.column(_sum_name(value)).cast(pa.float64()).fill_null(np.nan)
            numbers = column.to_numpy()

            def work(begin: int, end: int) -> None:
                amount[begin:end] = scale(numbers[self.rows.order[begin:end]])

            _in_threads(work, len(amount))
        return amount

    def _evaluate(self, group: Ints, amount: Ints, found: Found, *, served: bool) -> None:
        kernel = import_module("headrace.features.kernel")
        heads = self.labels.at_us[self.asked]
        starts, order, sorted_us = kernel.sort_rows(
            group, heads, np.arange(len(group)), self.num_keys, threads=count_threads()
        )
        known, said = np.zeros((1, 0), np.int64), np.zeros(0, np.int64)
        if served:
            known, said = self.labels.known, self.labels.said[self.asked[order]]
        tails, heads = bounds_of(sorted_us, self.windows)
        labels = kernel.Labels(starts, heads, tails, known, said, order)
        kernel.evaluate(self._events(amount, served=served), labels, found, threads=count_threads())

    def _events(self, amount: Ints, *, served: bool) -> Events:
        rows = self.rows
        none = np.empty(0, np.int64)
        partition, seq = (rows.column("place") >> _OFFSET_BITS, rows.column("seq")) if served else (none, none)
        ready_us = rows.event_us if served else np.maximum(rows.event_us, rows.column("received_us"))
        kernel = import_module("headrace.features.kernel")
        return cast("Events", kernel.Events(rows.starts, rows.event_us, ready_us, partition, seq, amount))

    def _check_overflow(self, found: Found) -> None:
        for number, window_us in enumerate(self.windows):
            over = found.overflowed[:, number]
            for column in self.columns:
                if column.kind == "total" and column.window_us == window_us and over.any():
                    row = int(self.asked[np.flatnonzero(over)[0]])
                    raise StopError(
                        f"{column.name}: the sum of {column.value!r} for label {row} does not fit into 64 bits of "
                        f"millionths. Is {column.value!r} of {column.event!r} what should be added up?"
                    )

    def _find_texts(self, name: str, newest: Ints) -> pa.Array:
        """Returns the texts of the newest events; of one that names several items the greatest text."""
        texts = self.rows.table.column(name)
        some = newest >= 0
        if some.any():
            newest = np.where(some, self.rows.order[_greatest(self.rows, texts)[newest]], 0)
        # To take from thousands of chunks costs more than to make them one.
        picked = texts.cast(pa.large_string()).combine_chunks().take(pa.array(newest, mask=~some))
        return picked.cast(pa.string())


def _greatest(rows: _Rows, texts: pa.ChunkedArray) -> Ints:
    """Returns, for each row, the row of the same key and event with the greatest text: any order of rows gives that."""
    best = np.arange(len(rows.order))
    again = rows.find_ties()
    if not again.any():
        return best
    tied = again.copy()
    tied[:-1] |= again[1:]
    several = np.flatnonzero(tied)
    run = np.cumsum(~again)[several]
    encoded = texts.take(pa.array(rows.order[several])).combine_chunks().dictionary_encode()
    rank = np.empty(len(encoded.dictionary), np.int64)
    rank[pc.sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(rank))
    by_rank = np.lexsort((rank[encoded.indices.to_numpy()], run))
    is_last = np.append(np.diff(run[by_rank]) != 0, [True])
    # By run and rank, so that each run's rows stand where they stood: the last of a run is the greatest.
    best[several] = several[by_rank[is_last]][np.cumsum(np.append([0], is_last[:-1]))]
    return best
