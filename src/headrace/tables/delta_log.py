"""What the listing of a table's log says: which versions can be opened, and what nobody needs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from headrace.tables.delta_store import Entry

LOG = "_delta_log"
_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint\.parquet")
_ANY = re.compile(r"(\d{20})\.")
# What a writer that lost a race or died leaves beside the log, on HDFS and in a local folder.
_STALE = re.compile(r"\.\d{20}\.json\.tmp\..+|.+\.tmp|.+#\d+")


def version_of(entry: Entry) -> int | None:
    """Returns the version that a file of the log commits, or None for any other file."""
    match = _COMMIT.fullmatch(entry.name)
    return int(match[1]) if match else None


def commits(log: Iterable[Entry]) -> list[int]:
    """Returns the versions whose commits stand, ascending."""
    return sorted(version for entry in log if (version := version_of(entry)) is not None)


def checkpoints(log: Iterable[Entry]) -> list[int]:
    """Returns the versions that have a checkpoint in one file, ascending."""
    return sorted(int(match[1]) for entry in log if (match := _CHECKPOINT.fullmatch(entry.name)))


def missing(log: Sequence[Entry], version: int) -> str:
    """Returns the name of a file without which a version cannot be opened, or nothing."""
    start = max((c for c in checkpoints(log) if c <= version), default=-1) + 1
    standing = set(commits(log))
    for needed in range(start, version + 1):
        if needed not in standing:
            return f"{needed:020d}.json"
    return ""


def oldest(log: Sequence[Entry]) -> int:
    """Returns the oldest version that can still be opened."""
    for version in sorted({*commits(log), *checkpoints(log)}):
        if not missing(log, version):
            return version
    return 0


def superfluous(log: Sequence[Entry], *, before_us: int, needed: Iterable[int]) -> list[Entry]:
    """Returns the files older than `before_us` that no younger and no needed version is opened from."""
    young = [v for entry in log if entry.time_us >= before_us and (v := version_of(entry)) is not None]
    wanted = min([*young, *needed, *commits(log)[-1:]], default=0)
    start = max((c for c in checkpoints(log) if c <= wanted), default=0)
    old = [entry for entry in log if entry.time_us < before_us and not entry.is_folder]
    return [entry for entry in old if _STALE.fullmatch(entry.name) or _is_before(entry, start)]


def between_checkpoints(log: Sequence[Entry], *, newest: int, before_us: int, needed: Iterable[int]) -> list[Entry]:
    """Returns the commits older than the `newest` ones that lie between two checkpoints, but for needed ones.

    Listing the log costs every commit 5 us for each of its files, so a busy table must not keep them all. The
    versions that have a checkpoint can still be opened, and their commits tell where rows came from.
    """
    written = checkpoints(log)
    last = max(commits(log), default=0)
    start = max((c for c in written if c <= last - newest), default=0)
    kept = {*written}
    for pinned in needed:
        kept.update(range(max((c for c in written if c <= pinned), default=-1) + 1, pinned + 1))
    return [
        entry
        for entry in log
        if entry.time_us < before_us
        and (version := version_of(entry)) is not None
        and version < start
        and version not in kept
    ]


def _is_before(entry: Entry, start: int) -> bool:
    match = _ANY.match(entry.name)
    return match is not None and int(match[1]) < start
