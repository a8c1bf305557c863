"""A table that is damaged, foreign or out of reach is told with the file that is to blame."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest

from headrace.base.errors import CallError, FormatError, MissingExtraError, PositionError, UnavailableError, UrlError
from headrace.tables import open_tables
from survive.stream import make_project
from survive.yard import Yard
from tables.rows import SCHEMA, numbers, rows

_FEATURE = '{"minReaderVersion":3,"minWriterVersion":7,"readerFeatures":["%s"],"writerFeatures":["%s"]}'


@pytest.fixture
def table(local):
    """A table of four versions."""
    table = local().create("events", SCHEMA)
    for number in range(3):
        table.append(rows(number))
    return table


def commit(table, version):
    return Path(table.uri) / "_delta_log" / f"{version:020d}.json"


def parquet(table):
    return Path(table.files()[0].path)


@pytest.mark.parametrize(
    ("version", "text", "told"),
    [
        (2, '{"add": {"pa', r"00002\.json is damaged: line 1"),
        (2, "\0\xff\1", r"00002\.json is damaged: line 1"),
        (2, "", r"00002\.json is an empty file: what was committed with it is lost"),
        (1, None, r"00001\.json is missing, though later commits stand"),
        (0, None, r"00000\.json is missing, though later commits stand"),
    ],
)
def test_a_damaged_commit_is_named(local, table, version, text, told):
    if text is None:
        commit(table, version).unlink()
    else:
        commit(table, version).write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match=told):
        local().open("events")
    with pytest.raises(FormatError, match=told):
        table.reload()


def test_a_damaged_checkpoint_is_named(local, table):
    table.checkpoint()
    table.clean_log(keep_seconds=0)
    checkpoint = commit(table, 3).with_suffix(".checkpoint.parquet")
    checkpoint.write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(FormatError, match=r"00003\.checkpoint\.parquet is damaged"):
        local().open("events")
    checkpoint.unlink()
    with pytest.raises(FormatError, match="_last_checkpoint names a checkpoint, and its file is missing"):
        local().open("events")


def test_a_damaged_data_file_is_named(local, table):
    found = parquet(table)
    found.write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(FormatError, match=f"{found.name} is damaged"):
        numbers(local().open("events"))
    found.unlink()
    with pytest.raises(FormatError, match=f"{found.name} is missing, though the table's log lists it"):
        numbers(local().open("events"))


def test_a_log_that_lost_its_newest_commit_stops_its_users(table):
    commit(table, 3).unlink()
    with pytest.raises(PositionError, match="went back from version 3 to 2"):
        table.reload()


@pytest.mark.parametrize(
    ("protocol", "told"),
    [
        ('{"minReaderVersion":9,"minWriterVersion":9}', "reader version 9"),
        (
            _FEATURE % ("fancy", "fancy"),
            "'fancy' is not supported",
        ),
        (
            _FEATURE % ("deletionVectors", "deletionVectors"),
            r"uses deletionVectors \(protocol 3/7\)",
        ),
    ],
)
def test_a_foreign_protocol_is_named(local, table, protocol, told):
    commit(table, 4).write_text(f'{{"protocol":{protocol}}}\n')
    with pytest.raises(FormatError, match=told):
        local().open("events")


def test_what_only_writers_must_know_can_be_read_and_not_appended_to(local, table):
    commit(table, 4).write_text('{"protocol":{"minReaderVersion":1,"minWriterVersion":7,"writerFeatures":["fancy"]}}\n')
    again = local().open("events")
    assert numbers(again) == [0, 1, 2]
    with pytest.raises(FormatError, match=r"cannot write.*fancy"):
        again.append(rows(4))


def test_a_folder_with_a_percent_sign_is_refused(tmp_path):
    with pytest.raises(UrlError, match="'%' in its name"):
        open_tables("file:///50%25", root=tmp_path)


@pytest.mark.parametrize("url", ["hdfs:///lake", "hdfs://name:8020", "hdfs://name:8020/my lake", "hdfs://n:1/läke"])
def test_an_hdfs_url_names_a_folder_that_can_be_found(url):
    with pytest.raises(UrlError, match="hdfs"):
        open_tables(url)


def test_a_name_node_that_nobody_runs_is_told(unused_port):
    tables = open_tables(f"hdfs://127.0.0.1:{unused_port}/lake?deadline_seconds=30")
    with pytest.raises(UnavailableError, match="Connection refused"):
        tables.open("events")
    with pytest.raises(UnavailableError, match="Connection refused"):
        tables.names()


@pytest.mark.parametrize("name", ["", "_hidden", "../up", "a b", "é", "x" * 201])
def test_a_name_that_not_every_store_takes_is_refused(local, name):
    with pytest.raises(CallError, match="table name"):
        local().create(name, SCHEMA)
    with pytest.raises(CallError, match="table name"):
        local().open(name)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ([("a b", pa.int64())], "cannot be named 'a b'"),
        ([("a", pa.int64()), ("A", pa.int64())], "differ in case only"),
        ([("a", pa.uint64())], r"t\.a has the type uint64"),
        ([("a", pa.timestamp("us"))], "timestamp"),
        ([("a", pa.list_(pa.timestamp("ns", "UTC")))], "timestamp"),
    ],
)
def test_columns_that_not_every_engine_reads_are_refused(local, fields, told):
    with pytest.raises(CallError, match=told):
        local().create("t", pa.schema(fields), partition_by=())


def test_every_engine_reads_the_columns_that_are_taken(local):
    kinds = [pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.float32(), pa.binary(), pa.decimal128(18, 4)]
    nested = [pa.list_(pa.string()), pa.struct([("x", pa.int64())]), pa.map_(pa.string(), pa.int64())]
    schema = pa.schema([(f"c{i}", kind) for i, kind in enumerate([*kinds, *nested, pa.timestamp("us", "UTC")])])
    table = local().create("t", schema, partition_by=())
    table.append(pa.table({name: pa.nulls(2, schema.field(name).type) for name in schema.names}, schema=schema))
    assert table.scan().table().num_rows == 2
    assert table.scan().duckdb().fetchall() == [(None,) * len(schema)] * 2
    protocol = deltalake.DeltaTable(table.uri).protocol()
    assert (protocol.min_reader_version, protocol.min_writer_version) == (1, 2)


def test_a_partition_column_must_exist(local):
    with pytest.raises(CallError, match="no column 'received_date' to be partitioned by"):
        local().create("t", pa.schema([("a", pa.int64())]))


def test_polars_is_named_where_it_is_missing(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    monkeypatch.delitem(sys.modules, "headrace.tables.polars", raising=False)
    with pytest.raises(MissingExtraError, match=r"pip install 'headrace\[polars\]'"):
        table.scan().polars()


def _cut(table):
    path = parquet(table)
    path.write_bytes(path.read_bytes()[:3000])
    return f"{path.name} cannot be read, a file of the table 'events'"


def _lose(table):
    parquet(table).unlink()
    return f"{parquet(table).name} is missing, a file of the table 'events'"


def _lose_commit(table):
    commit(table, 1).unlink()
    return r"00001\.json is missing, though later commits stand"


@pytest.mark.slow
@pytest.mark.parametrize("damage", [_cut, _lose, _lose_commit])
def test_sql_names_the_file_that_is_to_blame(tmp_path, damage):
    make_project(tmp_path)
    with closing(Yard(tmp_path)) as yard:
        for first in (0, 10):
            yard.click(first, 10)
            yard.settle("ann")
            yard.fill("ann")
        assert yard.project.query("select count(*) n from events").table().to_pylist() == [{"n": 20}]
        told = damage(yard.project.tables.open("events"))
        with pytest.raises(FormatError, match=told):
            yard.project.query("select count(*) n, max(seq) from events").table()
