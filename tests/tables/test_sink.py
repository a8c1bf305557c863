"""The sink on real topics and tables: every record is one row, whoever else is at it."""

import json
import threading
import time
from datetime import date
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from headrace.base.errors import FormatError, PositionError
from headrace.base.telemetry import Metrics
from headrace.engines import Source, open_engine
from headrace.stream import CODECS
from headrace.tables import open_tables
from headrace.tables.codec import make_codec
from headrace.tables.sink import INCARNATION, METRICS, Flush, Sink
from headrace.topics import Move, Record, Topic, open_topics

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
GOLDEN = {"events": "settled-event", "decisions": "decision"}
DAY_US = 86_400_000_000


class Seat(msgspec.Struct):
    """One row of the tests."""

    received_us: int
    seat: str | None = None
    notes: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


NESTED = b'{"seat":"s","x":' + b"[" * 3000 + b"]" * 3000 + b"}"
PROGRESS = (("progress", b""),)
CODEC = make_codec(Seat, msgspec.json.Decoder(Seat).decode, ours=(lambda value: b"received_us" in value, PROGRESS))
NOW = Flush(seconds=0.0, advance_seconds=0.0)


class Bench:
    """A topic and the lake, for any number of sinks."""

    def __init__(self, folder):
        self.topics = open_topics("sqlite:///topics", root=folder)
        self.topics.create("seats", partitions=2, retention_seconds=None)
        self.tables = open_tables("file:///lake", root=folder)
        self.metrics = Metrics(METRICS)

    def append(self, first, count, *, day=0):
        records = [
            Record(b"%d" % n, b'{"received_us":%d,"seat":"s%d"}' % (day * DAY_US + n, n))
            for n in range(first, first + count)
        ]
        Topic(self.topics, "seats").append(records)

    def table(self):
        incarnation = self.topics.describe("seats").incarnation
        return self.tables.create("seats", CODEC.schema, properties={INCARNATION: incarnation})

    def sink(self, *, member="a", flush=NOW):
        return Sink(self.topics, "seats", self.table(), CODEC, member=(member, flush), metrics=self.metrics)

    def drain(self, **options):
        sink = self.sink(**options)
        while sink.turn():
            pass
        sink.flush()
        sink._share.close()

    def seats(self):
        rows = self.tables.open("seats").scan().table().to_pylist()
        return sorted(int(row["seat"][1:]) for row in rows)


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    yield made
    made.topics.close()


def test_rows_are_what_the_topic_holds_in_folders_of_their_day(bench):
    bench.append(0, 10)
    bench.append(10, 5, day=3)
    bench.drain()
    assert bench.seats() == list(range(15))
    table = bench.tables.open("seats")
    assert {file.partition["received_date"] for file in table.files()} == {"1970-01-01", "1970-01-04"}
    placed = {(m.partition, m.offset): m.value for m in Topic(bench.topics, "seats").read()}
    for row in table.scan().table().to_pylist():
        assert placed[row["log_partition"], row["log_offset"]].endswith(b'"seat":"%b"}' % row["seat"].encode())


def test_each_commit_says_where_its_rows_came_from(bench):
    bench.append(0, 10)
    bench.drain(member="sink-7")
    note = bench.tables.open("seats").history()[0].note
    assert note["topic"] == "seats"
    assert note["producer"] == "sink-7"
    assert note["incarnation"] == bench.topics.describe("seats").incarnation
    assert sum(end - start for start, end in note["offsets"].values()) == 10


def test_sink_goes_on_where_its_table_stands(bench):
    for turn in range(4):
        bench.append(turn * 10, 10)
        bench.drain(member=f"member-{turn}")
    assert bench.seats() == list(range(40))


def test_sink_that_was_frozen_is_refused_and_reads_again(bench):
    bench.append(0, 10)
    frozen = bench.sink(member="frozen", flush=Flush(seconds=60))
    frozen.turn()
    assert frozen._buffer.rows == 10
    # Its lease ends, as seen by another process, and all it has read is committed by another.
    thief = bench.topics.share("seats", "sink", member="frozen", lease_seconds=6.0)
    thief.held()
    thief.close()
    bench.drain(member="other")
    frozen.flush()
    assert bench.metrics.values()["headrace_sink_conflicts_total"] == 1
    assert bench.seats() == list(range(10))


def test_sinks_of_different_partitions_commit_side_by_side(bench):
    sinks = [bench.sink(member=name, flush=Flush(seconds=0.05)) for name in "ab"]
    stop = threading.Event()
    threads = [threading.Thread(target=sink.run, args=(stop,)) for sink in sinks]
    for thread in threads:
        thread.start()
    for turn in range(10):
        bench.append(turn * 20, 20)
        time.sleep(0.05)  # so that commits of both meet
    stop.set()
    for thread in threads:
        thread.join()
    bench.drain(member="c")
    assert bench.seats() == list(range(200))


def test_table_without_rows_still_moves_its_position(bench):
    share = bench.topics.share("seats", "maker", member="m", lease_seconds=6.0)
    share.held()
    progress = [Record(None, b"{}", 0, PROGRESS)]
    share.transact([Move(0, 1, {"seats": progress})], deadline_seconds=5)
    bench.drain()
    table = bench.tables.open("seats")
    assert table.position(f"{bench.topics.describe('seats').incarnation}/0") == 1
    assert bench.seats() == []


