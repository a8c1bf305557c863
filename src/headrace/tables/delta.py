"""Delta tables of protocol 1/2, in a local folder or on HDFS, which every engine reads and appends to."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Literal
from urllib.parse import unquote

import msgspec
import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Field, Transaction, write_deltalake

from headrace.base.clock import machine_us
from headrace.base.errors import CallError, FencedError, HeadraceError, PositionError, UnavailableError
from headrace.base.ids import make_id
from headrace.tables import delta_maintain as maintain
from headrace.tables.cache import Cache, Wanted
from headrace.tables.columns import Evolution, align, plan_evolution
from headrace.tables.deadline import ahead
from headrace.tables.delta_commit import NOTE_KEY, read_commit
from headrace.tables.delta_damage import brief
from headrace.tables.delta_durable import drop_torn, sync
from headrace.tables.delta_log import LOG, missing, oldest, version_of
from headrace.tables.delta_pins import Pins
from headrace.tables.delta_place import HOOKS, WRITER, Place
from headrace.tables.scan import DeltaScan, chosen
from headrace.tables.table import DEFAULT_KEEP_COMMITS, DEFAULT_KEEP_SECONDS, Commit, File, Optimized, Pin, check_schema

_SLOWEST_WRITER_SECONDS = 600.0
_EPOCH = datetime.fromtimestamp(0, UTC)


@dataclass(frozen=True)
class Lake:
    """What the tables of one lake share: their pins, and copies of their files where those are far."""

    pins: Pins
    cache: Cache | None = None


class Delta:
    """One table at one version, read and appended to through one object of the library.

    The library compares an append only with what that object has seen, so the position that was read and the
    append that follows must go through the same one.
    """

    def __init__(self, place: Place, loaded: DeltaTable, *, lake: Lake, reads_only: bool = False) -> None:
        self.name = place.name
        self.uri = place.uri
        self._place = place
        self._lake = lake
        self._reads_only = reads_only
        self._take(loaded)

    def _take(self, loaded: DeltaTable) -> None:
        self._loaded = loaded
        # Kept here, since an append that hangs holds on to the library's object.
        self._version = int(loaded.version())
        self._id = str(loaded.metadata().id)
        self._failed = ""
        # Asking the library costs 2 ms for each position, as it reads the log again.
        self._positions: dict[str, int | None] = {}

    @property
    def version(self) -> int:
        """The version of the loaded snapshot."""
        return self._version

    @property
    def schema(self) -> pa.Schema:
        """The columns of the loaded snapshot."""
        return pa.schema(self._loaded.schema().to_arrow())

    @property
    def partitions(self) -> tuple[str, ...]:
        """The columns whose values name the folders of the files."""
        return tuple(self._loaded.metadata().partition_columns)

    @property
    def properties(self) -> Mapping[str, str]:
        """What is stated about the table: ours as `headrace.*`, Delta's as `delta.*`."""
        return dict(self._loaded.metadata().configuration)

    @property
    def description(self) -> str:
        """What the table holds, in words."""
        return self._loaded.metadata().description or ""

    def reload(self) -> None:
        """Takes the newest version; raises PositionError if the log went backwards."""
        # A new object each time: an old one, brought up to date, keeps growing slower (8 to 86 ms in 400 commits).
        newest = self._place.load()
        if str(newest.metadata().id) != self._id:
            raise PositionError(f"table {self.name!r} at {self.uri} was replaced by another one under the same name")
        if newest.version() < self.version:
            raise PositionError(
                f"table {self.name!r} at {self.uri} went back from version {self.version} to {newest.version()}: "
                "commits are gone from its log. Restore them, or start a new table"
            )
        self._take(newest)

    def at(self, version: int | None = None, *, time_us: int | None = None) -> Delta:
        """Returns the table as it was at a version or a time, for reading only."""
        if (version is None) == (time_us is None):
            raise CallError(f"table {self.name!r}: give either a version or a time to go to")
        if version is None:
            version = self._version_at(time_us or 0)
        if not 0 <= version <= self.version:
            raise CallError(f"table {self.name!r} has no version {version}; its newest is {self.version}")
        self._check_reachable(version)
        return Delta(self._place, self._place.load(version), lake=self._lake, reads_only=True)

    def _check_reachable(self, version: int) -> None:
        log = self._place.call("list", lambda: self._place.store.entries(LOG))
        first = oldest(log)
        if version < first or missing(log, version):
            raise CallError(f"table {self.name!r}: version {version} is no longer in the log, which begins at {first}")

    def _version_at(self, time_us: int) -> int:
        oldest = None
        for commit in self._commits():
            if commit.time_us <= time_us:
                return commit.version
            oldest = commit
        first = f"; the oldest that is known is from {_text(oldest.time_us)}" if oldest else ""
        raise CallError(f"table {self.name!r} has no version as old as {_text(time_us)}{first}")

    def position(self, app: str) -> int | None:
        """Returns the position that `app` committed with its rows, as of this snapshot."""
        if app not in self._positions:
            self._positions[app] = self._place.call("position", lambda: self._loaded.transaction_version(app))
        return self._positions[app]

    def append(
        self,
        rows: pa.Table,
        *,
        positions: Mapping[str, int] = {},
        note: Mapping[str, Any] = {},
        evolve: bool = False,
    ) -> int:
        """Returns the new version, which holds the rows and the positions, or neither.

        After any error the table must be loaded again before the next append: the commit may have landed.
        """
        self._check_writable(positions)
        if evolve:
            self.evolve(rows.schema)
        aligned = align(self.name, rows, self.schema)
        before = self.version
        with self._writing():
            self._place.call("append", lambda: self._write(aligned, positions, note))
        if self.version > before + 1:
            # The library took in commits of others on the way, which may have moved positions that are not ours.
            self._positions = {}
        self._positions.update(positions)
        return self.version

    def advance(self, positions: Mapping[str, int], note: Mapping[str, Any] = {}) -> int:
        """Returns the new version, which only moves the positions."""
        return self.append(self.schema.empty_table(), positions=positions, note=note)

    def restart(self, positions: Mapping[str, int], *, note: Mapping[str, Any], empty: bool) -> int:
        """Returns the new version, which goes on at these positions, lower ones too, and without rows if `empty`.

        Older versions keep their rows.
        """
        self._check_writable({})
        rows = self.schema.empty_table()
        with self._writing():
            mode: Literal["overwrite", "append"] = "overwrite" if empty else "append"
            self._place.call("restart", lambda: self._write(rows, positions, note, mode=mode))
        self._positions = {}
        return self.version

    def _write(
        self,
        rows: pa.Table,
        positions: Mapping[str, int],
        note: Mapping[str, Any],
        *,
        mode: Literal["overwrite", "append"] = "append",
    ) -> None:
        write_deltalake(
            self._loaded,
            rows,
            mode=mode,
            writer_properties=WRITER,
            commit_properties=commit_properties(positions, note),
            post_commithook_properties=HOOKS,
        )

    def _check_writable(self, positions: Mapping[str, int]) -> None:
        if self._reads_only:
            raise CallError(f"table {self.name!r}: this is its version {self.version}, which can only be read")
        if self._failed:
            raise FencedError(
                f"table {self.name!r}: the commit before this one failed ({self._failed}) and may have landed all the "
                "same. Load the table again and compare the positions before the next append"
            )
        for app, position in positions.items():
            found = self.position(app)
            # The library would take a lower one, and so go backwards.
            if found is not None and position <= found:
                raise FencedError(
                    f"table {self.name!r}: {app!r} stands at {found}, asked to move to {position}. Somebody else has "
                    "moved it; load the table again and go on from where it stands"
                )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        before, root = self.version, self._place.root
        self._failed = "it was cut off"
        try:
            yield
            self._version = int(self._loaded.version())
            if root is not None:
                written = range(before + 1, self.version + 1)
                self._place.call("sync", lambda: sync(root, written))
        except HeadraceError as error:
            self._failed = brief(error.__cause__ or error)
            raise
        self._failed = ""

    def evolve(self, schema: pa.Schema) -> None:
        """Adds columns and widens int to long and float to double; anything else is a CallError.

        Adding is a commit of the log alone. Widening rewrites the rows in one commit, since a reader of protocol 1
        may rely on every file having the types of the table.
        """
        self._check_writable({})
        evolution = plan_evolution(self.name, self.schema, schema, self.partitions)
        if evolution.added:
            check_schema(self.name, pa.schema([*self.schema, *evolution.added]), self.partitions)
        if evolution.added or evolution.widened is not None:
            with self._writing():
                self._place.call("evolve", lambda: self._evolve(evolution), times=10)

    def _evolve(self, evolution: Evolution) -> None:
        note = commit_properties({}, {})
        if evolution.added:
            self._loaded.alter.add_columns(
                [Field.from_arrow(field) for field in evolution.added],
                commit_properties=note,
                post_commithook_properties=HOOKS,
            )
        if evolution.widened is not None:
            wider = pa.schema([*evolution.widened, *evolution.added])
            # Read through an object of its own: the one that writes is taken while it does.
            standing = self._place.load(int(self._loaded.version()))
            batches = (batch.cast(wider) for batch in self._place.read(standing, self.schema))
            write_deltalake(
                self._loaded,
                pa.RecordBatchReader.from_batches(wider, ahead(batches)),
                mode="overwrite",
                schema_mode="overwrite",
                partition_by=list(self.partitions) or None,
                writer_properties=WRITER,
                commit_properties=note,
                post_commithook_properties=HOOKS,
            )

    def state(self, properties: Mapping[str, str]) -> None:
        """Sets properties of the table."""
        self._check_writable({})
        with self._writing():
            self._place.call(
                "state",
                lambda: self._loaded.alter.set_table_properties(
                    dict(properties), raise_if_not_exists=False, commit_properties=commit_properties({}, {})
                ),
            )

    def history(self, limit: int | None = None) -> list[Commit]:
        """Returns the newest commits first, as far as the log still goes."""
        return list(itertools.islice(self._commits(), limit))

    def _commits(self) -> Iterator[Commit]:
        # The library's own history gives a stale snapshot's versions to the newest commits.
        store = self._place.store
        for entry in reversed(self._place.call("list", lambda: store.entries(LOG))):
            version = version_of(entry)
            if version is not None and version <= self.version:
                yield self._place.call("history", partial(read_commit, store, entry))

    def files(self) -> list[File]:
        """Returns the files of this snapshot."""
        actions = self._place.call("files", lambda: pa.table(self._loaded.get_add_actions(flatten=True)))
        return [_file(row, f"{self.uri}/", self.partitions) for row in actions.to_pylist()]

    def local_files(self) -> list[str]:
        """Returns paths at which the files of this snapshot can be opened, fetched first where they are far."""
        cache = self._lake.cache
        if cache is None:
            return [file.path for file in self.files()]
        wanted = [self._wanted(self._id, file) for file in self.files()]
        try:
            return cache.fetch(wanted)
        except OSError as error:
            raise UnavailableError(f"table {self.name!r}: its files cannot be copied here: {error}") from error

    def _wanted(self, below: str, file: File) -> Wanted:
        path = file.path.removeprefix(f"{self.uri}/")

        def copy(target: str) -> None:
            self._place.call(f"fetch {path}", lambda: self._place.store.copy(path, target))

        return Wanted(f"{below}/{path}", file.size, copy)

    def scan(self, columns: Sequence[str] | None = None) -> DeltaScan:
        """Returns the rows of this snapshot, to be read later."""
        loaded = self._loaded if self._reads_only else self._place.load(self.version)
        return DeltaScan(
            chosen(self.name, self.schema, columns),
            self.partitions,
            read=lambda schema: self._place.read(loaded, schema),
            files=Delta(self._place, loaded, lake=self._lake, reads_only=True).local_files,
        )

    def optimize(self, *, target_bytes: int = 256 << 20) -> Optimized:
        """Merges small files; readers and appends go on meanwhile."""
        self._check_writable({})
        with self._writing():
            return maintain.optimize(self._place, self._loaded, target_bytes=target_bytes)

    def checkpoint(self) -> None:
        """Writes a checkpoint of the log, so that opening stays quick. Two at once can damage one another."""
        self._check_writable({})
        self._place.call("checkpoint", self._loaded.create_checkpoint)

    def vacuum(
        self, *, keep_seconds: float = DEFAULT_KEEP_SECONDS, dry_run: bool = False, around_pins: bool = True
    ) -> list[str]:
        """Returns the deleted files: no version younger than `keep_seconds`, and no pin, needs them.

        Where `around_pins` is off, a pin that stands in the way makes it a CallError instead.
        """
        self._check_writable({})
        root = self._place.root
        if root is not None and not dry_run:
            self._place.call("drop torn files", lambda: drop_torn(root, before_us=_before(max(keep_seconds, 3600))))
        with self._writing():
            return maintain.vacuum(
                self._place,
                self._loaded,
                self.pins(),
                keep_seconds=keep_seconds,
                dry_run=dry_run,
                around_pins=around_pins,
            )

    def clean_log(
        self,
        *,
        keep_seconds: float = DEFAULT_KEEP_SECONDS,
        keep_commits: int = DEFAULT_KEEP_COMMITS,
        around_pins: bool = True,
    ) -> list[str]:
        """Returns the deleted files of the log: old commits before a checkpoint, and what broken writers left.

        Of versions older than the newest `keep_commits` only those that have a checkpoint can be opened from then on.
        """
        self._check_writable({})
        # A writer that is slow, or was frozen for a while, compares itself with the commits since it last looked.
        thin = keep_commits, _before(min(_SLOWEST_WRITER_SECONDS, keep_seconds))
        before_us = _before(keep_seconds)
        return maintain.clean_log(self._place, self.pins(), before_us=before_us, thin=thin, around_pins=around_pins)

    def delete_partitions_before(self, day: date) -> int:
        """Returns the number of files that left the table with whole days before `day`."""
        self._check_writable({})
        with self._writing():
            return maintain.delete_partitions_before(self._place, self._loaded, day)

    def pin(self, *, owner: str, reason: str, version: int | None = None) -> Pin:
        """Returns the pin that keeps a version, by default the loaded one.

        Pin a version while it is young: a vacuum that runs at this very moment does not see the pin, and deletes
        what only versions older than its `keep_seconds` need.
        """
        if not owner.strip() or not reason.strip():
            raise CallError(f"table {self.name!r}: a pin needs an owner and a reason, so that others know whom to ask")
        pinned = self.version if version is None else version
        now = machine_us()
        pin = Pin(make_id(now, os.urandom(10)), self.name, pinned, owner, reason, now)
        self._lake.pins.add(pin)
        try:
            # Looked at after the pin stands, so that no clean-up can come between.
            _check_files(self._place, self.at(pinned))
        except CallError:
            self._lake.pins.remove(self.name, pin.id)
            raise
        return pin

    def unpin(self, pin_id: str) -> None:
        """Takes a pin away."""
        self._lake.pins.remove(self.name, pin_id)

    def pins(self) -> list[Pin]:
        """Returns the pins of this table, whoever set them."""
        return self._lake.pins.of(self.name)


def commit_properties(positions: Mapping[str, int], note: Mapping[str, Any]) -> CommitProperties:
    """Returns what goes into a commit beside its rows."""
    return CommitProperties(
        app_transactions=[Transaction(app, position) for app, position in positions.items()],
        custom_metadata={NOTE_KEY: msgspec.json.encode(note).decode()} if note else None,
    )


def _file(row: Mapping[str, Any], root: str, partitions: Sequence[str]) -> File:
    values = {column: row.get(f"partition.{column}") for column in partitions}
    return File(
        path=root + unquote(row["path"]),
        size=row["size_bytes"],
        rows=row.get("num_records"),
        partition={column: None if value is None else str(value) for column, value in values.items()},
    )


def _check_files(place: Place, table: Delta) -> None:
    for file in table.files():
        path = file.path.removeprefix(f"{place.uri}/")
        if place.call("look", partial(place.store.size, path)) is None:
            raise CallError(f"table {place.name!r}: version {table.version} has lost {path} to a vacuum")


def _before(keep_seconds: float) -> int:
    return machine_us() - int(keep_seconds * 1e6)


def _text(time_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat()
