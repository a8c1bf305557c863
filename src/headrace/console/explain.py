"""headrace explain: what came of something, and what it came from, from a click's offset to a champion and back."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

import msgspec

from headrace.base.errors import CallError, UnknownNameError, did_you_mean
from headrace.collect.app import CLICKS
from headrace.console.explain_bundle import make_bundle, make_snapshot
from headrace.console.explain_event import Found, by_event, find_settled, find_waiting, tell_event, tell_waiting
from headrace.console.explain_item import tell_item
from headrace.console.explain_page import find_decisions, tell_page
from headrace.console.explain_rows import find_readers
from headrace.console.explain_show import print_list, print_walk
from headrace.console.explain_trial import list_trials, make_champion, make_trial, make_verdict
from headrace.console.explain_walk import Kind, Link, Node, Walk, Way, flatten
from headrace.console.lineage import print_lineage
from headrace.console.models import find_bundle
from headrace.console.show import print_lines
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS, FAILED
from headrace.project import OpenProject, open_project

_LEAST_HASH = 8

_MAKERS: dict[Kind, Callable[[OpenProject, str], Node | None]] = {
    "bundle": make_bundle,
    "snapshot": make_snapshot,
    "trial": make_trial,
    "verdict": make_verdict,
    "champion": make_champion,
}


def explain(given: argparse.Namespace) -> int:
    """Walks from what an id names, back to what it came from and on to what came of it."""
    if (given.id is None) != given.openlineage:
        raise CallError("write what to explain, headrace explain ID, or headrace explain --openlineage")
    with open_project(given.project, profile=given.profile) as project:
        if given.openlineage:
            print_lineage(project, since=given.since)
            return 0
        walks = tell(project, given.id)
        unknown = "" if walks else _tell_unknown(project, given.id)
    if not walks:
        print(json.dumps({"error": "UnknownNameError", "message": unknown}) if given.json else unknown, file=sys.stderr)
        return 1
    if given.json:
        print_lines(flatten(node) for walk in walks for node in walk.nodes)
    elif len(walks) > 1 and all(walk.start.kind == "event" for walk in walks):
        print_list(walks)
    else:
        for number, walk in enumerate(walks):
            print("\n" if number else "", end="")
            print_walk(walk)
    return 0


def tell(project: OpenProject, wanted: str) -> tuple[Walk, ...]:
    """Returns a walk for each thing that an id names; none if nothing is known of it.

    An id is a recommendation_id, a messageId, a hash of a bundle or 8 of its signs, a model, a trial, an experiment,
    `PAGE#ROW` for a champion, or `PERSON/ITEM`.
    """
    # A row below the first is named by its page and its title.
    page = wanted.partition("/")[0]
    decisions = find_decisions(project, wanted) or (find_decisions(project, page) if page != wanted else [])
    found = list(find_settled(project, wanted))
    walks = []
    if decisions:
        start, *known = tell_page(project, decisions, found if decisions[0]["recommendation_id"] == wanted else None)
        walks.append(_walk_from(project, start, known))
    events = [parts for parts in by_event(found) if not decisions or parts[-1].row["message_id"] == wanted]
    # A recommendation has many events, and each way costs a few questions to the lake.
    walks += [_walk_event(project, parts, whole=len(events) == 1) for parts in events]
    if not found and not decisions:
        walks += [Walk((tell_waiting(message),)) for message in find_waiting(project, wanted)]
    return tuple(walks) or tuple(_tell_named(project, wanted))


def _walk_event(project: OpenProject, parts: Sequence[Found], *, whole: bool) -> Walk:
    """Returns the walk from an event: back to the page that it answers, on to the training rows and bundles."""
    event, last = tell_event(project, parts, whole=whole), parts[-1]
    if not whole or not last.in_table or last.topic != EVENTS:
        return _walk_from(project, event)
    trace = last.row["recommendation_id"]
    rows = find_decisions(project, trace) if trace else []
    known = tell_page(project, rows) if rows else []
    downstream = [Link("counted in", "rows", node.id) for node in known if node.kind == "rows"]
    downstream += find_readers(project, last.row)
    return _walk_from(project, msgspec.structs.replace(event, downstream=tuple(downstream)), known)


def _tell_named(project: OpenProject, wanted: str) -> list[Walk]:
    """Returns the walk from what the registry, or a person's item, is called."""
    for make in (make_trial, make_champion, _make_named_bundle):
        node = make(project, wanted)
        if node is not None:
            return [_walk_from(project, node)]
    nodes = tell_item(project, wanted)
    return [_walk_from(project, nodes[0], nodes[1:])] if nodes else []


def _make_named_bundle(project: OpenProject, wanted: str) -> Node | None:
    if len(wanted) < _LEAST_HASH and wanted not in {one.name for one in project.registry.bundles()}:
        return None
    try:
        return make_bundle(project, find_bundle(project, wanted).hash)
    except (UnknownNameError, CallError):
        return None


def _walk_from(project: OpenProject, start: Node, known: Sequence[Node] = ()) -> Walk:
    """Returns the walk from a node: what is known around it, and what the registry tells of the rest."""
    nodes = {(node.kind, node.id): node for node in (start, *known)}
    ways: tuple[Way, ...] = ("upstream", "downstream")
    for way in ways:
        waiting, been = [start], {(start.kind, start.id)}
        while waiting:
            links: Sequence[Link] = getattr(waiting.pop(), way)
            for link in links:
                place = (link.kind, link.id)
                if place not in nodes and link.kind in _MAKERS:
                    made = _MAKERS[link.kind](project, link.id)
                    nodes |= {place: made} if made else {}
                if place in nodes and place not in been:
                    been.add(place)
                    waiting.append(nodes[place])
    return Walk(tuple(nodes.values()))


def _tell_unknown(project: OpenProject, wanted: str) -> str:
    known = [*list_trials(project), *(one.name for one in project.registry.bundles())]
    return (
        f"nothing is known of {wanted!r}: no messageId and no recommendation_id in {EVENTS}, {FAILED} and {DECISIONS}, "
        f"none that waits in {CLICKS}, and no bundle, model, trial or PERSON/ITEM.{did_you_mean(wanted, known)}"
    )
