"""Which member of a shared group holds which partition: the writer of the file decides, members ask."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping
from dataclasses import dataclass

from headrace.base.errors import FencedError
from headrace.topics import sqlite_frames as frames


@dataclass
class Member:
    """A member of a shared group, as its newest session presents it."""

    session: str
    lease_seconds: float
    heard_at: float


@dataclass(frozen=True)
class _Held:
    member: str
    session: str
    generation: int


def renew(
    connection: sqlite3.Connection, members: dict[str, Member], frame: frames.Renew, partitions: int
) -> list[int]:
    """Returns the partitions that a member holds from now on: partition, generation, whether to keep it."""
    _hear(members, frame)
    names = sorted(members)
    held = _read(connection, frame)
    numbers = []
    for partition in range(partitions):
        one = held.get(partition, _Held("", "", 0))
        if one.member == frame.member and (one.session != frame.session or partition in frame.released):
            # Released, or held by an older session of this name, which may still run, frozen or slow.
            one = _write(connection, frame, partition, _Held("", "", one.generation))
        due = names[partition % len(names)] == frame.member
        if due and one.member not in members:
            one = _write(connection, frame, partition, _Held(frame.member, frame.session, one.generation + 1))
        if one.member == frame.member:
            numbers += [partition, one.generation, int(due)]
    return numbers


def leave(connection: sqlite3.Connection, members: dict[str, Member], frame: frames.Leave) -> None:
    """Frees what a member holds, unless a newer session has its name."""
    found = members.get(frame.member)
    if found is not None and found.session == frame.session:
        del members[frame.member]
        connection.execute(
            "update shares set member = '', session = '' where name = ? and topic = ? and session = ?",
            (frame.group, frame.topic, frame.session),
        )


def check_holder(connection: sqlite3.Connection, frame: frames.Transact, partition: int, generation: int) -> None:
    """Raises FencedError unless nobody has held the partition since this generation."""
    row = connection.execute(
        "select generation, member from shares where name = ? and topic = ? and partition = ?",
        (frame.group, frame.topic, partition),
    ).fetchone()
    if row is None or row[0] != generation:
        taken = f"was taken over by {row[1]!r}" if row and row[1] else "was given up"
        raise FencedError(f"group {frame.group!r} of topic {frame.topic!r}: partition {partition} {taken}")


def _hear(members: dict[str, Member], frame: frames.Renew) -> None:
    now = time.monotonic()
    # First: a session that came with a wrong clock must not refuse its successors for longer than its lease.
    for name in [name for name, one in members.items() if now - one.heard_at > one.lease_seconds]:
        del members[name]
    found = members.get(frame.member)
    # Ids sort by time: the older of two sessions is the zombie.
    if found is not None and frame.session < found.session:
        raise FencedError(
            f"group {frame.group!r} of topic {frame.topic!r}: a newer member of the name {frame.member!r} took over"
        )
    members[frame.member] = Member(frame.session, frame.lease_seconds, now)


def _read(connection: sqlite3.Connection, frame: frames.Renew) -> Mapping[int, _Held]:
    rows = connection.execute(
        "select partition, member, session, generation from shares where name = ? and topic = ?",
        (frame.group, frame.topic),
    )
    return {partition: _Held(*values) for partition, *values in rows}


def _write(connection: sqlite3.Connection, frame: frames.Renew, partition: int, held: _Held) -> _Held:
    connection.execute(
        "insert or replace into shares values (?, ?, ?, ?, ?, ?)",
        (frame.group, frame.topic, partition, held.member, held.session, held.generation),
    )
    return held
