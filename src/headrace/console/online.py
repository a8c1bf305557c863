"""headrace feature: get, backfill."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.base.clock import machine_us
from headrace.base.errors import CallError
from headrace.collect.dimensions import Dimensions
from headrace.console.show import as_text, format_seconds, format_time, print_facts, print_lines, print_table, working
from headrace.events.dimension import text_of
from headrace.features import Column
from headrace.features.feature import attribute_names
from headrace.features.serve import Items, Read, Reader
from headrace.features.updater import rebuild
from headrace.project import OpenProject, open_project
from headrace.stream import find_columns, find_sources


def _columns(project: OpenProject) -> tuple[Column, ...]:
    columns = project.declared.columns
    if not columns:
        raise CallError(
            f"project {project.declared.name!r} has no features: no model of it names any. "
            "Give a model features=, such as count(...)"
        )
    return columns


# get.


def get(given: argparse.Namespace) -> None:
    """Shows what a page made now would know of a person and some items."""
    with open_project(given.project, profile=given.profile) as project:
        columns = _columns(project)
        lone = [column for column in columns if column.by == ("person",)]
        if not given.item and not lone:
            raise CallError("every feature of the project is about items too. Name some with --item ITEM")
        asked = columns if given.item else tuple(lone)
        names = tuple(given.item) or ("",)
        items = Items(names, _attributes(project, asked, names))
        read = Reader(project.online, asked).read(given.person, items, project.clock.now_us())
    rows = list(_rows(asked, names, read))
    if given.json:
        print_lines(rows)
        return
    print_table(
        ("feature", "item", "value"),
        [(row["column"], row["item"] or "-", as_text(row["value"])) for row in rows],
    )
    known = ", ".join(f"{number}: {count}" for number, count in enumerate(read.known))
    print(f"at         {format_time(read.at_us)}")
    print(f"known      {sum(read.known):,} events (by partition {known})")
    print(f"generation {read.state.generation}, begun {format_time(read.state.generation)}")


def _attributes(
    project: OpenProject, columns: Sequence[Column], items: Sequence[str]
) -> Mapping[str, Sequence[str | None]]:
    """Returns what the dimensions say of items now, by the names of attributes."""
    needed = {name: column.dimension for column in columns for name in attribute_names(column.by)}
    dimensions = Dimensions(project.topics, sorted(set(needed.values())))
    dimensions.refresh()
    found: dict[str, Sequence[str | None]] = {}
    for name, dimension in needed.items():
        history, end = dimensions.history(dimension), dimensions.end(dimension)
        found[name] = [text_of((history.at(item, end) or {}).get(name)) for item in items]
    return found


def _rows(columns: Sequence[Column], items: Sequence[str], read: Read) -> list[dict[str, Any]]:
    rows = []
    for column, values in zip(columns, read.values, strict=True):
        about = [None] if column.by == ("person",) else items
        for item, value in zip(about, values.tolist(), strict=False):
            rows.append(
                {
                    "column": column.name,
                    "item": item,
                    "value": value,
                    "at_us": read.at_us,
                    "known": list(read.known),
                    "generation": read.state.generation,
                }
            )
    return rows


# backfill.


def backfill(given: argparse.Namespace) -> None:
    """Makes the online store anew from the lake and the topic, beside what serves, and lets that serve."""
    with open_project(given.project, profile=given.profile) as project:
        columns = _columns(project)
        project.make_topics()
        began_at = time.monotonic()
        with working("counting the events of the lake anew"):
            state = rebuild(project.online, find_columns(project), find_sources(project), now_us=machine_us())
    seconds, num_events = time.monotonic() - began_at, sum(state.known)
    found = {
        "generation": state.generation,
        "columns": len(columns),
        "events": num_events,
        "offsets": list(state.offsets),
        "seconds": round(seconds, 3),
    }
    if given.json:
        print_lines([found])
        return
    print_facts(
        (
            ("generation", str(state.generation)),
            ("columns", ", ".join(column.name for column in columns)),
            ("counted", f"{num_events:,} events"),
            ("took", format_seconds(seconds)),
        )
    )
