"""What a decision knew of its person and items: values, what each adds to the score, and the events behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.console.explain_walk import Cell, Link, Node, Sheet
from headrace.console.show import format_time
from headrace.console.sql import query
from headrace.engines.engine import quote_text
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.features import Column
from headrace.features.feature import attribute_names
from headrace.features.window import tail_of
from headrace.models.linear import OpenClickModel
from headrace.models.logistic import chance_of
from headrace.project import OpenProject
from headrace.tables.catalog import item_sql

_MOST_EVENTS = 200
_AND_MORE = " and older ones"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Asked:
    """What features are asked of: a person and items, at an instant that knew the rows below some numbers."""

    person: str
    items: Sequence[str]
    at_us: int
    known: Sequence[int] = ()
    """Of each partition the first `seq` that was not known; without it what was received before the instant was."""


def make_features(project: OpenProject, name: str, asked: Asked, scorer: OpenClickModel, vectors: Any) -> Node:
    """Returns the features of some items for a person as a node: a vector for each item, in the scorer's columns."""
    base, added = scorer.split_odds(asked.items, vectors)
    names = [column.name for column in scorer.columns]
    behind, is_cut = _find_behind(project, asked, scorer.columns)
    average = f"log odds {base:.2f}, a chance of {float(chance_of(np.array([base]))[0]):.4f}"
    return Node(
        kind="features",
        id=name,
        title=f"{len(names)} features of {asked.person} and {_counted(len(asked.items), 'item')}",
        facts=(
            ("as of", f"{format_time(asked.at_us)}, of events {_known_text(asked.known)}"),
            ("average", f"a row like the average of the training has {average}"),
            ("behind", f"{_counted(len(behind), 'event')} of {asked.person}{_AND_MORE * is_cut}"),
        ),
        sheets=(_sheet(asked, names, vectors, base, added), *_count_behind(project, asked, scorer.columns)),
        upstream=tuple(behind),
        record={
            "person": asked.person,
            "at_us": asked.at_us,
            "known": list(asked.known),
            "base": base,
            "items": [
                {
                    "id": item,
                    "values": dict(zip(names, vector, strict=True)),
                    "adds": dict(zip(names, adds, strict=True)),
                }
                for item, vector, adds in zip(asked.items, vectors, added.tolist(), strict=True)
            ],
        },
    )


def _sheet(asked: Asked, names: Sequence[str], vectors: Any, base: float, added: NDArray[np.float64]) -> Sheet:
    chances = chance_of(base + added.sum(axis=1)).tolist()
    cells = zip(asked.items, vectors, added.tolist(), chances, strict=True)
    rows = tuple((item, *map(_cell, vector, adds), round(chance, 5)) for item, vector, adds, chance in cells)
    return Sheet("each value → what it adds to the log odds", ("item", *names, "score"), rows)


def _cell(value: Any, adds: float) -> Cell:
    told = "-" if value is None else f"{value:g}" if isinstance(value, int | float) else str(value)
    return f"{told} → {adds:+.2f}" if abs(adds) >= 0.005 else told


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _known_text(known: Sequence[int]) -> str:
    listed = ", ".join(f"{partition}/{seq}" for partition, seq in enumerate(known))
    return f"numbered below {listed}" if listed else "received before"


def _find_behind(project: OpenProject, asked: Asked, columns: Sequence[Column]) -> tuple[list[Link], bool]:
    """Returns the events that a person's values are made of, the newest first, and whether there are more of some."""
    links: list[Link] = []
    is_cut = False
    for event, some in _by_event(project, [column for column in columns if "person" in column.by]):
        since = min(tail_of(asked.at_us, column.window_us) for column in some)
        sql = (
            "SELECT message_id, event, item, known, event_us, log_partition, src_offset "  # noqa: S608 - quoted, and numbers
            f"FROM ({_rows_sql(event)}) WHERE person = $person AND {_condition(asked, since)} "
            f"ORDER BY event_us DESC, log_offset DESC LIMIT {_MOST_EVENTS}"
        )
        with query(project, sql, parameters={"person": asked.person}) as found:
            rows = found.table().to_pylist()
        links += [_link(row, asked, some) for row in rows]
        is_cut |= len(rows) == _MOST_EVENTS
    return links, is_cut


def _link(row: Row, asked: Asked, columns: Sequence[Column]) -> Link:
    reads = [column.name for column in columns if row["event_us"] >= tail_of(asked.at_us, column.window_us)]
    attributes = msgspec.json.decode(row["known"] or "{}")
    counted = [attributes.get(name) for name in attribute_names(part for column in columns for part in column.by)]
    what = " ".join(filter(None, (row["event"], row["item"], *(f"({value})" for value in counted if value))))
    place = f"clicks {row['log_partition']}/{row['src_offset']}"
    text = f"{format_time(row['event_us'])[:19]} {what}, {place}, in {', '.join(reads)}"
    return Link("counted", "event", row["message_id"], text)


def _by_event(project: OpenProject, columns: Sequence[Column]) -> Iterator[tuple[Event, list[Column]]]:
    declared = {event.name: event for event in project.events}
    for name in dict.fromkeys(column.event for column in columns):
        if name in declared and EVENTS in project.tables.names():
            yield declared[name], [column for column in columns if column.event == name]


def _rows_sql(event: Event) -> str:
    """Returns the SELECT of what is counted of an event: a row for each item that it names, else one."""
    if not event.item:
        nothing = "NULL::VARCHAR AS item, NULL::VARCHAR AS known"
        return f"SELECT *, {nothing} FROM {EVENTS} WHERE event = {quote_text(event.name)}"  # noqa: S608 - quoted
    return f"SELECT * FROM ({item_sql(event)}) WHERE item IS NOT NULL AND item != ''"  # noqa: S608 - quoted


def _condition(asked: Asked, since: int) -> str:
    """Returns the condition that an event was known, and lies in a window that ends at the instant."""
    known = f"received_us < {asked.at_us:d}"
    if asked.known:
        known = f"seq < ([{', '.join(map(str, map(int, asked.known)))}])[log_partition + 1]"
    inside = f"event_us >= {since:d} AND event_us < {asked.at_us:d}"
    return f"NOT bot AND type = 'track' AND {inside} AND {known}"


def _count_behind(project: OpenProject, asked: Asked, columns: Sequence[Column]) -> Iterator[Sheet]:
    """Yields how many events the items' own values are made of, and of how many persons: a sheet for each event."""
    for event, some in _by_event(project, [column for column in columns if column.by == ("item",)]):
        since = min(tail_of(asked.at_us, column.window_us) for column in some)
        sql = (
            "SELECT item, count(*)::BIGINT AS events, count(DISTINCT person)::BIGINT AS persons, "  # noqa: S608 - numbers
            f"min(event_us) AS first_us, max(event_us) AS last_us FROM ({_rows_sql(event)}) "
            f"WHERE list_contains($items::VARCHAR[], item) AND {_condition(asked, since)} GROUP BY item"
        )
        with query(project, sql, parameters={"items": list(asked.items)}) as found:
            counts = {row["item"]: row for row in found.table().to_pylist()}
        rows = tuple(
            (item, row["events"], row["persons"], format_time(row["first_us"])[:19], format_time(row["last_us"])[:19])
            for item in asked.items
            if (row := counts.get(item))
        )
        title = f"events behind the items: {event.name} since {format_time(since)[:19]}"
        yield Sheet(title, ("item", "events", "persons", "first", "last"), rows)
