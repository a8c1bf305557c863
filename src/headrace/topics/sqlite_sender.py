"""Appends to an embedded log from an asyncio server: many callers, one frame, one commit."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.base.clock import machine_us
from headrace.base.errors import DeadlineError, HeadraceError, OverloadedError
from headrace.base.ids import make_id
from headrace.base.sqlite import AsyncLink, Seat
from headrace.topics import sqlite_frames as frames
from headrace.topics.partition import partition_for
from headrace.topics.topic import Record, check_records, stamped

_FRAME_BYTES = 4 << 20
_RECORD_OVERHEAD_BYTES = 64
_CHECK_SECONDS = 0.05
_PING_SECONDS = 0.5


@dataclass(slots=True)
class _Waiting:
    future: asyncio.Future[None]
    name: str
    records: Sequence[Record]
    size: int
    deadline: float


class SqliteSender:
    """One frame in flight; all that is appended meanwhile goes into the next one."""

    def __init__(
        self,
        seat: Seat,
        resolve: Callable[[str], tuple[int, int]],
        *,
        deadline_seconds: float,
        max_pending_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._resolve = resolve
        self._known: dict[str, tuple[int, int]] = {}
        self._deadline_seconds = deadline_seconds
        self._max_pending_bytes = max_pending_bytes
        self._producer = make_id(machine_us(), os.urandom(10))
        self._sequence = 0
        self._pending: deque[_Waiting] = deque()
        self._pending_bytes = 0
        self._flying: list[_Waiting] = []
        self._flush_planned = False
        self._check: asyncio.TimerHandle | None = None
        self._link = AsyncLink(seat, self._answered)
        self._sent_at = time.monotonic()
        self._ping = self._loop.call_later(0, self._ask_for_life)

    async def append(self, name: str, records: Sequence[Record]) -> None:
        """Returns once the records are durable."""
        size = _RECORD_OVERHEAD_BYTES * len(records) + check_records(records)
        if not records:
            self._find(name)
            return
        if self._pending_bytes + size > self._max_pending_bytes:
            raise OverloadedError(f"{self._pending_bytes:,} bytes are waiting for the topic already")
        future: asyncio.Future[None] = self._loop.create_future()
        deadline = time.monotonic() + self._deadline_seconds
        self._pending.append(_Waiting(future, name, records, size, deadline))
        self._pending_bytes += size
        if self._link.idle and not self._flush_planned:
            self._flush_planned = True
            self._loop.call_soon(self._flush)
        if self._check is None:
            self._check = self._loop.call_later(_CHECK_SECONDS, self._expire)
        await future

    def stalled_seconds(self) -> float:
        """Returns for how long the writer has not answered; it is asked twice a second at least."""
        return 0.0 if self._link.idle else time.monotonic() - self._sent_at

    async def close(self) -> None:
        """Waits for what was handed over, then lets go."""
        waiting = [one.future for one in (*self._flying, *self._pending) if not one.future.done()]
        if waiting:
            await asyncio.wait(waiting, timeout=self._deadline_seconds)
        self._ping.cancel()
        if self._check is not None:
            self._check.cancel()
        self._link.close()

    def _flush(self) -> None:
        self._flush_planned = False
        if not self._link.idle or not self._pending:
            return
        taken, rows = self._take()
        if not rows:
            return
        self._sequence += 1
        parts = [
            frames.pack_part(*place, records[cut])
            for place, records in rows.items()
            for cut in frames.cut_rows(records)
        ]
        frame = frames.pack(frames.Append(self._producer, self._sequence, parts))
        self._flying = taken
        self._send(frame)

    def _send(self, frame: bytes) -> None:
        self._sent_at = time.monotonic()
        self._link.send(frame)

    def _ask_for_life(self) -> None:
        """Pings the writer while there is nothing else to send: a frozen one is known before the next event."""
        if self._link.idle:
            self._send(frames.pack(frames.Ping()))
        self._ping = self._loop.call_later(_PING_SECONDS, self._ask_for_life)

    def _take(self) -> tuple[list[_Waiting], dict[tuple[int, int], list[Record]]]:
        """Returns the appends of the next frame, and their records by topic number and partition."""
        taken: list[_Waiting] = []
        rows: dict[tuple[int, int], list[Record]] = {}
        size = 0
        now_us = machine_us()
        while self._pending and size < _FRAME_BYTES:
            waiting = self._pending.popleft()
            self._pending_bytes -= waiting.size
            if waiting.future.done():
                continue
            try:
                topic, partitions = self._find(waiting.name)
            except HeadraceError as error:
                waiting.future.set_exception(error)
                continue
            size += waiting.size
            taken.append(waiting)
            for record in waiting.records:
                place = (topic, partition_for(record.key, partitions))
                rows.setdefault(place, []).append(stamped(record, now_us))
        return taken, rows

    def _find(self, name: str) -> tuple[int, int]:
        if name not in self._known:
            self._known[name] = self._resolve(name)
        return self._known[name]

    def _answered(self, data: bytes) -> None:
        answer = frames.read_answer(data)
        if answer.sequence not in (self._sequence, 0):
            return
        error = frames.error_of(answer)
        if error is not None:
            # The topic may have been made anew: look its number up again.
            self._known.clear()
        flown, self._flying = self._flying, []
        for waiting in flown:
            if waiting.future.done():
                continue
            if error is None:
                waiting.future.set_result(None)
            else:
                waiting.future.set_exception(error)
        self._flush()

    def _expire(self) -> None:
        now = time.monotonic()
        for waiting in self._flying:
            self._give_up(waiting, now)
        while self._pending and self._pending[0].deadline < now:
            waiting = self._pending.popleft()
            self._pending_bytes -= waiting.size
            self._give_up(waiting, now)
        again = bool(self._flying or self._pending)
        self._check = self._loop.call_later(_CHECK_SECONDS, self._expire) if again else None

    def _give_up(self, waiting: _Waiting, now: float) -> None:
        if waiting.deadline < now and not waiting.future.done():
            waiting.future.set_exception(DeadlineError(f"the topic did not answer within {self._deadline_seconds:g} s"))
