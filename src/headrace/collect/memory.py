"""What the settler remembers of a partition, kept on disk so that a restart need not read days of events.

It may lag behind what was settled, and never leads: it is written after the transaction that it belongs to.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Self

import msgspec

from headrace.base.errors import FormatError, FullError, HeadraceError, UnavailableError
from headrace.base.sqlite import connect, migrate, transaction
from headrace.base.telemetry import get_logger
from headrace.events.seen import Seen
from headrace.events.settle import State, Visitor

_FORMAT = (
    """
    create table progress(
        one integer primary key check (one = 1), incarnation text not null, position integer not null,
        newest_us integer not null, settled integer not null, failed integer not null, seen blob not null);
    create table visitors(visitor text primary key, log_us integer not null, remembered blob not null) without rowid;
    create index visitors_by_time on visitors(log_us);
    """,
    "alter table progress add column dimensions blob not null default '{}'",
)
_CACHED_VISITORS = 50_000
_FORGOTTEN_AT_ONCE = 2_000

_encoder = msgspec.msgpack.Encoder()
_visitors = msgspec.msgpack.Decoder(Visitor)
_dimensions = msgspec.json.Decoder(dict[str, int]).decode


class Visitors(dict[str, Visitor]):
    """The visitors of a partition: those of late in memory, all others in the file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__()
        self._connection = connection

    def get(self, key: str, default: Visitor | None = None) -> Visitor | None:  # type: ignore[override]  # no other default is needed
        """Returns what is remembered of a visitor."""
        found = super().get(key)
        if found is not None:
            return found
        row = self._connection.execute("select remembered from visitors where visitor = ?", (key,)).fetchone()
        if row is None:
            return default
        self[key] = _visitors.decode(row[0])
        return self[key]


class Memory:
    """The state of one partition with its file."""

    def __init__(self, connection: sqlite3.Connection, folder: Path, state: State, visitors: Visitors) -> None:
        self.state = state
        self._connection = connection
        self._folder = folder
        self._visitors = visitors
        self._touched: set[str] = set()

    @classmethod
    def open(cls, folder: Path, partition: int, incarnation: str, *, position: int) -> Self:
        """Returns what is remembered, as far as it fits a position in `clicks`; else an empty memory."""
        with _telling(folder):
            try:
                found = cls._read(folder, partition, incarnation)
            except (FormatError, sqlite3.DatabaseError) as error:
                if _will_pass(error):
                    raise
                get_logger("settler").warning("what was remembered of partition %d is unreadable: %s", partition, error)
            else:
                if found.state.offset <= position:
                    return found
                # It leads: the topic it belongs to was taken back to an earlier day.
                found.close()
            shutil.rmtree(folder, ignore_errors=True)
            return cls._read(folder, partition, incarnation)

    @classmethod
    def _read(cls, folder: Path, partition: int, incarnation: str) -> Self:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "state.db"
        connection = connect(path)
        try:
            # Lost with the power, it lags a little more, and that is all.
            connection.execute("pragma synchronous = normal")
            migrate(connection, _FORMAT, what=str(path))
            row = connection.execute(
                "select incarnation, position, newest_us, settled, failed, dimensions, seen from progress"
            ).fetchone()
            visitors = Visitors(connection)
            if row is None or row[0] != incarnation:
                connection.execute("delete from visitors")
                row = (incarnation, 0, 0, 0, 0, b"{}", b"")
            numbers = {name: row[place] for place, name in enumerate(("offset", "newest_us", "settled", "failed"), 1)}
            dimensions, seen = _dimensions(row[5]), Seen.open(folder / "seen", row[6])
            state = State(seen, visitors, partition, **numbers, dimensions=dimensions)
        except (HeadraceError, sqlite3.Error):
            connection.close()
            raise
        return cls(connection, folder, state, visitors)

    def touch(self, visitors: Iterable[str]) -> None:
        """Notes the visitors whose entries have changed."""
        self._touched.update(visitors)

    def save(self, incarnation: str, *, before_us: int) -> None:
        """Writes all that has changed, in one transaction, and forgets what is older than `before_us`.

        After an OutsideError the memory must be opened again.
        """
        with _telling(self._folder):
            self._save(incarnation, before_us)

    def _save(self, incarnation: str, before_us: int) -> None:
        state, seen = self.state, self._seen
        seen.forget(before_us << 1)
        manifest, dimensions = seen.save(), msgspec.json.encode(state.dimensions)
        rows = []
        for key in self._touched:
            visitor = self._visitors[key]
            rows.append((key, visitor.log_us, _encoder.encode(visitor)))
        with transaction(self._connection):
            self._connection.executemany("insert or replace into visitors values (?, ?, ?)", sorted(rows))
            self._connection.execute(
                "delete from visitors where visitor in (select visitor from visitors where log_us < ? limit ?)",
                (before_us, _FORGOTTEN_AT_ONCE),
            )
            self._connection.execute(
                "insert or replace into progress(one, incarnation, position, newest_us, settled, failed, dimensions, "
                "seen) values (1, ?, ?, ?, ?, ?, ?, ?)",
                (incarnation, state.offset, state.newest_us, state.settled, state.failed, dimensions, manifest),
            )
        seen.saved()
        self._touched.clear()
        if len(self._visitors) > _CACHED_VISITORS:
            self._visitors.clear()

    def close(self) -> None:
        """Closes the files; what was not saved is settled again without output."""
        self._connection.close()
        self._seen.close()

    @property
    def _seen(self) -> Seen:
        seen = self.state.seen
        assert isinstance(seen, Seen)
        return seen


class Home:
    """The folder in which one settler keeps its memories; nobody else writes there while it lives."""

    def __init__(self, folder: Path, lock: IO[str]) -> None:
        self.folder = folder
        self._lock = lock

    @classmethod
    def take(cls, root: Path, member: str) -> Self:
        """Returns a folder of the member's own: a frozen process of that name may still hold the first."""
        with _telling(root):
            root.mkdir(parents=True, exist_ok=True)
            for number in count():
                folder = root / (member if not number else f"{member}.{number}")
                lock = (root / f"{folder.name}.lock").open("a", encoding="utf-8")
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    lock.close()
                    continue
                return cls(folder, lock)
        raise UnavailableError(f"no folder in {root} could be locked")

    def partition(self, number: int) -> Path:
        """Returns the folder of a partition's memory."""
        return self.folder / f"partition-{number}"

    def close(self) -> None:
        """Lets others have the folder."""
        self._lock.close()


@contextmanager
def _telling(folder: Path) -> Iterator[None]:
    """Makes what a disk refuses an error after which the settler begins anew, rather than one that ends the process."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        text = f"what the settler remembers cannot be kept in {folder}: {error}"
        is_full = getattr(error, "errno", None) == errno.ENOSPC or _code(error) == sqlite3.SQLITE_FULL
        raise (FullError if is_full else UnavailableError)(text) from error


def _will_pass(error: Exception) -> bool:
    """Whether the file may be sound and only cannot be opened now, as on a full disk."""
    code = _code(error)
    if code & 0xFF == sqlite3.SQLITE_IOERR:
        return code not in (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY)


def _code(error: Exception) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code
