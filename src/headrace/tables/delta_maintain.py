"""What the keeper does to a table: compaction, vacuum, log clean-up, retention. Rows never change by it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable

from headrace.base.errors import CallError
from headrace.tables.delta_log import LOG, between_checkpoints, superfluous
from headrace.tables.delta_pins import refuse
from headrace.tables.delta_place import HOOKS, WRITER, Place
from headrace.tables.delta_store import Entry
from headrace.tables.table import Optimized, Pin

# A large table is rewritten in minutes; none of its readers waits for that.
_SLOW = 20
# Below this, files that are being written and not yet committed could pass for orphans.
_SAFE_FOR_ORPHANS_SECONDS = 3600


def optimize(place: Place, loaded: DeltaTable, *, target_bytes: int) -> Optimized:
    """Merges small files; readers and appends go on meanwhile."""
    before = _sizes(loaded)
    place.call(
        "optimize",
        lambda: loaded.optimize.compact(
            target_size=target_bytes,
            writer_properties=WRITER,
            post_commithook_properties=HOOKS,
        ),
        times=_SLOW,
    )
    after = _sizes(loaded)
    return Optimized(loaded.version(), len(before), len(after), sum(before), sum(after))


def _sizes(loaded: DeltaTable) -> list[int]:
    sizes: list[int] = pa.table(loaded.get_add_actions(flatten=True)).column("size_bytes").to_pylist()
    return sizes


def vacuum(
    place: Place, loaded: DeltaTable, pins: Sequence[Pin], *, keep_seconds: float, dry_run: bool, around_pins: bool
) -> list[str]:
    """Returns the deleted files: those that no version younger than `keep_seconds`, and no pin, needs.

    Until the log forgets them, files that an earlier vacuum deleted are named again.
    """

    def run(keep: list[int], *, dry: bool) -> list[str]:
        # Rounding up keeps more, never less.
        hours = math.ceil(keep_seconds / 3600)
        return place.call(
            "vacuum",
            lambda: loaded.vacuum(
                hours,
                dry_run=dry,
                enforce_retention_duration=False,
                full=keep_seconds >= _SAFE_FOR_ORPHANS_SECONDS,
                keep_versions=keep or None,
                commit_properties=CommitProperties(),
                post_commithook_properties=HOOKS,
            ),
            times=_SLOW,
        )

    kept = sorted({pin.version for pin in pins})
    if not around_pins and kept and set(run([], dry=True)) != set(run(kept, dry=True)):
        raise refuse("vacuum", place.name, pins)
    return sorted(path.removeprefix(f"{place.uri}/") for path in run(kept, dry=dry_run))


def clean_log(
    place: Place, pins: Sequence[Pin], *, before_us: int, thin: tuple[int, int], around_pins: bool
) -> list[str]:
    """Returns the deleted files of the log: those that no version young enough, and no pin, is opened from.

    `thin` says of how many newest versions, and of those since when, each can be opened; of older ones only those with
    a checkpoint.
    """
    newest, thin_before_us = thin

    def find(needed: list[int]) -> dict[str, Entry]:
        log = place.store.entries(LOG)
        going = superfluous(log, before_us=before_us, needed=needed)
        going += between_checkpoints(log, newest=newest, before_us=thin_before_us, needed=needed)
        return {entry.name: entry for entry in going}

    def clean() -> list[str]:
        going = find([pin.version for pin in pins])
        if not around_pins and len(find([])) > len(going):
            raise refuse("cleaning the log", place.name, pins)
        for entry in going.values():
            place.store.delete(entry.path)
        return sorted(going)

    return place.call("clean the log", clean, times=_SLOW)


def delete_partitions_before(place: Place, loaded: DeltaTable, day: date) -> int:
    """Returns the number of files that left the table with whole days before `day`."""
    column = "received_date"
    if column not in loaded.metadata().partition_columns:
        raise CallError(f"table {place.name!r} is not partitioned by {column}, so no day of it can be dropped whole")
    found: dict[str, Any] = place.call(
        "drop old days",
        lambda: loaded.delete(f"{column} < '{day.isoformat()}'", post_commithook_properties=HOOKS),
        times=_SLOW,
    )
    return int(found["num_removed_files"])
