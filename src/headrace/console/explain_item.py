"""An item for a person: the newest page that showed it, or what its features say now."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
# A person and an item may both have slashes in their ids.
_SHOWN = f"""SELECT person, item, recommendation_id, list_id, count(*) OVER (PARTITION BY person) AS times
FROM {DECISIONS} JOIN (SELECT unnest($persons::VARCHAR[]) AS person, unnest($items::VARCHAR[]) AS item) USING (person)
WHERE list_contains(items, item) ORDER BY length(person), received_us DESC, log_offset DESC LIMIT 1"""  # noqa: S608


def tell_item(project: OpenProject, wanted: str) -> list[Node]:
    """Returns why a person was shown an item, or would be, as nodes; none unless both are known."""
    places = [number for number, sign in enumerate(wanted) if sign == "/"]
    pairs = [(wanted[:place], wanted[place + 1 :]) for place in places if 0 < place < len(wanted) - 1]
    return (_tell_shown(project, pairs) or _tell_now(project, pairs)) if pairs else []


def _tell_shown(project: OpenProject, pairs: Sequence[tuple[str, str]]) -> list[Node]:
    if DECISIONS not in project.tables.names():
        return []
    persons, items = (list(some) for some in zip(*pairs, strict=True))
    with query(project, _SHOWN, parameters={"persons": persons, "items": items}) as found:
        newest = next(iter(found.table().to_pylist()), None)
    if newest is None:
        return []
    item = newest["item"]
    page = tell_page(project, find_decisions(project, newest["recommendation_id"]), title=newest["list_id"])
    row = page[0]
    shown = next(one for one in row.record["items"] if one["id"] == item)
    known = next((node for node in page if (node.kind, node.id) == ("features", row.id)), None)
    trained = next((node for node in page if node.kind == "rows"), None)
    start = Node(
        kind="item",
        id=f"{newest['person']}/{item}",
        title=f"{item} for {newest['person']}: shown",
        facts=tuple(_tell_place(row, shown, newest)),
        upstream=(*((Link("knew", "features", known.id),) if known else ()), Link("shown by", "decision", row.id)),
        downstream=tuple(_list_followed(shown, trained)),
        record={"person": newest["person"], "item": item, "times": newest["times"], "shown": shown},
    )
    return [start, *(_narrow(node, item) if node is known else node for node in page)]


def _tell_place(row: Node, shown: Mapping[str, Any], newest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    last = format_time(row.record["received_us"])[:19]
    yield "shown", f"{newest['times']:,} times to {newest['person']}, last {last}"
    answered = "clicked" if shown["clicked"] else "viewed" if shown["viewed"] else "not seen"
    yield "stood", f"at position {shown['position']} of {row.title}, {answered}"
    # The best one left has this chance, too, and what was left to explore beside it.
    drawn = row.record["explore"] / max(1, row.record["num_candidates"] - shown["position"] + 1)
    explored = ", drawn at random" if shown["propensity"] <= drawn else ""
    yield (
        "because",
        f"its score was {shown['score']:.4g}, its chance to stand there {shown['propensity']:.4f}{explored}",
    )


def _list_followed(shown: Mapping[str, Any], trained: Node | None) -> Iterator[Link]:
    for word in ("viewed_in", "clicked_in"):
        yield from (Link(word.replace("_", " "), "event", message_id) for message_id in shown[word])
    if trained is not None and any(row["item"] == shown["id"] for row in trained.record["rows"]):
        yield Link("became", "rows", trained.id)


def _narrow(known: Node, item: str) -> Node:
    """Returns features of which only the rows about one item are left."""
    sheets = (
        msgspec.structs.replace(one, rows=tuple(row for row in one.rows if row[0] == item)) for one in known.sheets
    )
    return msgspec.structs.replace(known, sheets=tuple(sheets))


def _tell_now(project: OpenProject, pairs: Sequence[tuple[str, str]]) -> list[Node]:
    if not (project.folder / FILE).is_file():
        return []
    shelf = Shelf(lambda: project.registry, project.declared.pages)
    shelf.refresh()
    for (person, item), (page, serving) in itertools.product(pairs, shelf.servings.items()):
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
