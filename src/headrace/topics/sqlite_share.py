"""One member's part of a shared group of an embedded log, as the member sees it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from headrace.base.clock import machine_us
from headrace.base.errors import FencedError, OutsideError
from headrace.base.ids import make_id
from headrace.topics import sqlite_frames as frames
from headrace.topics.topic import (
    DEFAULT_DEADLINE_SECONDS,
    Description,
    GroupPosition,
    Move,
    Position,
    check_output,
    check_records,
    other_incarnation,
    stamped,
)

_FRAME_BYTES = 8 << 20
_LEAVE_SECONDS = 1.0

Ask = Callable[[frames.Frame, float], list[int]]
"""Sends a frame to the writer and returns the numbers of its answer."""


class SqliteShare:
    """Asks the writer what it holds; the writer refuses what comes from a holder of yesterday."""

    def __init__(
        self,
        ask: Ask,
        groups: Callable[[], list[GroupPosition]],
        find: Callable[[str], tuple[int, int]],
        *,
        topic: Description,
        group: str,
        member: tuple[str, float],
    ) -> None:
        self._ask = ask
        self._groups = groups
        self._find = find
        self._topic = topic
        self._group = group
        self._member, self._lease_seconds = member
        self._session = make_id(machine_us(), os.urandom(10))
        self._sequence = 0
        self._generations: dict[int, int] = {}
        self._expected: dict[int, int] = {}
        self._released: list[int] = []

    def held(self) -> frozenset[int]:
        """Returns the partitions that this member holds, and says that it is alive."""
        frame = frames.Renew(
            self._group,
            self._topic.name,
            self._topic.incarnation,
            self._member,
            self._session,
            self._lease_seconds,
            self._released,
        )
        numbers = self._ask(frame, DEFAULT_DEADLINE_SECONDS)
        answers = list(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
        # What another is due to get is given back by the next call, when this member has dropped it.
        self._released = [partition for partition, _, keep in answers if not keep]
        found = {
            partition: generation
            for partition, generation, keep in answers
            # One that was lost and came back is left out once, so that the caller drops what it knows of it.
            if keep and self._generations.get(partition, generation) == generation
        }
        for partition in [p for p in self._expected if found.get(p) != self._generations.get(p)]:
            del self._expected[partition]
        self._generations = found
        return frozenset(found)

    def saved(self, partition: int) -> Position | None:
        """Returns the group's saved position of a partition that is held."""
        if partition not in self._generations:
            raise FencedError(f"{self._what(partition)} is not held by {self._member!r}")
        rows = [one.position for one in self._groups() if one.group == self._group]
        found = next((position for position in rows if position.partition == partition), None)
        if found is not None and found.incarnation != self._topic.incarnation:
            raise other_incarnation(self._topic.name, self._group, found.incarnation, self._topic.incarnation)
        self._expected[partition] = -1 if found is None else found.offset
        return found

    def transact(self, moves: Sequence[Move], *, deadline_seconds: float) -> None:
        """Appends the outputs and saves the offsets: of each partition all or nothing."""
        deadline = time.monotonic() + deadline_seconds
        for portion in self._portions(moves):
            self._sequence += 1
            frame = frames.Transact(
                self._session,
                self._sequence,
                [part for _, parts in portion for part in parts],
                self._group,
                self._topic.name,
                self._topic.incarnation,
                [self._step(move) for move, _ in portion],
            )
            self._ask(frame, max(deadline - time.monotonic(), 0.001))
            self._expected.update({move.partition: move.offset for move, _ in portion})

    def close(self) -> None:
        """Gives the partitions back; one whose writer is gone loses them when the lease ends."""
        with suppress(OutsideError):
            self._ask(frames.Leave(self._group, self._topic.name, self._member, self._session), _LEAVE_SECONDS)
        self._generations = {}

    def _step(self, move: Move) -> tuple[int, int, int, int]:
        if move.partition not in self._generations:
            raise FencedError(f"{self._what(move.partition)} is not held by {self._member!r}")
        if move.partition not in self._expected:
            self.saved(move.partition)
        return move.partition, self._generations[move.partition], self._expected[move.partition], move.offset

    def _portions(self, moves: Sequence[Move]) -> Iterator[list[tuple[Move, list[frames.Part]]]]:
        """Yields moves that fit one frame, with their packed rows."""
        now_us = machine_us()
        portion: list[tuple[Move, list[frames.Part]]] = []
        size = 0
        for move in moves:
            parts = list(self._pack(move, now_us))
            added = sum(len(part.blob) for part in parts)
            if portion and size + added > _FRAME_BYTES:
                yield portion
                portion, size = [], 0
            portion.append((move, parts))
            size += added
        if portion:
            yield portion

    def _pack(self, move: Move, now_us: int) -> Iterator[frames.Part]:
        for name, records in move.outputs.items():
            topic, partitions = self._find(name)
            check_output(name, partitions, source=self._topic.name, partition=move.partition)
            check_records(records)
            kept = [stamped(record, now_us) for record in records]
            for cut in frames.cut_rows(kept) if kept else ():
                yield frames.pack_part(topic, move.partition, kept[cut])

    def _what(self, partition: int) -> str:
        return f"group {self._group!r} of topic {self._topic.name!r}: partition {partition}"
