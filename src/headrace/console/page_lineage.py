"""Lineage: from any id both ways, to what it came from and to what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from headrace.base.errors import UnknownNameError
from headrace.base.http import Request
from headrace.console.desk import Desk, asking, pending
from headrace.console.explain_walk import KINDS, Node, Step, Walk, Way, list_steps
from headrace.console.explain_walk import Sheet as Rows
from headrace.console.frame import NOTHING, Html, Sheet, code, empty, facts, link, panel, put, table, tag
from headrace.events.settled import MAX_ID

_LEAD = "Type the id of a page, an event, a person's item, a bundle or a trial: what it came from, and what came of it."
_NEXT = ("/verify", "whether all of it holds")
_MOST_ID = 2 * MAX_ID + 1
"""A person's item is two ids."""

_MOST_WALKS = 20
_MOST_STEPS = 200
_WAYS: tuple[tuple[Way, str], ...] = (("upstream", "Where it came from"), ("downstream", "What came of it"))
_PAGES = {"bundle": "/models/", "snapshot": "/models/"}


class Lineage:
    """The page /lineage."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def page(self, request: Request) -> Sheet:
        """Returns the walk around an id, or ids to begin with."""
        wanted = request.query.get("id", "").strip()[:_MOST_ID]
        sheet = Sheet("/lineage", "Lineage", _LEAD, _form(wanted), _NEXT)
        if not wanted:
            found = await self._desk.ask(request, "suggest")
            if found is None:
                return pending(request, sheet, "Looking for ids to begin with")
            return replace(sheet, body=put(sheet.body, _begin(found)))
        try:
            found = await self._desk.ask(request, "walk", id=wanted)
        except UnknownNameError as error:
            return replace(sheet, body=put(sheet.body, empty("Nothing is known of it", str(error))), status=404)
        if found is None:
            return pending(request, sheet, "Walking through the lake")
        walks = msgspec.convert(found, tuple[Walk, ...])
        if not walks:
            text = f"No page, event, item, bundle or trial has the id {wanted!r}. An event may still be on its way."
            return replace(sheet, body=put(sheet.body, empty("Nothing is known of it", text)), status=404)
        shown = map(_walk, walks[:_MOST_WALKS])
        return replace(sheet, body=put(sheet.body, *shown, _more(len(walks) - _MOST_WALKS, "of this id", wanted)))


def _form(wanted: str) -> Html:
    given = {
        "name": "id",
        "value": wanted,
        "maxlength": _MOST_ID,
        "required": "",
        "autocomplete": "off",
        "spellcheck": "false",
    }
    return tag("section", asking("/lineage", "Id", tag("input", **given), "Walk"), class_="panel")


def _begin(found: Mapping[str, Any]) -> Html:
    kinds = (("pages", "Newest pages", "for"), ("bundles", "Newest bundles", "of"), ("trials", "Trials", "of"))
    if not any(found[kind] for kind, _, _ in kinds):
        text = "Nothing was shown, clicked or fitted yet. Open Home once, and its page has an id to begin with."
        return empty("Nothing to walk from", text, "headrace up")
    parts = []
    for kind, title, word in kinds:
        rows = [(link(code(one["id"]), "/lineage", id=one["id"]), one["name"]) for one in found[kind]]
        parts += [panel(title, table(title, ("id", word), rows))] if rows else []
    return put(*parts)


def _walk(walk: Walk) -> Html:
    start = walk.start
    parts = [panel(start.title, tag("p", KINDS[start.kind], class_="note"), _node(start))]
    for way, title in _WAYS:
        steps = list_steps(walk, way)
        parts.append(_steps(title, start, steps) if steps else panel(title, note="Nothing that is known."))
    return put(*parts)


def _steps(title: str, start: Node, steps: Sequence[Step]) -> Html:
    items = [tag("li", _step(step), class_=f"deep-{min(len(step.path), 6)}") for step in steps[:_MOST_STEPS]]
    return panel(title, tag("ol", *items, class_="walk"), _more(len(steps) - _MOST_STEPS, "on this way", start.id))


def _more(number: int, what: str, wanted: str) -> Html:
    """Returns what says that there is more than a page should hold."""
    if number <= 0:
        return NOTHING
    return tag("p", f"{number:,} more {what}: headrace explain {shlex.quote(wanted)} --json has all", class_="note")


def _step(step: Step) -> Html:
    one, node = step.link, step.node
    to = link(code(one.id), "/lineage", id=one.id)
    title = node.title if node else one.text or KINDS[one.kind]
    head = put(tag("p", one.word, class_="kind"), tag("p", tag("strong", title), " ", to))
    if node is None:
        return head
    return (
        put(head, tag("details", tag("summary", "What is known of it"), _node(node)))
        if node.facts or node.sheets
        else head
    )


def _node(node: Node) -> Html:
    known = [("Id", code(node.id)), *node.facts]
    page = _PAGES.get(node.kind)
    more = tag("p", link("Open its page", f"{page}{node.id}")) if page else NOTHING
    return put(facts(known), *map(_rows, node.sheets), more)


def _rows(sheet: Rows) -> Html:
    numbers = [
        place
        for place in range(len(sheet.columns))
        if sheet.rows
        and all(isinstance(row[place], int | float) and not isinstance(row[place], bool) for row in sheet.rows)
    ]
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in sheet.rows]
    return put(tag("h3", sheet.title), table(sheet.title, sheet.columns, cells, numbers=numbers))
