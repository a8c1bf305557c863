"""An online store in one SQLite file: one updater writes, and every door reads for itself."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from headrace.base import fault
from headrace.base.errors import CallError, FencedError, UnavailableError
from headrace.base.sqlite import connect, migrate, one_view, told, transaction
from headrace.base.urls import Url
from headrace.features.feature import Column
from headrace.features.online import Place, Snapshot, State
from headrace.features.tiles import is_watched

_STEPS = (
    """
    create table if not exists generations (
        generation integer primary key, serves integer not null, columns blob not null, state blob not null
    ) strict;
    create table if not exists blobs (
        generation integer not null, entity blob not null, partition integer not null, revision integer not null,
        watched integer not null, value blob not null, primary key (generation, entity, partition)
    ) strict, without rowid;
    create index if not exists watched_blobs on blobs (generation, revision) where watched
    """,
)
_PATIENCE_SECONDS = 5.0
_SWEPT = 2_000
_PER_LOAD = 400

_decode_state = msgspec.json.Decoder(State).decode
_decode_columns = msgspec.json.Decoder(tuple[Column, ...]).decode
_encode = msgspec.json.Encoder().encode


class _NoOptions(msgspec.Struct):
    pass


class SqliteOnline:
    """The online store of `sqlite:///path.db`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the store in the file of a URL."""
        url.read_options(_NoOptions)
        if url.address or url.path in ("", "/"):
            raise CallError(f"online store {str(url)!r}: write sqlite:///path/of/file.db")
        return cls(url.local_path())

    def read_state(self) -> State | None:
        """Returns the state of the generation that serves."""
        if not self._path.is_file():
            return None
        with self._read() as connection:
            return _find_serving(connection)

    def read_states(self) -> list[State]:
        """Returns the states of all generations, the oldest first."""
        if not self._path.is_file():
            return []
        with self._read() as connection:
            rows = connection.execute("select state from generations order by generation").fetchall()
        return [_decode_state(state) for (state,) in rows]

    def read_columns(self, generation: int) -> tuple[Column, ...]:
        """Returns the columns that a generation has tiles for."""
        with self._read() as connection:
            row = connection.execute("select columns from generations where generation = ?", (generation,)).fetchone()
        if row is None:
            raise self._fenced(generation)
        return _decode_columns(row[0])

    def begin(self, state: State, columns: Sequence[Column]) -> None:
        """Makes a generation that serves nobody yet."""
        with self._written() as connection:
            connection.execute(
                "insert into generations values (?, 0, ?, ?)",
                (state.generation, _encode(tuple(columns)), _encode(state)),
            )

    def load(self, generation: int, places: Sequence[Place]) -> dict[Place, bytes]:
        """Returns the blobs at some places."""
        found: dict[Place, bytes] = {}
        wanted, entities = set(places), sorted({entity for entity, _ in places})
        with self._read() as connection:
            for start in range(0, len(entities), _PER_LOAD):
                some = entities[start : start + _PER_LOAD]
                marks = ",".join("?" * len(some))
                sql = f"select entity, partition, value from blobs where generation = ? and entity in ({marks})"  # noqa: S608 - question marks
                rows = connection.execute(sql, (generation, *some))
                found.update(((row[0], row[1]), row[2]) for row in rows if (row[0], row[1]) in wanted)
        return found

    def commit(self, changes: Mapping[Place, bytes], state: State, expected: State) -> None:
        """Writes blobs and state together."""
        rows = [
            (state.generation, entity, partition, state.revision, is_watched(entity), value)
            for (entity, partition), value in sorted(changes.items())
        ]
        with self._written() as connection:
            self._check(connection, expected)
            connection.executemany("insert or replace into blobs values (?, ?, ?, ?, ?, ?)", rows)
            connection.execute(
                "update generations set state = ? where generation = ?", (_encode(state), state.generation)
            )
            fault.point("online.written")

    def promote(self, state: State) -> bool:
        """Lets a generation serve instead of all others."""
        with self._written() as connection:
            self._check(connection, state)
            serving = _find_serving(connection)
            if serving is not None and serving.incarnation == state.incarnation:
                ahead = zip(serving.offsets, state.offsets, strict=True)
                if any(theirs > ours for theirs, ours in ahead):
                    return False
            connection.execute("delete from generations where generation <> ?", (state.generation,))
            connection.execute("update generations set serves = 1")
        return True

    def drop(self, generation: int) -> None:
        """Takes away a generation that does not serve."""
        with self._written() as connection:
            connection.execute("delete from generations where generation = ? and not serves", (generation,))

    def sweep(self) -> bool:
        """Removes some blobs of generations that were taken away."""
        with self._written() as connection:
            generation = _find_left(connection)
            # A portion at a time: readers and the updater are waiting.
            connection.execute(
                "delete from blobs where generation = ?1 and (entity, partition) in "
                "(select entity, partition from blobs where generation = ?1 limit ?2)",
                (generation, _SWEPT),
            )
        return generation is not None

    def snapshot(self, entities: Sequence[bytes], *, since: tuple[int, int] | None = None) -> Snapshot:
        """Returns what serves, as of one instant."""
        with self._read() as connection, one_view(connection):
            state = _find_serving(connection)
            if state is None:
                raise UnavailableError(
                    f"the online store {str(self._path)!r} has no features that serve yet. Does the updater run? "
                    "See: headrace status"
                )
            generation = state.generation
            blobs = {
                entity: connection.execute(
                    "select partition, value from blobs where generation = ? and entity = ? order by partition",
                    (generation, entity),
                ).fetchall()
                for entity in entities
            }
            changed = [] if since is None else _find_changed(connection, state, since)
        return Snapshot(state, blobs, changed)

    def close(self) -> None:
        """Lets go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _check(self, connection: sqlite3.Connection, expected: State) -> None:
        row = connection.execute(
            "select state from generations where generation = ?", (expected.generation,)
        ).fetchone()
        if row is None or _decode_state(row[0]) != expected:
            raise self._fenced(expected.generation)

    def _fenced(self, generation: int) -> FencedError:
        return FencedError(
            f"generation {generation} of the online store {str(self._path)!r} was moved on or replaced by somebody "
            "else meanwhile; one updater at a time may write it"
        )

    @contextlib.contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            yield self._opened(may_make=False)

    @contextlib.contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            connection = self._opened(may_make=True)
            with transaction(connection):
                yield connection

    def _opened(self, *, may_make: bool) -> sqlite3.Connection:
        """Returns the connection; anew if another file stands in place of the one that was opened."""
        found = self._find_file()
        if self._connection is not None and found == self._file:
            return self._connection
        if self._connection is not None:
            gone, self._connection, self._file = self._connection, None, None
            gone.close()
            if may_make:
                raise UnavailableError(f"the online store {str(self._path)!r} was taken away or replaced; begin anew")
        if found is None and not may_make:
            raise UnavailableError(
                f"there is no online store at {str(self._path)!r} yet. Does the updater run? See: headrace status"
            )
        return self._open()

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as unless_open:
            connection = connect(self._path)
            unless_open.callback(connection.close)
            connection.execute(f"pragma busy_timeout = {int(_PATIENCE_SECONDS * 1000)}")
            # State and blobs go together: what a dead machine has lost of both is counted again from `events`.
            connection.execute("pragma synchronous = normal")
            migrate(connection, _STEPS, what=f"online store {self._path}")
            unless_open.pop_all()
        self._connection, self._file = connection, self._find_file()
        return connection

    def _find_file(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        what = f"the online store {str(self._path)!r}"
        try:
            with told(what, hint=". Remove the file: the updater makes it anew from the lake"):
                yield
        except OSError as error:
            raise UnavailableError(f"{what} cannot be opened: {error}") from error


def _find_serving(connection: sqlite3.Connection) -> State | None:
    row: Any = connection.execute("select state from generations where serves").fetchone()
    return None if row is None else _decode_state(row[0])


def _find_left(connection: sqlite3.Connection) -> int | None:
    """Returns a generation that was taken away and has blobs; a row of each is looked at, not all of them."""
    standing = {row[0] for row in connection.execute("select generation from generations")}
    found: Any = (0,)
    while found[0] is not None:
        found = connection.execute("select min(generation) from blobs where generation > ?", found).fetchone()
        if found[0] not in standing:
            break
    generation: int | None = found[0]
    return generation


def _find_changed(connection: sqlite3.Connection, state: State, since: tuple[int, int]) -> list[tuple[Place, bytes]]:
    revision = since[1] if since[0] == state.generation else -1
    if revision == state.revision:
        return []
    rows = connection.execute(
        "select entity, partition, value from blobs where generation = ? and revision > ? and watched",
        (state.generation, revision),
    )
    return [((entity, partition), value) for entity, partition, value in rows]
