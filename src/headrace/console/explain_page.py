"""headrace explain RECOMMENDATION_ID: why a page showed what it did, down to the clicks that its bundle was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from headrace.base.errors import FormatError, StopError, UnknownNameError
from headrace.console.explain_event import Found, events_of, find_settled
from headrace.console.explain_features import Asked, make_features
from headrace.console.explain_rows import make_rows
from headrace.console.explain_walk import Link, Node, Sheet
from headrace.console.show import format_time
from headrace.console.sql import query
from headrace.events.decision import DECISIONS, Decision, decode_decision, is_decision
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.experiments.metric import RatioMetric
from headrace.learn import read_tables
from headrace.models import Bundle
from headrace.models.linear import open_click_model
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
                waiting.append({**_plain(decision), **place})
    return waiting


def _plain(decision: Decision) -> dict[str, Any]:
    """Returns a decision as its table has it."""
    found = msgspec.structs.asdict(decision)
    parts = {name: found[name] for name in ("vectors", "dimensions")}
    return {**found, **{name: None if part is UNSET else bytes(part).decode() for name, part in parts.items()}}


def tell_page(project: OpenProject, rows: Sequence[Row], settled: Sequence[Found] | None = None) -> list[Node]:
    """Returns the rows of a page from above, each as a node, the events that followed, and what is learned from it.

    `settled` is what `find_settled` gives of its id, if that was asked already.
    """
    kept = _drop_withdrawn(rows)
    names = [_name_of(row, number) for number, row in enumerate(kept)]
    found: list[Node] = []
    trace = kept[0]["recommendation_id"]
    found_events = find_settled(project, trace) if settled is None else settled
    events = [one.row for one in found_events if one.topic == EVENTS and one.row["recommendation_id"] == trace]
    trained = make_rows(project, kept[0], events)
    again, answers = _make_again(project, kept[0]), _find_answers(project, kept[0])
    for number, row in enumerate(kept):
        story = _tell_decision(project, row, again, answers)
        known = _tell_features(project, row, names[number])
        upstream = [Link("ranked by", "bundle", row["bundle"])]
        upstream += [Link("knew", "features", names[number])] if known else []
        upstream += [Link(f"{row['arm']} of", "trial", row["trial"])] if row["trial"] else []
        downstream = [Link("above", "decision", name) for name in names[number + 1 : number + 2]]
        if not number:
            downstream = [*events_of(events), *_rows_link(trained), *downstream]
        found.append(
            Node(
                kind="decision",
                id=names[number],
                title=f"{story['page']} / {story['list_id']}",
                facts=tuple(_facts(story)),
                sheets=(_items_sheet(story),),
                upstream=tuple(upstream),
                downstream=tuple(downstream),
                record=story,
            )
        )
        found += [known] if known else []
    return [*found, *([trained] if trained else [])]


def _name_of(row: Row, number: int) -> str:
    """Returns the id of a row of a page: the page's for the first."""
    return f"{row['recommendation_id']}/{row['list_id']}" if number else str(row["recommendation_id"])


def _rows_link(trained: Node | None) -> list[Link]:
    return [Link("became", "rows", trained.id)] if trained else []


def _drop_withdrawn(rows: Sequence[Row]) -> list[Row]:
    """Returns each row of a page once: one that was withdrawn stands there twice, and the second says so."""
    return list({row["list_id"]: row for row in rows}.values())


def _tell_features(project: OpenProject, row: Row, name: str) -> Node | None:
    bundle = _find_bundle(project, row["bundle"])
    if not row.get("vectors") or bundle is None or bundle.kind != "click":
        return None
    asked = Asked(row["person"], row["items"], row["at_us"], row["known"] or ())
    return make_features(project, name, asked, open_click_model(bundle), msgspec.json.decode(row["vectors"]))


def _tell_decision(
    project: OpenProject, row: Row, again: Mapping[str, bool], answers: tuple[set[str], set[str]]
) -> dict[str, Any]:
    """Returns all that is known of a decision: who, arm, bundle and its source, chances, and what became of it."""
    bundle = _find_bundle(project, row["bundle"])
    viewed, clicked = answers
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
        "made_again": None if "fallback" in row["degraded"] else again.get(row["list_id"]),
    }


def _find_bundle(project: OpenProject, name_hash: str) -> Bundle | None:
    try:
        return project.registry.load(name_hash)
    except (UnknownNameError, FormatError):
        return None


def _make_again(project: OpenProject, row: Row) -> dict[str, bool]:
    """Returns of each row of a page whether it comes out the same from its bundle and positions, where that is told."""
    if not row["in_table"]:
        return {}
    try:
        made = replay(project, row["recommendation_id"])
    except (UnknownNameError, StopError):
        return {}
    # Of a row that was withdrawn the second record counts.
    return {logged["list_id"]: is_same(chosen, logged) for chosen, logged in made}


def _find_answers(project: OpenProject, row: Row) -> tuple[set[str], set[str]]:
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


def _items_sheet(story: Row) -> Sheet:
    rows = tuple(
        (
            item["position"],
            item["id"],
            item["category"],
            f"{item['score']:.4g}",
            f"{item['propensity']:.4f}",
            "yes" if item["viewed"] else "-",
            "yes" if item["clicked"] else "-",
        )
        for item in story["items"]
    )
    return Sheet("items", ("position", "item", "category", "score", "chance", "viewed", "clicked"), rows)


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
