"""headrace table: list, describe, history, pin, maintain."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from headrace.base.clock import machine_us
from headrace.base.errors import CallError, FencedError, HeadraceError, OutsideError, UnknownNameError, unknown_name
from headrace.console.show import format_bytes, format_seconds, format_time, print_lines, print_table
from headrace.console.sql import list_views, missing_table, query
from headrace.console.state import is_running
from headrace.events.decision import DECISIONS, Decision
from headrace.events.dimension import Member
from headrace.events.settled import EVENTS, FAILED, FailedEvent, SettledEvent
from headrace.project import OpenProject, open_project
from headrace.stream import CODECS
from headrace.tables import Commit, Pin, Table
from headrace.tables.catalog import column_sentences
from headrace.tables.sink import INCARNATION, TOPIC

_CONTRACTS = {EVENTS: SettledEvent, FAILED: FailedEvent, DECISIONS: Decision}
_TRIES = 5
# Between two commits of a sink stand a few of the keeper at most.
_LATEST_COMMITS = 20


@dataclass(frozen=True)
class Lag:
    """How far a table stands behind its topic in one partition."""

    partition: int
    position: int | None
    """The next offset that the table takes; nothing if it took none of this incarnation."""
    end: int

    records: int


def _opened(given: argparse.Namespace) -> OpenProject:
    return open_project(given.project, profile=given.profile)


def open_table(project: OpenProject, name: str) -> Table:
    """Returns a table by its name; says what makes it where nothing has."""
    try:
        return project.tables.open(name)
    except UnknownNameError as error:
        if name in CODECS:
            raise missing_table(name) from error
        raise


# list.


def list_tables(given: argparse.Namespace) -> None:
    """Lists the tables with their sizes."""
    with _opened(given) as project:
        rows = [describe(project, name) for name in project.tables.names()]
    if given.json:
        print_lines(rows)
        return
    now = machine_us()
    print_table(
        ("table", "rows", "files", "size", "version", "newest commit", "lag", "pins"),
        [
            (
                r["table"],
                "?" if r["rows"] is None else r["rows"],
                r["files"],
                format_bytes(r["bytes"]),
                r["version"],
                # Where the log's commits are gone, a checkpoint still gives the rows, but no time.
                f"{format_seconds(max(now - r['newest_us'], 0) / 1e6)} ago" if r["newest_us"] else "-",
                "-" if r["lag"] is None else r["lag"],
                r["pins"],
            )
            for r in rows
        ],
        empty="no tables yet: `headrace up` makes them",
    )


def describe(project: OpenProject, name: str) -> dict[str, Any]:
    """Returns a table as `table list --json` shows it."""
    table = project.tables.open(name)
    return _as_table(table, list_lags(project, table))


def _as_table(table: Table, lags: Sequence[Lag] | None) -> dict[str, Any]:
    files = table.files()
    counts = [file.rows for file in files if file.rows is not None]
    newest = table.history(1)
    return {
        "table": table.name,
        "rows": sum(counts) if len(counts) == len(files) else None,
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "version": table.version,
        "newest_us": newest[0].time_us if newest else 0,
        "topic": table.properties.get(TOPIC),
        "lag": None if lags is None else sum(lag.records for lag in lags),
        "pins": len(table.pins()),
    }


def list_lags(project: OpenProject, table: Table) -> list[Lag] | None:
    """Returns how far a table stands behind its topic; nothing if it has none, or if the topic is another or away."""
    topic, incarnation = table.properties.get(TOPIC), table.properties.get(INCARNATION)
    if topic is None:
        return None
    try:
        if project.topics.describe(topic).incarnation != incarnation:
            return None
        bounds = project.topics.bounds(topic)
    except (OutsideError, UnknownNameError):
        return None
    positions = [table.position(f"{incarnation}/{partition}") for partition in range(len(bounds))]
    return [
        Lag(partition, position, bound.end, max(bound.end - (bound.start if position is None else position), 0))
        for partition, (position, bound) in enumerate(zip(positions, bounds, strict=True))
    ]


# describe.


def describe_table(given: argparse.Namespace) -> None:
    """Says what a table holds, whence, and how far."""
    with _opened(given) as project:
        found = describe_fully(project, given.name)
    if given.json:
        print_lines([found])
        return
    _show_table(found)


def describe_fully(project: OpenProject, name: str) -> dict[str, Any]:
    """Returns a table or view as `table describe --json` shows it."""
    names = project.tables.names()
    views = {view.name: view.sql for view in list_views(project)} if name not in names else {}
    return _view(project, name, views) if name in views else _table(project, name, [*views])


def _table(project: OpenProject, name: str, views: Sequence[str]) -> dict[str, Any]:
    if name not in project.tables.names() and name not in CODECS and views:
        raise unknown_name("table", name, [*project.tables.names(), *views])
    table = open_table(project, name)
    # What is filled from a topic and is none of ours is a dimension.
    kind = _CONTRACTS.get(name) or (Member if TOPIC in table.properties else None)
    sentences = column_sentences(kind) if kind else {}
    lags = list_lags(project, table)
    newest = next((commit for commit in table.history(_LATEST_COMMITS) if "offsets" in commit.note), None)
    return {
        **_as_table(table, lags),
        "description": table.description,
        "uri": table.uri,
        "columns": [{"name": f.name, "type": str(f.type), "text": sentences.get(f.name, "")} for f in table.schema],
        "partitions": list(table.partitions),
        "retention_days": project.profile.table(name).retention_days or None,
        "properties": dict(sorted(table.properties.items())),
        "positions": None if lags is None else [msgspec.to_builtins(lag) for lag in lags],
        "provenance": newest.note if newest else None,
    }


def _view(project: OpenProject, name: str, views: Mapping[str, str]) -> dict[str, Any]:
    with query(project, f'SELECT * FROM "{name}" LIMIT 0') as result:  # noqa: S608 - the name of one of our views
        columns = [{"name": f.name, "type": str(f.type), "text": ""} for f in result.schema]
    sentences = column_sentences(SettledEvent)
    for column in columns:
        column["text"] = sentences.get(column["name"], "")
    return {"view": name, "over": EVENTS, "columns": columns, "sql": views[name]}


def _show_table(found: Mapping[str, Any]) -> None:
    columns = [(c["name"], c["type"], c["text"]) for c in found["columns"]]
    if "view" in found:
        print(f"{found['view']}: a view over the table {found['over']}\n")
        print_table(("column", "type", "what it holds"), columns)
        return
    print(f"{found['table']}: {found['description'] or 'no description'}\n")
    print(f"at           {found['uri']}, version {found['version']}")
    rows = "?" if found["rows"] is None else f"{found['rows']:,}"
    print(f"holds        {rows} rows in {found['files']:,} files, {format_bytes(found['bytes'])}")
    print(f"divided by   {', '.join(found['partitions']) or 'nothing'}")
    days = found["retention_days"]
    print(f"rows kept    {f'for {days:g} days' if days else 'for ever'}")
    for name, value in found["properties"].items():
        if name.startswith("headrace."):
            print(f"{name.removeprefix('headrace.'):<12} {value}")
    provenance = found["provenance"] or {}
    if provenance:
        print(f"newest from  {list_ranges(provenance)} by {provenance.get('producer', '?')}")
    print()
    if found["positions"] is not None:
        lags = [(p["partition"], "-" if p["position"] is None else p["position"], p["end"], p["records"])
                for p in found["positions"]]  # fmt: skip
        print_table(("partition", "position", "topic's end", "lag"), lags)
    else:
        print("no positions: it has no topic, or its topic was created anew (see `headrace status`)")
    print()
    print_table(("column", "type", "what it holds"), columns)


# history.


def history(given: argparse.Namespace) -> None:
    """Lists the versions of a table, the newest first."""
    if given.limit < 1:
        raise CallError(f"--limit {given.limit}: must be 1 or more")
    with _opened(given) as project:
        table = open_table(project, given.name)
        rows = list_versions(table, given.limit)
    if given.json:
        print_lines(rows)
        return
    print_table(
        ("version", "time", "operation", "rows", "files", "whence", "producer"),
        [
            (
                r["version"],
                format_time(r["time_us"]),
                r["operation"] + (", new schema" if r["schema_changed"] else ""),
                "-" if r["rows"] is None else r["rows"],
                "-" if r["files"] is None else r["files"],
                list_ranges(r) or r["note"].get("action", "-"),
                r["producer"],
            )
            for r in rows
        ],
    )


def list_versions(table: Table, limit: int) -> list[dict[str, Any]]:
    """Returns the versions of a table as `table history --json` shows them, the newest first."""
    return [_as_version(table, commit) for commit in table.history(limit)]


def _as_version(table: Table, commit: Commit) -> dict[str, Any]:
    note = commit.note
    return {
        "table": table.name,
        "version": commit.version,
        "time_us": commit.time_us,
        "operation": commit.operation,
        "rows": commit.rows,
        "files": commit.files,
        "topic": note.get("topic"),
        "incarnation": note.get("incarnation"),
        "offsets": note.get("offsets"),
        "producer": note.get("producer") or commit.producer,
        "schema_changed": _has_new_schema(table, commit),
        "note": note,
    }


def _has_new_schema(table: Table, commit: Commit) -> bool:
    """Returns whether a version has other columns than the one before; the sink's own never have."""
    if commit.version == 0 or "offsets" in commit.note or commit.operation in ("OPTIMIZE", "SET TBLPROPERTIES"):
        return commit.version == 0
    try:
        return bool(table.at(commit.version).schema != table.at(commit.version - 1).schema)
    except CallError:
        # The version before is no longer in the log.
        return False


