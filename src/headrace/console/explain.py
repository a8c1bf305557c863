"""headrace explain: what came of something, and what it came from, from a click's offset to a champion and back."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import msgspec

from headrace.base.errors import CallError, did_you_mean
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
from headrace.console.show import print_lines
from headrace.events.decision import DECISIONS
from headrace.events.settled import EVENTS, FAILED
from headrace.project import OpenProject, open_project

_LEAST_HASH = 8
_MOST_MADE = 10

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
    if given.since is not None and not given.openlineage:
        raise CallError("--since goes with --openlineage: an id is walked from whenever it was")
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
    elif len(walks) > 1 and all(walk.start.kind == "event" and walk.start.id != given.id for walk in walks):
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
    try:
        wanted.encode()
    except UnicodeEncodeError:
        # The shell gave bytes that are no text, and so no id.
        return ()
    named = list(_tell_named(project, wanted))
    walks = _tell_known(project, wanted) or [Walk((tell_waiting(one),)) for one in find_waiting(project, wanted)]
    if not walks and not named:
        # What waited for the settler at the first look may have settled before the second.
        walks = _tell_known(project, wanted)
    return (*walks, *named)


def _tell_known(project: OpenProject, wanted: str) -> list[Walk]:
    """Returns the walks from a page and from events, as topics and tables have them."""
    found = find_settled(project, wanted)
    walks = [*_tell_page(project, wanted, found)]
    # A recommendation has many events, and each way costs a few questions to the lake.
    events = [parts for parts in by_event(found) if not walks or _is_called(parts, wanted)]
    walks += [_walk_event(project, parts, whole=len(events) == 1 or _is_called(parts, wanted)) for parts in events]
    return walks


def _is_called(parts: Sequence[Found], wanted: str) -> bool:
    return bool(parts[-1].row["message_id"] == wanted)


def _tell_page(project: OpenProject, wanted: str, found: Sequence[Found]) -> Iterator[Walk]:
    """Yields the walk from a row of a page: one below the first is named by its page and its title."""
    page, _, title = wanted.partition("/")
    decisions = find_decisions(project, wanted)
    if decisions:
        start, *known = tell_page(project, decisions, found)
        yield _walk_from(project, start, known)
    elif title:
        decisions = find_decisions(project, page)
        if any(row["list_id"] == title for row in decisions):
            start, *known = tell_page(project, decisions, title=title)
            yield _walk_from(project, start, known)


def _walk_event(project: OpenProject, parts: Sequence[Found], *, whole: bool) -> Walk:
    """Returns the walk from an event: back to the page that it answers, on to the training rows and bundles."""
    event, last = tell_event(project, parts, whole=whole), parts[-1]
    if not whole or not last.in_table or last.topic != EVENTS:
        return _walk_from(project, event)
    trace = last.row["recommendation_id"]
    rows = find_decisions(project, trace) if trace else []
    known = tell_page(project, rows) if rows else []
    me = (event.kind, event.id)
    downstream = [
        Link("counted in", "rows", node.id)
        for node in known
        if node.kind == "rows" and me in [(link.kind, link.id) for link in node.upstream]
    ]
    downstream += find_readers(project, last.row)
    return _walk_from(project, msgspec.structs.replace(event, downstream=tuple(downstream)), known)


def _tell_named(project: OpenProject, wanted: str) -> Iterator[Walk]:
    """Yields the walks from what in the registry, and from which person's item, is called so."""
    for make in (make_trial, make_champion):
        node = make(project, wanted)
        if node is not None:
            yield _walk_from(project, node)
    for name_hash in _find_bundles(project, wanted):
        node, snapshot = make_bundle(project, name_hash), make_snapshot(project, name_hash, is_asked=True)
        if node is not None:
            yield _walk_from(project, node, [snapshot] if snapshot else [])
    nodes = tell_item(project, wanted)
    if nodes:
        yield _walk_from(project, nodes[0], nodes[1:])


def _find_bundles(project: OpenProject, wanted: str) -> list[str]:
    """Returns the hashes of the newest bundle of a model, and of those whose hash begins so."""
    bundles = project.registry.bundles()
    named = [one.hash for one in bundles if one.name == wanted][:1]
    begins = [one.hash for one in bundles if len(wanted) >= _LEAST_HASH and one.hash.startswith(wanted)]
    return list(dict.fromkeys([*named, *begins]))


def _walk_from(project: OpenProject, start: Node, known: Sequence[Node] = ()) -> Walk:
    """Returns the walk from a node: what is known around it, and what the registry tells of the rest."""
    nodes = {(node.kind, node.id): node for node in (start, *known)}
    ways: tuple[Way, ...] = ("upstream", "downstream")
    for way in ways:
        waiting, been = deque([start]), {(start.kind, start.id)}
        while waiting:
            node = waiting.popleft()
            _make_next(project, nodes, node, way)
            for link in getattr(node, way):
                place = (link.kind, link.id)
                if place in nodes and place not in been:
                    been.add(place)
                    waiting.append(nodes[place])
    return Walk(tuple(nodes.values()))


def _make_next(project: OpenProject, nodes: dict[tuple[Kind, str], Node], node: Node, way: Way) -> None:
    """Adds what a node's links lead to in the registry: of many alike the first few."""
    links: Sequence[Link] = getattr(node, way)
    # What serves next came of something else, and a page may have had hundreds.
    missing = [link for link in links if (link.kind, link.id) not in nodes and link.kind != node.kind]
    for link in itertools.islice((link for link in missing if link.kind in _MAKERS), _MOST_MADE):
        made = _MAKERS[link.kind](project, link.id)
        nodes |= {(link.kind, link.id): made} if made else {}


def _tell_unknown(project: OpenProject, wanted: str) -> str:
    known = [*list_trials(project), *(one.name for one in project.registry.bundles())]
    return (
        f"nothing is known of {wanted!r}: no messageId and no recommendation_id in {EVENTS}, {FAILED} and {DECISIONS}, "
        f"none that waits in {CLICKS}, and no bundle, model, trial or PERSON/ITEM.{did_you_mean(wanted, known)}"
    )
