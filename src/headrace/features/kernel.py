"""The kernel: counts, sums and the newest of every window at every label, in one pass over sorted events per key.

Nobody else imports Numba: it costs 60 MB, so that no door may. `join` imports it when rows are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Compiled = TypeVar("Compiled", bound=Callable[..., Any])

NONE = -1
"""The newest event of a window that holds none."""

_LITTLE = 10_000
_LEVELS = 4
"""So often labels are divided at most."""
_MUCH = 4
"""How many looks at single events, for each event, cost more than to go through all of them once more."""
_LOW_BITS = 32
_LOW = (1 << _LOW_BITS) - 1
_HALF = 1 << 31


def _compiled(function: Compiled) -> Compiled:
    return cast("Compiled", njit(cache=True, nogil=True)(function))


class Events(NamedTuple):
    """Events by key and within it by time and place; `starts` says where each key begins, and the last ends."""

    starts: Ints
    event_us: Ints
    ready_us: Ints
    """From when on a label may know it: what lies before `at` is known to a label that was never served."""
    partition: Ints
    seq: Ints
    amount: Ints


class Labels(NamedTuple):
    """Labels by key and within it by time."""

    starts: Ints
    at_us: Ints
    tails: Ints
    """Of each label and window the first instant that counts."""
    known: Ints
    """Of each page and partition the first `seq` that was not known; without partitions `ready_us` decides alone."""
    said: Ints
    """Of each label the row of `known` that it has."""
    rows: Ints
    """Where in what is found each label stands."""


class Texts(NamedTuple):
    """Texts as Arrow has them: where each begins among the bytes, and where the last ends."""

    starts: NDArray[np.int32]
    data: NDArray[np.uint8]


class Found(NamedTuple):
    """Of each label and window what it counts."""

    counts: Ints
    totals: Ints
    newest: Ints
    """The number of the newest event, or NONE."""
    overflowed: NDArray[np.bool_]


def sort_rows(group: Ints, time_us: Ints, place: Ints, num_groups: int, *, threads: int) -> tuple[Ints, Ints, Ints]:
    """Returns where the rows of each group begin, their order by group, time and place, and their times in it.

    Rows whose group is negative are left out.
    """
    starts = _count_groups(group, num_groups)
    order, sorted_us = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.int64)

    def work(first: int, end: int) -> None:
        # Each goes through all groups: that costs a tenth of what it takes to write the rows here and there.
        _spread((group, time_us), starts, first, end, (sorted_us, order))
        _sort_groups(starts, first, end, (sorted_us, order, place))

    _in_threads(work, starts, threads)
    return starts, order, sorted_us


def make_found(num_labels: int, num_windows: int, *, has_totals: bool, has_newest: bool) -> Found:
    """Returns what labels count that have no events, with a row for each label; without rows what nobody asks for."""
    totals = np.zeros((num_labels * has_totals, num_windows), np.int64)
    newest = np.full((num_labels * has_newest, num_windows), NONE, np.int64)
    return Found(np.zeros((num_labels, num_windows), np.int64), totals, newest, np.zeros(totals.shape, np.bool_))


def evaluate(events: Events, labels: Labels, found: Found, *, threads: int, levels: int = _LEVELS) -> None:
    """Writes what every label counts in every window: O(events + labels), and more only where `known` falls."""
    enters = np.empty(len(events.event_us), np.int64)
    band, band_key, surely = enters[:0], enters[:0], labels.known
    if _falls(labels.starts, labels.known, labels.said):
        labels = labels._replace(known=labels.known[labels.said], said=np.arange(len(labels.said)))
        surely = _settle_known(labels.starts, labels.known)
        band, band_key = _sort_bands(events, threads=threads)
        if levels and _count_bands(events, labels, surely, band, band_key) > _MUCH * len(enters):
            _evaluate_apart(events, labels, found, threads=threads, levels=levels - 1)
            return

    def work(first: int, end: int) -> None:
        _enter(events, labels, surely, enters, first, end)
        _evaluate(events, labels, (surely, enters, band, band_key), found, first, end)

    _in_threads(work, events.starts + labels.starts, threads)


def _evaluate_apart(events: Events, labels: Labels, found: Found, *, threads: int, levels: int) -> None:
    """Evaluates the labels that know ever more apart from those that fall behind.

    A label that knew next to nothing would cost all labels before it a look at all events since.
    """
    rises = _find_rising(labels.starts, labels.known)
    for chosen in (rises, ~rises):
        starts = np.concatenate([[0], np.cumsum(chosen)])[labels.starts]
        said = np.arange(starts[-1])
        some = Labels(
            starts, labels.at_us[chosen], labels.tails[chosen], labels.known[chosen], said, labels.rows[chosen]
        )
        evaluate(events, some, found, threads=threads, levels=levels)


def _in_threads(work: Callable[[int, int], None], starts: Ints, threads: int) -> None:
    """Does the work for ranges of groups of about the same size; little of it at once, as a thread costs 0.1 ms."""
    if threads == 1 or starts[-1] < _LITTLE:
        work(0, len(starts) - 1)
        return
    cuts = np.unique(np.searchsorted(starts, np.linspace(0, starts[-1], 4 * threads + 1)))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, cuts[:-1].tolist(), cuts[1:].tolist()))


def _sort_bands(events: Events, *, threads: int) -> tuple[Ints, Ints]:
    """Returns the events of each key by partition and `seq`, and what they are sorted by."""
    group = np.repeat(np.arange(len(events.starts) - 1), np.diff(events.starts))
    _, order, _ = sort_rows(group, events.partition, events.seq, len(events.starts) - 1, threads=threads)
    return order, events.seq[order]


@_compiled
def _count_groups(group: Ints, num_groups: int) -> Ints:
    """Returns where the rows of each group begin, and where the last ends."""
    starts = np.zeros(num_groups + 1, np.int64)
    for one in group:
        if one >= 0:
            starts[one + 1] += 1
    for number in range(num_groups):
        starts[number + 1] += starts[number]
    return starts


@_compiled
def _spread(rows: tuple[Ints, Ints], starts: Ints, first: int, end: int, columns: tuple[Ints, Ints]) -> None:
    """Writes the rows of a range of groups and their times by group, in the order in which they stand."""
    group, time_us = rows
    sorted_us, order = columns
    free = starts[first:end].copy()
    for row, one in enumerate(group):
        if first <= one < end:
            place = free[one - first]
            order[place] = row
            sorted_us[place] = time_us[row]
            free[one - first] += 1


@_compiled
def _sort_groups(starts: Ints, first: int, end: int, columns: tuple[Ints, Ints, Ints]) -> None:
    """Sorts the rows of each group by time, and those at one instant by the place that a row has."""
    scratch = np.empty((2, 0), np.int64)
    for group in range(first, end):
        begin, stop = starts[group], starts[group + 1]
        if _is_sorted(columns, begin, stop):
            continue
        if stop - begin > scratch.shape[1]:
            scratch = np.empty((2, stop - begin), np.int64)
        width = 16
        for left in range(begin, stop, width):
            _insert(columns, left, min(left + width, stop))
        while width < stop - begin:
            for left in range(begin, stop - width, 2 * width):
                _merge(columns, scratch, left, left + width, min(left + 2 * width, stop))
            width *= 2


@_compiled
def _is_sorted(columns: tuple[Ints, Ints, Ints], begin: int, stop: int) -> bool:
    time_us, order, place = columns
    for row in range(begin + 1, stop):
        if time_us[row] < time_us[row - 1]:
            return False
        if time_us[row] == time_us[row - 1] and place[order[row]] < place[order[row - 1]]:
            return False
    return True


@_compiled
def _insert(columns: tuple[Ints, Ints, Ints], begin: int, stop: int) -> None:
    """Sorts a few rows by insertion."""
    time_us, order, place = columns
    for row in range(begin + 1, stop):
        one_us, one = time_us[row], order[row]
        free = row
        while free > begin and (
            time_us[free - 1] > one_us or (time_us[free - 1] == one_us and place[order[free - 1]] > place[one])
        ):
            time_us[free], order[free] = time_us[free - 1], order[free - 1]
            free -= 1
        time_us[free], order[free] = one_us, one


@_compiled
def _merge(columns: tuple[Ints, Ints, Ints], scratch: Ints, begin: int, middle: int, stop: int) -> None:
    """Merges two sorted runs that stand side by side."""
    time_us, order, place = columns
    if time_us[middle - 1] < time_us[middle]:
        return
    length = middle - begin
    for row in range(length):
        scratch[0, row], scratch[1, row] = time_us[begin + row], order[begin + row]
    left, right, free = 0, middle, begin
    while left < length:
        one_us, one = scratch[0, left], scratch[1, left]
        if right < stop and (
            time_us[right] < one_us or (time_us[right] == one_us and place[order[right]] < place[one])
        ):
            time_us[free], order[free] = time_us[right], order[right]
            right += 1
        else:
            time_us[free], order[free] = one_us, one
            left += 1
        free += 1


@_compiled
def _falls(starts: Ints, known: Ints, said: Ints) -> bool:
    """Returns whether any label knows more than a later one of its key."""
    for group in range(len(starts) - 1):
        for label in range(starts[group] + 1, starts[group + 1]):
            for partition in range(known.shape[1]):
                if known[said[label], partition] < known[said[label - 1], partition]:
                    return True
    return False


@_compiled
def _settle_known(starts: Ints, known: Ints) -> Ints:
    """Returns what a label and all later ones of its key know."""
    surely = known.copy()
    for group in range(len(starts) - 1):
        for label in range(starts[group + 1] - 2, starts[group] - 1, -1):
            for partition in range(known.shape[1]):
                surely[label, partition] = min(surely[label, partition], surely[label + 1, partition])
    return surely


@_compiled
def _find_rising(starts: Ints, known: Ints) -> NDArray[np.bool_]:
    """Returns of each label whether it knows all that those before it of which this is true know."""
    rises = np.zeros(len(known), np.bool_)
    most = np.empty(known.shape[1], np.int64)
    for group in range(len(starts) - 1):
        most[:] = 0
        for label in range(starts[group], starts[group + 1]):
            if (known[label] >= most).all():
                most[:] = known[label]
                rises[label] = True
    return rises


@_compiled
def _count_bands(events: Events, labels: Labels, surely: Ints, band: Ints, band_key: Ints) -> int:
    """Returns how many events have to be looked at one by one."""
    looks = 0
    for group in range(len(labels.starts) - 1):
        since, until = events.starts[group], events.starts[group + 1]
        for label in range(labels.starts[group], labels.starts[group + 1]):
            for partition in range(surely.shape[1]):
                known = labels.known[label, partition]
                if known > surely[label, partition]:
                    place = (since, until, partition, surely[label, partition])
                    low = _find_band(events.partition, band, band_key, place)
                    looks += _find_band(events.partition, band, band_key, (low, until, partition, known)) - low
    return looks


@_compiled
def _is_known(at_us: Ints, surely: Ints, said: Ints, event: tuple[int, int, int], label: int) -> bool:
    """Returns whether a label and all later ones of its key know an event before them."""
    ready_us, partition, seq = event
    if at_us[label] <= ready_us:
        return False
    return surely.shape[1] == 0 or bool(partition < surely.shape[1] and seq < surely[said[label], partition])


@_compiled
def _enter(events: Events, labels: Labels, surely: Ints, enters: Ints, first: int, end: int) -> None:
    """Notes of each event from which label on all know it, searching from where the one before was found."""
    # As plain arrays: to hand a tuple of arrays on for each event cost 1.1 of 1.35 s.
    at_us, said, ready_us, partition, seq = labels.at_us, labels.said, events.ready_us, events.partition, events.seq
    served = surely.shape[1] > 0
    for group in range(first, end):
        begin, stop = labels.starts[group], labels.starts[group + 1]
        place = begin
        for event in range(events.starts[group], events.starts[group + 1]):
            one = (ready_us[event], partition[event] if served else 0, seq[event] if served else 0)
            low, high = _near(at_us, surely, said, one, (begin, stop, place))
            while low < high:
                middle = (low + high) // 2
                if _is_known(at_us, surely, said, one, middle):
                    high = middle
                else:
                    low = middle + 1
            place = low
            enters[event] = place


@_compiled
def _near(
    at_us: Ints, surely: Ints, said: Ints, event: tuple[int, int, int], asked: tuple[int, int, int]
) -> tuple[int, int]:
    """Returns bounds of the first label that knows an event, found in growing steps from a place."""
    begin, stop, place = asked
    step = 1
    if place < stop and not _is_known(at_us, surely, said, event, place):
        low = place + 1
        while low + step < stop:
            if _is_known(at_us, surely, said, event, low + step):
                return low, low + step
            low += step + 1
            step *= 2
        return low, stop
    high = place
    while high - step >= begin:
        if not _is_known(at_us, surely, said, event, high - step):
            return high - step + 1, high
        high -= step
        step *= 2
    return begin, high


@_compiled
def _evaluate(
    events: Events, labels: Labels, places: tuple[Ints, Ints, Ints, Ints], found: Found, first: int, end: int
) -> None:
    num_windows = labels.tails.shape[1]
    tail = np.empty(num_windows, np.int64)
    sums = np.empty((3, num_windows), np.int64)
    for group in range(first, end):
        begin, stop = labels.starts[group], labels.starts[group + 1]
        since, until = events.starts[group], events.starts[group + 1]
        if begin == stop or since == until:
            continue
        entering, bounds = _by_entry(places[1], since, until, begin, stop)
        tail[:] = since
        sums[:] = 0
        newest: Any = np.int64(NONE)  # Else Numba compiles all below twice.
        for label in range(begin, stop):
            _leave(events, labels, places[1], (label, until), tail, sums)
            for event in entering[bounds[label - begin] : bounds[label - begin + 1]]:
                newest = max(newest, event)
                _add(events.amount[event], event, tail, sums)
            _write(found, labels.rows[label], newest, tail, sums)
            if len(places[3]):
                _add_band(events, labels, places, (label, since, until, newest), (tail, sums), found)


@_compiled
def _by_entry(enters: Ints, since: int, until: int, begin: int, stop: int) -> tuple[Ints, Ints]:
    """Returns the events of a key by the label that they enter at, and where those of each label begin."""
    bounds = np.zeros(stop - begin + 2, np.int64)
    for event in range(since, until):
        bounds[enters[event] - begin + 1] += 1
    for label in range(stop - begin + 1):
        bounds[label + 1] += bounds[label]
    free = bounds.copy()
    entering = np.empty(until - since, np.int64)
    for event in range(since, until):
        entering[free[enters[event] - begin]] = event
        free[enters[event] - begin] += 1
    return entering, bounds


@_compiled
def _leave(events: Events, labels: Labels, enters: Ints, bound: tuple[int, int], tail: Ints, sums: Ints) -> None:
    """Moves the tails of all windows to where they are at a label, and takes away what they had counted."""
    label, until = bound
    for window in range(len(tail)):
        event = tail[window]
        while event < until and events.event_us[event] < labels.tails[label, window]:
            if enters[event] < label:
                sums[0, window] -= 1
                sums[1, window] -= events.amount[event] >> _LOW_BITS
                sums[2, window] -= events.amount[event] & _LOW
            event += 1
        tail[window] = event


@_compiled
def _add(amount: int, event: int, tail: Ints, sums: Ints) -> None:
    """Adds an event to the windows that hold it."""
    for window in range(len(tail)):
        if event >= tail[window]:
            # In two halves, so that no sum on the way overflows: only the whole one is asked whether it fits.
            sums[0, window] += 1
            sums[1, window] += amount >> _LOW_BITS
            sums[2, window] += amount & _LOW


@_compiled
def _write(found: Found, row: int, newest: int, tail: Ints, sums: Ints) -> None:
    for window in range(len(tail)):
        high = sums[1, window] + (sums[2, window] >> _LOW_BITS)
        found.counts[row, window] = sums[0, window]
        if len(found.totals):
            found.totals[row, window] = (high << _LOW_BITS) | (sums[2, window] & _LOW)
            found.overflowed[row, window] = high < -_HALF or high >= _HALF
        if len(found.newest):
            found.newest[row, window] = newest if newest >= tail[window] else NONE


@_compiled
def _add_band(
    events: Events,
    labels: Labels,
    places: tuple[Ints, Ints, Ints, Ints],
    bound: tuple[int, int, int, int],
    state: tuple[Ints, Ints],
    found: Found,
) -> None:
    """Adds, for one label alone, the events that it knew and a later one did not."""
    surely, _, band, band_key = places
    label, since, until, newest = bound
    tail, sums = state[0], state[1].copy()
    for partition in range(surely.shape[1]):
        known = labels.known[label, partition]
        if known <= surely[label, partition]:
            continue
        place = _find_band(events.partition, band, band_key, (since, until, partition, surely[label, partition]))
        while place < until and events.partition[band[place]] == partition and band_key[place] < known:
            event = band[place]
            place += 1
            if events.event_us[event] < labels.at_us[label]:
                newest = max(newest, event)
                _add(events.amount[event], event, tail, sums)
    _write(found, labels.rows[label], newest, tail, sums)


@_compiled
def _find_band(partitions: Ints, band: Ints, band_key: Ints, bound: tuple[int, int, int, int]) -> int:
    """Returns where in the band of a key a partition has the first event that is not surely known."""
    low, high, partition, seq = bound
    while low < high:
        middle = (low + high) // 2
        found = partitions[band[middle]]
        if found < partition or (found == partition and band_key[middle] < seq):
            low = middle + 1
        else:
            high = middle
    return low


# Texts.

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_HALF_BITS = np.uint64(32)
_BYTE_BITS = np.uint64(8)


def number_texts(values: Texts) -> NDArray[np.int32]:
    """Returns a table in which `find_texts` looks: of each hash the number of a value, or NONE."""
    size = 16
    while size < 4 * len(values.starts):
        size *= 2
    table = np.full(size, NONE, np.int32)
    _fill(values, table)
    return table


@_compiled
def _fill(values: Texts, table: NDArray[np.int32]) -> None:
    for number in range(len(values.starts) - 1):
        slot = _hash(values.data, values.starts[number], values.starts[number + 1]) & (len(table) - 1)
        while table[slot] != NONE:
            slot = (slot + 1) & (len(table) - 1)
        table[slot] = number


@_compiled
def find_texts(values: Texts, table: NDArray[np.int32], texts: Texts, found: Ints) -> None:
    """Writes the number of each text among distinct values, or NONE."""
    for row in range(len(found)):
        begin, end = texts.starts[row], texts.starts[row + 1]
        slot = _hash(texts.data, begin, end) & (len(table) - 1)
        found[row] = NONE
        while table[slot] != NONE:
            if _is_same(values, table[slot], texts.data, begin, end):
                found[row] = table[slot]
                break
            slot = (slot + 1) & (len(table) - 1)


@_compiled
def _hash(data: NDArray[np.uint8], begin: int, end: int) -> int:
    mixed = np.uint64(end - begin)
    place = begin
    while place + 8 <= end:
        mixed = (mixed ^ _word(data, place)) * _MULTIPLIER
        mixed ^= mixed >> _HALF_BITS
        place += 8
    rest = np.uint64(0)
    while place < end:
        rest = (rest << _BYTE_BITS) | np.uint64(data[place])
        place += 1
    mixed = (mixed ^ rest) * _MULTIPLIER
    return int(mixed >> _HALF_BITS)


@_compiled
def _word(data: NDArray[np.uint8], place: int) -> np.uint64:
    """Returns eight bytes as one number: the compiler reads them at once."""
    first = np.uint64(place)
    word = np.uint64(data[first])
    for number in range(1, 8):
        word |= np.uint64(data[first + np.uint64(number)]) << np.uint64(8 * number)
    return word


@_compiled
def _is_same(values: Texts, number: int, data: NDArray[np.uint8], begin: int, end: int) -> bool:
    since, until = values.starts[number], values.starts[number + 1]
    if until - since != end - begin:
        return False
    while begin + 8 <= end:
        if _word(values.data, since) != _word(data, begin):
            return False
        begin, since = begin + 8, since + 8
    while begin < end:
        if values.data[since] != data[begin]:
            return False
        begin, since = begin + 1, since + 1
    return True
