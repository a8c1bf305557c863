"""Tables: what the lake holds, how it came there, and SQL over it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from headrace.base.errors import CallError, HeadraceError
from headrace.base.http import Request
from headrace.console import charts
from headrace.console.desk import Desk, asking, pending, segment
from headrace.console.figures import capitalise, count_of, format_bytes, format_seconds
from headrace.console.frame import (
    NOTHING,
    Html,
    Sheet,
    badge,
    code,
    empty,
    facts,
    figures,
    link,
    panel,
    put,
    table,
    tag,
    waiting,
    when,
)

_MOST_SQL = 4_000
# Infinity, what is no number, and what leaves a scale without digits is not drawn.
_LARGEST = 1e290
_MOST_BARS = 40
_OURS = "headrace."
_LEAD = "Every table of the lake, each a Delta table of Parquet files, and one SELECT at a time over all of them."
_NEXT = ("/models", "what is learned from these rows")


class Tables:
    """The pages /tables and /tables/NAME."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def all(self, request: Request) -> Sheet:
        """Returns the catalog, below it a statement and its answer if one was asked for."""
        sheet = Sheet("/tables", "Tables", _LEAD, NOTHING, _NEXT)
        sql = request.query.get("sql", "")
        found = await self._desk.ask(request, "tables")
        if found is None:
            return pending(request, sheet, "Opening the lake")
        if not found["tables"]:
            return replace(
                sheet,
                body=empty(
                    "No tables yet",
                    "The sink makes them as soon as the first events were settled, which takes some seconds.",
                    "headrace up",
                ),
            )
        answer = await self._answer(request, sql) if sql.strip() else NOTHING
        body = put(_form(sql, found), answer) if answer else put(_catalog(found), _form(sql, found))
        return replace(sheet, body=body)

    async def one(self, request: Request) -> Sheet:
        """Returns a table: columns, versions, files."""
        name = segment(request, "tables")
        sheet = Sheet("/tables", name, "", NOTHING, _NEXT, crumb=link("Tables", "/tables"))
        found = await self._desk.ask(request, "table", name=name)
        if found is None:
            return pending(request, replace(sheet, lead="A table of the lake."), "Reading the table's log")
        return replace(sheet, **(_view(found) if "view" in found else _table(found)))

    async def _answer(self, request: Request, sql: str) -> Html:
        try:
            if len(sql) > _MOST_SQL:
                # Cut off it would be another statement.
                raise CallError(f"the statement has {len(sql):,} letters, this page takes {_MOST_SQL:,}")
            found = await self._desk.ask(request, "sql", sql=sql)
        except HeadraceError as error:
            sentence, _, place = str(error).partition("\n")
            shown = tag("pre", place, class_="problem", tabindex=0) if place else NOTHING
            return panel("This does not run", shown, note=capitalise(sentence))
        return waiting(request, "DuckDB reads the lake") if found is None else _result(found)


# SQL.


def _form(sql: str, found: Mapping[str, Any]) -> Html:
    area = tag(
        "textarea",
        sql or "SELECT event, count(*) AS events FROM events GROUP BY event ORDER BY events DESC",
        name="sql",
        maxlength=_MOST_SQL,
        spellcheck="false",
        autocapitalize="off",
        required="",
    )
    form = asking("/tables", "One SELECT, in DuckDB's dialect", area, "Run")
    names = [one["table"] for one in found["tables"]] + found["views"]
    return panel("Ask with SQL", form, note=put("It may read ", _listed(names), ", and nothing else.") if sql else "")


def _listed(names: Sequence[str]) -> Html:
    linked = [link(tag("code", name), f"/tables/{name}") for name in names]
    return put(*[part for one in linked for part in (one, ", ")][:-1])


