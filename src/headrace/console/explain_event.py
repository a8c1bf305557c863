"""An event's way, from the door to its row in a file of the lake, as a node of a walk."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headrace.base.errors import FormatError
from headrace.collect.app import CLICKS
from headrace.console.explain_walk import Link, Node
from headrace.console.failed import as_row, tail_of
from headrace.console.show import format_time
from headrace.console.sql import query
from headrace.events.click import Door, decode_door
from headrace.events.raw import Click, read_click, read_request
from headrace.events.settled import EVENTS, FAILED, decode_failed, decode_settled
from headrace.project import OpenProject
from headrace.stream import settled_offsets
from headrace.tables import Commit, Table
from headrace.tables.codec import RECEIVED_DATE
from headrace.topics import Message

MOST_EVENTS = 1_000
"""So many events of a recommendation are told."""

_MOST_REPEATS_READ = 20_000
_MOST_CLICKS_READ = 200_000
_FIRST_COMMITS = 64
# The clocks of the machine that took the click and of the one that committed it.
_CLOCKS_US = 60_000_000
# What a client sends may be long, and is not told.
_EVENTS = f"(SELECT * EXCLUDE (properties, traits, context) FROM {EVENTS})"  # noqa: S608 - a name of ours
_ANSWERS = f"SELECT * FROM {_EVENTS} WHERE recommendation_id = $id ORDER BY log_us, log_offset"  # noqa: S608
# With OR instead no part of a file is passed over: of 3M events it took 1.4 s, and so 0.2 s.
_NAMED = f"""SELECT 0 AS rank, * FROM {_EVENTS} WHERE message_id = $id
UNION ALL SELECT 1 AS rank, * FROM {_EVENTS} WHERE recommendation_id = $id AND message_id != $id
ORDER BY rank, log_us, log_offset"""  # noqa: S608
_FAILED = f"""SELECT * EXCLUDE (raw, raw_base64) FROM {FAILED} WHERE message_id = $id
ORDER BY log_us, log_offset"""  # noqa: S608

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """A settled or failed event, from its table or from what the topic has beyond it."""

    topic: str
    row: Row
    in_table: bool


# Where it is.


def find_settled(project: OpenProject, wanted: str) -> list[Found]:
    """Returns what has settled or failed of an id, of an event or a recommendation; the event's own comes first."""
    return _find_all(project, wanted, {EVENTS: _NAMED, FAILED: _FAILED})


def find_events_of(project: OpenProject, recommendation_id: str) -> list[Found]:
    """Returns the events of a page."""
    return _find_all(project, recommendation_id, {EVENTS: _ANSWERS})


def _find_all(project: OpenProject, wanted: str, asked: Mapping[str, str]) -> list[Found]:
    # First what waits for a sink: what it takes meanwhile is found in its table, too.
    waiting = list(itertools.islice(_find_in_tails(project, wanted, asked), MOST_EVENTS))
    found = []
    for name in (name for name in asked if name in project.tables.names()):
        with query(project, f"{asked[name]} LIMIT {MOST_EVENTS}", parameters={"id": wanted}) as result:
            found += [Found(name, row, in_table=True) for row in result.table().to_pylist()]
    stored = {_place(one) for one in found}
    return [*found, *(one for one in waiting if _place(one) not in stored)]


def _place(found: Found) -> tuple[str, int, int]:
    return found.topic, found.row["log_partition"], found.row["log_offset"]


def _find_in_tails(project: OpenProject, wanted: str, names: Container[str]) -> Iterator[Found]:
    mark = msgspec.json.encode(wanted)
    for name, decode in ((EVENTS, decode_settled), (FAILED, decode_failed)):
        for message in tail_of(project, name) if name in names else ():
            if mark in (message.value or b""):
                row = as_row(decode(message.value or b""), message)
                if wanted in (row["message_id"], row.get("recommendation_id")):
                    yield Found(name, row, in_table=False)


