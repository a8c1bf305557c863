"""headrace topic: create, alter, list, tail, read, append, replay, groups."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Annotated, Any

import msgspec

from headrace.base.clock import machine_us
from headrace.base.errors import CallError
from headrace.collect.app import CLICKS
from headrace.console.acts import note_rows
from headrace.console.show import print_lines, print_table, shown
from headrace.events.raw import read_instant
from headrace.events.settled import EVENTS, FAILED
from headrace.project import OpenProject, check_retention, open_project
from headrace.topics import GroupPosition, Message, Record, Topic
from headrace.topics import replay as replay_group

_PORTION = 1_000
_AHEAD_US = 3600 * 1_000_000


class _Line(msgspec.Struct):
    value: msgspec.Raw
    key: str | None = None
    time_us: Annotated[int, msgspec.Meta(ge=0)] = 0
    headers: dict[str, msgspec.Raw] = {}


_lines = msgspec.json.Decoder(_Line)


def _opened(given: argparse.Namespace) -> OpenProject:
    return open_project(given.project, profile=given.profile)


def create(given: argparse.Namespace) -> None:
    """Makes a topic."""
    with _opened(given) as project:
        seconds = _seconds(given.retention_days)
        made = project.topics.create(given.topic, partitions=given.partitions, retention_seconds=seconds)
        print(f"topic {made.name}: {made.partitions} partitions, incarnation {made.incarnation}")


def alter(given: argparse.Namespace) -> None:
    """Changes how long a topic keeps its records."""
    check_retention(given.topic, given.retention_days)
    with _opened(given) as project:
        made = project.topics.alter(given.topic, retention_seconds=_seconds(given.retention_days))
        kept = "for ever" if made.retention_seconds is None else f"for {made.retention_seconds / 86400:g} days"
        print(f"topic {made.name}: records are kept {kept}")


def list_topics(given: argparse.Namespace) -> None:
    """Lists the topics with their sizes."""
    with _opened(given) as project:
        rows = [describe(project, name) for name in project.topics.names()]
    if given.json:
        print_lines(rows)
        return
    print_table(
        ("topic", "partitions", "records", "retention", "incarnation"),
        [(r["topic"], r["partitions"], r["records"], _kept(r["retention_seconds"]), r["incarnation"]) for r in rows],
        empty="no topics yet. `headrace up` makes them, or: headrace topic create NAME",
    )


def describe(project: OpenProject, name: str) -> dict[str, Any]:
    """Returns a topic as `topic list --json` shows it."""
    found = project.topics.describe(name)
    bounds = project.topics.bounds(name)
    return {
        "topic": name,
        "partitions": found.partitions,
        "records": sum(bound.end - bound.start for bound in bounds),
        "start": [bound.start for bound in bounds],
        "end": [bound.end for bound in bounds],
        "retention_seconds": found.retention_seconds,
        "incarnation": found.incarnation,
    }


def tail(given: argparse.Namespace) -> None:
    """Shows live messages until Ctrl-C."""
    with _opened(given) as project:
        topic = project.topic(given.topic)
        offsets = {p: max(bound.start, bound.end - given.last) for p, bound in enumerate(topic.bounds())}
        left = given.max if given.max is not None else sys.maxsize
        while left > 0:
            messages = topic.read(offsets, max_records=min(_PORTION, left), wait_seconds=0.5)
            _print_messages(messages, as_json=given.json)
            left -= len(messages)
            offsets.update({message.partition: message.offset + 1 for message in messages})


def read(given: argparse.Namespace) -> None:
    """Prints what a topic holds at present."""
    with _opened(given) as project:
        topic = project.topic(given.topic)
        offsets = _offsets(topic, given.start, only=given.partition)
        left = given.max if given.max is not None else sys.maxsize
        _print_messages(topic.read_to_ends(offsets, max_records=left), as_json=given.json)


def append(given: argparse.Namespace) -> None:
    """Appends the lines of stdin."""
    if given.topic in (EVENTS, FAILED):
        raise CallError(
            f"topic {given.topic!r} is written by the settler alone. Append to {CLICKS!r}, and it settles that"
        )
    with _opened(given) as project:
        topic = project.topic(given.topic)
        count = 0
        for records in _portions(_read_record(line, given) for line in enumerate(sys.stdin.buffer, 1)):
            _check_times(given.topic, records)
            count += len(topic.append(records))
    if given.json:
        print_lines([{"topic": given.topic, "records": count}])
    else:
        print(f"topic {given.topic}: {count:,} records appended")


def _check_times(topic: str, records: Sequence[Record]) -> None:
    latest_us = machine_us() + _AHEAD_US
    if topic == CLICKS and any(record.time_us > latest_us for record in records):
        raise CallError(
            f"a record's time_us is more than an hour ahead. Repeats are known for 7 days by the times in {CLICKS!r}, "
            "so one far ahead would have them forgotten; leave time_us out, and the record gets the present"
        )


def replay(given: argparse.Namespace) -> None:
    """Moves a group's positions, or lets a table go on."""
    if sum(chosen is not None for chosen in (given.group, given.fresh, given.go_on)) != 1:
        raise CallError("choose who is to go on: --group GROUP --to PLACE, or --fresh TABLE, or --continue TABLE")
    if (given.group is None) == (given.to is not None):
        raise CallError("--to goes with --group: a table goes on where the topic begins")
    if given.group is None:
        # Imported when asked for: no other command on topics needs the lake.
        import_module("headrace.console.restart").restart(given)
        return
    with _opened(given) as project:
        topic = project.topic(given.topic)
        before = {g.position.partition: g.position.offset for g in _positions(project, given.topic, given.group)}
        moved = replay_group(topic, given.group, _offsets(topic, given.to))
        rows = [
            {"topic": given.topic, "group": given.group, "partition": p, "from": before.get(p), "to": position.offset}
            for p, position in sorted(moved.items())
        ]
        note_rows(project.profile.state, "topic replay", rows)
    if given.json:
        print_lines(rows)
    else:
        moves = [(r["partition"], "-" if r["from"] is None else r["from"], r["to"]) for r in rows]
        print_table(("partition", "from", "to"), moves, title=f"{given.group} on {given.topic}")


