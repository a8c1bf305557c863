"""Delta tables of protocol 1/2, in a local folder or on HDFS, which every engine reads and appends to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import msgspec
import pyarrow as pa
from deltalake import (
    CommitProperties,
    DeltaTable,
    Field,
    PostCommitHookProperties,
    QueryBuilder,
    Transaction,
    WriterProperties,
    write_deltalake,
)

from headrace.base.errors import CallError, FencedError, HeadraceError, PositionError
from headrace.tables.columns import Evolution, align, plan_evolution
from headrace.tables.damage import brief
from headrace.tables.place import Place
from headrace.tables.table import Commit, File, check_schema

NOTE_KEY = "headrace"
_EPOCH = datetime.fromtimestamp(0, UTC)
_HOOKS = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)


class Delta:
    """One table at one version, read and appended to through one object of the library.

    The library compares an append only with what that object has seen, so the position that was read and the
    append that follows must go through the same one.
    """

    def __init__(self, place: Place, loaded: DeltaTable, *, reads_only: bool = False) -> None:
        self.name = place.name
        self.uri = place.uri
        self._place = place
        self._loaded = loaded
        self._reads_only = reads_only
        self._failed = ""

    @property
    def version(self) -> int:
        """The version of the loaded snapshot."""
        return int(self._loaded.version())

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
        if newest.metadata().id != self._loaded.metadata().id:
            raise PositionError(f"table {self.name!r} at {self.uri} was replaced by another one under the same name")
        if newest.version() < self.version:
            raise PositionError(
                f"table {self.name!r} at {self.uri} went back from version {self.version} to {newest.version()}: "
                "commits are gone from its log. Restore them, or start a new table"
            )
        self._loaded = newest
        self._failed = ""

    def at(self, version: int | None = None, *, time_us: int | None = None) -> Delta:
        """Returns the table as it was at a version or a time, for reading only."""
        if (version is None) == (time_us is None):
            raise CallError(f"table {self.name!r}: give either a version or a time to go to")
        if version is None:
            version = self._version_at(time_us or 0)
        if not 0 <= version <= self.version:
            raise CallError(f"table {self.name!r} has no version {version}; its newest is {self.version}")
        wanted = version
        return Delta(self._place, self._place.load(wanted), reads_only=True)

    def _version_at(self, time_us: int) -> int:
        oldest = None
        for commit in self.history():
            if commit.time_us <= time_us:
                return commit.version
            oldest = commit
        first = f"; the oldest that is known is from {_text(oldest.time_us)}" if oldest else ""
        raise CallError(f"table {self.name!r} has no version as old as {_text(time_us)}{first}")

    def position(self, app: str) -> int | None:
        """Returns the position that `app` committed with its rows, as of this snapshot."""
        return self._loaded.transaction_version(app)

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
        with self._writing():
            self._place.call("append", lambda: self._write(aligned, positions, note))
        return self.version

    def advance(self, positions: Mapping[str, int], note: Mapping[str, Any] = {}) -> int:
        """Returns the new version, which only moves the positions."""
        return self.append(self.schema.empty_table(), positions=positions, note=note)

    def _write(self, rows: pa.Table, positions: Mapping[str, int], note: Mapping[str, Any]) -> None:
        write_deltalake(
            self._loaded,
            rows,
            mode="append",
            writer_properties=WriterProperties(compression="ZSTD", compression_level=1),
            commit_properties=commit_properties(positions, note),
            post_commithook_properties=_HOOKS,
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
        self._failed = "it was cut off"
        try:
            yield
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
                post_commithook_properties=_HOOKS,
            )
        if evolution.widened is not None:
            wider = pa.schema([*evolution.widened, *evolution.added])
            write_deltalake(
                self._loaded,
                pa.RecordBatchReader.from_batches(wider, (b.cast(wider) for b in read_batches(self._loaded, "*"))),
                mode="overwrite",
                schema_mode="overwrite",
                partition_by=list(self.partitions) or None,
                writer_properties=WriterProperties(compression="ZSTD", compression_level=1),
                commit_properties=note,
                post_commithook_properties=_HOOKS,
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
        found = self._place.call("history", lambda: self._loaded.history(limit))
        return [_commit(info) for info in found]

    def files(self) -> list[File]:
        """Returns the files of this snapshot."""
        actions = self._place.call("files", lambda: pa.table(self._loaded.get_add_actions(flatten=True)))
        return [_file(row, f"{self.uri}/", self.partitions) for row in actions.to_pylist()]


def read_batches(loaded: DeltaTable, columns: str) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a snapshot, read by the library's own engine: Arrow's would abort the process at exit."""
    query = QueryBuilder().register("snapshot", loaded).execute(f"select {columns} from snapshot")  # noqa: S608
    yield from pa.RecordBatchReader.from_stream(query)


def commit_properties(positions: Mapping[str, int], note: Mapping[str, Any]) -> CommitProperties:
    """Returns what goes into a commit beside its rows."""
    return CommitProperties(
        app_transactions=[Transaction(app, position) for app, position in positions.items()],
        custom_metadata={NOTE_KEY: msgspec.json.encode(note).decode()} if note else None,
    )


def _commit(info: Mapping[str, Any]) -> Commit:
    metrics = {key: _whole(value) for key, value in (info.get("operationMetrics") or {}).items()}
    return Commit(
        version=info["version"],
        time_us=int(info.get("timestamp") or 0) * 1000,
        operation=info.get("operation") or "",
        producer=info.get("engineInfo") or "",
        rows=metrics.get("num_added_rows", metrics.get("numOutputRows")),
        files=metrics.get("num_added_files", metrics.get("numFiles")),
        note=_note(info.get(NOTE_KEY)),
    )


def _whole(value: Any) -> int | None:
    # Spark writes its numbers as text, and optimize writes some as JSON.
    text = str(value)
    return int(text) if text.isdecimal() else None


def _note(text: Any) -> Mapping[str, Any]:
    try:
        found = msgspec.json.decode(text) if isinstance(text, str) else {}
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _file(row: Mapping[str, Any], root: str, partitions: Sequence[str]) -> File:
    values = {column: row.get(f"partition.{column}") for column in partitions}
    return File(
        path=root + unquote(row["path"]),
        size=row["size_bytes"],
        rows=row.get("num_records"),
        partition={column: None if value is None else str(value) for column, value in values.items()},
    )


def _text(time_us: int) -> str:
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat()
