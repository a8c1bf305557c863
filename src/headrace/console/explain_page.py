"""headrace explain RECOMMENDATION_ID: why a page showed what it did, down to the clicks that its bundle was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET

from headrace.base.errors import CallError, FormatError, StopError, UnknownNameError
from headrace.console.explain_event import MOST_EVENTS, Found, events_of, find_events_of
from headrace.console.explain_features import Asked, make_features
from headrace.console.explain_rows import find_metric, make_rows
from headrace.console.explain_trial import find_verdict
from headrace.console.explain_walk import Link, Node, Sheet
from headrace.console.show import format_time
from headrace.console.sql import query
from headrace.events.decision import DECISIONS, Decision, decode_decision, is_decision
from headrace.events.event import Event
from headrace.events.settled import EVENTS
from headrace.experiments.verdict import Verdict
from headrace.learn import read_tables
from headrace.models import Bundle
from headrace.models.linear import open_click_model
from headrace.project import OpenProject
from headrace.stream import tail_offsets
from headrace.tables.catalog import item_sql
from headrace.verify.truth import is_same, replay

Row = Mapping[str, Any]
Answers = tuple[dict[str, list[str]], dict[str, list[str]]] | None
"""Of the items that were viewed, and of those that were clicked, the ids of the events; None if nobody can tell."""

_SELECT = f"SELECT * FROM {DECISIONS} WHERE recommendation_id = $id ORDER BY log_offset"  # noqa: S608 - a name of ours
_MOST_ANSWERS = 20_000


def find_decisions(project: OpenProject, wanted: str) -> list[dict[str, Any]]:
    """Returns the decisions of a page as rows of their table, and of the topic what the table does not hold yet."""
    # First what waits for the sink: what it takes meanwhile is found in the table, too.
    waiting = list(_find_waiting(project, wanted))
    rows = [{**row, "in_table": True} for row in _find_stored(project, wanted)]
    stored = {(row["log_partition"], row["log_offset"]) for row in rows}
    return [*rows, *(row for row in waiting if (row["log_partition"], row["log_offset"]) not in stored)]


def _find_waiting(project: OpenProject, wanted: str) -> Iterator[dict[str, Any]]:
    if DECISIONS not in project.topics.names():
        return
    topic, mark = project.topic(DECISIONS), msgspec.json.encode(wanted)
    for message in topic.read_to_ends(tail_offsets(project, topic)):
        value = message.value or b""
        if mark in value and is_decision(value):
            decision = decode_decision(value)
            if decision.recommendation_id == wanted:
                place = {"log_partition": message.partition, "log_offset": message.offset, "in_table": False}
                yield {**_plain(decision), **place}


def _find_stored(project: OpenProject, wanted: str) -> list[dict[str, Any]]:
    if DECISIONS not in project.tables.names():
        return []
    with query(project, _SELECT, parameters={"id": wanted}) as found:
        rows: list[dict[str, Any]] = found.table().to_pylist()
    return rows


def _plain(decision: Decision) -> dict[str, Any]:
    """Returns a decision as its table has it."""
    found = msgspec.structs.asdict(decision)
    parts = {name: found[name] for name in ("vectors", "dimensions")}
    return {**found, **{name: None if part is UNSET else bytes(part).decode() for name, part in parts.items()}}


def tell_page(
    project: OpenProject, rows: Sequence[Row], settled: Sequence[Found] | None = None, *, title: str = ""
) -> list[Node]:
    """Returns the rows of a page as nodes, the events that followed, and what is learned from it.

    The row of a title comes first, else the topmost. `settled` is what `find_settled` gives of its id, if that was
    asked already.
    """
    kept = _drop_withdrawn(rows)
    names = [_name_of(row, number) for number, row in enumerate(kept)]
    events = _find_events(project, kept[0], settled)
    trained = make_rows(project, kept[0], events)
    again, answers = _make_again(project, kept[0]), _find_answers(project, kept[0])
    asked = next((number for number, row in enumerate(kept) if row["list_id"] == title), 0)
    found: list[Node] = []
    for number, row in enumerate(kept):
        bundle = _find_bundle(project, row["bundle"])
        known = _tell_features(project, row, names[number], bundle)
        downstream = [Link("above", "decision", name) for name in names[number + 1 : number + 2]]
        if number == asked:
            downstream = [*_list_followed(project, row, events, trained), *downstream]
        story = _tell_decision(row, bundle, again, answers)
        node = _node(names[number], story, len(events))
        upstream = [*_list_causes(row, known), *(Link("below", "decision", name) for name in names[:number][-1:])]
        linked = msgspec.structs.replace(node, upstream=tuple(upstream), downstream=tuple(downstream))
        of_row = [linked, *([known] if known else [])]
        found = [*of_row, *found] if number == asked else [*found, *of_row]
    return [*found, *([trained] if trained else [])]


def _find_events(project: OpenProject, row: Row, settled: Sequence[Found] | None) -> list[Row]:
    trace = row["recommendation_id"]
    found = find_events_of(project, trace) if settled is None else settled
    return [one.row for one in found if one.topic == EVENTS and one.row["recommendation_id"] == trace]


def _node(name: str, story: Row, num_events: int) -> Node:
    facts = list(_facts(story))
    if num_events >= MOST_EVENTS:
        facts.append(("brought", f"{MOST_EVENTS:,} events or more; the first are told"))
    return Node(
        kind="decision",
        id=name,
        title=f"{story['page']} / {story['list_id']}",
        facts=tuple(facts),
        sheets=(_items_sheet(story),),
        record=dict(story),
    )


def _list_causes(row: Row, known: Node | None) -> Iterator[Link]:
    yield Link("ranked by", "bundle", row["bundle"])
    if known is not None:
        yield Link("knew", "features", known.id)
    if row["trial"]:
        yield Link(f"{row['arm']} of", "trial", row["trial"])


def _list_followed(project: OpenProject, row: Row, events: Sequence[Row], trained: Node | None) -> Iterator[Link]:
    yield from events_of(events)
    if trained is not None:
        yield Link("became", "rows", trained.id)
    verdict = find_verdict(project, row["trial"]) if row["trial"] else None
    if verdict is not None and _is_read(verdict, row):
        yield Link("read by", "verdict", verdict.trial)


def _is_read(verdict: Verdict, row: Row) -> bool:
    """Returns whether a decision is among those that a verdict was made of."""
    ends, partition = verdict.positions.get(DECISIONS, ()), row["log_partition"]
    is_enrolled = row["visitor"] is not None and not row["bot"] and "unlogged" not in row["degraded"]
    is_before = row["received_us"] < verdict.cutoff_us and partition < len(ends) and row["log_offset"] < ends[partition]
    return is_enrolled and is_before


def _name_of(row: Row, number: int) -> str:
    """Returns the id of a row of a page: the page's for the first."""
    return f"{row['recommendation_id']}/{row['list_id']}" if number else str(row["recommendation_id"])


