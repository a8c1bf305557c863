"""headrace topic replay --fresh | --continue: a table goes on after its topic was made anew."""

from __future__ import annotations

import argparse
from typing import Any

from headrace.base.clock import machine_us
from headrace.base.errors import CallError
from headrace.base.process import find_user
from headrace.console.acts import note_rows
from headrace.console.show import print_lines, print_table
from headrace.console.tables import open_table
from headrace.project import OpenProject, open_project
from headrace.tables import Table
from headrace.tables.sink import INCARNATION, TOPIC
from headrace.topics import Bounds


def restart(given: argparse.Namespace) -> None:
    """Lets a table go on with its topic's present incarnation, empty or with the rows that it has."""
    name = given.fresh or given.go_on
    with open_project(given.project, profile=given.profile) as project:
        table = open_table(project, name)
        rows = _restart(project, given.topic, table, is_fresh=given.fresh is not None)
        note_rows(project.profile.state, "topic replay", rows)
    if given.json:
        print_lines(rows)
        return
    kept = "empty" if given.fresh else "with its rows"
    print(f"table {name} goes on with topic {given.topic}, {kept}; version {rows[0]['version']}")
    print_table(
        ("partition", "from", "to"),
        [(r["partition"], "-" if r["from"] is None else r["from"], r["to"]) for r in rows],
    )


def _restart(project: OpenProject, topic: str, table: Table, *, is_fresh: bool) -> list[dict[str, Any]]:
    stated = table.properties.get(TOPIC)
    if stated != topic:
        raise CallError(f"table {table.name!r} is filled from topic {stated!r}, asked to go on with {topic!r}")
    present, before = project.topic(topic).describe().incarnation, table.properties.get(INCARNATION)
    found = {p: (table.position(f"{before}/{p}"), bound) for p, bound in enumerate(project.topics.bounds(topic))}
    is_same = present == before
    to = {p: bound.start if is_fresh or not is_same else _nearest(at, bound) for p, (at, bound) in found.items()}
    option = "--fresh" if is_fresh else "--continue"
    note = {
        "action": f"topic replay {option}",
        "topic": topic,
        "incarnation": present,
        "from": {"incarnation": before, "positions": {str(p): at for p, (at, _) in found.items()}},
        "to": {str(p): offset for p, offset in to.items()},
        "by": find_user(),
        "producer": project.member,
        "at_us": machine_us(),
    }
    version = table.restart({f"{present}/{p}": offset for p, offset in to.items()}, note=note, empty=is_fresh)
    if not is_same:
        # Last: until then no sink goes on, and whoever was cut off here can begin anew.
        table.state({INCARNATION: present})
    return [
        {"topic": topic, "table": table.name, "how": option, "version": version, "partition": p}
        | {"from_incarnation": before, "incarnation": present, "from": at, "to": to[p]}
        for p, (at, _) in found.items()
    ]


def _nearest(position: int | None, bound: Bounds) -> int:
    return bound.start if position is None else min(max(position, bound.start), bound.end)
