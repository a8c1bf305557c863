"""Parity: the vectors that decisions were made of, against the same features from rows of the lake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.base.errors import StopError
from headrace.engines.engine import quote_name, quote_text
from headrace.events.settled import EVENTS
from headrace.features.feature import Column, attribute_names
from headrace.features.join import Lake, join
from headrace.features.keys import attributes_of

MOST_EXAMPLES = 5
"""So many differences of a column are shown."""


@dataclass(frozen=True)
class Example:
    """A value that differs."""

    recommendation_id: str
    item: str
    served: Any
    recomputed: Any


@dataclass
class Compared:
    """What became of one column."""

    column: Column
    compared: int = 0
    mismatches: int = 0
    told: int = 0
    """How many values that were served said something: more than 0, or a text."""
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Parity:
    """What a comparison found."""

    decisions: int
    """How many decisions were compared."""
    behind: int
    """How many knew events that the lake does not hold yet; they were left out."""
    columns: tuple[Compared, ...]

    @property
    def mismatches(self) -> int:
        """How many values differ."""
        return sum(one.mismatches for one in self.columns)


def diff(lake: Lake, decisions: pa.Table, columns: Mapping[str, Sequence[Column]]) -> Parity:
    """Returns what decisions served, compared with what their rows of the lake give.

    `decisions` are rows of the table, `columns` those of each bundle by its hash; a decision without vectors, or of
    another bundle, is passed over.
    """
    rows = [row for row in _read(decisions) if columns.get(row["bundle"])]
    ends = _read_ends(lake) if rows else {}
    ready = [row for row in rows if all(ends.get(p, 0) >= known for p, known in enumerate(row["known"]))]
    found: dict[Column, Compared] = {}
    for name_hash, of_bundle in columns.items():
        of_rows = [row for row in ready if row["bundle"] == name_hash]
        if of_rows:
            _compare(lake, of_rows, of_bundle, found)
    return Parity(len(ready), len(rows) - len(ready), tuple(found.values()))


def _read(decisions: pa.Table) -> list[dict[str, Any]]:
    names = ("recommendation_id", "at_us", "person", "items", "bundle", "known", "dimensions", "vectors")
    if not {"vectors", "known"} <= set(decisions.schema.names):
        return []
    kept = decisions.select([name for name in names if name in decisions.schema.names])
    rows: list[dict[str, Any]] = kept.filter(pc.field("vectors").is_valid()).to_pylist()
    for row in rows:
        row["vectors"] = msgspec.json.decode(row["vectors"])
    return rows


def _read_ends(lake: Lake) -> dict[int, int]:
    """Returns of each partition up to which `seq` the lake holds its events."""
    rows = lake.rows(f"SELECT log_partition, max(seq) + 1 AS seq FROM {EVENTS} GROUP BY ALL", {})  # noqa: S608 - ours
    return dict(zip(*rows.to_pydict().values(), strict=True))


def recompute(
    lake: Lake, rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], items: Sequence[Sequence[str]]
) -> list[pa.ChunkedArray]:
    """Returns of each column the values that decisions should have read, of each decision those of some items."""
    found: dict[int, pa.ChunkedArray] = {}
    for dimension in dict.fromkeys(column.dimension for column in columns):
        # Each has attributes of its own.
        numbers = [number for number, column in enumerate(columns) if column.dimension == dimension]
        chosen = [columns[number] for number in numbers]
        joined = join(lake, chosen, make_labels(lake, rows, chosen, items=items))
        found |= {number: joined.column(column.name) for number, column in zip(numbers, chosen, strict=True)}
    return [found[number] for number in range(len(columns))]


def _compare(
    lake: Lake, rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], found: dict[Column, Compared]
) -> None:
    for row in rows:
        _check_shape(row, columns)
    shown = [row["items"] for row in rows]
    places = [(row["recommendation_id"], item) for row in rows for item in row["items"]]
    vectors = [vector for row in rows for vector in row["vectors"]]
    for number, (column, made) in enumerate(zip(columns, recompute(lake, rows, columns, shown), strict=True)):
        one = found.setdefault(column, Compared(column))
        _count(one, places, [vector[number] for vector in vectors], made.to_pylist())


def _check_shape(row: Mapping[str, Any], columns: Sequence[Column]) -> None:
    vectors = row["vectors"]
    if len(vectors) != len(row["items"]) or any(len(vector) != len(columns) for vector in vectors):
        raise StopError(
            f"the decision {row['recommendation_id']!r} has vectors for other items or features than its bundle "
            f"{row['bundle']}: it shows {len(row['items'])} items by {len(columns)} features"
        )


def _count(one: Compared, places: Iterable[tuple[str, str]], served: Sequence[Any], recomputed: Sequence[Any]) -> None:
    for (recommendation_id, item), logged, made in zip(places, served, recomputed, strict=True):
        one.compared += 1
        one.told += bool(logged)
        if logged != made:
            one.mismatches += 1
            if len(one.examples) < MOST_EXAMPLES:
                one.examples.append(Example(recommendation_id, item, logged, made))


def make_labels(
    lake: Lake,
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[Column],
    *,
    items: Sequence[Sequence[str]] | None = None,
) -> pa.Table:
    """Returns a label for each of a decision's items, those shown or others, with its attributes as known then.

    The columns share one dimension.
    """
    chosen = [row["items"] for row in rows] if items is None else items
    counts = np.array([len(some) for some in chosen], np.int64)
    # Each decision is many labels: what they share is made an array once.
    takes = np.repeat(np.arange(len(rows)), counts)
    keys = pa.array([item for some in chosen for item in some], pa.string())
    found = {
        "at_us": pa.array([row["at_us"] for row in rows], pa.int64()).take(pa.array(takes)),
        "person": pa.array([row["person"] for row in rows], pa.string()).take(pa.array(takes)),
        "item": keys,
        "known": pa.array([row["known"] for row in rows], pa.list_(pa.int64())).take(pa.array(takes)),
    }
    names = attribute_names(part for column in columns for part in column.by)
    if names:
        dimension = columns[0].dimension
        ends = np.array([_end_of(row.get("dimensions"), dimension) for row in rows], np.int64)[takes]
        found |= read_attributes(lake, dimension, names, items=keys, ends=ends)
    return pa.table(found)


def _end_of(dimensions: str | None, name: str) -> int:
    return int(msgspec.json.decode(dimensions).get(name, 0)) if dimensions else 0


def read_attributes(
    lake: Lake, dimension: str, names: Sequence[str], *, items: pa.Array, ends: NDArray[np.int64]
) -> dict[str, pa.Array]:
    """Returns attributes of items, each as its dimension's table has it below an offset: `@genre` and so on."""
    if not len(ends) or not ends.max():
        return {f"@{name}": pa.nulls(len(items), pa.string()) for name in names}
    picked = ", ".join(f"json_extract_string(attributes, {_path(name)}) AS {quote_name(name)}" for name in names)
    # Every name in it is quoted.
    members = lake.rows(f"SELECT key, log_offset, {picked} FROM {quote_name(dimension)}", {})  # noqa: S608
    return {f"@{name}": found for name, found in attributes_of(members, names, items, ends).items()}


def _path(name: str) -> str:
    return quote_text(f'$."{name}"')