def by_event(found: Sequence[Found]) -> list[list[Found]]:
    """Returns the parts of each event, those that failed before it was settled first."""
    groups: dict[tuple[str, str], list[Found]] = {}
    for one in found:
        groups.setdefault((one.row["source"], one.row["message_id"]), []).append(one)
    return [sorted(group, key=lambda one: (one.row["log_us"], one.topic == EVENTS)) for group in groups.values()]


def find_waiting(project: OpenProject, wanted: str) -> Iterator[Message]:
    """Yields the clicks of an id that nobody has settled yet."""
    if CLICKS not in project.topics.names():
        return
    topic = project.topic(CLICKS)
    mark = _mark(wanted)
    for message in topic.read_to_ends(settled_offsets(project), max_records=_MOST_CLICKS_READ):
        click = _read(message) if mark in (message.value or b"") else None
        if click is not None and click.id == wanted:
            yield message


def _mark(wanted: str) -> bytes:
    """Returns what stands in every click of an id, however its client writes JSON."""
    return wanted.encode() if wanted.isascii() and wanted.isprintable() and not set(wanted) & set('"\\/') else b""


def _read(message: Message) -> Click | None:
    """Returns a raw click as the settler reads it; None for what is no event."""
    request = read_request(message.headers)
    return None if request.marker is not None else read_click(message, message.time_us, request, message.partition)


def _is_of(message: Message, row: Row) -> bool:
    """Returns whether a raw click is of a row's event: another source may give the same id."""
    click = _read(message)
    return click is not None and (click.request.source, click.id) == (row["source"], row["message_id"])


# Its story.


def _story(project: OpenProject, parts: Sequence[Found], *, whole: bool) -> dict[str, Any]:
    last = parts[-1]
    row = last.row
    message = _click(project, row) if whole else None
    is_event = last.topic == EVENTS
    return {
        "message_id": row["message_id"],
        "source": row["source"],
        "event": row["event"],
        "recommendation_id": row.get("recommendation_id"),
        "person": row.get("person"),
        "bot": row.get("bot", False),
        "state": ("settled" if is_event else "failed") + ("" if last.in_table else ", not in its table yet"),
        "in_table": last.in_table,
        "door": _door(row, message),
        "clicks": {
            "partition": row["log_partition"],
            "offset": row["src_offset"],
            "time_us": message.time_us if message else row["log_us"],
            "key": message.key.decode("utf-8", "replace") if message and message.key is not None else None,
            "kept": message is not None if whole else None,
            "repeats": _repeats(project, row, message),
        },
        "failures": [_failure(one) for one in parts if one.topic == FAILED],
        "settled": _settled(row) if is_event else None,
        "table": _table_place(project, last) if whole and last.in_table else None,
        "session": _session(project, row) if whole and is_event and last.in_table else None,
    }


def _click(project: OpenProject, row: Row) -> Message | None:
    """Returns the raw click that a row was made of, if the topic still keeps it."""
    partition, offset = row["log_partition"], row["src_offset"]
    if CLICKS not in project.topics.names():
        return None
    bounds = project.topics.bounds(CLICKS)
    if partition >= len(bounds) or not bounds[partition].start <= offset < bounds[partition].end:
        return None
    messages = project.topics.read(CLICKS, {partition: offset}, max_records=1, wait_seconds=1.0)
    # In a topic that was made anew another click stands there.
    return next((one for one in messages if one.offset == offset and _is_of(one, row)), None)


def _door(row: Row, message: Message | None) -> dict[str, Any]:
    door = _read_door(message.headers) if message else None
    if door is None and row["door"] and row["door"].startswith("{"):
        door = _read_door((("door", row["door"].encode()),))
    if door is not None:
        return dict(msgspec.to_builtins(door))
    return {"received_us": row["received_us"], "source": row["door"], "address": row.get("address")}


def _read_door(headers: Sequence[tuple[str, bytes]]) -> Door | None:
    try:
        return decode_door(headers)
    except FormatError:
        return None


