"""How commands print: tables for people, one JSON object per line for programs."""

from __future__ import annotations

import contextlib
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.console.figures import format_bytes, format_seconds, format_time

__all__ = [
    "as_text",
    "format_bytes",
    "format_seconds",
    "format_time",
    "is_terminal",
    "print_facts",
    "print_lines",
    "print_rows",
    "print_table",
    "shown",
    "working",
]

_CELL_WIDTH = 60

_encoder = msgspec.json.Encoder(decimal_format="number", enc_hook=str)


def print_lines(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints one JSON object per line."""
    for row in rows:
        print(msgspec.json.encode(row).decode(), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", empty: str = "") -> None:
    """Prints a table; numbers are aligned to the right, and nothing at all is said in a sentence."""
    lines = [list(row) for row in rows]
    console = Console(highlight=False)
    if not lines and empty:
        console.print(Text(shown(empty)))
        return
    table = Table(
        title=Text(shown(title)) if title else None, box=None, pad_edge=False, header_style="bold", title_justify="left"
    )
    for index, column in enumerate(columns):
        numeric = bool(lines) and all(isinstance(row[index], int | float) for row in lines)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in lines:
        table.add_row(*[Text(f"{cell:,}" if isinstance(cell, int) else shown(str(cell))) for cell in row])
    console.print(table)


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints an answer: as a table where the terminal is wide enough, else row by row, a line for each column."""
    cells = [["NULL" if cell is None else _cut(shown(as_text(cell))) for cell in row] for row in rows]
    widths = [max(map(len, (name, *column))) for name, *column in zip(columns, *cells, strict=True)]
    needed = sum(widths) + len(widths)
    console = Console(highlight=False, soft_wrap=True) if not is_terminal() else Console(highlight=False)
    if is_terminal() and needed > console.width:
        _print_upright(columns, cells)
        return
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) and not isinstance(row[i], bool) for row in rows)
        for i in range(len(columns))
    ]
    for line in (columns, *cells):
        padded = (
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, numeric, strict=True)
        )
        text = Text(" ".join(padded).rstrip(), style="bold" if line is columns else "")
        console.print(text, soft_wrap=True)


def _print_upright(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    width = max(map(len, columns))
    for number, row in enumerate(cells, start=1):
        print(f"row {number}")
        for name, cell in zip(columns, row, strict=True):
            print(f"  {name.ljust(width)}  {cell}")


def _cut(text: str) -> str:
    return text if len(text) <= _CELL_WIDTH else text[: _CELL_WIDTH - 1] + "…"


def as_text(cell: Any) -> str:
    """Returns a value as CSV has it and people read it: nothing for null, JSON for what has parts.

    >>> as_text(None), as_text(True), as_text([1, {"a": "b"}]), as_text("a")
    ('', 'true', '[1,{"a":"b"}]', 'a')
    """
    if cell is None:
        return ""
    if isinstance(cell, datetime):
        return cell.isoformat(sep=" ")
    if isinstance(cell, date):
        return cell.isoformat()
    if isinstance(cell, bytes):
        return cell.hex()
    if isinstance(cell, bool | list | dict | tuple):
        return _encoder.encode(cell).decode()
    return str(cell)


def shown(text: str) -> str:
    r"""Returns text that cannot steer the terminal: anybody may send events.

    >>> print(shown("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Prints facts, the name of each before it, in lines that fit 80 columns."""
    for name, text in facts:
        lines = textwrap.wrap(shown(text), 68, break_long_words=False, break_on_hyphens=False) or [""]
        for number, line in enumerate(lines):
            print(f"{'' if number else name:<12}{line}")


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Tells a person at a terminal what is being done meanwhile."""
    if not is_terminal():
        yield
        return
    with Console().status(shown(text)):
        yield


def is_terminal() -> bool:
    """Returns whether a person looks at stdout."""
    return sys.stdout.isatty()
