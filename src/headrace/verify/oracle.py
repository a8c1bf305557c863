"""Features counted the plain way: for each value all events are looked at, by nothing but what the contract says.

It shares no line with tiles, kernel or joins, so that it can judge all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from headrace.features import Column

Value = float | str | None
Attributes = Mapping[str, Mapping[str, Any]]


class _Happened(NamedTuple):
    event_us: int
    partition: int
    offset: int
    seq: int
    value: Any


class Oracle:
    """The features of a project, from the rows of its lake."""

    def __init__(self, columns: Sequence[Column], rows: Iterable[Mapping[str, Any]]) -> None:
        self._columns = columns
        self._found: list[dict[tuple[Any, ...], list[_Happened]]] = [defaultdict(list) for _ in columns]
        wanted = defaultdict(list)
        for number, column in enumerate(columns):
            wanted[column.event].append(number)
        for row in rows:
            if row["event"] in wanted and row["type"] == "track" and not row["bot"]:
                for number in wanted[row["event"]]:
                    self._note(number, row)

    def _note(self, number: int, row: Mapping[str, Any]) -> None:
        column = self._columns[number]
        properties = msgspec.json.decode(row["properties"] or "{}")
        known: Attributes = msgspec.json.decode(row["attributes"] or "{}")
        for item in find_items(properties, column.item):
            parts = {"person": row["person"], "item": item, **_named(known.get(item, {}))}
            key = tuple(parts.get(name) for name in column.by)
            value = parts.get(column.value) if column.kind == "last" else 1
            if column.kind == "total":
                value = properties.get(column.value)
            if value is not None and None not in key:
                place = (row["event_us"], row["log_partition"], row["src_offset"], row["seq"])
                self._found[number][key].append(_Happened(*place, value))

    def value(
        self, number: int, person: str, item: str, *, at_us: int, known: Sequence[int], attributes: Attributes
    ) -> Value:
        """Returns a column's value for a person and an item at an instant, of the events known then."""
        column = self._columns[number]
        parts = {"person": person, "item": item, **_named(attributes.get(item, {}))}
        key = tuple(parts.get(name) for name in column.by)
        tail_us = (at_us - column.window_us) // column.hop_us * column.hop_us
        counted = [
            one
            for one in self._found[number].get(key, ())
            if tail_us <= one.event_us < at_us and one.seq < known[one.partition]
        ]
        if column.kind == "last":
            return str(max(counted)[-1]) if counted else None
        return float(sum(one.value for one in counted))


def _named(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"@{name}": value for name, value in attributes.items()}


def find_items(properties: Any, path: str) -> Iterator[str]:
    """Yields what stands at a path such as `products[].product_id`; one empty text for no path.

    >>> list(find_items({"products": [{"product_id": "a"}, {"product_id": "b"}]}, "products[].product_id"))
    ['a', 'b']
    """
    name, _, rest = path.partition(".")
    found = properties.get(name.removesuffix("[]")) if isinstance(properties, dict) else None
    if not path:
        yield ""
    elif name.endswith("[]"):
        for one in found or ():
            yield from find_items(one, rest)
    elif rest:
        yield from find_items(found, rest)
    elif found is not None:
        yield str(found)
