"""A registry in one SQLite file. Writes are rare, so every process writes for itself."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec

from headrace.base.errors import CallError, FencedError, FormatError, UnavailableError, unknown_name
from headrace.base.sqlite import connect, migrate, told, transaction
from headrace.base.urls import Url
from headrace.models.model import Bundle, unpack
from headrace.models.registry import Entry, Fitted

_STEPS = (
    """
    create table if not exists bundles (
        id integer primary key, hash text unique not null, name text not null, kind text not null,
        at_us integer not null, manifest blob not null, packed blob not null
    ) strict;
    create table if not exists entries (
        id integer primary key autoincrement, kind text not null, name text not null, value blob not null,
        at_us integer not null, by text not null
    ) strict;
    create index if not exists entries_by_name on entries (kind, name, id);
    create index if not exists bundles_by_name on bundles (name, id)
    """,
)
_PATIENCE_SECONDS = 5.0
_MAX_BYTES = 900 << 20


class _NoOptions(msgspec.Struct):
    pass


class SqliteRegistry:
    """The registry of `sqlite:///path.db`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnavailableError(f"cannot make the folder of the registry {str(path)!r}: {error.strerror}") from error
        self._reopened = 0
        self._file: tuple[int, int] | None = None
        with self._told():
            self._open()

    @classmethod
    def from_url(cls, url: Url) -> Self:
        """Returns the registry in the file of a URL."""
        url.read_options(_NoOptions)
        if url.address or url.path in ("", "/"):
            raise CallError(f"registry {str(url)!r}: write sqlite:///path/of/file.db")
        return cls(url.local_path())

    def stamp(self) -> int:
        """Returns a number that changes whenever a bundle or a row is added."""
        (found,) = self._ask("select (select count(*) from bundles) + (select ifnull(max(id), 0) from entries)")
        # Another file may have as many rows as the one before.
        return (self._reopened << 32) + int(found[0])

    def add(self, bundle: Bundle, *entries: Entry) -> str:
        """Returns the hash of a bundle, which stands in the registry from then on, and rows with it, all or none."""
        packed = bundle.packed
        if len(packed) > _MAX_BYTES:
            raise CallError(f"the bundle {bundle.name!r} has {len(packed):,} bytes, the registry takes {_MAX_BYTES:,}")
        row = (bundle.hash, bundle.name, bundle.kind, bundle.source.get("at_us", 0), bundle.manifest, packed)
        with self._written() as connection:
            connection.execute(
                "insert or ignore into bundles (hash, name, kind, at_us, manifest, packed) values (?, ?, ?, ?, ?, ?)",
                row,
            )
            for entry in entries:
                _insert(connection, entry)
        return bundle.hash

    def load(self, name_hash: str) -> Bundle:
        """Returns a bundle; raises UnknownNameError, or FormatError if it is damaged."""
        found = self._ask("select packed from bundles where hash = ?", name_hash)
        if not found:
            raise unknown_name("bundle", name_hash, [one.hash for one in self.bundles()][:5])
        bundle = unpack(found[0][0])
        if bundle.hash != name_hash:
            raise FormatError(f"the bundle {name_hash} is damaged: its manifest has the hash {bundle.hash}")
        return bundle

    def bundles(self, name: str | None = None) -> list[Fitted]:
        """Returns the bundles, the newest first."""
        rows = self._ask(
            "select hash, name, kind, at_us, length(packed), manifest from bundles "
            "where ?1 is null or name = ?1 order by id desc",
            name,
        )
        return [Fitted(*row) for row in rows]

    def write(self, *entries: Entry) -> tuple[Entry, ...]:
        """Returns the rows with their ids, all written or none.

        Raises FencedError unless the `id` of each is that of the newest of its kind and name; 0 stands for none yet.
        """
        with self._written() as connection:
            return tuple(_insert(connection, entry) for entry in entries)

    def newest(self, kind: str) -> dict[str, Entry]:
        """Returns the newest row of each name."""
        rows = self._ask(
            "select * from entries where id in (select max(id) from entries where kind = ? group by name)", kind
        )
        return {row[2]: Entry(*row) for row in rows}

    def entries(self, kind: str, name: str) -> list[Entry]:
        """Returns all rows of a kind and name, the oldest first."""
        return [
            Entry(*row)
            for row in self._ask("select * from entries where kind = ? and name = ? order by id", kind, name)
        ]

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def _open(self) -> None:
        self._connection = connect(self._path)
        self._connection.execute(f"pragma busy_timeout = {int(_PATIENCE_SECONDS * 1000)}")
        migrate(self._connection, _STEPS, what=f"registry {self._path}")
        self._file = self._find_file()

    def _find_file(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            # Not made anew: whoever took it away may be about to put another one there.
            raise UnavailableError(
                f"the registry {str(self._path)!r} was opened and is gone: {error.strerror}. Put it back, or fit anew"
            ) from error
        return found.st_dev, found.st_ino

    def _follow(self) -> None:
        """Opens the file anew if another one stands in its place: SQLite would go on with the old one for ever."""
        if self._find_file() != self._file:
            # Until it is open whole, every call tries again.
            self._file = None
            self._connection.close()
            self._reopened += 1
            self._open()

    def _ask(self, sql: str, *values: Any) -> Sequence[tuple[Any, ...]]:
        with self._lock, self._told():
            self._follow()
            rows: list[tuple[Any, ...]] = self._connection.execute(sql, values).fetchall()
            return rows

    @contextlib.contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._told():
            self._follow()
            with transaction(self._connection):
                yield self._connection

    def _told(self) -> contextlib.AbstractContextManager[None]:
        return told(f"the registry {str(self._path)!r}")


def _insert(connection: sqlite3.Connection, entry: Entry) -> Entry:
    (newest,) = connection.execute(
        "select ifnull(max(id), 0) from entries where kind = ? and name = ?", (entry.kind, entry.name)
    ).fetchone()
    if newest != entry.id:
        raise FencedError(
            f"the {entry.kind} of {entry.name!r} was changed by somebody else meanwhile "
            f"(row {newest}, expected {entry.id}). Look at it again"
        )
    row = (entry.kind, entry.name, entry.value, entry.at_us, entry.by)
    made = connection.execute(
        "insert into entries (kind, name, value, at_us, by) values (?, ?, ?, ?, ?)", row
    ).lastrowid
    return msgspec.structs.replace(entry, id=made)
