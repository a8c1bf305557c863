"""How commands print: tables for people, one JSON object per line for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table


def print_lines(rows: Iterable[Mapping[str, Any]]) -> None:
    """Prints one JSON object per line."""
    for row in rows:
        print(msgspec.json.encode(row).decode(), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str = "", empty: str = "") -> None:
    """Prints a table; numbers are aligned to the right, and nothing at all is said in a sentence."""
    shown = [list(row) for row in rows]
    console = Console(highlight=False)
    if not shown and empty:
        console.print(empty)
        return
    table = Table(title=title or None, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(shown) and all(isinstance(row[index], int | float) for row in shown)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        table.add_row(*[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row])
    console.print(table)


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
