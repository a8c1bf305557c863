"""The keeper: the one role that compacts tables, checkpoints their logs, and forgets what is too old."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from headrace.base import fault
from headrace.base.errors import HeadraceError
from headrace.base.telemetry import Metric, Metrics, get_logger
from headrace.tables.table import DEFAULT_KEEP_COMMITS, DEFAULT_KEEP_SECONDS, Table, Tables
from headrace.topics import Topics

GROUP = "keeper"

METRICS = (
    Metric("headrace_keeper_compactions_total", "Compactions of tables."),
    Metric("headrace_keeper_vacuumed_files_total", "Files deleted that no version needs any more."),
    Metric("headrace_keeper_failures_total", "Passes over a table that failed."),
)

_LOOK_SECONDS = 1.0
_LEASE_SECONDS = 60.0
_LOGGER = get_logger("keeper")


@dataclass(frozen=True)
class Care:
    """How often the keeper does what."""

    compact_commits: int = 50
    """After how many commits small files are merged."""
    checkpoint_commits: int = 50
    """After how many commits a checkpoint is written."""
    small_bytes: int = 32 << 20
    """Most compactions leave files of this size alone, so that a row is not rewritten every few minutes."""
    large_bytes: int = 256 << 20
    """Every so often those are merged too, up to this size."""
    large_every: int = 20
    """Every how many compactions."""
    vacuum_every_seconds: float = 3600.0
    keep_seconds: float = DEFAULT_KEEP_SECONDS
    """For how long old versions can be read."""
    clean_commits: int = 250
    """After how many commits the log is cleaned."""
    keep_commits: int = DEFAULT_KEEP_COMMITS
    """How many versions can be read each; of older ones those with a checkpoint."""


# On HDFS a table with many commits since its checkpoint cannot be opened while a data node is down:
# 50 commits hung in 3 of 5 trials, 32 in none.
FAR = Care(checkpoint_commits=10)


@dataclass
class _Kept:
    """What the keeper has done to a table, as far as this process knows."""

    compacted: int = -1
    checkpointed: int = -1
    cleaned: int = -1
    compactions: int = 0
    vacuumed_at: float = float("-inf")


class Keeper:
    """Looks after all tables of a lake, while it is the only one to do so."""

    def __init__(
        self,
        tables: Tables,
        topics: Topics,
        *,
        lease: tuple[str, str],
        care: Care,
        oldest_day: Callable[[str], date | None],
        metrics: Metrics,
    ) -> None:
        topic, member = lease
        self._tables = tables
        self._care = care
        self._oldest_day = oldest_day
        # Two checkpoints at once can break a log: whoever holds partition 0 of this group keeps.
        self._share = topics.share(topic, GROUP, member=member, lease_seconds=_LEASE_SECONDS)
        self._kept: dict[str, _Kept] = {}
        self._compactions = metrics.count("headrace_keeper_compactions_total")
        self._vacuumed = metrics.count("headrace_keeper_vacuumed_files_total")
        self._failures = metrics.count("headrace_keeper_failures_total")

    def run(self, stop: threading.Event) -> None:
        """Keeps the tables until it is told to stop."""
        try:
            while not stop.wait(_LOOK_SECONDS):
                self.turn()
        finally:
            self._share.close()

    def turn(self) -> None:
        """Does what is due; a table that cannot be kept does not stop the others."""
        if 0 not in self._share.held():
            return
        for name in self._tables.names():
            try:
                self._keep(self._tables.open(name))
            except HeadraceError as error:
                self._failures.add()
                _LOGGER.warning("table %s is not kept: %s", name, error)
            # A large compaction takes longer than a lease.
            if 0 not in self._share.held():
                return

    def _keep(self, table: Table) -> None:
        care = self._care
        kept = self._kept.get(table.name)
        if kept is None:
            # What an earlier keeper has left undone is due at once.
            is_neglected = len(table.files()) > care.compact_commits
            kept = self._kept[table.name] = _Kept(compacted=-care.compact_commits if is_neglected else table.version)
        if table.version - kept.compacted >= care.compact_commits:
            self._compact(table, kept)
        if table.version - kept.checkpointed >= care.checkpoint_commits:
            table.checkpoint()
            fault.point("keeper.checkpointed")
            kept.checkpointed = table.version
        if table.version - kept.cleaned >= care.clean_commits:
            table.clean_log(keep_seconds=care.keep_seconds, keep_commits=care.keep_commits)
            kept.cleaned = table.version
        if time.monotonic() - kept.vacuumed_at >= care.vacuum_every_seconds:
            self._forget(table)
            kept.vacuumed_at = time.monotonic()

    def _compact(self, table: Table, kept: _Kept) -> None:
        kept.compactions += 1
        is_large = kept.compactions % self._care.large_every == 0
        done = table.optimize(target_bytes=self._care.large_bytes if is_large else self._care.small_bytes)
        fault.point("keeper.compacted")
        kept.compacted = table.version
        self._compactions.add()
        _LOGGER.info("table %s: %d files became %d", table.name, done.files_before, done.files_after)

    def _forget(self, table: Table) -> None:
        day = self._oldest_day(table.name)
        if day is not None:
            table.delete_partitions_before(day)
        deleted = table.vacuum(keep_seconds=self._care.keep_seconds)
        fault.point("keeper.vacuumed")
        self._vacuumed.add(len(deleted))


def day_before(now_us: int, days: float) -> date:
    """Returns the first day that is kept when rows are kept for so many days.

    >>> day_before(1_767_571_200_000_000, 2)
    datetime.date(2026, 1, 3)
    """
    return (datetime.fromtimestamp(now_us / 1e6, UTC) - timedelta(days=days)).date()
