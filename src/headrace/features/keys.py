"""Keys as numbers: which labels and which events are about the same person, item or attribute."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

ABSENT = -1
"""The number of a key that no label has, or that lacks a part."""

_LITTLE = 10_000
_TABLE_SIZE = 1 << 26
"""Up to so many pairs of numbers a table translates them, rather than a search: 0.1 s against 2 s for 10M events."""


def number_keys(
    parts: Sequence[str], labels: pa.Table, events: pa.Table
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Returns the number of each label's key, of each event's key, and how many there are.

    >>> labels = pa.table({"person": ["ann", None], "@genre": ["drama", "drama"]})
    >>> events = pa.table({"person": ["bob", "ann"], "@genre": ["drama", "drama"]})
    >>> number_keys(("person", "@genre"), labels, events)
    (array([ 0, -1]), array([-1,  0]), 1)
    """
    found: tuple[NDArray[np.int64], NDArray[np.int64], int] | None = None
    for part in parts:
        numbered = _number_part(labels.column(part), events.column(part))
        found = numbered if found is None else _pair(found, numbered)
    assert found is not None, "a key has parts"
    return found


def _number_part(labels: pa.ChunkedArray, events: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    encoded = labels.cast(pa.string()).combine_chunks().dictionary_encode()
    values = encoded.dictionary
    of_labels = _filled(encoded.indices)
    # Arrow makes its table of the values once a call: a call for each chunk took 9 s rather than 1 for 10M rows.
    size = max(-(-len(events) // count_threads()), _LITTLE)
    parts = [events.slice(start, size) for start in range(0, len(events), size)]
    if len(parts) < 2:
        of_events = [_find(part, values) for part in parts]
    else:
        with ThreadPoolExecutor(len(parts)) as pool:
            of_events = list(pool.map(_find, parts, [values] * len(parts)))
    return of_labels, np.concatenate([np.empty(0, np.int64), *of_events]), len(values)


def _find(part: pa.ChunkedArray, values: pa.Array) -> NDArray[np.int64]:
    return _filled(pc.index_in(part, value_set=values))


def _filled(indices: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    found: NDArray[np.int64] = indices.fill_null(ABSENT).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return found


def _pair(
    first: tuple[NDArray[np.int64], NDArray[np.int64], int], second: tuple[NDArray[np.int64], NDArray[np.int64], int]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    size = second[2]
    of_labels, of_events = (
        np.where((one >= 0) & (other >= 0), one * size + other, ABSENT)
        for one, other in zip(first[:2], second[:2], strict=True)
    )
    pairs = np.unique(of_labels[of_labels >= 0])
    total = first[2] * size
    return _translate(of_labels, pairs, total), _translate(of_events, pairs, total), len(pairs)


def _translate(numbers: NDArray[np.int64], pairs: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Returns the place of each number among the pairs."""
    if not len(pairs):
        return np.full(len(numbers), ABSENT, np.int64)
    if total <= _TABLE_SIZE:
        table = np.full(total + 1, ABSENT, np.int64)
        table[pairs] = np.arange(len(pairs))
        # The last one stands for what is absent: -1 finds it.
        return table[numbers]
    places = np.searchsorted(pairs, numbers).clip(0, len(pairs) - 1)
    return np.where(pairs[places] == numbers, places, ABSENT)


def count_threads() -> int:
    """Returns how many threads a join uses."""
    return os.cpu_count() or 1


def attributes_of(
    members: pa.Table, names: Sequence[str], keys: pa.Array, ends: NDArray[np.int64]
) -> Mapping[str, pa.Array]:
    """Returns attributes of members as they were below offsets, null where nothing was known.

    `members` has key, log_offset and a column for each attribute.

    >>> members = pa.table({"key": ["a", "a"], "log_offset": [0, 3], "genre": ["drama", "crime"]})
    >>> attributes_of(members, ["genre"], pa.array(["a", "a", "b"]), np.array([3, 4, 4]))["genre"].to_pylist()
    ['drama', 'crime', None]
    """
    of_keys, of_members, size = number_keys(("key",), pa.table({"key": keys}), members)
    offsets = members.column("log_offset").to_numpy()
    most = int(offsets.max(initial=0)) + 2
    places = of_members * most + offsets
    order = np.argsort(np.where(of_members >= 0, places, size * most), kind="stable")
    asked = of_keys * most + np.clip(ends, 0, most - 1)
    index = np.searchsorted(np.where(of_members >= 0, places, size * most)[order], asked) - 1
    found = np.where((index >= 0) & (of_keys >= 0), order[index] if len(order) else 0, ABSENT)
    right = found >= 0
    right[right] = of_members[found[right]] == of_keys[right]
    taken = pa.array(found, mask=~right)
    return {name: members.column(name).combine_chunks().take(taken) for name in names}