def test_another_incarnation_stops_the_sink_loudly(bench):
    bench.append(0, 10)
    bench.drain()
    bench.topics.drop("seats")
    bench.topics.create("seats", partitions=2, retention_seconds=None)
    bench.append(100, 5)
    table = bench.tables.open("seats")
    with pytest.raises(PositionError, match=r"headrace topic replay seats --fresh seats \| --continue seats"):
        Sink(bench.topics, "seats", table, CODEC, member=("a", NOW), metrics=bench.metrics)
    assert bench.seats() == list(range(10))


def test_position_that_the_topic_no_longer_has_stops_the_sink(bench):
    table = bench.table()
    incarnation = bench.topics.describe("seats").incarnation
    table.advance({f"{incarnation}/0": 50})
    with pytest.raises(PositionError, match="stands at 50"):
        bench.drain()


def test_row_that_cannot_be_read_stops_the_sink_and_names_its_place(bench):
    bench.append(0, 1)
    Topic(bench.topics, "seats").append([Record(b"0", b'{"received_us": "of a later version"}')])
    with pytest.raises(FormatError, match=r"topic 'seats', partition \d, offset \d+ holds a row that this Headrace"):
        bench.drain()


@pytest.mark.parametrize("value", [b'{"received_us":1,"notes":"\xff"}', b'{"received_us":%d}' % 10**30])
def test_row_that_no_column_can_hold_stops_the_sink_too(bench, value):
    Topic(bench.topics, "seats").append([Record(b"0", value)])
    with pytest.raises(FormatError, match="holds a row that this Headrace cannot read"):
        bench.drain()


def test_record_that_somebody_appended_by_hand_is_passed_over(bench):
    bench.append(0, 3)
    foreign = [Record(b"0", b"hello"), Record(b"1", b"{}", 0, (("h", b""),)), Record(b"2", None)]
    # Each has an error of its own: no UTF-8, in text and in what is passed over, and nesting without end.
    odd = [b"\xff\xfe", b'{"seat":"\xff"}', b'{"\xff":1}', b"[" * 3000 + b"]" * 3000, NESTED]
    foreign += [Record(b"3", value) for value in odd]
    Topic(bench.topics, "seats").append(foreign)
    bench.append(3, 3)
    bench.drain()
    assert bench.seats() == list(range(6))
    assert bench.metrics.values()["headrace_sink_skipped_total"] == 8


def test_new_column_is_added_to_the_table_that_stands(bench):
    bench.append(0, 3)
    bench.drain()

    class Wider(Seat):
        row: str | None = None

    codec = make_codec(Wider, msgspec.json.Decoder(Wider).decode)
    Topic(bench.topics, "seats").append([Record(b"9", b'{"received_us":9,"seat":"s9","row":"k"}')])
    sink = Sink(bench.topics, "seats", bench.tables.open("seats"), codec, member=("a", NOW), metrics=bench.metrics)
    while sink.turn():
        pass
    rows = bench.tables.open("seats").scan().table().to_pylist()
    assert sorted((row["seat"], row["row"]) for row in rows) == [("s0", None), ("s1", None), ("s2", None), ("s9", "k")]


ADDED = {"events": ("attributes", "dimensions"), "decisions": ("known", "dimensions", "vectors")}


@pytest.mark.parametrize("name", ADDED)
def test_lake_of_an_older_headrace_is_widened_and_its_rows_are_null_there(bench, tmp_path, name):
    codec = CODECS[name]
    older = codec.schema
    for column in ADDED[name]:
        older = older.remove(older.get_field_index(column))
    bench.topics.create(name, partitions=1, retention_seconds=None)
    properties = {INCARNATION: bench.topics.describe(name).incarnation}
    table = bench.tables.create(name, older, properties=properties)
    empty = {field.name: {pa.int64(): 0, pa.string(): ""}.get(field.type) for field in older} | {"log_offset": -1}
    table.append(pa.Table.from_pylist([empty | {"received_date": date(2026, 11, 20)}], older))
    row = json.loads((CONTRACTS / f"{GOLDEN[name]}.golden.json").read_text(encoding="utf-8"))[-1]
    more = {"dimensions": {"items": 2}, **({"known": [3, 4], "vectors": [[1]]} if name == "decisions" else {})}
    value = json.dumps(json.loads(row if isinstance(row, str) else json.dumps(row)) | more).encode()
    Topic(bench.topics, name).append([Record(b"ann", value)])
    sink = Sink(bench.topics, name, bench.tables.open(name), codec, member=("a", NOW), metrics=bench.metrics)
    while sink.turn():
        pass
    bench.tables.open(name).optimize()
    found = bench.tables.open(name)
    engine = open_engine("duckdb://", root=tmp_path)
    listed = ", ".join(ADDED[name])
    source = Source(name, found.schema, found.local_files(), found.partitions)
    with engine.query(f"SELECT {listed} FROM {name} ORDER BY log_offset", sources=[source]) as result:
        rows = result.table().to_pylist()
    assert list(rows[0].values()) == [None] * len(ADDED[name])
    assert json.loads(rows[1]["dimensions"]) == {"items": 2}
    assert all(value is not None for value in rows[1].values())


def test_many_commits_reload_their_snapshot_and_stay_exact(bench):
    sink = bench.sink(flush=Flush(seconds=0.0, reload_commits=5))
    for turn in range(20):
        bench.append(turn, 1)
        sink.turn()
        if turn == 12:
            bench.tables.open("seats").checkpoint()
    sink.flush()
    sink._share.close()
    assert bench.seats() == list(range(20))
