"""headrace explain RECOMMENDATION_ID: why a page showed what it did, down to the clicks that its bundle was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from headrace.base.errors import FormatError, StopError, UnknownNameError
from headrace.console.show import format_time, print_facts, print_table, shown
from headrace.console.sql import query
from headrace.events.decision import DECISIONS, decode_decision, is_decision
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.experiments.metric import RatioMetric
from headrace.learn import read_tables
from headrace.models import Bundle
from headrace.project import OpenProject
from headrace.stream import tail_offsets
from headrace.tables.catalog import item_sql
from headrace.verify.truth import is_same, replay

Row = Mapping[str, Any]

_SELECT = f"SELECT * FROM {DECISIONS} WHERE recommendation_id = $id ORDER BY log_offset"  # noqa: S608 - a name of ours


def find_decisions(project: OpenProject, wanted: str) -> list[dict[str, Any]]:
    """Returns the decisions of a page as rows of their table, from the topic if the table does not hold them yet."""
    if DECISIONS in project.tables.names():
        with query(project, _SELECT, parameters={"id": wanted}) as found:
            rows = found.table().to_pylist()
        if rows:
            return [{**row, "in_table": True} for row in rows]
    if DECISIONS not in project.topics.names():
        return []
    topic, mark = project.topic(DECISIONS), msgspec.json.encode(wanted)
    waiting = []
    for message in topic.read_to_ends(tail_offsets(project, topic)):
        value = message.value or b""
        if mark in value and is_decision(value):
            decision = decode_decision(value)
            if decision.recommendation_id == wanted:
                place = {"log_partition": message.partition, "log_offset": message.offset, "in_table": False}
                waiting.append({**msgspec.structs.asdict(decision), **place})
    return waiting


def tell_page(project: OpenProject, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns all that is known of a page: of its first row, and of those `below` it."""
    first, *below = [_tell_decision(project, row) for row in _drop_withdrawn(rows)]
    return {**first, "below": below}


def _drop_withdrawn(rows: Sequence[Row]) -> Sequence[Row]:
    """Returns each row of a page once: one that was withdrawn stands there twice, and the second says so."""
    return list({row["list_id"]: row for row in rows}.values())


def _tell_decision(project: OpenProject, row: Row) -> dict[str, Any]:
    """Returns all that is known of a decision: who, arm, bundle and its source, chances, and what became of it."""
    bundle = _find_bundle(project, row["bundle"])
    viewed, clicked = _answers(project, row)
    items = [
        {
            "position": number,
            "id": item,
            "category": category,
            "score": score,
            "propensity": propensity,
            "viewed": item in viewed,
            "clicked": item in clicked,
        }
        for number, (item, category, score, propensity) in enumerate(
            zip(row["items"], row["categories"], row["scores"], row["propensities"], strict=True), 1
        )
    ]
    kept = ("recommendation_id", "page", "list_id", "received_us", "at_us", "visitor", "user_id", "bot", "experiment")
    more = ("trial", "arm", "num_candidates", "explore", "seed", "bundle", "log_partition", "log_offset", "in_table")
    return {
        **{name: row[name] for name in (*kept, *more)},
        "degraded": list(row["degraded"]),
        "seen": list(row["seen"]),
        "events_incarnation": row["events"],
        "events_applied": list(row["applied"]),
        "model": bundle.name if bundle else None,
        "model_kind": bundle.kind if bundle else None,
        "model_source": dict(bundle.source) if bundle else None,
        "items": items,
        "made_again": _made_again(project, row),
    }


def _find_bundle(project: OpenProject, name_hash: str) -> Bundle | None:
    try:
        return project.registry.load(name_hash)
    except (UnknownNameError, FormatError):
        return None


def _made_again(project: OpenProject, row: Row) -> bool | None:
    """Returns whether the decision comes out the same from its bundle and positions; None if that can't be told now."""
    if not row["in_table"] or "fallback" in row["degraded"]:
        return None
    try:
        made = replay(project, row["recommendation_id"])
    except (UnknownNameError, StopError):
        return None
    return next((is_same(chosen, logged) for chosen, logged in made if logged["list_id"] == row["list_id"]), None)


def _answers(project: OpenProject, row: Row) -> tuple[set[str], set[str]]:
    """Returns which items of a page were viewed, and which clicked, as far as the lake knows."""
    goals = [one.goal for one in project.declared.experiments if one.on.name == row["page"]]
    if EVENTS not in project.tables.names() or not goals:
        return set(), set()
    below, above = (_items_of(project, event, row) for event in _events_of(goals[0]))
    return below, above


def _events_of(goal: RatioMetric) -> tuple[Event, Event]:
    return goal.below, goal.above


def _items_of(project: OpenProject, event: Event, row: Row) -> set[str]:
    sql = f"SELECT DISTINCT item FROM ({item_sql(event)}) WHERE recommendation_id = $id"  # noqa: S608 - quoted
    with query(project, sql, parameters={"id": row["recommendation_id"]}) as found:
        return {item for item in found.table().column("item").to_pylist() if item}


def show_page(story: Row) -> None:
    """Prints the story of a page for people."""
    _show_decision(story)
    for below in story["below"]:
        print()
        _show_decision(below)


def _show_decision(story: Row) -> None:
    print(shown(f"{story['recommendation_id']}  {story['page']} / {story['list_id']}"))
    print_facts((name, shown(text)) for name, text in _facts(story))
    print()
    print_table(
        ("position", "item", "category", "score", "chance", "viewed", "clicked"),
        [
            (
                item["position"],
                shown(item["id"]),
                shown(item["category"]),
                f"{item['score']:.4g}",
                f"{item['propensity']:.4f}",
                "yes" if item["viewed"] else "-",
                "yes" if item["clicked"] else "-",
            )
            for item in story["items"]
        ],
    )


def _facts(story: Row) -> Iterator[tuple[str, str]]:
    yield (
        "asked",
        f"{format_time(story['received_us'])} by {story['visitor'] or 'nobody known'}"
        + (f", user {story['user_id']}" if story["user_id"] else "")
        + (", a robot" if story["bot"] else ""),
    )
    yield "arm", f"{story['arm']} of trial {story['trial']}" if story["arm"] else "in no trial"
    yield "bundle", _bundle_text(story)
    applied = ", ".join(f"{p}/{offset}" for p, offset in enumerate(story["events_applied"]))
    yield "seen", f"{len(story['seen'])} items clicked within a day are left out; events known up to {applied}"
    explored = f"{story['explore']:.0%} of the positions at random"
    yield "chosen", f"from {story['num_candidates']:,} items, {explored}, seed {story['seed']}"
    if story["degraded"]:
        yield "degraded", ", ".join(story["degraded"])
    where = "in the table" if story["in_table"] else "not in the table yet"
    yield "logged", f"{DECISIONS}, partition {story['log_partition']}, offset {story['log_offset']}, {where}"
    again = {True: "✓ the same page comes out", False: "✗ ANOTHER page comes out", None: "cannot be told now"}
    yield "made again", again[story["made_again"]]


def _bundle_text(story: Row) -> str:
    source = story["model_source"]
    if source is None:
        return f"{story['bundle']}, which the registry does not have or cannot read"
    made = f"{story['model']} ({story['model_kind']}), {story['bundle']}"
    tables = read_tables(source)
    if not tables:
        return made
    versions = ", ".join(f"version {found['version']} of {name}" for name, found in tables.items())
    rows = "viewed items" if "clicks" in source else "clicks"
    return f"{made}, fitted from {source.get('rows', 0):,} {rows} in {versions}"
