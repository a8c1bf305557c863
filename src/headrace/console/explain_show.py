"""Walks as people read them at a terminal: what was asked for, then a tree each way."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from headrace.console.explain_walk import Node, Sheet, Step, Walk, Way, list_steps
from headrace.console.show import print_facts, print_rows, print_table, shown

_WIDTH = 100
_LEAST_WIDTH = 40
_SHOWN_ROWS = 12
_SHOWN_LINKS = 8
_BY_ID = ("decision", "event")
_HEADINGS: dict[Way, str] = {"upstream": "came from", "downstream": "led to"}


def print_walk(walk: Walk) -> None:
    """Prints a walk."""
    start = walk.start
    print(shown(f"{start.id if start.kind in _BY_ID else start.kind}  {start.title}"))
    if start.kind == "event":
        print("\n".join(_stations(start)))
    else:
        print_facts(start.facts)
    for sheet in start.sheets:
        print(f"\n{sheet.title}" if len(start.sheets) > 1 else "")
        _print_sheet(sheet)
    for way, heading in _HEADINGS.items():
        steps = list_steps(walk, way)
        if steps:
            print(f"\n{heading}")
            print("\n".join(line.rstrip() for line in draw_tree(steps)))


def print_list(walks: Sequence[Walk]) -> None:
    """Prints events that share an id, a line for each."""
    rows = [
        (node.id, node.record["event"], node.record["person"], node.facts[0][1][:23], node.record["state"])
        for node in (walk.start for walk in walks)
    ]
    print_rows(("message_id", "event", "person", "received", "state"), rows)
    print("\nheadrace explain MESSAGE_ID follows one of them")


def _stations(node: Node) -> Iterator[str]:
    yield "│"
    for number, (name, text) in enumerate(node.facts, start=1):
        yield f"{'└' if number == len(node.facts) else '├'} {name:<8}  {shown(text)}"


def _print_sheet(sheet: Sheet) -> None:
    print_table(sheet.columns, [["-" if cell is None else cell for cell in row] for row in sheet.rows])


def draw_tree(steps: Sequence[Step]) -> Iterator[str]:
    """Yields the lines of a tree of steps; of many links alike the first few."""
    for number, step in enumerate(steps):
        alike = _list_alike(steps, number)
        place = alike.index(step)
        if place >= _SHOWN_LINKS and len(alike) > _SHOWN_LINKS + 1:
            if place == len(alike) - 1:
                yield f"{_indent(step, is_head=True)}... and {len(alike) - _SHOWN_LINKS:,} more, --json has all"
            continue
        yield f"{_indent(step, is_head=True)}{step.link.word:<{_WORD_WIDTH}}{shown(_head(step))}"
        if step.node is not None and not step.is_again:
            yield from _draw_node(step, step.node, is_parent=_is_parent(steps, number))


def _head(step: Step) -> str:
    if step.node is None:
        return f"{step.link.id}  {step.link.text}".strip()
    name = f"{step.node.id}  " if step.node.kind == "event" else ""
    return f"{name}{step.node.title}{', see above' if step.is_again else ''}"


_WORD_WIDTH = 13


def _is_parent(steps: Sequence[Step], number: int) -> bool:
    return number + 1 < len(steps) and len(steps[number + 1].path) > len(steps[number].path)


def _list_alike(steps: Sequence[Step], number: int) -> list[Step]:
    """Returns the steps around one that are of the same node, have the same word, and lead nowhere."""
    step = steps[number]
    if step.node is not None:
        return [step]
    return [
        one for one in steps if one.node is None and one.link.word == step.link.word and one.path[:-1] == step.path[:-1]
    ]


def _indent(step: Step, *, is_head: bool) -> str:
    *outer, last = step.path
    bars = "".join("   " if is_last else "│  " for is_last in outer)
    return bars + (("└─ " if last else "├─ ") if is_head else ("   " if last else "│  "))


def _draw_node(step: Step, node: Node, *, is_parent: bool) -> Iterator[str]:
    margin = _indent(step, is_head=False) + ("│  " if is_parent else "   ")
    for name, text in node.facts:
        width = max(_LEAST_WIDTH, _WIDTH - len(margin) - 11)
        wrapped = textwrap.wrap(shown(text), width, break_on_hyphens=False) or [""]
        for number, line in enumerate(wrapped):
            yield f"{margin}{'' if number else name:<10} {line}"
    for sheet in node.sheets:
        yield f"{margin}{shown(sheet.title)}"
        yield from (f"{margin}  {line}" for line in _draw_sheet(sheet))


def _draw_sheet(sheet: Sheet) -> Iterator[str]:
    cells = [[_text(cell) for cell in row] for row in sheet.rows[:_SHOWN_ROWS]]
    widths = [max(map(len, (name, *column))) for name, *column in zip(sheet.columns, *cells, strict=True)]
    for line in (sheet.columns, *cells):
        yield "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
    if len(sheet.rows) > _SHOWN_ROWS:
        yield f"... {len(sheet.rows) - _SHOWN_ROWS:,} more rows: --json has all"


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, int) and not isinstance(cell, bool):
        return f"{cell:,}"
    return shown(f"{cell:.5g}" if isinstance(cell, float) else str(cell))
