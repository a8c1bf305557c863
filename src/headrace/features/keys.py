"""Keys as numbers: which labels and which events are about the same person, item or attribute."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from headrace.features.kernel import Texts

Numbered = tuple[NDArray[np.int64], NDArray[np.int64], int]
"""The number of each label's key, of each event's, and how many there are."""

ABSENT = -1
"""The number of a key that no label has, or that lacks a part."""

_LITTLE = 200_000
"""Up to so many events Arrow finds texts: what Numba compiles for more of them takes a second."""
_TABLE_SIZE = 1 << 26
"""Up to so many pairs of numbers a table translates them, rather than a search: 0.1 s against 2 s for 10M events."""


def number_keys(parts: Sequence[str], labels: pa.Table, events: pa.Table) -> Numbered:
    """Returns the number of each label's key, of each event's key, and how many there are.

    >>> labels = pa.table({"person": ["ann", None], "@genre": ["drama", "drama"]})
    >>> events = pa.table({"person": ["bob", "ann"], "@genre": ["drama", "drama"]})
    >>> number_keys(("person", "@genre"), labels, events)
    (array([ 0, -1]), array([-1,  0]), 1)
    """
    return pair_parts([number_part(labels.column(part), events.column(part)) for part in parts])


def number_part(labels: pa.ChunkedArray, events: pa.ChunkedArray) -> Numbered:
    """Returns the number of each label's text, of each event's, and how many there are.

    Labels may come as a dictionary, whose values may repeat.
    """
    of_labels, values = encode_column(labels)
    return of_labels, _find_all(events, values), len(values)


def encode_column(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """Returns of each text its number among the distinct ones, ABSENT for none, and these."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):
        whole = whole.unify_dictionaries().combine_chunks()
    if not pa.types.is_dictionary(whole.type):
        encoded = whole.cast(pa.string()).dictionary_encode()
        return _filled(encoded.indices), encoded.dictionary
    encoded = whole.dictionary.cast(pa.string()).dictionary_encode()
    # The last one stands for what is absent: -1 finds it.
    numbers = np.append(_filled(encoded.indices), ABSENT)
    return numbers[_filled(whole.indices)], encoded.dictionary


def pair_parts(parts: Sequence[Numbered]) -> Numbered:
    """Returns the numbers of keys that are made of parts."""
    assert parts, "a key has parts"
    found = parts[0]
    for part in parts[1:]:
        found = _pair(found, part)
    return found


def _find_all(events: pa.ChunkedArray, values: pa.Array) -> NDArray[np.int64]:
    if len(events) < _LITTLE or not len(values):
        return _filled(pc.index_in(events.combine_chunks(), value_set=values))
    # Arrow's own search took 0.9 s for 10M rows, and this 0.2: its table is made once and looks at eight bytes at once.
    kernel = import_module("headrace.features.kernel")
    wanted = _texts_of(values)
    table = kernel.number_texts(wanted)
    found = np.empty(len(events), np.int64)
    chunks = [chunk for chunk in events.chunks if len(chunk)]
    ends = np.cumsum([len(chunk) for chunk in chunks])

    def find(chunk: pa.Array, end: int) -> None:
        mine = found[end - len(chunk) : end]
        kernel.find_texts(wanted, table, _texts_of(chunk), mine)
        if chunk.null_count:
            mine[chunk.is_null().to_numpy(zero_copy_only=False)] = ABSENT

    with ThreadPoolExecutor(count_threads()) as pool:
        list(pool.map(find, chunks, ends.tolist()))
    return found


def _texts_of(array: pa.Array) -> Texts:
    array = array.cast(pa.string())
    starts, data = array.buffers()[1:]
    kernel = import_module("headrace.features.kernel")
    texts = kernel.Texts(
        np.frombuffer(starts, np.int32)[array.offset : array.offset + len(array) + 1],
        np.frombuffer(data if data is not None and data.size else b"\0", np.uint8),
    )
    return cast("Texts", texts)


def _filled(indices: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    found: NDArray[np.int64] = indices.fill_null(ABSENT).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return found


def _pair(first: Numbered, second: Numbered) -> Numbered:
    size = second[2]
    of_labels, of_events = (
        np.where((one >= 0) & (other >= 0), one * size + other, ABSENT)
        for one, other in zip(first[:2], second[:2], strict=True)
    )
    total = first[2] * size
    pairs = _distinct(of_labels, total)
    return _translate(of_labels, pairs, total), _translate(of_events, pairs, total), len(pairs)


def _distinct(numbers: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Returns what stands among numbers below a total, in order, without what is absent."""
    if total > _TABLE_SIZE:
        return np.unique(numbers[numbers >= 0])
    stands = np.zeros(total + 1, np.bool_)
    stands[numbers] = True
    return np.flatnonzero(stands[:total])


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
    places = find_members(members, keys, ends)
    taken = pa.array(places, mask=places < 0)
    return {name: members.column(name).combine_chunks().take(taken) for name in names}


def find_members(members: pa.Table, keys: pa.Array, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns of each key the row of its member that held below an offset, ABSENT where nothing was known.

    >>> members = pa.table({"key": ["a", "a"], "log_offset": [0, 3]})
    >>> find_members(members, pa.array(["a", "a", "b"]), np.array([3, 4, 4]))
    array([ 0,  1, -1])
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
    return np.where(right, found, ABSENT)
