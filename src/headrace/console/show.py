"""How commands print: tables for people, one JSON object per line for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text


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


def shown(text: str) -> str:
    r"""Returns text that cannot steer the terminal: anybody may send events.

    >>> print(shown("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def format_bytes(count: float) -> str:
    """Returns a size for people.

    >>> format_bytes(1536)
    '1.5 kB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def is_terminal() -> bool:
    """Returns whether a person looks at stdout."""
    return sys.stdout.isatty()