def _repeats(project: OpenProject, row: Row, message: Message | None) -> int | None:
    """Returns how many more clicks have this id, among the next ones of the partition."""
    if message is None:
        return None
    mark = _mark(row["message_id"])
    later = project.topic(CLICKS).read_to_ends({message.partition: message.offset + 1}, max_records=_MOST_REPEATS_READ)
    return sum(mark in (one.value or b"") and _is_of(one, row) for one in later)


def _failure(one: Found) -> dict[str, Any]:
    row = one.row
    return {
        "reason": row["reason"],
        "message": row["message"],
        "definitions": row["definitions"],
        "partition": row["log_partition"],
        "offset": row["log_offset"],
        "clicks_offset": row["src_offset"],
        "replay_of": row["replay_of"],
        "time_us": row["log_us"],
    }


def _settled(row: Row) -> dict[str, Any]:
    return {
        "topic": EVENTS,
        "partition": row["log_partition"],
        "offset": row["log_offset"],
        "seq": row["seq"],
        "event_us": row["event_us"],
        "flags": list(row["flags"] or ()),
        "definitions": row["definitions"],
    }


def _session(project: OpenProject, row: Row) -> Row | None:
    with query(project, "SELECT * FROM sessions WHERE session_id = $id", parameters={"id": row["session_id"]}) as found:
        return next(iter(found.table().to_pylist()), None)


def _table_place(project: OpenProject, found: Found) -> dict[str, Any]:
    table = project.tables.open(found.topic)
    commit = _commit_of(table, found.row)
    file, row = _file_of(table, found.row)
    return {
        "table": table.name,
        "version": commit.version if commit else None,
        "time_us": commit.time_us if commit else None,
        "producer": commit.note.get("producer") if commit else None,
        "file": file,
        "row": row,
    }


def _commit_of(table: Table, row: Row) -> Commit | None:
    """Returns the commit that brought a row, if the log still has it."""
    partition, offset, oldest_us = str(row["log_partition"]), row["log_offset"], row["log_us"] - _CLOCKS_US
    limit, commits = _FIRST_COMMITS, table.history(_FIRST_COMMITS)
    while len(commits) == limit and commits[-1].time_us >= oldest_us:
        limit *= 4
        commits = table.history(limit)
    holding = [
        commit
        for commit in commits
        for start, end in [commit.note.get("offsets", {}).get(partition, (0, 0))]
        if start <= offset < end and commit.time_us >= oldest_us
    ]
    # The same place may stand in several incarnations of the topic: the row is of the one that was first after it.
    incarnation = holding[-1].note.get("incarnation") if holding else None
    return next((commit for commit in holding if commit.note.get("incarnation") == incarnation), None)


def _file_of(table: Table, row: Row) -> tuple[str | None, int | None]:
    """Returns the file that holds a row now, after any compaction, and its number there."""
    day = str(row[RECEIVED_DATE])
    for file, path in zip(table.files(), table.local_files(), strict=True):
        if file.partition.get(RECEIVED_DATE) == day:
            number = _number_in(Path(path), row)
            if number is not None:
                return file.path, number
    return None, None


def _number_in(path: Path, row: Row) -> int | None:
    with pq.ParquetFile(path) as file:
        before = 0
        for group in range(file.num_row_groups):
            # Arrow's threads abort the process at its end.
            places = file.read_row_group(group, columns=["log_partition", "log_offset"], use_threads=False)
            holds = pc.and_(
                pc.equal(places["log_partition"], row["log_partition"]),
                pc.equal(places["log_offset"], row["log_offset"]),
            )
            number = pc.index(holds, True).as_py()
            if number >= 0:
                return before + int(number)
            before += places.num_rows
    return None


