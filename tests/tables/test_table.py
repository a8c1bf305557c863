"""What every store of tables does alike: a folder and a real HDFS."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from datetime import date
from pathlib import Path

import deltalake
import pyarrow as pa
import pytest
from deltalake.fs import DeltaStorageHandler

from headrace.base.errors import CallError, FencedError, PositionError, UnavailableError, UnknownNameError
from headrace.tables import open_tables
from headrace.tables.cache import Cache
from tables.rows import DAY, SCHEMA, many, numbers, rows


def test_appended_rows_are_read_back_whichever_way(lake):
    table = lake().create("events", SCHEMA, description="what happened")
    assert table.append(rows(3, 1, word=None)) == 1
    assert table.append(rows(2, day=None)) == 2
    expected = [(1, None, DAY), (2, "wört 'n 日本", None), (3, None, DAY)]
    again = lake().open("events")
    scan = again.scan()
    assert scan.schema == SCHEMA
    assert sorted(tuple(row.values()) for row in scan.table().to_pylist()) == expected
    assert scan.duckdb().order("number").fetchall() == expected
    assert again.scan(["wörd", "number"]).table().schema.names == ["wörd", "number"]
    assert again.description == "what happened"
    assert sum(file.rows for file in again.files()) == 3
    assert {file.partition["received_date"] for file in again.files()} == {"2026-11-21", None}


def test_a_partition_may_have_any_text(lake):
    schema = pa.schema([("number", pa.int64()), ("plâce", pa.string())])
    table = lake().create("events", schema, partition_by=["plâce"])
    places = ["007", "50%/2", "a b", "x=1", "日本 'é'", "%41", None]
    table.append(pa.table({"number": range(len(places)), "plâce": places}, schema=schema))
    expected = list(enumerate(places))
    assert table.scan().duckdb().order("number").fetchall() == expected
    assert sorted(tuple(row.values()) for row in table.scan().table().to_pylist()) == expected
    assert {file.partition["plâce"] for file in table.files()} == set(places)


def test_polars_reads_old_and_new_files_alike(lake):
    pytest.importorskip("polars")
    schema = pa.schema([("number", pa.int32()), ("plâce", pa.string())])
    table = lake().create("events", schema, partition_by=["plâce"])
    assert table.scan().polars().collect().rows() == []
    table.append(pa.table({"number": [1, 2], "plâce": ["007", None]}, schema=pa.schema(schema)))
    table.evolve(pa.schema([("number", pa.int64()), ("more", pa.string())]))
    table.append(pa.table({"number": [1 << 40], "plâce": ["a b'%"], "more": ["é"]}))
    found = table.scan().polars().sort("number").collect()
    assert found.rows() == [(1, "007", None), (2, None, None), (1 << 40, "a b'%", "é")]
    assert found.columns == ["number", "plâce", "more"]


def test_an_append_may_be_empty_small_or_large(lake):
    table = lake().create("events", SCHEMA)
    assert table.scan().table().num_rows == 0
    assert table.scan().duckdb().fetchall() == []
    table.append(rows(), positions={"a": 1})
    table.append(many(1), positions={"a": 2})
    table.append(many(100_000, start=1), positions={"a": 100_001})
    assert table.position("a") == 100_001
    assert numbers(table) == list(range(100_001))


def test_positions_and_rows_are_one(lake):
    table = lake().create("events", SCHEMA)
    assert table.position("i/0") is None
    table.append(rows(1), positions={"i/0": 5, "i/1": 7})
    table.advance({"i/1": 9}, {"idle": True})
    again = lake().open("events")
    assert (again.position("i/0"), again.position("i/1"), again.position("i/2")) == (5, 9, None)
    assert numbers(again) == [1]


def test_a_stale_writer_is_fenced_and_goes_on_after_a_reload(lake):
    first = lake().create("events", SCHEMA)
    zombie = lake().open("events")
    first.append(rows(1), positions={"i/0": 1})
    with pytest.raises(FencedError, match="somebody else moved it"):
        zombie.append(rows(1), positions={"i/0": 1})
    with pytest.raises(FencedError, match="may have landed"):
        zombie.append(rows(2), positions={"i/0": 2})
    zombie.reload()
    with pytest.raises(FencedError, match="stands at 1, asked to move to 1"):
        zombie.append(rows(1), positions={"i/0": 1})
    zombie.append(rows(2), positions={"i/0": 2})
    assert numbers(zombie) == [1, 2]


def test_a_stale_writer_is_fenced_when_it_only_advances(lake):
    first = lake().create("events", SCHEMA)
    zombie = lake().open("events")
    first.advance({"i/0": 5})
    with pytest.raises(FencedError):
        zombie.advance({"i/0": 4})
    assert lake().open("events").position("i/0") == 5


def test_positions_of_others_are_read_anew_when_their_commits_were_taken_in(lake):
    one = lake().create("events", SCHEMA)
    assert one.position("b") is None
    lake().open("events").append(rows(7), positions={"b": 7})
    one.append(rows(1), positions={"a": 1})
    with pytest.raises(FencedError, match="stands at 7"):
        one.append(rows(6), positions={"b": 6})


def test_two_writers_that_both_want_everything_write_it_once(lake):
    lake().create("events", SCHEMA)
    total = 24

    def write(conflicts):
        table = lake().open("events")
        while (position := table.position("i/0") or 0) < total:
            try:
                table.append(rows(position), positions={"i/0": position + 1})
            except FencedError:
                conflicts.append(position)
                table.reload()

    conflicts = []
    writers = [threading.Thread(target=write, args=(conflicts,)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert numbers(lake().open("events")) == list(range(total))
    assert conflicts


def test_the_past_is_read_by_version_and_by_time(lake):
    table = lake().create("events", SCHEMA)
    for number in (1, 2, 3):
        table.append(rows(number))
        time.sleep(0.002)  # the log tells time in milliseconds
    assert numbers(table.at(2)) == [1, 2]
    commits = table.history()
    assert [commit.version for commit in commits] == [3, 2, 1, 0]
    assert numbers(table.at(time_us=commits[1].time_us)) == [1, 2]
    assert numbers(table.at(time_us=commits[0].time_us + 10**9)) == [1, 2, 3]
    with pytest.raises(CallError, match="no version as old"):
        table.at(time_us=commits[-1].time_us - 1)
    with pytest.raises(CallError, match="has no version 9; its newest is 3"):
        table.at(9)
    with pytest.raises(CallError, match="can only be read"):
        table.at(2).append(rows(1))


def test_history_tells_who_wrote_what(lake):
    table = lake().create("events", SCHEMA)
    table.append(rows(1, 2), positions={"i/0": 2}, note={"topic": "événts", "offsets": {"0": [0, 2]}})
    deltalake.write_deltalake(table.uri, rows(3), mode="append")
    theirs, ours, made = lake().open("events").history()
    assert (ours.rows, ours.files, ours.note) == (2, 1, {"topic": "événts", "offsets": {"0": [0, 2]}})
    assert (theirs.rows, theirs.note, theirs.operation) == (1, {}, "WRITE")
    assert theirs.producer.startswith("delta-rs")
    assert made.operation == "CREATE TABLE"
    assert len(table.history(1)) == 1


def test_a_schema_grows_and_widens_and_nothing_else(lake):
    small = pa.schema([("a", pa.int32()), ("b", pa.float32()), ("c", pa.string())])
    table = lake().create("events", small, partition_by=())
    table.append(pa.table({"a": [1], "b": [0.5], "c": ["x"]}, schema=small), positions={"i/0": 1})
    wider = pa.schema([("a", pa.int64()), ("b", pa.float64()), ("c", pa.string()), ("d", pa.string())])
    table.append(pa.table({"a": [1 << 40], "b": [1e300], "c": ["y"], "d": ["new"]}, schema=wider), evolve=True)
    table.append(pa.table({"c": ["z"]}), positions={"i/0": 2})
    expected = [(1, 0.5, "x", None), (1 << 40, 1e300, "y", "new"), (None, None, "z", None)]
    again = lake().open("events")
    assert again.schema == wider
    assert again.scan().duckdb().order("c").fetchall() == expected
    assert sorted((tuple(r.values()) for r in again.scan().table().to_pylist()), key=lambda r: r[2]) == expected
    assert again.position("i/0") == 2
    with pytest.raises(CallError, match=r"events\.c: found string, asked for int64"):
        table.evolve(pa.schema([("c", pa.int64())]))
    with pytest.raises(CallError, match=r"events\.a: found int64, asked to append double"):
        table.append(pa.table({"a": [1.5]}))
    with pytest.raises(CallError, match=r"events\.e: found no such column"):
        table.append(pa.table({"e": [1]}))
    with pytest.raises(CallError, match="asked for one without nulls"):
        table.evolve(pa.schema([pa.field("f", pa.string(), nullable=False)]))


def test_a_writer_of_the_old_schema_is_fenced_and_goes_on(lake):
    table = lake().create("events", SCHEMA)
    stale = lake().open("events")
    table.evolve(pa.schema([*SCHEMA, ("more", pa.string())]))
    with pytest.raises(FencedError):
        stale.append(rows(1), positions={"i/0": 1})
    stale.reload()
    stale.append(rows(1), positions={"i/0": 1})
    assert stale.scan(["more"]).table().to_pylist() == [{"more": None}]


def test_creating_twice_gives_the_table_that_stands(lake):
    table = lake().create("events", SCHEMA, properties={"headrace.incarnation": "one"})
    table.append(rows(1))
    again = lake().create("events", SCHEMA, properties={"headrace.incarnation": "two"})
    assert (again.version, again.properties["headrace.incarnation"]) == (1, "one")
    again.state({"headrace.incarnation": "three"})
    table.reload()
    assert table.properties["headrace.incarnation"] == "three"
    with pytest.raises(CallError, match=r"events\.number is int64, asked for string"):
        lake().create("events", pa.schema([("number", pa.string()), *list(SCHEMA)[1:]]))
    with pytest.raises(CallError, match=r"partitioned by \['received_date'\], asked for \[\]"):
        lake().create("events", SCHEMA, partition_by=())


def test_names_are_listed_and_a_wrong_one_finds_its_neighbour(lake):
    tables = lake()
    assert tables.names() == []
    with pytest.raises(UnknownNameError, match="known: none yet"):
        tables.open("events")
    for name in ("events", "decisions"):
        tables.create(name, SCHEMA).pin(owner="ann", reason="a look")
    assert lake().names() == ["decisions", "events"]
    with pytest.raises(UnknownNameError, match=r"no table 'decision'\. Did you mean decisions\?"):
        tables.open("decision")


@pytest.mark.parametrize("lake_folder", ["file", "file/below"])
def test_a_lake_whose_folder_cannot_be_made_says_so(tmp_path, lake_folder):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match=r"the lake's folder '.*file.*' cannot be made: .*\. Make it, or give"):
        open_tables(f"file:///{lake_folder}", root=tmp_path)


def test_a_cache_whose_folder_cannot_be_made_says_so(local, tmp_path):
    table = local().create("events", SCHEMA)
    table.append(rows(0, 2))
    (tmp_path / "file").write_text("")
    table._lake = replace(table._lake, cache=Cache(tmp_path / "file" / "below", max_bytes=1))
    with pytest.raises(UnavailableError, match=r"table 'events': its files cannot be copied here: .*file/below"):
        table.local_files()


def test_compaction_changes_no_row_and_fences_nobody(lake):
    table = lake().create("events", SCHEMA)
    for number in range(5):
        table.append(rows(number), positions={"i/0": number + 1})
    keeper = lake().open("events")
    done = keeper.optimize()
    assert (done.files_before, done.files_after) == (5, 1)
    assert done.bytes_after < done.bytes_before
    keeper.checkpoint()
    table.append(rows(5), positions={"i/0": 6})
    assert numbers(table) == list(range(6))
    table.reload()
    assert (table.position("i/0"), len(table.files())) == (6, 2)


def test_old_days_leave_whole(lake):
    table = lake().create("events", SCHEMA)
    for day in (19, 20, 21):
        table.append(rows(day, day=date(2026, 11, day)))
    assert table.delete_partitions_before(date(2026, 11, 21)) == 2
    assert numbers(table) == [21]
    plain = lake().create("plain", pa.schema([("a", pa.int64())]), partition_by=())
    with pytest.raises(CallError, match="not partitioned by received_date"):
        plain.delete_partitions_before(DAY)


def test_vacuum_works_around_a_pin_and_refuses_to_break_it(lake):
    table = lake().create("events", SCHEMA)
    table.append(rows(1))
    table.append(rows(2))
    pin = table.pin(owner="ann", reason="trained model 7 on it")
    table.append(rows(3))
    table.optimize()
    table.optimize()
    with pytest.raises(CallError, match=r"version 2 for ann \(trained model 7 on it\)"):
        table.vacuum(keep_seconds=0, around_pins=False)
    table.reload()
    would_go = table.vacuum(keep_seconds=0, dry_run=True)
    assert table.vacuum(keep_seconds=0) == would_go
    assert len(would_go) == 1
    assert numbers(table.at(2)) == [1, 2]
    assert lake().open("events").pins() == [pin]
    table.unpin(pin.id)
    assert table.pins() == []
    assert len(set(table.vacuum(keep_seconds=0)) - set(would_go)) == 2
    assert numbers(table) == [1, 2, 3]
    with pytest.raises(UnknownNameError, match="no pin of table 'events'"):
        table.unpin(pin.id)
    with pytest.raises(CallError, match="version 2 has lost"):
        table.pin(owner="ann", reason="too late", version=2)
    assert table.pins() == []


def test_the_log_is_cleaned_up_to_what_is_pinned(lake):
    table = lake().create("events", SCHEMA)
    for number in range(3):
        table.append(rows(number))
    table.checkpoint()
    table.append(rows(3))
    pin = table.pin(owner="ann", reason="audit")
    table.append(rows(4))
    table.checkpoint()
    with pytest.raises(CallError, match="version 4 for ann"):
        table.clean_log(keep_seconds=0, around_pins=False)
    gone = table.clean_log(keep_seconds=0)
    assert gone == [f"{version:020d}.json" for version in range(3)]
    assert numbers(table.at(4)) == [0, 1, 2, 3]
    with pytest.raises(CallError, match="version 2 is no longer in the log, which begins at 3"):
        table.at(2)
    with pytest.raises(CallError, match="no longer in the log"):
        table.pin(owner="ann", reason="late", version=1)
    assert [found.id for found in table.pins()] == [pin.id]
    table.unpin(pin.id)
    table.clean_log(keep_seconds=0)
    again = lake().open("events")
    assert numbers(again) == list(range(5))
    assert again.append(rows(5), positions={"i/0": 1}) == 6


def test_a_pin_needs_a_reason(lake):
    with pytest.raises(CallError, match="needs an owner and a reason"):
        lake().create("events", SCHEMA).pin(owner="ann", reason=" ")


def test_a_table_that_was_replaced_stops_its_users(lake):
    table = lake().create("events", SCHEMA)
    table.append(rows(1))
    deltalake.DeltaTable.create(table.uri, SCHEMA, mode="overwrite")
    with pytest.raises(PositionError, match="was replaced"):
        table.reload()


def test_what_broken_writers_left_in_the_log_is_removed(lake):
    table = lake().create("events", SCHEMA)
    table.append(rows(1))
    beside = DeltaStorageHandler(table.uri)._handler
    stale = [".00000000000000000001.json.tmp.3", ".00000000000000000009.json.tmp.7"]
    for name in stale:
        stream = beside.open_output_stream(f"_delta_log/{name}")
        stream.write(b"{}")
        stream.close()
    assert table.clean_log(keep_seconds=3600) == []
    assert table.clean_log(keep_seconds=0) == stale
    assert numbers(lake().open("events")) == [1]


def test_torn_files_leave_a_local_folder(local):
    table = local().create("events", SCHEMA)
    table.append(rows(1))
    torn = Path(table.files()[0].path + "#1")
    torn.write_bytes(b"half a file")
    table.vacuum()
    assert torn.exists()
    os.utime(torn, (0, 0))
    table.vacuum()
    assert not torn.exists()
    assert numbers(table) == [1]
