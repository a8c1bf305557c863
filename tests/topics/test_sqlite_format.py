"""The file of an embedded log, format 1: docs/contracts/embedded-log.md, held by a file that was written once.

`python tests/topics/test_sqlite_format.py` makes the golden file anew; do that for a new format only,
under a new name, and keep the old file with its tests.
"""

import contextlib
import gzip
import sqlite3
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
import zstandard

from headrace.base.clock import machine_us
from headrace.base.errors import FormatError, UnknownNameError
from headrace.topics import Bounds, Record, Topic
from headrace.topics import sqlite_frames as frames
from headrace.topics.sqlite import SqliteTopics
from headrace.topics.sqlite_store import FORMAT, SqliteStore, row_id

GOLDEN = Path(__file__).parent / "topics-format-1.db.gz"
PAGE = Path(__file__).parents[2] / "docs" / "contracts" / "embedded-log.md"

START_US = 1_767_571_200_000_000
LONG_SECONDS = 100_000_000_000
PRODUCER = "01KE5BQ2000000000000000000"

ODD = [
    Record(None, b"no key", START_US),
    Record(b"", b"", START_US + 1_000),
    Record(b"gone", None, START_US + 2_000),
    Record("zoë".encode(), bytes(range(256)), START_US + 3_000, (("door", b"{}"), ("door", b"\0"), ("leer", b""))),
]
CLICKS = [Record(b"visitor-%d" % (n % 7), b'{"n":%d}' % n, START_US + n * 1_000) for n in range(200)]


def make_golden(folder):
    """Writes the records above through the public calls, and one frame of a producer by hand."""
    topics = SqliteTopics(folder)
    topics.create("odd", partitions=1, retention_seconds=LONG_SECONDS)
    topics.create("clicks", partitions=4, retention_seconds=None)
    Topic(topics, "odd").append(ODD)
    for start in range(0, len(CLICKS), 50):
        Topic(topics, "clicks").append(CLICKS[start : start + 50])
    with Topic(topics, "clicks").consume("golden") as consumer:
        consumer.poll(max_records=120)
        consumer.commit()
    topics.close()
    store = SqliteStore.open(folder / "topics.db")
    store.commit([frames.pack(_resent_frame())])
    store.close()
    return (folder / "topics.db").read_bytes()


def _resent_frame():
    blob = frames.pack_records([Record(b"visitor-0", b'{"n":200}', START_US + 200_000)])
    return frames.Append(PRODUCER, 3, [frames.Part(2, 0, 1, START_US + 200_000, blob)])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "topics.db").write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    # Producers are forgotten a day after they were last heard of.
    with contextlib.closing(sqlite3.connect(tmp_path / "topics.db")) as connection, connection:
        connection.execute("update producers set used_us = ?", (machine_us(),))
    return tmp_path


@pytest.fixture
def topics(folder):
    opened = SqliteTopics(folder)
    yield opened
    opened.close()


def _plain(message):
    return (message.key, message.value, message.time_us, message.headers)


def _in_order(messages):
    return [_plain(message) for message in sorted(messages, key=lambda one: one.time_us)]


def test_file_of_format_1_is_read_whole(topics):
    assert topics.names() == ["clicks", "odd"]
    assert [_plain(m) for m in Topic(topics, "odd").read()] == [_plain(record) for record in ODD]
    found = Topic(topics, "clicks").read()
    assert _in_order(found)[:200] == [_plain(record) for record in CLICKS]
    assert len(found) == 201
    assert topics.describe("odd").retention_seconds == LONG_SECONDS
    assert topics.describe("clicks").retention_seconds is None
    assert len(topics.describe("clicks").incarnation) == 26


def test_file_of_format_1_keeps_its_groups_and_times(topics):
    assert sum(group.position.offset for group in topics.groups("clicks")) == 120
    with Topic(topics, "clicks").consume("golden") as consumer:
        assert len(consumer.poll()) == 81
        consumer.commit()
    assert topics.offsets_at("odd", START_US + 2_000) == [2]
    assert topics.bounds("odd") == [Bounds(0, 4)]