def _waiting(message: Message) -> dict[str, Any]:
    click, door = _read(message), _read_door(message.headers)
    envelope = click.envelope if click else None
    return {
        "message_id": click.id if click else f"{message.partition}/{message.offset}",
        "source": door.write_key if door else None,
        "event": (envelope.event or envelope.type) if envelope else None,
        "recommendation_id": None,
        "person": None,
        "bot": False,
        "state": f"waits in {CLICKS} to be settled",
        "in_table": False,
        "door": msgspec.to_builtins(door) if door else {},
        "clicks": {
            "partition": message.partition,
            "offset": message.offset,
            "time_us": message.time_us,
            "key": message.key.decode("utf-8", "replace") if message.key is not None else None,
            "kept": True,
            "repeats": None,
        },
        "failures": [],
        "settled": None,
        "table": None,
        "session": None,
    }


# How it is told.


def tell_event(project: OpenProject, parts: Sequence[Found], *, whole: bool) -> Node:
    """Returns an event as a node; its whole way costs a few questions to the lake."""
    story = _story(project, parts, whole=whole)
    trace = story["recommendation_id"]
    return _node(story, [Link("answers", "decision", trace)] if trace else [])


def tell_waiting(message: Message) -> Node:
    """Returns a click that nobody has settled yet as a node."""
    return _node(_waiting(message), [])


def _node(story: dict[str, Any], upstream: Sequence[Link]) -> Node:
    return Node(
        kind="event",
        id=story["message_id"],
        title=f"{story['event'] or '-'}: {story['state']}",
        facts=(*_arrival(story), *_outcome(story)),
        upstream=tuple(upstream),
        record=story,
    )


def events_of(rows: Sequence[Row]) -> list[Link]:
    """Returns events that followed a decision as links to them."""
    return [
        Link("brought", "event", row["message_id"], f"{format_time(row['event_us'])[:19]} {row['event']}")
        for row in rows
    ]


def _arrival(story: Row) -> Iterator[tuple[str, str]]:
    door, clicks = story["door"], story["clicks"]
    facts = [
        f"{_at(door.get('received_us'))}  {door.get('source') or 'no door'}",
        f"from {door['address']}" if door.get("address") else "",
        f"key {door['write_key']}" if door.get("write_key") else "",
        door.get("user_agent") or "",
        "a robot" if story["bot"] else "",
    ]
    yield "door", ", ".join(filter(None, facts))
    kept = {True: ", still kept", False: ", no longer kept", None: ""}[clicks["kept"]]
    repeats = f", {clicks['repeats']:,} more with this id, folded away" if clicks["repeats"] else ""
    place = f"partition {clicks['partition']}, offset {clicks['offset']}"
    yield CLICKS, f"{_at(clicks['time_us'])}  {place}{kept}{repeats}"


def _outcome(story: Row) -> Iterator[tuple[str, str]]:
    for failure in story["failures"]:
        place = f"partition {failure['partition']}, offset {failure['offset']}"
        yield FAILED, f"{_at(failure['time_us'])}  {failure['reason']}: {failure['message']} ({place})"
    settled, table, session = story["settled"], story["table"], story["session"]
    if settled:
        flags = f", {' '.join(settled['flags'])}" if settled["flags"] else ""
        place = f"partition {settled['partition']}, offset {settled['offset']}, number {settled['seq']}"
        yield EVENTS, f"{_at(settled['event_us'])}  {place}, definitions {settled['definitions']}{flags}"
    if table:
        version = "a commit that is no longer in the log"
        if table["version"] is not None:
            version = f"version {table['version']} by {table['producer']}"
        yield "table", f"{_at(table['time_us'])}  {table['table']}, {version}"
        yield "file", f"{table['file']}, row {table['row']}"
    elif not settled and not story["failures"]:
        yield "settler", "not yet: it waits in its topic for the settler"
    elif not story["in_table"]:
        yield "table", "not yet: it waits in its topic for the sink"
    if session:
        pages = f", from {session['entry']} to {session['exit']}" if session["entry"] else ""
        counted = f"{session['events']:,} event{'' if session['events'] == 1 else 's'}"
        yield "session", f"{session['session_id']}  {counted} in {session['duration_seconds']:,.0f} s{pages}"


def _at(time_us: int | None) -> str:
    return "-" if time_us is None else format_time(time_us)
