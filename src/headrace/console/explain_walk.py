"""What explain finds: nodes with facts, and links from each to what it came from and to what came of it.

    tell(project, id) -> tuple[Walk, ...]

of `headrace.console.explain` returns a walk for each thing that an id names. The command prints walks as trees, with
--json a line for each node, and the page of the console draws them. This module reads nothing, so that any process
may load it; walks travel between processes as JSON, by `encode_walks` and `decode_walks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

Kind = Literal["decision", "features", "item", "event", "rows", "bundle", "snapshot", "trial", "verdict", "champion"]

KINDS: dict[Kind, str] = {
    "decision": "a row of a page, as it was chosen and logged; the id is its recommendation_id",
    "features": "what a decision knew of its person and items, and the events behind it",
    "item": "an item for a person; the id is PERSON/ITEM",
    "event": "something that somebody did, from the door to its row; the id is its messageId",
    "rows": "the training rows of a decision: its viewed items, and which were clicked",
    "bundle": "what was fitted; the id is its hash",
    "snapshot": "the tables at their versions that a bundle was fitted from, with code and machine",
    "trial": "one run of an experiment, frozen at its start",
    "verdict": "what a trial found; the id is the trial's",
    "champion": "what a page was served by from then on",
}
"""What each kind of node is."""

Way = Literal["upstream", "downstream"]

Cell = str | int | float | bool | None


class Link(msgspec.Struct, frozen=True):
    """From a node to another: upstream to what it came from, downstream to what came of it."""

    word: str
    """What the other one is to this one, such as `ranked by`."""
    kind: Kind
    id: str
    """Its id. Where the walk has no such node, `headrace explain ID` tells of it."""
    text: str = ""
    """What is worth saying of it where it stands in no node of the walk."""


class Sheet(msgspec.Struct, frozen=True):
    """Rows of one shape, such as items by features."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One station of a walk."""

    kind: Kind
    id: str
    """What `headrace explain` finds it by."""
    title: str
    """What it is, in a few words."""
    facts: tuple[tuple[str, str], ...] = ()
    """What is known of it: names and texts for people."""
    sheets: tuple[Sheet, ...] = ()
    upstream: tuple[Link, ...] = ()
    """What it came from."""
    downstream: tuple[Link, ...] = ()
    """What came of it."""
    record: dict[str, Any] = {}
    """The same for programs: --json has these names beside the others."""


class Walk(msgspec.Struct, frozen=True):
    """What is known around one thing; the first node is the one that was asked for."""

    nodes: tuple[Node, ...]

    @property
    def start(self) -> Node:
        """The node that was asked for."""
        return self.nodes[0]

    def find(self, link: Link) -> Node | None:
        """Returns the node that a link leads to; None if the walk goes no further there."""
        return next((node for node in self.nodes if (node.kind, node.id) == (link.kind, link.id)), None)


@dataclass(frozen=True)
class Step:
    """A link of a walk, in the order in which people read it."""

    path: tuple[bool, ...]
    """Of each link from the start to here whether it is the last of its node: what a tree is drawn by."""
    link: Link
    node: Node | None
    """Where it leads; None if the walk goes no further there."""
    is_again: bool = False
    """Whether the walk was there before, and does not go on from it once more."""


def list_steps(walk: Walk, way: Way) -> list[Step]:
    """Returns the links one way from the start, depth first; each node is walked on from once.

    >>> made = Node(kind="bundle", id="b", title="ranker", upstream=(Link("fitted from", "snapshot", "b"),))
    >>> asked = Node(kind="decision", id="r", title="home", upstream=(Link("ranked by", "bundle", "b"),))
    >>> [(len(step.path), step.link.word) for step in list_steps(Walk((asked, made)), "upstream")]
    [(1, 'ranked by'), (2, 'fitted from')]
    """
    return list(_walk_on(walk, way, walk.start, (), {(walk.start.kind, walk.start.id)}))


def _walk_on(walk: Walk, way: Way, node: Node, path: tuple[bool, ...], been: set[tuple[Kind, str]]) -> Iterator[Step]:
    links: Sequence[Link] = getattr(node, way)
    for number, link in enumerate(links, start=1):
        found, here = walk.find(link), (*path, number == len(links))
        is_again = (link.kind, link.id) in been
        yield Step(here, link, found, is_again)
        if found is not None and not is_again:
            been.add((link.kind, link.id))
            yield from _walk_on(walk, way, found, here, been)


def flatten(node: Node) -> dict[str, Any]:
    """Returns a node as one JSON object: its record beside what every node has."""
    told: dict[str, Any] = msgspec.to_builtins(node)
    record = told.pop("record")
    return {**{name: told[name] for name in ("kind", "id", "title")}, **record, **told}


def encode_walks(walks: Iterable[Walk]) -> bytes:
    """Returns walks as JSON, for another process."""
    return msgspec.json.encode(tuple(walks))


def decode_walks(told: bytes) -> tuple[Walk, ...]:
    """Returns the walks in such bytes."""
    return msgspec.json.decode(told, type=tuple[Walk, ...])