def list_ranges(note: Mapping[str, Any]) -> str:
    """Returns which offsets of which topic a commit has brought, or nothing."""
    ranges = note.get("offsets") or {}
    listed = ", ".join(f"{p}/{start}-{end}" for p, (start, end) in sorted(ranges.items(), key=lambda one: int(one[0])))
    return f"{note.get('topic')} {listed}" if listed else ""


# pin.


def pin(given: argparse.Namespace) -> None:
    """Keeps a version, lets one go, or lists what is kept."""
    wants_pin = given.owner is not None or given.reason is not None or given.version is not None
    if wants_pin and given.remove:
        raise CallError("give either --remove ID, or --owner and --reason for a new pin")
    with _opened(given) as project:
        table = open_table(project, given.name)
        if given.remove:
            table.unpin(given.remove)
        elif wants_pin:
            table.pin(owner=given.owner or "", reason=given.reason or "", version=given.version)
        pins = table.pins()
    if given.json:
        print_lines(map(_as_pin, pins))
        return
    print_table(
        ("pin", "version", "owner", "reason", "since"),
        [(one.id, one.version, one.owner, one.reason, format_time(one.time_us)) for one in pins],
        empty=f"no version of {given.name} is pinned",
    )


def _as_pin(one: Pin) -> dict[str, Any]:
    return {
        "pin": one.id,
        "table": one.table,
        "version": one.version,
        "owner": one.owner,
        "reason": one.reason,
        "time_us": one.time_us,
    }