def _result(found: Mapping[str, Any]) -> Html:
    columns, rows = found["columns"], found["rows"]
    read = f", {format_bytes(found['bytes'])} read" if found["bytes"] is not None else ""
    shown = f"the first {len(rows):,} rows" if found["more"] else count_of(len(rows), "row")
    note = f"{capitalise(shown)} in {found['seconds']:.2f} s{read}. This page's address asks the same again."
    if not rows:
        return empty("No row", "The statement ran, and nothing fits it. " + note)
    numbers = [place for place, column in enumerate(columns) if column["kind"] == "number"]
    cells = [[_cell(cell, column["kind"]) for cell, column in zip(row, columns, strict=True)] for row in rows]
    heads = [column["name"] for column in columns]
    listed = tag("div", table("Rows of the answer", heads, cells, numbers=numbers), class_="answer")
    return put(_plot(columns, rows, numbers), panel("Answer", listed, note=note))


def _cell(cell: str | None, kind: str) -> object:
    if cell is None:
        return tag("span", "NULL", class_="soft")
    return f"{int(cell):,}" if kind == "number" and cell.lstrip("-").isdecimal() and len(cell) < 16 else cell


def _plot(columns: Sequence[Mapping[str, str]], rows: Sequence[Sequence[str | None]], numbers: Sequence[int]) -> Html:
    """Returns the first number of each row by its first other column, or by the number before it; nothing without."""
    others = [place for place in range(len(columns)) if place not in numbers]
    along = others[0] if others else numbers[0] if len(numbers) > 1 else None
    up = next((place for place in numbers if place != along), None)
    if along is None or up is None or len(rows) < 2:
        return NOTHING
    known = [(str(row[along]), float(str(row[up]))) for row in rows if row[along] is not None and row[up] is not None]
    pairs = [pair for pair in known if abs(pair[1]) < _LARGEST]
    if len(pairs) < 2:
        return NOTHING
    title = f"{columns[up]['name']} by {columns[along]['name']}"
    places = _places([name for name, _ in pairs], columns[along]["kind"])
    if places:
        points = sorted(zip(places, pairs, strict=True))
        drawn = charts.line([(x, y) for x, (_, y) in points], label=title, names=(points[0][1][0], points[-1][1][0]))
    else:
        drawn = charts.bars([(name, value, f"{value:,.12g}") for name, value in pairs[:_MOST_BARS]], label=title)
    return panel(title, drawn)


def _places(values: Sequence[str], kind: str) -> list[float]:
    """Returns where values stand along an axis; none for names."""
    try:
        if kind == "number" and len(values) > 2:
            found = [float(value) for value in values]
            return found if all(abs(value) < _LARGEST for value in found) else []
        return [datetime.fromisoformat(value).timestamp() for value in values] if kind == "time" else []
    except ValueError:
        return []


# The catalog.


def _catalog(found: Mapping[str, Any]) -> Html:
    now = time.time()
    rows = [
        (
            link(one["table"], f"/tables/{one['table']}"),
            "?" if one["rows"] is None else one["rows"],
            one["files"],
            format_bytes(one["bytes"]),
            one["version"],
            f"{format_seconds(max(now - one['newest_us'] / 1e6, 0))} ago" if one["newest_us"] else "-",
            _lag(one["lag"]),
        )
        for one in found["tables"]
    ]
    heads = ("table", "rows", "files", "size", "version", "newest commit", "behind its topic")
    tables = panel("Catalog", table("Tables", heads, rows, numbers=(1, 2, 3, 4)))
    if not found["views"]:
        return tables
    note = put("Each declared event has a view with its properties as columns: ", _listed(found["views"]), ".")
    return put(tables, panel("Views", note=note))


def _lag(records: int | None) -> object:
    if records is None:
        return tag("span", "has no topic", class_="soft")
    return badge("good", "level") if not records else badge("warn", count_of(records, "record"))


# One table.