def groups(given: argparse.Namespace) -> None:
    """Lists the groups of a topic with their lag."""
    with _opened(given) as project:
        rows = list_groups(project, given.topic)
    if given.json:
        print_lines(rows)
        return
    print_table(
        ("group", "partition", "position", "lag", "generation"),
        [(r["group"], r["partition"], r["position"], r["lag"], r["generation"]) for r in rows],
        empty=f"no group has read topic {given.topic} yet",
    )


def list_groups(project: OpenProject, name: str) -> list[dict[str, Any]]:
    """Returns the groups of a topic as `topic groups --json` shows them."""
    ends = [bound.end for bound in project.topics.bounds(name)]
    return [
        {
            "group": one.group,
            "topic": name,
            "partition": one.position.partition,
            "position": one.position.offset,
            "lag": ends[one.position.partition] - one.position.offset,
            "generation": one.generation,
            "incarnation": one.position.incarnation,
        }
        for one in project.topics.groups(name)
    ]


def _positions(project: OpenProject, topic: str, group: str) -> list[GroupPosition]:
    return [one for one in project.topics.groups(topic) if one.group == group]


def _seconds(days: float | None) -> int | None:
    if days is not None and not 0 <= days < math.inf:
        raise CallError(f"--retention-days {days:g}: must be 0 or more")
    return int(days * 86400) if days else None


def _kept(seconds: int | None) -> str:
    return "for ever" if seconds is None else f"{seconds / 86400:g} days"


def _offsets(topic: Topic, text: str, *, only: int | None = None) -> dict[int, int]:
    bounds = topic.bounds()
    if only is not None and not 0 <= only < len(bounds):
        raise CallError(f"--partition {only}: topic {topic.name!r} has partitions 0 to {len(bounds) - 1}")
    if text == "earliest":
        found = [bound.start for bound in bounds]
    elif text == "latest":
        found = [bound.end for bound in bounds]
    # isdigit() would take '²' as well, which int() does not.
    elif text.isdecimal():
        found = [min(max(int(text), bound.start), bound.end) for bound in bounds]
    else:
        time_us = read_instant(text)
        if time_us is None:
            raise CallError(f"{text!r} is no place: write earliest, latest, an offset or 2026-11-21T12:00")
        found = topic.topics.offsets_at(topic.name, time_us)
    return {p: offset for p, offset in enumerate(found) if only is None or p == only}


def _portions(records: Iterable[Record]) -> Iterator[list[Record]]:
    portion: list[Record] = []
    for record in records:
        portion.append(record)
        if len(portion) == _PORTION:
            yield portion
            portion = []
    if portion:
        yield portion


def _read_record(line: tuple[int, bytes], given: argparse.Namespace) -> Record:
    number, data = line
    key = given.key.encode() if given.key is not None else None
    data = data.rstrip(b"\r\n")
    if not given.json:
        return Record(key, data)
    try:
        found = _lines.decode(data)
        value = _bytes_of(found.value)
        headers = tuple((name, _bytes_of(raw) or b"") for name, raw in found.headers.items())
    except (msgspec.DecodeError, RecursionError) as error:
        raise CallError(
            f'stdin line {number}: found {data[:80]!r}, need {{"key": ..., "value": ...}}: {error}'
        ) from error
    return Record(key if found.key is None else found.key.encode(), value, found.time_us, headers)


def _bytes_of(raw: msgspec.Raw) -> bytes | None:
    """Returns what a JSON value stands for in a topic: a text its bytes, null nothing, the rest itself."""
    value = bytes(raw)
    if value.startswith(b'"'):
        return msgspec.json.decode(raw, type=str).encode()
    return None if value == b"null" else value


def _print_messages(messages: Iterable[Message], *, as_json: bool) -> None:
    if as_json:
        print_lines(_as_object(message) for message in messages)
        return
    for message in messages:
        at = time.strftime("%H:%M:%S", time.localtime(message.time_us / 1e6))
        place = f"{message.partition}/{message.offset}"
        print(f"{at}  {place:>12}  {_shown(message.key):<24}  {_shown(message.value)}", flush=True)


def _as_object(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {
        "partition": message.partition,
        "offset": message.offset,
        "key": _text(message.key),
        "time_us": message.time_us,
        "value": _value(message.value),
    }
    if message.headers:
        found["headers"] = {name: _value(value) for name, value in message.headers}
    return found


def _value(data: bytes | None) -> msgspec.Raw | str | None:
    if data is None:
        return None
    try:
        return msgspec.Raw(msgspec.json.format(data, indent=-1))
    except (msgspec.DecodeError, RecursionError):
        return _text(data)


def _shown(data: bytes | None) -> str:
    text = _text(data)
    return "-" if text is None else shown(text)


def _text(data: bytes | None) -> str | None:
    return None if data is None else data.decode("utf-8", "replace")