def _drop_withdrawn(rows: Sequence[Row]) -> list[Row]:
    """Returns each row of a page once: one that was withdrawn stands there twice, and the second says so."""
    return list({row["list_id"]: row for row in rows}.values())


def _tell_features(project: OpenProject, row: Row, name: str, bundle: Bundle | None) -> Node | None:
    if not row.get("vectors") or bundle is None or bundle.kind != "click":
        return None
    asked = Asked(row["person"], row["items"], row["at_us"], row["known"] or ())
    return make_features(project, name, asked, open_click_model(bundle), msgspec.json.decode(row["vectors"]))


def _tell_decision(row: Row, bundle: Bundle | None, again: Mapping[str, bool], answers: Answers) -> dict[str, Any]:
    """Returns all that is known of a decision: who, arm, bundle and its source, chances, and what became of it."""
    viewed, clicked = answers or (None, None)
    items = [
        {
            "position": number,
            "id": item,
            "category": category,
            "score": score,
            "propensity": propensity,
            "viewed": None if viewed is None else item in viewed,
            "viewed_in": (viewed or {}).get(item, []),
            "clicked": None if clicked is None else item in clicked,
            "clicked_in": (clicked or {}).get(item, []),
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
    except (CallError, StopError):
        # Such as without a project file, which says what is clicked.
        return {}
    # Of a row that was withdrawn the second record counts.
    return {logged["list_id"]: is_same(chosen, logged) for chosen, logged in made}


def _find_answers(project: OpenProject, row: Row) -> Answers:
    """Returns which items of a page were viewed, and which clicked, as far as the lake knows, each with the events."""
    metric = find_metric(project, row["page"])
    if EVENTS not in project.tables.names() or metric is None:
        return None
    return _items_of(project, metric.below, row), _items_of(project, metric.above, row)


def _items_of(project: OpenProject, event: Event, row: Row) -> dict[str, list[str]]:
    sql = (
        f"SELECT DISTINCT item, message_id FROM ({item_sql(event)}) WHERE recommendation_id = $id "  # noqa: S608 - quoted
        f"ORDER BY item, message_id LIMIT {_MOST_ANSWERS}"
    )
    found: dict[str, list[str]] = {}
    with query(project, sql, parameters={"id": row["recommendation_id"]}) as answer:
        for one in answer.table().to_pylist():
            if one["item"]:
                found.setdefault(one["item"], []).append(one["message_id"])
    return found


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
