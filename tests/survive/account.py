"""What must add up between `clicks`, `events`, `failed` and the lake, counted from outside.

The topics are read by `Topic.read` and the tables by deltalake's own reader; what the settler should have
made of `clicks` is counted here once more, in the plainest way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder

from headrace.project import OpenProject, open_project
from headrace.topics import Bounds, Message, Record, Topic

Place = tuple[int, int]
"""Partition and offset."""

_ROWS = "select log_partition, log_offset, message_id, source, seq, src_offset, session_id, definitions from rows"


@dataclass(frozen=True)
class Account:
    """What a stream has made of its clicks."""

    clicks: int
    settled: int
    failed: int
    repeats: int


def check_account(folder: Path, acknowledged: Iterable[str], *, profile: str | None = None) -> Account:
    """Returns the account of a project whose stream has caught up; fails where anything does not add up."""
    with open_project(folder, profile=profile) as project:
        return _check(project, set(acknowledged))


def _check(project: OpenProject, acknowledged: set[str]) -> Account:
    clicks, events, failed = (read_topic(project, name) for name in ("clicks", "events", "failed"))
    # The others say up to where a dimension counts.
    clicks = [click for click in clicks if "dimension" not in dict(click.headers)]
    settled = [(m, json.loads(m.value)) for m in events if not m.headers]
    failures = [(m, json.loads(m.value)) for m in failed]
    for rows in (settled, failures):
        _check_dense(rows)
    expected = _judge(clicks, {(m.partition, row["src_offset"]) for m, row in failures})
    _check_sources(settled, failures, expected)
    _check_ids(settled, expected, acknowledged)
    _check_progress(events, project.topic("clicks").bounds())
    _check_table(project, "events", settled)
    _check_table(project, "failed", failures)
    return Account(len(clicks), len(settled), len(failures), len(clicks) - len(expected.judged))


def read_topic(project: OpenProject, name: str) -> list[Message]:
    """Returns all that a topic of a project holds, in the order of its partitions."""
    return read_whole(project.topic(name))


def read_whole(log: Topic) -> list[Message]:
    """Returns all that a topic holds, in the order of its partitions."""
    offsets = {p: bound.start for p, bound in enumerate(log.bounds())}
    ends = {p: bound.end for p, bound in enumerate(log.bounds())}
    found: list[Message] = []
    while any(offsets[p] < end for p, end in ends.items()):
        messages = log.read(offsets, wait_seconds=2.0)
        if not messages:
            break  # what is left on Kafka are markers of transactions
        found += messages
        offsets.update({m.partition: m.offset + 1 for m in messages})
    return sorted(found, key=lambda m: (m.partition, m.offset))


def _check_dense(rows: list[tuple[Message, dict[str, Any]]]) -> None:
    """Asserts that `seq` counts 0, 1, 2 ... and that the sources go up, in each partition."""
    newest: dict[int, tuple[int, int]] = {}
    for message, row in rows:
        seq, source = newest.get(message.partition, (-1, -1))
        assert row["seq"] == seq + 1, f"{_at(message)} has seq {row['seq']} after {seq}"
        assert row["src_offset"] > source, f"{_at(message)} came of {row['src_offset']}, the one before of {source}"
        newest[message.partition] = row["seq"], row["src_offset"]


@dataclass
class Expected:
    """What should have become of `clicks`."""

    judged: set[Place]
    """The clicks that are no repeats."""
    standing: dict[tuple[int, str, str], bool]
    """By partition, source and id: whether it stands as failed."""


def _judge(clicks: list[Message], failures: set[Place]) -> Expected:
    expected = Expected(set(), {})
    failed_places: set[str] = set()
    for click in clicks:
        headers = dict(click.headers)
        place = (click.partition, click.offset)
        replayed = headers["replay_of"].decode() if "replay_of" in headers else None
        name = replayed or f"{click.partition}/{click.offset}"
        one = (click.partition, *_identity(click, headers, name))
        known = expected.standing.get(one)
        is_new = known is None if replayed is None else replayed in failed_places and known is not False
        if is_new:
            expected.judged.add(place)
            expected.standing[one] = place in failures
            if place in failures:
                failed_places.add(name)
    return expected


def _identity(click: Message, headers: dict[str, bytes], made: str) -> tuple[str, str]:
    """Returns source and messageId, which together stand once."""
    try:
        source = json.loads(headers["door"]).get("write_key", "")
        return source, json.loads(click.value).get("messageId") or made
    except (KeyError, TypeError, ValueError):
        return "", made


def _check_sources(
    settled: list[tuple[Message, dict[str, Any]]], failures: list[tuple[Message, dict[str, Any]]], expected: Expected
) -> None:
    """Asserts that each click that is no repeat came out once, and no other: all else are repeats."""
    found = [(m.partition, row["src_offset"]) for m, row in (*settled, *failures)]
    assert len(found) == len(set(found)), f"{len(found) - len(set(found))} clicks came out twice"
    lost, extra = expected.judged - set(found), set(found) - expected.judged
    assert not lost, f"{len(lost)} of {len(expected.judged)} clicks never came out, such as {sorted(lost)[:3]}"
    assert not extra, f"{len(extra)} repeats came out, such as {sorted(extra)[:3]}"


def _check_ids(settled: list[tuple[Message, dict[str, Any]]], expected: Expected, acknowledged: set[str]) -> None:
    """Asserts that the settled ids are those that were acknowledged, less those that stand as failed."""
    found = [(m.partition, row["source"], row["message_id"]) for m, row in settled]
    wanted = {one for one, is_failed in expected.standing.items() if not is_failed}
    assert len(found) == len(set(found)), "an id was settled twice"
    assert set(found) == wanted
    missing = acknowledged - {message_id for _, _, message_id in expected.standing}
    assert not missing, f"{len(missing)} of {len(acknowledged)} acknowledged events are lost: {sorted(missing)[:3]}"


def _check_progress(events: list[Message], ends: list[Bounds]) -> None:
    for message in events:
        if message.headers:
            assert json.loads(message.value)["src_offset"] < ends[message.partition].end


def table_rows(project: OpenProject, name: str, sql: str = _ROWS) -> pa.Table:
    """Returns what SQL finds in a table, called `rows` in it, read by deltalake alone."""
    table = DeltaTable(f"{table_root(project)}/{name}")
    return pa.table(QueryBuilder().register("rows", table).execute(sql).read_all())


def table_root(project: OpenProject) -> str:
    """Returns the lake's place, as deltalake takes it."""
    url = project.profile.url("tables")
    return str(url.local_path()) if url.scheme == "file" else str(url).partition("?")[0]