def test_file_of_format_1_is_appended_to_and_stays_readable(folder, topics):
    before = Topic(topics, "clicks").read()
    more = [Record(b"visitor-1", b"more", START_US + 300_000 + n * 1_000) for n in range(3)]
    places = Topic(topics, "clicks").append(more)
    topics.close()
    again = SqliteTopics(folder)
    after = Topic(again, "clicks").read()
    again.close()
    assert [place.offset for place in places] == list(range(places[0].offset, places[0].offset + 3))
    assert [_plain(m) for m in after if m.value != b"more"] == [_plain(m) for m in before]
    assert [_plain(m) for m in after if m.value == b"more"] == [_plain(record) for record in more]
    assert _user_version(folder) == 2


def test_frame_that_the_file_knows_is_answered_again_and_not_written_again(folder, topics):
    before = topics.bounds("clicks")
    store = SqliteStore.open(folder / "topics.db")
    answer = frames.read_answer(store.commit([frames.pack(_resent_frame())])[0])
    store.close()
    assert (answer.sequence, answer.numbers, answer.error) == (3, [before[0].end - 1], "")
    assert topics.bounds("clicks") == before


def test_blobs_are_what_the_page_says(folder):
    connection = sqlite3.connect(folder / "topics.db")
    rows = connection.execute("select id, count, newest_us, blob from log order by id").fetchall()
    names = dict(connection.execute("select id, name from topics"))
    connection.close()
    found = {}
    for number, count, newest_us, blob in rows:
        topic, partition, offset = number >> 50, number >> 40 & 1023, number & (1 << 40) - 1
        assert row_id(topic, partition, offset) == number
        records = msgspec.msgpack.decode(zstandard.decompress(blob))
        assert len(records) == count
        assert max(time_us for _, _, time_us, _ in records) <= newest_us
        assert found.setdefault((names[topic], partition), []) == [] or offset > 0
        found[names[topic], partition] += records
    assert [(k, v, t, tuple(map(tuple, h))) for k, v, t, h in found["odd", 0]] == [_plain(record) for record in ODD]
    assert sum(len(records) for (name, _), records in found.items() if name == "clicks") == 201


def test_page_shows_every_table_as_the_code_makes_it():
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    for statement in filter(str.strip, ";".join(FORMAT).split(";")):
        assert " ".join(statement.split()) in page
    assert f"version {len(FORMAT)}" in page


@pytest.mark.parametrize(
    "call", [SqliteTopics.names, lambda topics: topics.create("new", partitions=1, retention_seconds=None)]
)
def test_file_of_a_newer_format_is_refused(folder, topics, call):
    _set_user_version(folder, 3)
    with pytest.raises(FormatError) as caught:
        call(topics)
    assert str(caught.value) == (
        f"{folder / 'topics.db'} has format 3, this Headrace reads formats up to 2. "
        "Run the newer Headrace that wrote it"
    )
    assert _user_version(folder) == 3


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_file_that_nobody_has_written_to_yet_is_no_file(tmp_path, journal):
    (tmp_path / "topics.db").touch()
    sqlite3.connect(tmp_path / "topics.db").execute(f"pragma journal_mode = {journal}").connection.close()
    topics = SqliteTopics(tmp_path)
    assert topics.names() == []
    with pytest.raises(UnknownNameError, match="none yet"):
        topics.describe("clicks")
    topics.create("clicks", partitions=1, retention_seconds=None)
    assert topics.names() == ["clicks"]
    topics.close()


def test_file_that_is_no_database_is_an_error_that_says_so(tmp_path):
    (tmp_path / "topics.db").write_bytes(b"this is no database, whatever its name says" * 100)
    topics = SqliteTopics(tmp_path)
    with pytest.raises(FormatError, match="file is not a database"):
        topics.names()
    topics.close()


def _user_version(folder):
    connection = sqlite3.connect(folder / "topics.db")
    try:
        return connection.execute("pragma user_version").fetchone()[0]
    finally:
        connection.close()


def _set_user_version(folder, version):
    connection = sqlite3.connect(folder / "topics.db")
    connection.execute(f"pragma user_version = {version}")
    connection.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        data = make_golden(Path(made))
    GOLDEN.write_bytes(gzip.compress(data, mtime=0))
    sys.stdout.write(f"{GOLDEN}: {len(data):,} bytes, {GOLDEN.stat().st_size:,} packed\n")
