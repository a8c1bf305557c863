"""headrace table failed: what stands as failed, and its second chance."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.base.clock import machine_us
from headrace.base.errors import CallError, unknown_name
from headrace.collect.app import CLICKS
from headrace.console.acts import note_rows
from headrace.console.show import as_text, format_time, print_lines, print_rows, print_table
from headrace.console.sql import query
from headrace.events.click import HEADER
from headrace.events.settled import (
    EVENTS,
    FAILED,
    REASONS,
    REPLAY,
    FailedEvent,
    SettledEvent,
    decode_failed,
    decode_settled,
    is_row,
)
from headrace.project import OpenProject, open_project
from headrace.stream import tail_offsets
from headrace.topics import Message, Record, partition_for

_SHOWN_ROWS = 20
_PORTION = 1_000
# What is just inside the settler's window now could be outside once the settler comes to it.
_MARGIN_US = 3_600_000_000

_MEMBERS = tuple(name for name in FailedEvent.__struct_fields__ if name != "version")
_KEY = "source || chr(31) || message_id"
# An id that was settled, forgotten after the window and then failed stands as failed: so the times are compared.
_UNSETTLED = """NOT EXISTS (
    SELECT 1 FROM events AS e WHERE e.source = f.source AND e.message_id = f.message_id AND e.log_us >= f.log_us
  )"""
_STANDING = f"""WITH standing AS (
  SELECT {", ".join(_MEMBERS)}, log_partition, log_offset FROM failed AS f
  WHERE {_KEY} NOT IN (SELECT unnest($changed::VARCHAR[])) AND {_UNSETTLED}
  QUALIFY row_number() OVER (PARTITION BY source, message_id ORDER BY log_us DESC, log_offset DESC) = 1
), wanted AS (
  SELECT * FROM standing WHERE reason = coalesce($reason, reason) AND ($event IS NULL OR event = $event)
) """  # noqa: S608 - made of names in this file
_GROUPS = """SELECT reason, count(*) AS failed, min(received_us) AS first_us, max(received_us) AS last_us,
  arg_max(message_id, log_us) AS message_id, arg_max(message, log_us) AS message FROM wanted GROUP BY reason"""
_SETTLED = f"SELECT {_KEY} AS id, max(log_us) AS log_us FROM events WHERE {_KEY} IN (SELECT unnest($ids::VARCHAR[])) GROUP BY 1"  # noqa: S608, E501 - made of names in this file

Row = Mapping[str, Any]


@dataclass
class _Tails:
    """What the topics hold and the tables do not yet, by id."""

    failed: dict[str, Row] = field(default_factory=dict)
    """The newest failure of each id that stands as failed."""
    changed: set[str] = field(default_factory=set)
    """All ids about which the tables may be wrong."""


def failed(given: argparse.Namespace) -> int:
    """Lists, groups or replays what stands as failed."""
    if given.reason is not None and given.reason not in REASONS:
        raise unknown_name("reason", given.reason, REASONS)
    if given.max is not None and given.max < 1:
        raise CallError(f"--max {given.max}: must be 1 or more")
    if given.replay and given.group:
        raise CallError("give either --group or --replay")
    with open_project(given.project, profile=given.profile) as project:
        if given.replay:
            return _replay(project, given)
        tails = _read_tails(project)
        if given.group:
            _show_groups(_groups(project, tails, given), given)
        else:
            limit = given.max or (None if given.json else _SHOWN_ROWS)
            _show_rows(_standing(project, tails, given, order="DESC"), given, limit)
    return 0


def _show_rows(rows: Iterable[Row], given: argparse.Namespace, limit: int | None) -> None:
    if given.json:
        print_lines(itertools.islice(rows, limit))
        return
    found = list(itertools.islice(rows, None if limit is None else limit + 1))
    if not found:
        print(_nothing(given))
        return
    print_rows(
        ("received", "reason", "event", "message_id", "clicks", "message"),
        [
            (format_time(r["received_us"]), r["reason"], r["event"], r["message_id"], _place(r), r["message"])
            for r in found[:limit]
        ],
    )
    if limit is not None and len(found) > limit:
        print(f"the newest {limit:,}; --max N shows more, --group counts them all")


def _show_groups(groups: Sequence[Row], given: argparse.Namespace) -> None:
    if given.json:
        print_lines(groups)
        return
    print_table(
        ("reason", "failed", "first", "last", "for example", "which says"),
        [
            (g["reason"], g["failed"], format_time(g["first_us"]), format_time(g["last_us"]), g["message_id"],
             as_text(g["message"]))
            for g in groups
        ],
        empty=_nothing(given),
    )  # fmt: skip


def _nothing(given: argparse.Namespace) -> str:
    chosen = [f"{name} {value!r}" for name, value in (("reason", given.reason), ("event", given.event)) if value]
    return f"nothing{' with ' if chosen else ''}{' and '.join(chosen)} stands as failed"


def _place(row: Row) -> str:
    return f"{row['log_partition']}/{row['src_offset']}"


# What stands.


def _read_tails(project: OpenProject) -> _Tails:
    tails = _Tails()
    settled: dict[str, int] = {}
    for message in tail_of(project, EVENTS):
        event = decode_settled(message.value or b"")
        settled[_id(event.source, event.message_id)] = event.log_us
    for message in tail_of(project, FAILED):
        failure = decode_failed(message.value or b"")
        tails.failed[_id(failure.source, failure.message_id)] = as_row(failure, message)
    tails.changed = {*settled, *tails.failed}
    if tails.failed and EVENTS in project.tables.names():
        with query(project, _SETTLED, parameters={"ids": sorted(tails.failed)}) as result:
            found = {row["id"]: row["log_us"] for batch in result.batches() for row in batch.to_pylist()}
        settled = {one: max(settled.get(one, 0), found.get(one, 0)) for one in {*settled, *found}}
    tails.failed = {one: row for one, row in tails.failed.items() if settled.get(one, -1) < row["log_us"]}
    return tails


def tail_of(project: OpenProject, name: str) -> Iterator[Message]:
    """Yields the events of a settled topic that its table does not hold yet."""
    if name not in project.topics.names():
        return
    topic = project.topic(name)
    for message in topic.read_to_ends(tail_offsets(project, topic)):
        if is_row(message.value or b"", message.headers):
            yield message


def as_row(event: SettledEvent | FailedEvent, message: Message) -> Row:
    """Returns an event of a tail as a row of its table."""
    values = {name: getattr(event, name) for name in event.__struct_fields__ if name != "version"}
    return {**values, "log_partition": message.partition, "log_offset": message.offset}


def _standing(project: OpenProject, tails: _Tails, given: argparse.Namespace, *, order: str) -> Iterator[Row]:
    """Yields what stands as failed by time, the tables' part read as it is asked for."""
    newer = sorted(_wanted(tails, given), key=lambda row: (row["log_us"], row["log_offset"]), reverse=order == "DESC")
    older = _in_tables(project, f"SELECT * FROM wanted ORDER BY log_us {order}, log_offset {order}", tails, given)  # noqa: S608 - ASC or DESC
    # What the tables lack is newer than what they hold.
    yield from itertools.chain(newer, older) if order == "DESC" else itertools.chain(older, newer)


