"""SQLite files: formats, transactions, and what durable means."""

from __future__ import annotations

import sqlite3

import pytest

from headrace.base.errors import FormatError
from headrace.base.sqlite import connect, migrate, transaction

STEPS = (
    "create table a (x integer); insert into a values (1);",
    "alter table a add column y text default 'old'; create table b (z integer);",
)


@pytest.fixture
def file(tmp_path):
    connection = connect(tmp_path / "file")
    yield connection
    connection.close()


def version(connection):
    return connection.execute("pragma user_version").fetchone()[0]


def test_commits_are_synced_and_the_log_is_bounded(file):
    assert file.execute("pragma journal_mode").fetchone() == ("wal",)
    assert file.execute("pragma synchronous").fetchone() == (2,), "FULL"
    pages = file.execute("pragma wal_autocheckpoint").fetchone()[0]
    size = file.execute("pragma page_size").fetchone()[0]
    assert 0 < pages * size <= 32 << 20


def test_an_older_file_is_brought_up_and_keeps_its_rows(file):
    migrate(file, STEPS[:1], what="the file")
    file.execute("insert into a values (2)")
    migrate(file, STEPS, what="the file")
    assert version(file) == 2
    assert file.execute("select x, y from a order by x").fetchall() == [(1, "old"), (2, "old")]
    migrate(file, STEPS, what="the file")
    assert file.execute("select count(*) from a").fetchone() == (2,)


def test_a_newer_file_is_refused_and_left_alone(file):
    migrate(file, STEPS, what="the file")
    with pytest.raises(FormatError) as caught:
        migrate(file, STEPS[:1], what="the file")
    assert str(caught.value) == (
        "the file has format 2, this Headrace reads formats up to 1. Run the newer Headrace that wrote it"
    )
    assert version(file) == 2


def test_a_migration_that_fails_leaves_the_older_format(file):
    migrate(file, STEPS[:1], what="the file")
    broken = (STEPS[0], "alter table a add column y text; insert into nowhere values (1)")
    with pytest.raises(sqlite3.OperationalError):
        migrate(file, broken, what="the file")
    assert version(file) == 1
    assert [row[1] for row in file.execute("pragma table_info(a)")] == ["x"]


def insert_into(file, *tables):
    with transaction(file):
        for table in tables:
            file.execute(f"insert into {table} values (1)")


def test_a_transaction_is_whole_or_nothing(file):
    migrate(file, STEPS, what="the file")
    with pytest.raises(sqlite3.OperationalError):
        insert_into(file, "b", "nowhere")
    assert not file.in_transaction
    insert_into(file, "b")
    assert file.execute("select z from b").fetchall() == [(1,)]


def test_a_read_only_connection_writes_nothing_and_makes_no_file(tmp_path, file):
    migrate(file, STEPS, what="the file")
    reader = connect(tmp_path / "file", read_only=True)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("insert into b values (1)")
    reader.close()
    with pytest.raises(sqlite3.OperationalError):
        connect(tmp_path / "absent", read_only=True)
    assert not (tmp_path / "absent").exists()