# maintain.


def maintain(given: argparse.Namespace) -> None:
    """Does now what the keeper does in time."""
    if not given.keep_days >= 0:
        raise CallError(f"--keep-days {given.keep_days:g}: must be 0 or more")
    with _opened(given) as project:
        keeper_runs = is_running(project, "keeper")
        names = [given.name] if given.name else project.tables.names()
        rows = [_maintain(open_table(project, name), given, keeper_runs=keeper_runs) for name in names]
    if given.json:
        print_lines(rows)
        return
    if not rows:
        print("no tables yet: `headrace up` makes them")
    for row in rows:
        print("\n".join(_told(row, dry_run=given.dry_run)))


def _maintain(table: Table, given: argparse.Namespace, *, keeper_runs: bool) -> dict[str, Any]:
    done: dict[str, Any] = {"table": table.name, "dry_run": given.dry_run}
    keep_seconds = given.keep_days * 86_400
    if given.vacuum:
        # First of all, as the pins may refuse it, and then nothing else is done either.
        table.vacuum(keep_seconds=keep_seconds, dry_run=True, around_pins=False)
    if not given.dry_run:
        found = _retried(table, table.optimize)
        done |= {"files_before": found.files_before, "files_after": found.files_after}
        done |= {"bytes_before": found.bytes_before, "bytes_after": found.bytes_after}
        if not keeper_runs:
            # Two checkpoints at once can damage one another.
            table.reload()
            table.checkpoint()
        done["checkpoint"] = None if keeper_runs else table.version
    if given.vacuum:
        table.reload()
        gone = table.vacuum(keep_seconds=keep_seconds, dry_run=given.dry_run, around_pins=False)
        done["deleted"] = gone
    return done


def _retried(table: Table, action: Any) -> Any:
    """Returns what the action returns, begun anew where a sink was faster."""
    for left in range(_TRIES, 0, -1):
        table.reload()
        with contextlib.suppress(FencedError) if left > 1 else contextlib.nullcontext():
            return action()
    raise HeadraceError(f"table {table.name!r} is never at rest")


def _told(row: Mapping[str, Any], *, dry_run: bool) -> Iterator[str]:
    name = f"{row['table']:<12}"
    if "files_before" in row:
        sizes = f"{format_bytes(row['bytes_before'])} -> {format_bytes(row['bytes_after'])}"
        yield f"{name} files {row['files_before']:,} -> {row['files_after']:,}, {sizes}"
        checkpoint = row["checkpoint"]
        left = "is left to the keeper, which runs" if checkpoint is None else f"written at version {checkpoint}"
        yield f"{name} checkpoint {left}"
    if "deleted" in row:
        yield f"{name} {'would delete' if dry_run else 'deleted'} {len(row['deleted']):,} files"
        yield from (f"             {Path(path)}" for path in row["deleted"][:20])
    elif dry_run:
        yield f"{name} nothing to show: --dry-run goes with --vacuum"