def _wanted(tails: _Tails, given: argparse.Namespace) -> Iterator[Row]:
    for row in tails.failed.values():
        if given.reason in (None, row["reason"]) and given.event in (None, row["event"]):
            yield row


def _in_tables(project: OpenProject, select: str, tails: _Tails, given: argparse.Namespace) -> Iterator[Row]:
    names = project.tables.names()
    if FAILED in names:
        parameters = {"changed": sorted(tails.changed), "reason": given.reason, "event": given.event}
        standing = _STANDING if EVENTS in names else _STANDING.replace(_UNSETTLED, "true")
        with query(project, standing + select, parameters=parameters) as result:
            for batch in result.batches():
                yield from batch.to_pylist()


def _groups(project: OpenProject, tails: _Tails, given: argparse.Namespace) -> list[Row]:
    groups = {group["reason"]: dict(group) for group in _in_tables(project, _GROUPS, tails, given)}
    for row in sorted(_wanted(tails, given), key=lambda row: int(row["log_us"])):
        us = row["received_us"]
        group = groups.setdefault(row["reason"], {"reason": row["reason"], "failed": 0, "first_us": us, "last_us": us})
        group["failed"] += 1
        group["first_us"], group["last_us"] = min(group["first_us"], us), max(group["last_us"], us)
        group["message_id"], group["message"] = row["message_id"], row["message"]
    return sorted(groups.values(), key=lambda group: (-group["failed"], group["reason"]))


def _id(source: str, message_id: str) -> str:
    return f"{source}\x1f{message_id}"


# A second chance.


def _replay(project: OpenProject, given: argparse.Namespace) -> int:
    oldest_us = machine_us() - project.rules.window_us + _MARGIN_US
    tails = _read_tails(project)
    told = {"replayed": 0, "too_old": 0, "too_long": 0}
    records: list[Record] = []
    for row in itertools.islice(_standing(project, tails, given, order="ASC"), given.max):
        if row["log_us"] < oldest_us:
            told["too_old"] += 1
        elif row["raw"] is None and row["raw_base64"] is None:
            told["too_long"] += 1
        else:
            records.append(second_chance(row, project.topics.describe(CLICKS).partitions))
    for start in range(0, len(records), _PORTION):
        told["replayed"] += len(project.topic(CLICKS).append(records[start : start + _PORTION]))
    if records:
        note_rows(project.profile.state, "table failed", [{**told, "reason": given.reason, "event": given.event}])
    if given.json:
        print_lines([told])
    else:
        days = project.rules.window_us / 86_400_000_000
        print("\n".join(_replayed(told, days)) or _nothing(given))
    return int(told["too_old"] + told["too_long"] > 0)


def _replayed(told: Mapping[str, int], days: float) -> Iterator[str]:
    if told["replayed"]:
        yield f"{told['replayed']:,} of what failed went into {CLICKS} again; the settler takes each once"
    if told["too_old"]:
        yield f"{told['too_old']:,} did not: after {days:g} days an id is forgotten, and could come in twice"
    if told["too_long"]:
        yield f"{told['too_long']:,} did not: they are too long to be settled"


def second_chance(row: Row, partitions: int) -> Record:
    """Returns the record that lets a failed event be judged anew, as it arrived and in its own partition."""
    failure = FailedEvent(version=1, **{name: row[name] for name in _MEMBERS})
    # An event without an id is known by where it stood when it failed first.
    origin = failure.replay_of or f"{row['log_partition']}/{failure.src_offset}"
    door = () if failure.door is None else ((HEADER, failure.door.encode()),)
    key = _key_of(failure.key, row["log_partition"], partitions)
    return Record(key, failure.value(), headers=(*door, (REPLAY, origin.encode())))


def _key_of(key: str | None, partition: int, partitions: int) -> bytes:
    """Returns the key as it was; for a record without one, or in another partition, one that leads there."""
    if key is not None and partition_for(key.encode(), partitions) == partition:
        return key.encode()
    made = (f"replay-{number}".encode() for number in itertools.count())
    return next(one for one in made if partition_for(one, partitions) == partition)
