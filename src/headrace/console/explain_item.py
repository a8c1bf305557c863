"""An item for a person: the newest page that showed it, or what its features say now."""

from __future__ import annotations

import msgspec

from headrace.base.errors import StopError
from headrace.console.explain_features import Asked, make_features
from headrace.console.explain_page import find_decisions, tell_page
from headrace.console.explain_walk import Link, Node
from headrace.console.show import format_time
from headrace.console.sql import query
from headrace.endpoints.serving import Served, Shelf
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS
from headrace.models.linear import OpenClickModel
from headrace.project import FILE, OpenProject
from headrace.verify.truth import read_values

_EVERYTHING = 1 << 60
_SHOWN = f"""SELECT recommendation_id, list_id, count(*) OVER () AS times FROM {DECISIONS}
WHERE person = $person AND list_contains(items, $item) ORDER BY received_us DESC, log_offset DESC LIMIT 1"""  # noqa: S608


def tell_item(project: OpenProject, wanted: str) -> list[Node]:
    """Returns why a person was shown an item, or would be, as nodes; none unless both are known."""
    for place in (number for number, sign in enumerate(wanted) if sign == "/"):
        person, item = wanted[:place], wanted[place + 1 :]
        found = person and item and (_tell_shown(project, person, item) or _tell_now(project, person, item))
        if found:
            return found
    return []


def _tell_shown(project: OpenProject, person: str, item: str) -> list[Node]:
    if DECISIONS not in project.tables.names():
        return []
    with query(project, _SHOWN, parameters={"person": person, "item": item}) as found:
        newest = next(iter(found.table().to_pylist()), None)
    if newest is None:
        return []
    page = tell_page(project, find_decisions(project, newest["recommendation_id"]))
    row = next(node for node in page if node.kind == "decision" and node.record["list_id"] == newest["list_id"])
    shown = next(one for one in row.record["items"] if one["id"] == item)
    known = next((node for node in page if (node.kind, node.id) == ("features", row.id)), None)
    answered = "clicked" if shown["clicked"] else "viewed" if shown["viewed"] else "not seen"
    explored = ", drawn at random" if shown["propensity"] < 0.5 else ""
    facts = (
        ("shown", f"{newest['times']:,} times to {person}, last {format_time(row.record['received_us'])[:19]}"),
        ("stood", f"at position {shown['position']} of {row.title}, {answered}"),
        (
            "because",
            f"its score was {shown['score']:.4g}, its chance to stand there {shown['propensity']:.4f}{explored}",
        ),
    )
    start = Node(
        kind="item",
        id=f"{person}/{item}",
        title=f"{item} for {person}: shown",
        facts=facts,
        upstream=(*((Link("knew", "features", known.id),) if known else ()), Link("shown by", "decision", row.id)),
        record={"person": person, "item": item, "times": newest["times"], "shown": shown},
    )
    return [start, *(_narrow(node, item) if node is known else node for node in page)]


def _narrow(known: Node, item: str) -> Node:
    """Returns features of which only the rows about one item are left."""
    sheets = (
        msgspec.structs.replace(one, rows=tuple(row for row in one.rows if row[0] == item)) for one in known.sheets
    )
    return msgspec.structs.replace(known, sheets=tuple(sheets))


def _tell_now(project: OpenProject, person: str, item: str) -> list[Node]:
    if not (project.folder / FILE).is_file():
        return []
    shelf = Shelf(lambda: project.registry, project.declared.pages)
    shelf.refresh()
    for page, serving in shelf.servings.items():
        served = serving.usual
        if served is not None and item in served.scorer.places and _is_known(project, person):
            return _tell_rank(project, page, served, (person, item))
    return []


def _is_known(project: OpenProject, person: str) -> bool:
    if EVENTS not in project.tables.names():
        return False
    with query(project, f"SELECT 1 FROM {EVENTS} WHERE person = $id LIMIT 1", parameters={"id": person}) as found:  # noqa: S608
        return bool(found.table().num_rows)


def _tell_rank(project: OpenProject, page: str, served: Served, whom: tuple[str, str]) -> list[Node]:
    """Returns how what serves a page now would rank an item for a person who was never shown it."""
    person, item = whom
    at_us, scorer = project.clock.now_us(), served.scorer
    ends = {dimension.name: _EVERYTHING for dimension in project.declared.dimensions}
    row = {"at_us": at_us, "person": person, "known": [], "dimensions": msgspec.json.encode(ends).decode()}
    try:
        values = next(read_values(project, scorer, [row]))
    except StopError:
        return []
    scores, place = scorer.scores(person, values), scorer.places[item]
    rank = int((scores > scores[place]).sum()) + 1
    name = f"{person}/{item}"
    start = Node(
        kind="item",
        id=name,
        title=f"{item} for {person}: not shown yet",
        facts=(
            ("now", f"number {rank:,} of {len(scores):,} items on the page {page}, score {scores[place]:.4g}"),
            ("as of", format_time(at_us)[:19]),
        ),
        upstream=(
            *((Link("knows", "features", name),) if isinstance(scorer, OpenClickModel) else ()),
            Link("ranked by", "bundle", served.hash),
        ),
        record={"person": person, "item": item, "rank": rank, "score": float(scores[place]), "bundle": served.hash},
    )
    if not isinstance(scorer, OpenClickModel):
        return [start]
    vector = [column[place].item() if hasattr(column[place], "item") else column[place] for column in values]
    return [start, make_features(project, name, Asked(person, [item], at_us), scorer, [vector])]