def _check_table(project: OpenProject, name: str, rows: list[tuple[Message, dict[str, Any]]]) -> None:
    """Asserts that the table's rows are the topic's records, each once."""
    wanted = [
        (
            m.partition,
            m.offset,
            *(row.get(key) for key in ("message_id", "source", "seq", "src_offset", "session_id", "definitions")),
        )
        for m, row in rows
    ]
    found = sorted(tuple(row.values()) for row in table_rows(project, name).to_pylist())
    places = [row[:2] for row in found]
    assert len(places) == len(set(places)), f"{len(places) - len(set(places))} records stand twice in table {name!r}"
    lost = {row[:2] for row in wanted} - set(places)
    assert not lost, f"{len(lost)} records of {name!r} are not in the table, such as {sorted(lost)[:3]}"
    assert found == wanted, f"table {name!r} holds other rows than its topic"


def _at(message: Message) -> str:
    return f"partition {message.partition}, offset {message.offset}"


def copy_clicks(project: OpenProject, fresh: OpenProject) -> None:
    """Copies `clicks` record for record into the empty topic of another project."""
    clicks = read_topic(project, "clicks")
    for start in range(0, len(clicks), 10_000):
        records = [Record(m.key, m.value, m.time_us, m.headers) for m in clicks[start : start + 10_000]]
        fresh.topic("clicks").append(records)
    assert [(m.partition, m.value) for m in read_topic(fresh, "clicks")] == [(m.partition, m.value) for m in clicks]