def _view(found: Mapping[str, Any]) -> dict[str, Any]:
    lead = put("A view over the table ", link(found["over"], f"/tables/{found['over']}"), ".")
    return {"lead": lead, "body": put(_columns(found), panel("How it is made", tag("pre", found["sql"], tabindex=0)))}


def _table(found: Mapping[str, Any]) -> dict[str, Any]:
    shown = figures(
        (
            ("Rows", "?" if found["rows"] is None else f"{found['rows']:,}", ""),
            ("Files", f"{found['files']:,}", format_bytes(found["bytes"])),
            ("Version", f"{found['version']:,}", count_of(found["pins"], "pin")),
            ("Behind its topic", "-" if found["lag"] is None else f"{found['lag']:,}", "records"),
        )
    )
    select = f'SELECT * FROM "{found["table"]}" LIMIT 20'  # noqa: S608 - shown as text, for people to run
    ask = panel("Look inside", tag("p", link(tag("code", select), "/tables", sql=select)))
    body = put(shown, _versions(found), _columns(found), _files(found), _place(found), ask)
    return {"lead": found["description"] or "A table of the lake.", "body": body}


def _versions(found: Mapping[str, Any]) -> Html:
    rows = [
        (
            one["version"],
            when(one["time_us"]),
            one["operation"].lower() + (", new schema" if one["schema_changed"] else ""),
            one["rows"],
            _whence(one),
            tag("span", one["producer"] or "-", class_="soft"),
        )
        for one in found["versions"]
    ]
    heads = ("version", "committed", "operation", "rows", "offsets of its topic", "by")
    note = "Each commit holds, with its rows, which records of which partition they are: that is why none stands twice."
    return panel("History", table("Versions", heads, rows, numbers=(0, 3)), note=note)


def _whence(one: Mapping[str, Any]) -> object:
    ranges = one["offsets"] or {}
    listed = [f"{p}: {start:,} to {end:,}" for p, (start, end) in sorted(ranges.items(), key=lambda two: int(two[0]))]
    return tag("span", " · ".join(listed) or one["note"].get("action", "-"), class_="code")


def _columns(found: Mapping[str, Any]) -> Html:
    rows = [
        (tag("code", one["name"]), tag("span", one["type"], class_="soft"), tag("span", one["text"]))
        for one in found["columns"]
    ]
    return panel("Columns", table("Columns", ("column", "type", "what it holds"), rows, wide=2))


def _files(found: Mapping[str, Any]) -> Html:
    rows = [
        (", ".join(str(value) for value in one["partition"].values()) or "-", code(one["path"]),
         "?" if one["rows"] is None else one["rows"], format_bytes(one["size"]))
        for one in found["shown_files"]
    ]  # fmt: skip
    more = found["files"] - len(rows)
    note = f"The newest {len(rows):,}; {more:,} more stand in the table's log." if more > 0 else ""
    head = tag("summary", f"{count_of(found['files'], 'file')}, {format_bytes(found['bytes'])}")
    listed = table("Files", ("day", "file", "rows", "size"), rows, numbers=(2, 3))
    return panel("Files", tag("details", head, listed), note=note)


def _place(found: Mapping[str, Any]) -> Html:
    days, properties = found["retention_days"], found["properties"].items()
    positions = [
        (p["partition"], "-" if p["position"] is None else p["position"], p["end"], p["records"])
        for p in found["positions"] or ()
    ]
    heads = ("partition", "taken up to", "topic's end", "behind")
    listed = table("Positions", heads, positions, numbers=(0, 1, 2, 3)) if positions else NOTHING
    kept = facts(
        (
            ("At", code(found["uri"])),
            ("Divided by", ", ".join(found["partitions"]) or "nothing"),
            ("Rows kept", f"for {days:g} days" if days else "for ever"),
            *((name.removeprefix(_OURS), code(value)) for name, value in properties if name.startswith(_OURS)),
        )
    )
    return panel("Where it stands", kept, tag("h3", "How far it has read its topic") if positions else NOTHING, listed)
