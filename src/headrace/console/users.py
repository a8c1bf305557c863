"""Who may use the console's pages, and who has logged in: one small file that its owner alone may read.

It holds hashes only, of passwords and of the tokens of sessions. A user who is taken away loses all sessions in the
same transaction; the doors see it at the next request.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from headrace.base.errors import CallError, UnavailableError, unknown_name
from headrace.base.sqlite import connect, migrate, told, transaction

FILE = "console.db"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")

_STEPS = (
    """
    create table users (
        name text primary key, level text not null, password text not null, made_us integer not null
    ) strict;
    create table sessions (
        hash blob primary key, name text not null, made_us integer not null, seen_us integer not null
    ) strict;
    create index sessions_by_name on sessions (name, made_us);
    create table secrets (value blob not null) strict
    """,
)
_MAX_SESSIONS = 20


class User(msgspec.Struct, frozen=True):
    """Somebody who may log in."""

    name: str
    level: str
    made_us: int


class Session(msgspec.Struct, frozen=True):
    """Somebody who has logged in."""

    user: User
    made_us: int
    seen_us: int


class Users:
    """The users of one project's console and their sessions.

    What only reads belongs to one thread, whatever writes may come from any.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / FILE
        with self._told():
            try:
                state.mkdir(parents=True, exist_ok=True)
                # The files that SQLite puts beside it take over its mode.
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError as error:
                raise UnavailableError(f"cannot write {str(self._path)!r}: {error.strerror}") from error
            self._reader = connect(self._path)
            migrate(self._reader, _STEPS, what=str(self._path))

    def close(self) -> None:
        """Closes the file."""
        self._reader.close()

    def users(self) -> list[User]:
        """Returns all users by name."""
        return [User(*row) for row in self._ask("select name, level, made_us from users order by name")]

    def find(self, name: str) -> tuple[User, str] | None:
        """Returns a user with the hash of the password."""
        rows = self._ask("select name, level, made_us, password from users where name = ?", name)
        return (User(*rows[0][:3]), rows[0][3]) if rows else None

    def find_session(self, token_hash: bytes) -> Session | None:
        """Returns the session of a token, with its user's level of this moment."""
        rows = self._ask(
            "select name, level, u.made_us, s.made_us, s.seen_us from sessions s join users u using (name) "
            "where hash = ?",
            token_hash,
        )
        return Session(User(*rows[0][:3]), *rows[0][3:]) if rows else None

    def secret(self) -> bytes:
        """Returns the key of the tokens in forms, made the first time."""
        if not self._ask("select 1 from secrets"):
            with self._written() as connection:
                connection.execute(
                    "insert into secrets select ? where not exists (select 1 from secrets)", (secrets.token_bytes(32),)
                )
        return bytes(self._ask("select value from secrets")[0][0])

    def refuse(self, name: str) -> None:
        """Raises CallError for a name that nobody can have, or that somebody has."""
        if not NAME.fullmatch(name):
            raise CallError(f"user {name!r}: a name has 1 to 64 letters, digits and . _ @ + -, no sign first")
        if self.find(name):
            raise CallError(f"user {name!r} stands already. Take it away first: headrace key revoke {name}")

    def add(self, user: User, password: str) -> None:
        """Adds a user, given the hash of a password."""
        self.refuse(user.name)
        row = (user.name, user.level, password, user.made_us)
        with self._written() as connection:
            added = connection.execute("insert or ignore into users values (?, ?, ?, ?)", row).rowcount
        if not added:
            self.refuse(user.name)

    def remove(self, name: str) -> None:
        """Takes a user away, with all sessions."""
        if not NAME.fullmatch(name):
            raise unknown_name("user", name, [user.name for user in self.users()])
        with self._written() as connection:
            connection.execute("delete from sessions where name = ?", (name,))
            if not connection.execute("delete from users where name = ?", (name,)).rowcount:
                raise unknown_name("user", name, [user.name for user in self.users()])

    def open_session(self, token_hash: bytes, name: str, *, password: str, now_us: int, since_us: int) -> None:
        """Begins a session, unless the user has another password by now, given the hash of the one that was right.

        Sessions made before `since_us` are forgotten, as are all but the newest few of a user.
        """
        with self._written() as connection:
            connection.execute("delete from sessions where made_us < ?", (since_us,))
            connection.execute(
                "delete from sessions where hash in "
                "(select hash from sessions where name = ? order by made_us desc limit -1 offset ?)",
                (name, _MAX_SESSIONS - 1),
            )
            connection.execute(
                "insert into sessions select ?, name, ?, ? from users where name = ? and password = ?",
                (token_hash, now_us, now_us, name, password),
            )

    def touch_session(self, token_hash: bytes, now_us: int) -> None:
        """Notes that a session is in use."""
        with self._written() as connection:
            connection.execute("update sessions set seen_us = ? where hash = ?", (now_us, token_hash))

    def close_session(self, token_hash: bytes) -> None:
        """Ends a session."""
        with self._written() as connection:
            connection.execute("delete from sessions where hash = ?", (token_hash,))

    def _ask(self, sql: str, *values: object) -> list[Any]:
        with self._told():
            return self._reader.execute(sql, values).fetchall()

    @contextmanager
    def _written(self) -> Iterator[sqlite3.Connection]:
        with self._told(), closing(connect(self._path)) as connection, transaction(connection):
            yield connection

    def _told(self) -> AbstractContextManager[None]:
        hint = ". Take it away and name its users again: headrace key create NAME --console LEVEL"
        return told(f"the file of users {str(self._path)!r}", hint=hint)
