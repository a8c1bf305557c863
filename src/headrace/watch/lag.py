"""Who stays behind: readers of topics, the lake, and the room on the disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from headrace.watch.alert import Finding, Now

LAG_SECONDS = 30.0
"""A reader may be so far behind: a process that was killed is back within a few seconds, and catches up."""
_CALM_SECONDS = 10.0
_REST_BYTES = 5e8
_MOST_ENDS = 600


class Lag:
    """How long a reader has not read what had come, told by where the topic and it stood at each look."""

    def __init__(self, reader: str, topic: str) -> None:
        self._reader, self._topic = reader, topic
        self._ends: deque[tuple[int, tuple[int, ...]]] = deque()
        self._behind = 0

    def add(self, ends: Sequence[int], positions: Mapping[int, int], now: Now) -> None:
        """Takes in where the partitions end, and where the reader goes on in each."""
        if len(self._ends) == _MOST_ENDS:
            # The oldest one stays.
            self._ends = deque(list(self._ends)[::2])
        self._ends.append((now.watched_us, tuple(ends)))
        while self._ends and all(positions.get(p, 0) >= end for p, end in enumerate(self._ends[0][1])):
            self._ends.popleft()
        self._behind = sum(max(end - positions.get(p, 0), 0) for p, end in enumerate(ends))

    def judge(self, now: Now) -> Iterator[Finding]:
        """Yields the finding, if there is one."""
        seconds = (now.watched_us - self._ends[0][0]) / 1e6 if self._ends else 0.0
        if seconds > _CALM_SECONDS:
            yield Finding(
                kind="lag",
                subject=self._reader,
                text=f"the {self._reader} is {seconds:.0f} s behind: {self._behind:,} records of {self._topic!r} wait",
                advice="See whether it runs and what it says: headrace status",
                evidence={"seconds": round(seconds, 1), "records": self._behind, "limit": LAG_SECONDS},
                is_clear=seconds > LAG_SECONDS,
            )


class Freshness:
    """How long rows have waited for a commit to their table, told by the counter of its commits.

    What stood in a topic when a commit was seen may have been in it, so only rows that came after it wait.
    """

    def __init__(self, table: str, flush_seconds: float) -> None:
        self._table, self._limit_seconds = table, flush_seconds + LAG_SECONDS
        self._commits: float | None = None
        self._committed_us = 0
        self._waiting_us: int | None = None
        self._rows = 0

    def add(self, rows_us: Sequence[int], commits: float, now: Now) -> None:
        """Takes in when the rows since the last look were appended, and how many commits there have ever been."""
        if commits != self._commits:
            self._commits, self._committed_us, self._waiting_us, self._rows = commits, now.machine_us, None, 0
        waiting = sum(row_us > self._committed_us for row_us in rows_us)
        if waiting and self._waiting_us is None:
            self._waiting_us = now.watched_us
        self._rows += waiting

    def judge(self, now: Now) -> Iterator[Finding]:
        """Yields the finding, if there is one."""
        seconds = 0.0 if self._waiting_us is None else (now.watched_us - self._waiting_us) / 1e6
        if seconds > self._limit_seconds:
            yield Finding(
                kind="freshness",
                subject=f"table {self._table}",
                text=f"the table {self._table!r} has taken nothing for {seconds:.0f} s, while {self._rows:,} rows came "
                "for it",
                advice="See whether the sink runs and what it says: headrace status",
                evidence={"seconds": round(seconds, 1), "rows": self._rows, "limit": self._limit_seconds},
            )


def judge_disk(free_bytes: int, least_bytes: float) -> Iterator[Finding]:
    """Yields the finding if less is free than there should be; a tenth more, or half a GB, is enough again."""
    if free_bytes < least_bytes + min(least_bytes / 10, _REST_BYTES):
        yield Finding(
            kind="disk",
            subject="disk",
            text=f"{free_bytes / 1e9:.2f} GB are free on the project's disk, {least_bytes / 1e9:.2f} should be",
            advice="Make room, or let topics and tables forget sooner (retention_days in headrace.toml): a full disk "
            "answers 503",
            evidence={"free_bytes": free_bytes, "limit_bytes": round(least_bytes)},
            is_clear=free_bytes < least_bytes,
        )
